"""Upsample, pad, filter, downsample: how StyleGAN2's networks and ADA resample."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.autocast import product, without_autocast
from cips3d.ops.checks import check_number, check_shape, check_tensor
from cips3d.ops.library import define

Factor = int | tuple[int, int]  # for both axes, or (x, y)
# All sides, (p0, p1) for both axes, or (x0, x1, y0, y1).
Padding = int | tuple[int, int] | tuple[int, int, int, int]


class AxisGeometry(NamedTuple):
    """What happens along one axis, in samples.

    Attributes:
        pad_before: negative: crop.
    """

    size: int
    taps: int
    up: int
    down: int
    pad_before: int
    pad_after: int
    output: int


def binomial_kernel(
    gain: float = 1.0, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """The taps [1, 3, 3, 1] · gain / 8 of the published networks, for one axis; they sum to `gain`.

    A blur has gain 1. Upsampling by 2 takes gain 2 on each axis, since every other sample is an added zero.

    Args:
        gain: finite.
        dtype, device: of the taps; PyTorch's defaults unless given.

    Returns:
        [4]

    Raises:
        ValueError: gain is not finite.
    """
    check_number("gain", gain)
    return torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=dtype, device=device) * (gain / 8)


def upfirdn2d_geometry(
    x: Tensor, kernel: Tensor, up: Factor = 1, down: Factor = 1, padding: Padding = 0
) -> tuple[AxisGeometry, AxisGeometry]:
    """Check the arguments of `upfirdn2d` and return what they mean along the columns (x) and the rows (y).

    Raises:
        ValueError: an argument does not fit; it is named.
    """
    _, _, height, width = check_shape("x", x, (None, None, None, None))
    check_tensor("kernel", kernel)
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
        kernel: [kh, kw], or [k] for a separable filter, applied along both axes. A constant, of any floating-point
            dtype: x's for the plain PyTorch reference, float32 for the kernels.
        up: zeros are inserted until the image is this many times larger; one factor or (x, y).
        down: one factor or (x, y).
        padding: samples after upsampling, negative to crop; for all sides, (p0, p1) for both axes, or
            (x0, x1, y0, y1).

    Returns:
        [B, C, H', W'] with the dtype of x, contiguous.

    Raises:
        ValueError: an argument does not fit or nothing would be left; the argument is named.

    Source: StyleGAN2 (arXiv 1912.04958), the operation in its published code.

    Example:
        >>> x = torch.rand(2, 3, 8, 8)
        >>> upfirdn2d(x, binomial_kernel(gain=2), up=2, padding=(2, 1)).shape
        torch.Size([2, 3, 16, 16])
        >>> upfirdn2d(x, binomial_kernel(), down=2, padding=1).shape
        torch.Size([2, 3, 4, 4])
    """
    axes = upfirdn2d_geometry(x, kernel, up, down, padding)
    if not kernels.take(x):
        return _filter(x, kernel, *axes)
    columns, rows = axes
    pads = [columns.pad_before, columns.pad_after, rows.pad_before, rows.pad_after]
    return _UPFIRDN2D(x, kernel, [columns.up, rows.up], [columns.down, rows.down], pads, False)


# The reference.


def _filter(x: Tensor, kernel: Tensor, columns: AxisGeometry, rows: AxisGeometry, *, flip: bool = False) -> Tensor:
    """With `flip`, a correlation: the kernel is flipped before the convolution flips it."""
    taps = kernel.to(x.dtype)
    if not flip:
        taps = taps.flip(list(range(taps.dim())))
    with without_autocast(x.device):
        if taps.dim() == 2:
            return _not_separable(x, taps, columns, rows)
        if max(columns.size, columns.output, rows.size, rows.output) <= BAND_SIZE:
            return _separable(x, taps, columns, rows)
        x = _not_separable(x, taps[None, :], columns, _untouched(rows.size))
        return _not_separable(x, taps[:, None], _untouched(columns.output), rows)


BAND_SIZE = 1024  # of an axis, for matrices that grow with its square


def _separable(x: Tensor, taps: Tensor, columns: AxisGeometry, rows: AxisGeometry) -> Tensor:
    # Products with banded matrices: on a CPU, double backward included, faster than sums of slices and grouped
    # convolutions (which are differentiated twice group by group), up to 128² at least.
    batch, channels, height, width = x.shape
    along_x = _band_matrix(taps, columns)
    along_y = along_x if rows == columns else _band_matrix(taps, rows)
    y = product(x.reshape(-1, width), along_x.t()).view(batch * channels, height, columns.output)
    y = product(along_y.expand(batch * channels, -1, -1), y)
    return y.view(batch, channels, rows.output, columns.output)


def _band_matrix(taps: Tensor, axis: AxisGeometry) -> Tensor:
    """The operation along one axis as a matrix [output, size]."""
    padded = axis.size * axis.up + axis.pad_before + axis.pad_after
    band = taps.new_zeros(axis.output, padded)
    band.as_strided((axis.output, axis.taps), (padded + axis.down, 1)).copy_(taps)
    # Columns that would meet padding or inserted zeros are dropped; cropped samples get columns of zeros.
    return F.pad(band, (-axis.pad_before, -axis.pad_after))[:, :: axis.up]


def _not_separable(x: Tensor, taps: Tensor, columns: AxisGeometry, rows: AxisGeometry) -> Tensor:
    batch, channels, height, width = x.shape
    spread = x.reshape(batch * channels, 1, height, 1, width, 1)
    spread = F.pad(spread, (0, columns.up - 1, 0, 0, 0, rows.up - 1))
    spread = spread.view(batch * channels, 1, height * rows.up, width * columns.up)
    spread = F.pad(spread, (columns.pad_before, columns.pad_after, rows.pad_before, rows.pad_after))
    y = F.conv2d(spread, taps[None, None], stride=(rows.down, columns.down))
    return y.view(batch, channels, rows.output, columns.output)


def _both_axes(name: str, factor: Factor) -> tuple[int, int]:
    pair = _integers(name, factor)
    pair = pair * 2 if len(pair) == 1 else pair
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} must be an integer of at least 1, or two of them for x and y, got {factor}")
    return pair[0], pair[1]


def _four_sides(padding: Padding) -> tuple[int, int, int, int]:
    sides = _integers("padding", padding)
    sides = sides * (4 // len(sides)) if len(sides) in (1, 2) else sides
    if len(sides) != 4:
        raise ValueError(f"padding must be an integer, (p0, p1) or (x0, x1, y0, y1), got {padding}")
    return sides[0], sides[1], sides[2], sides[3]


def _integers(name: str, value: int | tuple[int, ...]) -> tuple[int, ...]:
    """One integer or several, NumPy's included."""
    try:
        return tuple(operator.index(x) for x in (value if isinstance(value, Sequence) else (value,)))
    except TypeError:
        raise TypeError(f"{name} must be an integer or a tuple of integers, got {value!r}") from None


def _axis_geometry(
    axis: str, size: int, taps: int, up: int, down: int, pad_before: int, pad_after: int
) -> AxisGeometry:
    if size * up + min(pad_before, 0) + min(pad_after, 0) < 1:
        raise ValueError(f"padding ({pad_before}, {pad_after}) crops away all {size * up} {axis} of x")
    padded = size * up + pad_before + pad_after
    if padded < taps:
        raise ValueError(f"kernel has {taps} taps along the {axis} of x, more than its {padded} padded samples")
    return AxisGeometry(size, taps, up, down, pad_before, pad_after, (padded - taps) // down + 1)


# The registered op: `up`, `down` are (x, y), `padding` is (x0, x1, y0, y1); `flip` as in `_filter`.


def _op_geometry(
    x: Tensor, kernel: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int]
) -> tuple[AxisGeometry, AxisGeometry]:
    axes = []
    for axis, size, taps in ((0, x.shape[3], kernel.shape[-1]), (1, x.shape[2], kernel.shape[0])):
        # An adjoint may crop more than the whole image. No output then meets a sample, so crop just the image, and keep
        # the sum of both pads, which decides the size of the output.
        padded = size * up[axis] + padding[2 * axis] + padding[2 * axis + 1]
        before = min(max(padding[2 * axis], -size * up[axis]), padded)
        after = padded - size * up[axis] - before
        output = (padded - taps) // down[axis] + 1
        axes.append(AxisGeometry(size, taps, up[axis], down[axis], before, after, output))
    return axes[0], axes[1]


def _op_reference(
    x: Tensor, kernel: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int], flip: bool
) -> Tensor:
    return _filter(x, kernel, *_op_geometry(x, kernel, up, down, padding), flip=flip)


def _op_fake(
    x: Tensor, kernel: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int], flip: bool
) -> Tensor:
    columns, rows = _op_geometry(x, kernel, up, down, padding)
    return x.new_empty(x.shape[0], x.shape[1], rows.output, columns.output)


def _op_kernel(
    x: Tensor, kernel: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int], flip: bool
) -> Tensor:
    columns, rows = _op_geometry(x, kernel, up, down, padding)
    y = _op_fake(x, kernel, up, down, padding, flip)
    if y.numel() == 0:
        return y
    x, taps = x.contiguous(), kernel.float().contiguous()
    if kernel.dim() == 2:
        _launch_filter(x, taps, y, columns, rows, flip)
    elif _has_four_taps_kernel(x, columns, rows):
        sizes = (columns.size, rows.size, columns.output, rows.output)
        settings = (columns.up, columns.down, columns.pad_before, rows.pad_before, flip)
        kernels.launch("upfirdn2d_four_taps", x.dtype, x, taps, y, x.shape[0] * x.shape[1], *sizes, *settings)
    else:
        along_x = x.new_empty(*x.shape[:3], columns.output, dtype=torch.float32)
        _launch_filter(x, taps, along_x, columns, _untouched(rows.size), flip)
        _launch_filter(along_x, taps, y, _untouched(columns.output), rows, flip)
    return y


def _has_four_taps_kernel(x: Tensor, columns: AxisGeometry, rows: AxisGeometry) -> bool:
    factors = (columns.up, columns.down)
    if columns.taps != 4 or factors != (rows.up, rows.down) or factors not in ((1, 1), (2, 1), (1, 2)):
        return False
    return x.element_size() == 4 or (x.numel() % 2 == 0 and x.data_ptr() % 4 == 0)  # it reads 32-bit words


def _untouched(size: int) -> AxisGeometry:
    return AxisGeometry(size, taps=1, up=1, down=1, pad_before=0, pad_after=0, output=size)


def _launch_filter(x: Tensor, taps: Tensor, y: Tensor, columns: AxisGeometry, rows: AxisGeometry, flip: bool) -> None:
    numbers = [(axis.size, axis.output, axis.taps, axis.up, axis.down, axis.pad_before) for axis in (columns, rows)]
    planes = x.shape[0] * x.shape[1]
    kernels.launch("upfirdn2d_filter", x.dtype, y.dtype, x, taps, y, planes, *numbers[0], *numbers[1], flip)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, ctx.up, ctx.down, padding, ctx.flip = inputs
    ctx.axes = _op_geometry(x, kernel, ctx.up, ctx.down, padding)
    ctx.save_for_backward(kernel)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The adjoint: flipped kernel, `up` and `down` swapped. Its own adjoint is the op again."""
    (kernel,) = ctx.saved_tensors
    pads = []
    for axis in ctx.axes:
        pads.append(axis.taps - axis.pad_before - 1)
        pads.append(axis.size * axis.up - axis.output * axis.down + axis.pad_before - axis.up + 1)
    dx = _UPFIRDN2D(grad, kernel, ctx.down, ctx.up, pads, not ctx.flip)
    return dx, None, None, None, None, None


_UPFIRDN2D = define(
    "upfirdn2d(Tensor x, Tensor kernel, int[] up, int[] down, int[] padding, bool flip) -> Tensor",
    kernel=_op_kernel,
    reference=_op_reference,
    fake=_op_fake,
    setup_context=_setup,
    backward=_gradient,
)
