"""Values as colours: grey levels, depth, and how far pictures differ."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The colour map "magma" (S. van der Walt and N. Smith, 2015, CC0) at ten equal steps: lightness rises evenly
# from black to a pale yellow, so equal steps in depth look equally large and survive a grey print.
MAGMA = (
    (0x00, 0x00, 0x04),
    (0x18, 0x0F, 0x3D),
    (0x44, 0x0F, 0x76),
    (0x72, 0x1F, 0x81),
    (0x9E, 0x2F, 0x7F),
    (0xCD, 0x40, 0x71),
    (0xF1, 0x60, 0x5D),
    (0xFD, 0x96, 0x68),
    (0xFE, 0xCA, 0x8D),
    (0xFC, 0xFD, 0xBF),
)


def to_uint8(images: Tensor) -> Tensor:
    """Grey levels round(127.5 (x + 1)) of values in [-1, 1], any shape; what lies outside is clipped.

    Raises:
        ValueError: a value is not a number.
    """
    if torch.isnan(images).any():
        raise ValueError("images must hold numbers, got NaN")
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(levels: Tensor) -> Tensor:
    """x / 127.5 - 1 in [-1, 1] of grey levels in 0 to 255, any shape: what `to_uint8` gives back as the same levels."""
    return levels.float() / 127.5 - 1


def psnr_of(squared_error: float) -> float:
    """Peak signal-to-noise ratio in decibels, -10 log₁₀ of a mean squared error of colours in [0, 1]."""
    if squared_error == 0:
        return math.inf
    return -10 * math.log10(squared_error) if squared_error > 0 else math.nan


def depth_image(depth: Tensor, t_near: float | Tensor, t_far: float | Tensor) -> Tensor:
    """Colour a depth map: near is bright, far is dark (the colour map magma).

    Args:
        depth: [N, 1, H, W] distances in scene units.
        t_near: distance that gets the brightest colour, as everything nearer does; one for all or [N].
        t_far: distance that gets the darkest colour, as everything farther does; one for all or [N].

    Returns:
        [N, 3, H, W] in [-1, 1].
    """
    if depth.dim() != 4 or depth.shape[1] != 1:
        raise ValueError(f"depth must have shape [N, 1, H, W], got {list(depth.shape)}")
    near, far = (torch.as_tensor(t, dtype=torch.float32, device=depth.device).view(-1, 1, 1) for t in (t_near, t_far))
    if not (near < far).all():
        raise ValueError(f"t_near must be below t_far, got {t_near} and {t_far}")
    colors = torch.tensor(MAGMA, dtype=torch.float32, device=depth.device) / 127.5 - 1  # [10, 3]
    nearness = ((far - depth[:, 0].float()) / (far - near)).clamp(0, 1)  # [N, H, W]
    place = nearness * (len(MAGMA) - 1)
    below = place.floor().clamp(max=len(MAGMA) - 2)
    share = (place - below)[..., None]
    index = below.long()
    return torch.lerp(colors[index], colors[index + 1], share).permute(0, 3, 1, 2)
