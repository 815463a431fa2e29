"""Whole generators through torch.compile: one graph, forward and backward, the same pictures and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops.backends import Backend
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.pigan import PiGAN
from cips3d.models.pigan_field import PiGANConfig
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings

CIPS3D_CONFIG = CIPS3DConfig(
    z_shape_dim=4,
    shape_style_dim=6,
    shape_mapping_layers=2,
    nerf_width=16,
    nerf_color_width=16,
    features=8,
    z_appearance_dim=4,
    appearance_style_dim=8,
    appearance_mapping_layers=2,
    inr_width=16,
    inr_blocks=2,
    inr_skip_from=1,
    inr_rgb_from=0,
    density_scale=20.0,
    initial_radius=0.1,
    rgb_init=1.0,
)
PIGAN_CONFIG = PiGANConfig(z_dim=4, width=16, layers=2, mapping_width=8, mapping_layers=2)

AnyModel = CIPS3D | PiGAN
MODELS: dict[str, Callable[[], AnyModel]] = {
    "cips3d": lambda: CIPS3D(CIPS3D_CONFIG),
    "pigan": lambda: PiGAN(PIGAN_CONFIG),
}


def picture_of(model: AnyModel) -> Callable[..., tuple[Tensor, ...]]:
    """From z, cameras and the draws of rays to everything that is seen."""

    def picture(z: tuple[Tensor, ...], cameras: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        volume = VolumeSettings(samples=4, last_back=True)
        view = View(6, Cameras(*cameras), volume, return_aux=model.has_aux_image, jitter=False)
        styles: Any = model.mapping(*z)
        seen = model.render(styles, view)
        return tuple(x for x in seen if x is not None)

    return picture


def run(function: Callable[..., tuple[Tensor, ...]], model: AnyModel, device: torch.device) -> list[Tensor]:
    z = tuple(x.to(device) for x in model.sample_z(2, generator=torch.Generator().manual_seed(1)))
    angles = torch.tensor([math.pi / 2 - 0.1, math.pi / 2 + 0.2])
    cameras = Cameras.from_angles(angles, angles).to(device)
    seen = function(z, (cameras.rotation, cameras.position, cameras.fov_degrees))
    loss = sum((x.square().mean() for x in seen), torch.zeros((), device=device))
    return [*seen, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("name", MODELS)
def test_whole_generators_compile(backend: Backend, name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().to(backend.device)
    torch.compiler.reset()
    compiled = torch.compile(picture_of(model), backend="aot_eager", fullgraph=True)
    for found, expected in zip(
        run(compiled, model, backend.device), run(picture_of(model), model, backend.device), strict=True
    ):
        # The same operations in the same order, but for sums that a matrix product adds up in another one.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
