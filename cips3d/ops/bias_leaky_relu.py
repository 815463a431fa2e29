"""Bias, leaky ReLU and gain in one operation: the activation of the StyleGAN2 family."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SQRT_2 = math.sqrt(2)  # keeps the second moment of a normal input about 1 behind a leaky ReLU of slope 0.2


def check_bias_leaky_relu(x: Tensor, bias: Tensor | None, negative_slope: float, gain: float) -> None:
    """Raise ValueError, naming the argument, unless `bias_leaky_relu` is defined for these."""
    if x.dim() < 2:
        raise ValueError(f"x must have shape [B, C, ...], got {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be of a floating-point dtype, got {x.dtype}")
    if bias is not None:
        if bias.shape != x.shape[1:2]:
            raise ValueError(f"bias must have shape [{x.shape[1]}], got {list(bias.shape)}")
        if bias.dtype != x.dtype or bias.device != x.device:
            raise ValueError(f"bias must be {x.dtype} on {x.device} like x, got {bias.dtype} on {bias.device}")
    if negative_slope < 0:
        raise ValueError(f"negative_slope must not be negative, got {negative_slope}")
    if gain <= 0:
        raise ValueError(f"gain must be positive, got {gain}")


def bias_leaky_relu(
    x: Tensor, bias: Tensor | None = None, *, negative_slope: float = 0.2, gain: float = SQRT_2
) -> Tensor:
    """y = gain · lrelu(x + b), with the bias on dimension 1.

    dy/dx = gain where y > 0, otherwise gain · negative_slope: the sign of the *output* decides, so x need not
    be kept, and 0 counts as negative. Differentiable any number of times.

    Args:
        x: [B, C, ...] of any rank from 2 on, floating point.
        bias: [C] with the dtype of x, or None.
        negative_slope: not negative.
        gain: positive.

    Returns:
        The shape of x.

    Raises:
        ValueError: an argument does not fit; it is named.

    Source: StyleGAN2 (arXiv 1912.04958), the fused activation of its published code.
    """
    check_bias_leaky_relu(x, bias, negative_slope, gain)
    # gain · lrelu(a) = lrelu(gain · a): one pass for the affine part, one in place, which keeps the output.
    scaled = x * gain if bias is None else torch.add((bias * gain).view(-1, *[1] * (x.dim() - 2)), x, alpha=gain)
    return F.leaky_relu(scaled, negative_slope, inplace=True)
