"""Whole pictures, the same ones, by every way to compute them: fused, plain, as published, as good as a compiler's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import best_formulation
import published_formulation
import torch
from compiling import compiled_by_torch
from torch import Tensor

from cips3d.cameras import Cameras, PoseDistribution, Rays
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig, CIPS3DStyles
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings, draw_random
from cips3d.ops import Precision, kernels
from cips3d.ops.march import RayDraws

GROUP = 4  # images at a time where every sample's activations are held


def multiply_adds(config: CIPS3DConfig, resolution: int, samples: int) -> int:
    """Multiply-adds of one picture's matrix products, with as many fine samples as coarse ones."""
    width, color = config.nerf_width, config.nerf_color_width
    sample = 3 * width + width * width + width + width * color
    ray = color * config.features
    inr = config.inr_width
    rgb = 3 * inr * (config.inr_blocks - config.inr_rgb_from)
    pixel = config.features * inr + (2 * config.inr_blocks - 1) * inr * inr + rgb
    return resolution**2 * (2 * samples * sample + ray + pixel)


class Pictures:
    """Pictures of random weights, z, cameras and draws, which every method gives.

    Args:
        device: where.
        batch: pictures.
        side: of a picture, in pixels.
        samples: coarse ones of a ray, and as many fine ones.
        config: of the generator; default: the published one.
    """

    def __init__(
        self, device: torch.device, batch: int, side: int, samples: int = 12, config: CIPS3DConfig | None = None
    ) -> None:
        torch.manual_seed(0)
        self.generator = CIPS3D(config).eval().to(device)
        self.settings = VolumeSettings(samples=samples)
        self.side = side
        random = torch.Generator(device).manual_seed(0)
        z = self.generator.sample_z(batch, generator=random)
        pitch, yaw = PoseDistribution().sample(batch, generator=random, device=device)
        with torch.no_grad():
            self.styles = self.generator.mapping(*z)
        self.cameras = Cameras.from_angles(pitch, yaw)
        self.draws = draw_random(batch, side * side, self.settings, generator=random, device=device)

    def ours(self, precision: Precision) -> Tensor:
        """By `CIPS3D.synthesis`: [B, R, 3], rays row after row."""
        self.generator.set_precision(precision)
        view = View(self.side, self.cameras, self.settings)
        return self.generator.synthesis(self.styles, view, draws=self.draws).image.flatten(2).mT

    def gradients(self, render: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        """Gradients, through every ray, of a method's pictures with respect to the volume and to the INR."""
        trained = [*self.generator.nerf.parameters(), *self.generator.inr.parameters()]
        return torch.autograd.grad(render().square().sum(), trained)

    def plain(self) -> Tensor:
        """The same in plain PyTorch, op by op, float32."""
        with kernels.disabled():
            return self.ours("highest")

    def published(self, *, compiled: bool = False, dtype: torch.dtype | None = None) -> Tensor:
        """In the published formulation, under autocast where there is a dtype."""
        render = compiled_by_torch(published_formulation.render) if compiled else published_formulation.render
        parts = []
        for styles, rays, draws in self.groups():
            with torch.autocast(rays.origins.device.type, dtype=dtype, enabled=dtype is not None), kernels.disabled():
                parts.append(render(self.generator, styles, rays, self.settings, draws).float())
        return torch.cat(parts)

    def best(self, *, compiled: bool = False, dtype: torch.dtype | None = None) -> Tensor:
        """In the formulation that suits a compiler best."""
        render = compiled_by_torch(best_formulation.render) if compiled else best_formulation.render
        parts = []
        for styles, rays, draws in self.groups():
            with kernels.disabled():
                parts.append(render(self.generator, styles, rays, self.settings, draws, dtype=dtype).float())
        return torch.cat(parts)

    def groups(self) -> Iterator[tuple[CIPS3DStyles, Rays, RayDraws]]:
        """Styles, rays and draws of `GROUP` images after another."""
        self.generator.set_precision("highest")
        rays = self.cameras.rays(self.side)
        for start in range(0, len(self.cameras), GROUP):
            images = slice(start, start + GROUP)
            some = Rays(rays.origins[images], rays.directions[images])
            styles = CIPS3DStyles(*(style[images] for style in self.styles))
            yield styles, some, self.draws.part(images, slice(None))
