"""Upsample, pad, filter, downsample: the resampling operation of the discriminators."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.ops.checks import check_shape

Factor = int | tuple[int, int]  # for both axes, or (x, y)
# All sides, (p0, p1) for both axes, or (x0, x1, y0, y1).
Padding = int | tuple[int, int] | tuple[int, int, int, int]


class AxisGeometry(NamedTuple):
    """What happens along one axis, in samples."""

    size: int
    taps: int
    up: int
    down: int
    pad_before: int  # negative: crop
    pad_after: int
    output: int


def binomial_kernel(gain: float = 1.0) -> Tensor:
    """The taps [1, 3, 3, 1] · gain / 8 of the published networks, for one axis; they sum to `gain`.

    A blur has gain 1. Upsampling by 2 takes gain 2 on each axis, since every other sample is an added zero.
    """
    return torch.tensor([1.0, 3.0, 3.0, 1.0]) * (gain / 8)


def upfirdn2d_geometry(
    x: Tensor, kernel: Tensor, up: Factor = 1, down: Factor = 1, padding: Padding = 0
) -> tuple[AxisGeometry, AxisGeometry]:
    """Check the arguments of `upfirdn2d` and return what they mean along the columns (x) and the rows (y).

    Raises:
        ValueError: an argument does not fit; it is named.
    """
    _, _, height, width = check_shape("x", x, (None, None, None, None))
    for name, tensor in (("x", x), ("kernel", kernel)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be of a floating-point dtype, got {tensor.dtype}")
    if kernel.dim() not in (1, 2) or kernel.numel() == 0:
        raise ValueError(f"kernel must have shape [kh, kw], or [k] for both axes, got {list(kernel.shape)}")
    if kernel.requires_grad:
        raise ValueError("kernel must be a constant: no gradient flows to it")
    if kernel.device != x.device:
        raise ValueError(f"kernel must be on the device of x ({x.device}), got {kernel.device}")
    up_x, up_y = _both_axes("up", up)
    down_x, down_y = _both_axes("down", down)
    x0, x1, y0, y1 = _four_sides(padding)
    return (
        _axis_geometry("columns", width, kernel.shape[-1], up_x, down_x, x0, x1),
        _axis_geometry("rows", height, kernel.shape[0], up_y, down_y, y0, y1),
    )


def upfirdn2d(x: Tensor, kernel: Tensor, up: Factor = 1, down: Factor = 1, padding: Padding = 0) -> Tensor:
    """Insert zeros, pad, convolve and keep every `down`-th sample.

    Along each axis: u[i·up] = x[i], other u = 0; u gets p0 zeros in front and p1 behind;
    y[n] = Σ_k kernel[k] · u[n·down + K - 1 - k]; output size floor((in·up + p0 + p1 - K) / down) + 1.
    It is a true convolution (the kernel is flipped), and differentiable any number of times.

    Args:
        x: [B, C, H, W], floating point.
        kernel: [kh, kw], or [k] for a separable filter, applied along both axes. A constant; takes x's dtype.
        up: zeros are inserted until the image is this many times larger; one factor or (x, y).
        down: one factor or (x, y).
        padding: samples after upsampling, negative to crop; for all sides, (p0, p1) for both axes, or
            (x0, x1, y0, y1).

    Returns:
        [B, C, H', W'] with the dtype of x.

    Raises:
        ValueError: an argument does not fit or nothing would be left; the argument is named.

    Source: StyleGAN2 (arXiv 1912.04958), the operation in its published code.
    """
    columns, rows = upfirdn2d_geometry(x, kernel, up, down, padding)
    kernel = kernel.to(x.dtype)
    if kernel.dim() == 1:
        return _separable(x, kernel, columns, rows)
    return _not_separable(x, kernel, columns, rows)


def _separable(x: Tensor, taps: Tensor, columns: AxisGeometry, rows: AxisGeometry) -> Tensor:
    # Products with banded matrices: on a CPU, double backward included, faster than sums of slices and grouped
    # convolutions (which are differentiated twice group by group), up to 128² at least.
    batch, channels, height, width = x.shape
    along_x = _band_matrix(taps, columns)
    along_y = along_x if rows == columns else _band_matrix(taps, rows)
    y = (x.reshape(-1, width) @ along_x.t()).view(batch * channels, height, columns.output)
    y = torch.bmm(along_y.expand(batch * channels, -1, -1), y)
    return y.view(batch, channels, rows.output, columns.output)


def _band_matrix(taps: Tensor, axis: AxisGeometry) -> Tensor:
    """The operation along one axis as a matrix [output, size]."""
    padded = axis.size * axis.up + axis.pad_before + axis.pad_after
    band = taps.new_zeros(axis.output, padded)
    band.as_strided((axis.output, axis.taps), (padded + axis.down, 1)).copy_(taps.flip(0))
    # Columns that would meet padding or inserted zeros are dropped; cropped samples get columns of zeros.
    return F.pad(band, (-axis.pad_before, -axis.pad_after))[:, :: axis.up]


def _not_separable(x: Tensor, kernel: Tensor, columns: AxisGeometry, rows: AxisGeometry) -> Tensor:
    batch, channels, height, width = x.shape
    spread = x.reshape(batch * channels, 1, height, 1, width, 1)
    spread = F.pad(spread, (0, columns.up - 1, 0, 0, 0, rows.up - 1))
    spread = spread.view(batch * channels, 1, height * rows.up, width * columns.up)
    spread = F.pad(spread, (columns.pad_before, columns.pad_after, rows.pad_before, rows.pad_after))
    y = F.conv2d(spread, kernel.flip(0, 1)[None, None], stride=(rows.down, columns.down))
    return y.view(batch, channels, rows.output, columns.output)


def _both_axes(name: str, factor: Factor) -> tuple[int, int]:
    pair = (factor, factor) if isinstance(factor, int) else tuple(factor)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} must be an integer of at least 1, or two of them for x and y, got {factor}")
    return pair[0], pair[1]


def _four_sides(padding: Padding) -> tuple[int, int, int, int]:
    sides = (padding, padding) if isinstance(padding, int) else tuple(padding)
    if len(sides) == 2:
        sides = (*sides, *sides)
    if len(sides) != 4:
        raise ValueError(f"padding must be an integer, (p0, p1) or (x0, x1, y0, y1), got {padding}")
    return sides[0], sides[1], sides[2], sides[3]


def _axis_geometry(
    axis: str, size: int, taps: int, up: int, down: int, pad_before: int, pad_after: int
) -> AxisGeometry:
    if size * up + min(pad_before, 0) + min(pad_after, 0) < 1:
        raise ValueError(f"padding ({pad_before}, {pad_after}) crops away all {size * up} {axis} of x")
    padded = size * up + pad_before + pad_after
    if padded < taps:
        raise ValueError(f"kernel has {taps} taps along the {axis} of x, more than its {padded} padded samples")
    return AxisGeometry(size, taps, up, down, pad_before, pad_after, (padded - taps) // down + 1)
