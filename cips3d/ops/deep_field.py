"""A deep radiance field of sine layers that sees the direction of a ray, evaluated op by op."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.ops.autocast import product, without_autocast
from cips3d.ops.checks import check_shape
from cips3d.ops.film_siren import film_siren
from cips3d.ops.precision import Precision


class DeepSirenField(NamedTuple):
    """pi-GAN's radiance field: L sine layers of W channels, then a density and a colour layer of C.

    h1 = sin(g1 ⊙ (W1 p + b1) + s1), hk = sin(gk ⊙ (Wk hk-1 + bk) + sk), σ = v · hL + c,
    colour = sigmoid(H sin(g ⊙ (Wc [d, hL] + bc) + s) + e), for a point p and the direction d of its ray.

    Gains g and shifts s are those of B images, everything else is shared. Two layers or more.

    Attributes:
        first_weight: [W, 3].
        hidden_weight: [L - 1, W, W] layers 2 to L.
        trunk_bias: [L, W].
        trunk_gain: [B, L, W].
        trunk_shift: [B, L, W].
        density_weight: [W] v.
        density_bias: [1] c.
        color_weight: [C, 3 + W] Wc, the direction first.
        color_bias: [C].
        color_gain: [B, C].
        color_shift: [B, C].
        head_weight: [3, C] H.
        head_bias: [3] e.
    """

    first_weight: Tensor
    hidden_weight: Tensor
    trunk_bias: Tensor
    trunk_gain: Tensor
    trunk_shift: Tensor
    density_weight: Tensor
    density_bias: Tensor
    color_weight: Tensor
    color_bias: Tensor
    color_gain: Tensor
    color_shift: Tensor
    head_weight: Tensor
    head_bias: Tensor


def check_deep_field(field: DeepSirenField, batch: int) -> None:
    """Raise ValueError, naming the argument, unless the field's tensors fit together and to a batch of images."""
    width, _ = check_shape("field.first_weight", field.first_weight, (None, 3))
    if width < 1:
        raise ValueError("field.first_weight must have at least one row, got none")
    hidden, _, _ = check_shape("field.hidden_weight", field.hidden_weight, (None, width, width))
    if hidden < 1:
        raise ValueError("field.hidden_weight must hold at least one layer, got none")
    color, _ = check_shape("field.color_weight", field.color_weight, (None, 3 + width))
    if color < 1:
        raise ValueError("field.color_weight must have at least one row, got none")
    shapes: dict[str, tuple[int, ...]] = {
        "trunk_bias": (hidden + 1, width),
        "trunk_gain": (batch, hidden + 1, width),
        "trunk_shift": (batch, hidden + 1, width),
        "density_weight": (width,),
        "density_bias": (1,),
        "color_bias": (color,),
        "color_gain": (batch, color),
        "color_shift": (batch, color),
        "head_weight": (3, color),
        "head_bias": (3,),
    }
    for name, shape in shapes.items():
        check_shape(f"field.{name}", getattr(field, name), shape)


def evaluate_deep_field(
    field: DeepSirenField, directions: Tensor, points: Tensor, *, precision: Precision | None = None
) -> tuple[Tensor, Tensor]:
    """Raw density [B, R·S] and colours [B, R·S, 3] in (0, 1) at S points of each ray.

    Args:
        directions: [B, R, 3] of the rays.
        points: [B, R·S, 3], ray after ray.
        precision: see `render_rays`. Autocast is for layers without sines and has no say here.
    """
    gains, shifts = field.trunk_gain.unbind(1), field.trunk_shift.unbind(1)
    with without_autocast(points.device):
        h = points
        weights = (field.first_weight, *field.hidden_weight)
        for weight, bias, gain, shift in zip(weights, field.trunk_bias, gains, shifts, strict=True):
            h = film_siren(h, weight, bias, gain, shift, precision=precision)
        density = product(h, field.density_weight[:, None])[..., 0] + field.density_bias
        color = (with_room(field.color_weight), field.color_bias, field.color_gain, field.color_shift)
        activations = film_siren(behind_directions(directions, h), *color, precision=precision)
        raw = product(activations, field.head_weight.mT)
    return density, torch.sigmoid(raw + field.head_bias)


# The colour layer's inputs start with the direction. Kernels want rows aligned to 16 bytes: those of 3 + W numbers are
# not, those of 8 + W are.
DIRECTION_COLUMNS = 8


def behind_directions(directions: Tensor, h: Tensor) -> Tensor:
    """Inputs [B, R·S, 8 + W] of the colour layer, of h's dtype: directions [B, R, 3] of rays, zeros, h [B, R·S, W]."""
    padded = F.pad(directions, (0, DIRECTION_COLUMNS - 3)).to(h.dtype)
    return torch.cat([along_rays(padded, h), h], dim=-1)


def with_room(color_weight: Tensor) -> Tensor:
    """The colour layer's weight [C, 3 + W] for such inputs, [C, 8 + W]."""
    room = color_weight.new_zeros(color_weight.shape[0], DIRECTION_COLUMNS - 3)
    return torch.cat([color_weight[:, :3], room, color_weight[:, 3:]], dim=1)


def without_room(color_weight: Tensor) -> Tensor:
    """[C, 3 + W] of [C, 8 + W]."""
    return torch.cat([color_weight[:, :3], color_weight[:, DIRECTION_COLUMNS:]], dim=1)


def along_rays(directions: Tensor, samples: Tensor) -> Tensor:
    """Directions [B, R, D] of rays for each of their samples [B, R·S, any], as [B, R·S, D]."""
    batch, rays, width = directions.shape
    count = samples.shape[1] // max(rays, 1)
    return directions[:, :, None].expand(batch, rays, count, width).reshape(batch, samples.shape[1], width)
