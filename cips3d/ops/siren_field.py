"""The NeRF branch's radiance field: two sine layers, a density and a colour layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cips3d.ops.autocast import without_autocast
from cips3d.ops.checks import check_shape
from cips3d.ops.film_siren import FoldedLayer, sine_field
from cips3d.ops.precision import Precision

RESIDENT_WIDTH, RESIDENT_COLOR = 128, 64  # of layers that stay in shared memory


class SirenField(NamedTuple):
    """A radiance field: h1 = sin(W1 p + b1), h2 = sin(W2 h1 + b2), σ = v · h2 + c + ball, colour = sin(Wc h2 + bc).

    ball = ball_density · (1 - |p| / ball_radius), a sphere around the origin; radius 0: none.

    Attributes:
        first: [B, W, 3], [B, W].
        second: [B, W, W], [B, W].
        color: [B, C, W], [B, C].
        density_weight: [W].
        density_bias: [1].
    """

    first: FoldedLayer
    second: FoldedLayer
    color: FoldedLayer
    density_weight: Tensor
    density_bias: Tensor
    ball_density: float = 0.0
    ball_radius: float = 0.0


def evaluate_siren_field(
    field: SirenField, points: Tensor, *, precision: Precision | None = None
) -> tuple[Tensor, Tensor]:
    """Raw density [B, N] and colour activations [B, N, C] at points [B, N, 3]; precision as in `render_rays`."""
    trunk, density_layer = (field.first, field.second), (field.density_weight, field.density_bias)
    with without_autocast(points.device):  # it is meant for layers without sines
        density, colors = sine_field(points, trunk, field.color, *density_layer, precision=precision)
    if field.ball_radius:
        density = density + field.ball_density * (1 - _distances(points) / field.ball_radius)
    return density, colors


def _distances(points: Tensor) -> Tensor:
    """[B, N] from the origin, where they have no slope and no curvature: those of `Tensor.norm` are not finite."""
    squares = points.square().sum(-1)
    is_origin = squares == 0
    return torch.where(is_origin, 0.0, squares.masked_fill(is_origin, 1.0).sqrt())


def through_ball(of_density: Tensor, points: Tensor, ball_density: float, ball_radius: float) -> Tensor:
    """Gradients of points [B, N, 3] from those [B, N] of what a ball gives their densities; at its centre 0."""
    norm = points.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(points.dtype).tiny)
    return -of_density[..., None] * ball_density / ball_radius * points / norm


def is_wide(width: int, color: int) -> bool:
    """Whether such layers are too wide for shared memory; the kernel then streams their weights through it."""
    return width > RESIDENT_WIDTH or color > RESIDENT_COLOR


def check_siren_field(field: SirenField, batch: int) -> None:
    """Raise, naming the argument, unless these are the layers of a field of `batch` images."""
    for name in ("first", "second", "color"):
        layer = getattr(field, name)
        if not isinstance(layer, FoldedLayer):
            raise TypeError(f"field.{name} must be a FoldedLayer, got {type(layer).__name__}")
    _, width, _ = check_shape("field.first.weight", field.first.weight, (batch, None, 3))
    check_shape("field.first.bias", field.first.bias, (batch, width))
    check_shape("field.second.weight", field.second.weight, (batch, width, width))
    check_shape("field.second.bias", field.second.bias, (batch, width))
    _, color, _ = check_shape("field.color.weight", field.color.weight, (batch, None, width))
    check_shape("field.color.bias", field.color.bias, (batch, color))
    check_shape("field.density_weight", field.density_weight, (width,))
    check_shape("field.density_bias", field.density_bias, (1,))
    for name, channels in (("first", width), ("color", color)):
        if channels < 1:
            raise ValueError(f"field.{name}.weight must have at least one output channel, got none")


# As tensors of a registered op.

LAYERS = 8
LAYER_NAMES = (  # as a user of `SirenField` knows them
    "first.weight",
    "first.bias",
    "second.weight",
    "second.bias",
    "density_weight",
    "density_bias",
    "color.weight",
    "color.bias",
)
LAYER_SCHEMA = (
    "Tensor first_weight, Tensor first_bias, Tensor second_weight, Tensor second_bias, Tensor density_weight, "
    "Tensor density_bias, Tensor color_weight, Tensor color_bias, float ball_density, float ball_radius"
)


def tensors_of(field: SirenField) -> tuple[Tensor, ...]:
    """The field's tensors in the order of `LAYER_SCHEMA`."""
    return (*field.first, *field.second, field.density_weight, field.density_bias, *field.color)


def field_of(layers: tuple[Any, ...], ball_density: float, ball_radius: float) -> SirenField:
    """The field that has these tensors."""
    first_weight, first_bias, second_weight, second_bias, density_weight, density_bias, *color = layers
    return SirenField(
        FoldedLayer(first_weight, first_bias),
        FoldedLayer(second_weight, second_bias),
        FoldedLayer(*color),
        density_weight,
        density_bias,
        ball_density,
        ball_radius,
    )
