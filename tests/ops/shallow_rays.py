"""Rays through shallow fields, for the tests of `render_rays` and of its gradients: settings, inputs and tolerances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from ops.backends import Backend
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.ops.film_siren import FoldedLayer
from cips3d.ops.march import RayDraws, RenderedRays
from cips3d.ops.precision import Precision
from cips3d.ops.render_rays import render_rays
from cips3d.ops.siren_field import SirenField

# Accurate products keep about 22 bits of both operands, so what is left is float32's own rounding, amplified by phases
# of tens of radians: as for plain float32. Fast ones round operands to 11 bits: 2⁻¹² each on average over a layer's
# inputs, times a phase's sensitivity, three layers: 5e-4 measured at these weights, four times that as a limit.
TOLERANCE: dict[Precision, float] = {"highest": 1e-5, "fast": 2e-3}
GRADIENT_TOLERANCE: dict[Precision, float] = {"highest": 5e-5, "fast": 5e-3}  # the same roundings forward and backward


@dataclass(frozen=True)
class Setting:
    """One way to render."""

    width: int = 128
    color: int = 64
    rays: int = 13
    coarse: int = 12
    fine: int = 12
    noise: bool = True
    last_back: bool = False
    activation: str = "relu"
    ball: float = 0.0


SETTINGS = {
    "published": Setting(),
    "last back": Setting(last_back=True, rays=7),
    "softplus, no noise": Setting(activation="softplus", noise=False, rays=5),
    "coarse only": Setting(fine=0, coarse=5, rays=37),
    "narrow, odd": Setting(width=33, color=7, coarse=5, fine=4, rays=3, last_back=True),
    "many samples": Setting(width=64, color=32, coarse=48, fine=48, rays=2),
    "wide": Setting(width=256, color=64, rays=5, last_back=True),
    "wide colours": Setting(width=48, color=256, rays=3, coarse=5, fine=6, activation="softplus"),
    "wide, odd": Setting(width=200, color=70, rays=11, coarse=12, fine=0, noise=False, ball=0.08),
    "ball": Setting(width=32, color=32, coarse=8, fine=8, rays=9, ball=0.08, last_back=True),
}


@dataclass(frozen=True)
class Inputs:
    origins: Tensor
    directions: Tensor
    field: SirenField
    draws: RayDraws

    def leaves(self) -> list[Tensor]:
        f = self.field
        return [*f.first, *f.second, *f.color, f.density_weight, f.density_bias, self.origins, self.directions]

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Copies whose layers and rays require gradients."""

        def copy(x: Tensor) -> Tensor:
            return x.detach().to(device, dtype).requires_grad_()

        f = self.field
        field = f._replace(
            **{name: FoldedLayer(*map(copy, getattr(f, name))) for name in ("first", "second", "color")},
            density_weight=copy(f.density_weight),
            density_bias=copy(f.density_bias),
        )
        draws = RayDraws(*(None if x is None else x.to(device, dtype) for x in self.draws))
        return Inputs(copy(self.origins), copy(self.directions), field, draws)


def sample_inputs(s: Setting, images: int = 2) -> Inputs:
    """Layers of a freshly initialised network: weights U(±√(6/in)/25) times gains of about 30."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def layer(width_in: int, width_out: int) -> FoldedLayer:
        bound = 30 * math.sqrt(6 / width_in) / 25
        return FoldedLayer(bound * (2 * uniform(images, width_out, width_in) - 1), 6 * uniform(images, width_out) - 3)

    rays = Cameras.from_angles(1.4 + 0.3 * uniform(images), 1.4 + 0.3 * uniform(images)).rays(8)
    index = torch.arange(s.rays) * 64 // s.rays
    first = layer(3, s.width)
    field = SirenField(
        FoldedLayer(first.weight / 0.12, first.bias),
        layer(s.width, s.width),
        layer(s.width, s.color),
        20 * (2 * uniform(s.width) - 1) / math.sqrt(s.width),
        8 + uniform(1),  # in empty bins the inverse distribution is so steep that any rounding moves a sample visibly
        30.0,
        s.ball,
    )
    noise = [0.5 * torch.randn(images, s.rays, n, generator=generator) for n in (s.coarse, s.coarse + s.fine)]
    draws = RayDraws(
        uniform(images, s.rays, s.coarse),
        uniform(images, s.rays, s.fine) if s.fine else None,
        noise[0] if s.noise else None,
        noise[1] if s.noise and s.fine else None,
    )
    return Inputs(rays.origins[:, index], rays.directions[:, index], field, draws)


def both_kinds(backend: Backend, inputs: Inputs) -> tuple[Inputs, Inputs]:
    """For the kernels, and for their reference in float64."""
    return inputs.to(backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)


def run(inputs: Inputs, s: Setting, precision: Precision) -> RenderedRays:
    return render_rays(
        *(inputs.origins, inputs.directions, inputs.field, inputs.draws, 0.88, 1.12),
        activation=s.activation,  # type: ignore[arg-type]
        last_back=s.last_back,
        precision=precision,
    )


def loss(seen: RenderedRays, *, with_weights: bool = True) -> Tensor:
    """A weighted sum of everything that can be differentiated; small, as gradients of a mean are.

    Weighing every sample's weight at random gives the least smooth function of the densities that there is: rounded
    operands are compared without.
    """
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=seen.colors.dtype, device=seen.colors.device)
    for x in (seen.colors, seen.opacity, seen.depth, *([seen.weights] if with_weights else [])):
        total = total + 1e-3 * (x * torch.randn(x.shape, generator=generator).to(x)).sum()
    return total


def cosine(a: Tensor, b: Tensor) -> float:
    return float(
        torch.cosine_similarity(a.detach().double().flatten().cpu(), b.detach().double().flatten().cpu(), dim=0)
    )
