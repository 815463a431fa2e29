"""FiLM-SIREN layer: a sine layer whose phase is scaled and shifted per image."""

from __future__ import annotations

import torch
from torch import Tensor

from cips3d.ops.checks import check_shape


def film_siren(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """A fully connected sine layer with feature-wise linear modulation.

    y = sin(gain ⊙ (x Wᵀ + b) + shift), with gain and shift constant within an image.

    Args:
        x: [B, N, in] points or features; N samples of each of B images.
        weight: [out, in].
        bias: [out].
        gain: [B, out] frequency of every channel of an image.
        shift: [B, out] phase, in radians.

    Returns:
        [B, N, out], in [-1, 1].

    Raises:
        ValueError: a shape does not fit; the argument is named.

    Source: pi-GAN (arXiv 2012.00926), section 3.1; SIREN (arXiv 2006.09661).

    Example:
        >>> x = torch.rand(2, 5, 3)
        >>> film_siren(x, torch.rand(8, 3), torch.zeros(8), torch.full((2, 8), 30.0), torch.zeros(2, 8)).shape
        torch.Size([2, 5, 8])
    """
    batch, _, width_in = check_shape("x", x, (None, None, None))
    width_out, _ = check_shape("weight", weight, (None, width_in))
    check_shape("bias", bias, (width_out,))
    check_shape("gain", gain, (batch, width_out))
    check_shape("shift", shift, (batch, width_out))
    # Folding gain and shift into the layer leaves one product and one sine per sample: no pass over [B, N, out] of its
    # own for the modulation, and none kept for the backward.
    folded_weight = gain[:, :, None] * weight  # [B, out, in]
    folded_bias = torch.addcmul(shift, gain, bias)  # [B, out]
    phase = torch.baddbmm(folded_bias[:, None], x, folded_weight.transpose(1, 2))
    return torch.sin(phase) if phase.requires_grad else phase.sin_()
