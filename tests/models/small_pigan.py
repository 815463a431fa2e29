"""Small pi-GAN generators in float64, and what they render."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.models.pigan import PiGAN, PiGANConfig
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings
from cips3d.models.volume_generator import Rendering
from cips3d.ops.march import RayDraws

CONFIG = PiGANConfig(z_dim=5, width=12, layers=3, mapping_width=7, mapping_layers=3)
VARIANTS = {
    "box warp": CONFIG,
    "as they are": replace(CONFIG, box_warp=False),
    "grid": replace(CONFIG, grid_resolution=5, grid_width=4, grid_init_std=0.5),
}
BATCH = 2


def make(config: PiGANConfig = CONFIG) -> PiGAN:
    """Partly opaque, in float64."""
    torch.manual_seed(0)
    generator = PiGAN(config).double()
    with torch.no_grad():
        generator.nerf.density.weight.mul_(200.0)
    return generator


def inputs() -> tuple[Tensor, Cameras]:
    random = torch.Generator().manual_seed(1)
    z = torch.randn(BATCH, CONFIG.z_dim, generator=random, dtype=torch.float64)
    pitch, yaw = math.pi / 2 + 0.2 * torch.randn(2, BATCH, generator=random, dtype=torch.float64)
    return z, Cameras.from_angles(pitch, yaw)


def draws(rays: int, samples: int = 4) -> RayDraws:
    random = torch.Generator().manual_seed(2)
    return RayDraws(*torch.rand(2, BATCH, rays, samples, generator=random, dtype=torch.float64))


VOLUME = VolumeSettings(samples=4)
DRAWS = draws(25)


def render(
    model: PiGAN,
    resolution: Any = 5,
    volume: VolumeSettings = VOLUME,
    *,
    draws: RayDraws | None = DRAWS,
    chunk_rays: int | None = None,
    **view: Any,
) -> Rendering:
    z, cameras = inputs()
    seen: Rendering = model(z, view=View(resolution, cameras, volume, **view), draws=draws, chunk_rays=chunk_rays)
    return seen
