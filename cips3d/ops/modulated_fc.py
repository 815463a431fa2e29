"""Modulated fully connected layer: weights scaled per image, then renormalised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.ops.checks import check_shape

DEMODULATION_EPS = 1e-8  # keeps the norm of an all-zero column finite, as in StyleGAN2


def modulate_weight(weight: Tensor, modulation: Tensor, *, demodulate: bool = True) -> Tensor:
    """Weights of a modulated layer, one matrix an image.

    W' = W ⊙ m along `in`; demodulation: W'' = W' · (Σ_in W'² + 1e-8)^(-½) for each output.

    Folding both scalings into the weight costs in·out multiplications an image instead of two passes over all pixels,
    and the result can be kept while an image is rendered in chunks.

    Args:
        weight: [in, out], shared by the batch.
        modulation: [B, in] scale of every input channel of an image (the published networks pass 1 + Linear(style)).
        demodulate: renormalise every output column to unit norm.

    Returns:
        [B, in, out].

    Raises:
        ValueError: a shape does not fit; the argument is named.
    """
    width_in, _ = check_shape("weight", weight, (None, None))
    check_shape("modulation", modulation, (None, width_in))
    folded = weight * modulation[:, :, None]  # [B, in, out]
    if demodulate:
        # Σ_in (W m)² = m² W²: one product of small matrices in place of two passes over [B, in, out].
        norm_squared = modulation.square() @ weight.square()  # [B, out]
        folded = folded * torch.rsqrt(norm_squared + DEMODULATION_EPS)[:, None]
    return folded


def apply_modulated_weight(
    x: Tensor, folded: Tensor, *, negative_slope: float | None = None, skip: Tensor | None = None
) -> Tensor:
    """A layer whose weights `modulate_weight` made: lrelu(x W'') + skip.

    Args:
        x: [B, N, in], N pixels of each of B images.
        folded: [B, in, out].
        negative_slope: slope of the leaky ReLU, not negative; None for a linear layer.
        skip: [B, N, out] added to the result, or None.

    Returns:
        [B, N, out].

    Raises:
        ValueError: a shape does not fit or the slope is negative; the argument is named.
    """
    batch, pixels, width_in = check_shape("x", x, (None, None, None))
    _, _, width_out = check_shape("folded", folded, (batch, width_in, None))
    if skip is not None:
        check_shape("skip", skip, (batch, pixels, width_out))
    if negative_slope is not None and negative_slope < 0:
        raise ValueError(f"negative_slope must not be negative, got {negative_slope}")
    y = torch.bmm(x, folded)
    if negative_slope is not None:
        # In place also under autograd: the sign of the output tells the slope, so the product need not be kept.
        y = F.leaky_relu(y, negative_slope, inplace=True)
    if skip is not None:
        y = y + skip if y.requires_grad else y.add_(skip)
    return y


def modulated_fc(
    x: Tensor,
    weight: Tensor,
    modulation: Tensor,
    *,
    demodulate: bool = True,
    negative_slope: float | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    """A fully connected layer with per-image modulated and demodulated weights, activation and skip.

    y = lrelu(x W'') + skip, with W'' of `modulate_weight`.

    Args:
        x: [B, N, in], N pixels of each of B images.
        weight: [in, out]; modulation: [B, in]; demodulate: see `modulate_weight`.
        negative_slope: slope of the leaky ReLU, not negative; None for a linear layer.
        skip: [B, N, out] added to the result, or None.

    Returns:
        [B, N, out].

    Raises:
        ValueError: a shape does not fit or the slope is negative; the argument is named.

    Source: StyleGAN2 (arXiv 1912.04958), section 2.2; CIPS-3D (arXiv 2110.09788), section 3.2.
    """
    folded = modulate_weight(weight, modulation, demodulate=demodulate)
    return apply_modulated_weight(x, folded, negative_slope=negative_slope, skip=skip)
