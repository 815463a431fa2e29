"""Scales that bring gradients of rays into float16's range."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALE_EXPONENT = 4  # the largest gradient becomes 8 to 16: 12 bits below float16's largest, 20 above its least


def gradient_scales(
    depths: Tensor, of_colors: Tensor, of_opacity: Tensor | None, of_depth: Tensor | None, of_weights: Tensor | None
) -> Tensor:
    """`GradientScale` of the kernels, [2]: the largest gradient of a colour, and of all, times these is about 16.

    Powers of two; NaN where a gradient is not finite.

    Args:
        depths: [B, R, S].
        of_colors, of_opacity, of_depth, of_weights: [B, R, C], [B, R], [B, R], [B, R, S] of what is seen; None: 0.
    """
    largest = [torch.linalg.vector_norm(of_colors, math.inf)]
    for grad in (of_opacity, of_weights):
        if grad is not None:
            largest.append(torch.linalg.vector_norm(grad, math.inf))
    if of_depth is not None:  # ∂depth/∂weight is the sample's depth
        farthest = torch.maximum(depths[..., 0].abs(), depths[..., -1].abs())
        largest.append(torch.linalg.vector_norm(of_depth * farthest, math.inf))
    both = torch.stack([largest[0], torch.stack(largest).amax()])
    _, exponent = torch.frexp(both)
    # frexp gives exponent 0 for gradients that are all 0. The clamp keeps the powers within float32; with whole numbers
    # PyTorch before 2.7 would compute them in the default dtype.
    scales = torch.ldexp(torch.ones_like(both), (SCALE_EXPONENT - exponent).clamp(-100, 100).to(both.dtype))
    return torch.where(both.isfinite(), scales, math.nan)
