"""Products of float32 matrices on tensor cores: three of float16 ones, which together are as accurate as float32."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.autocast import is_autocasting, without_autocast
from cips3d.ops.checks import check_shape, check_tensor
from cips3d.ops.compiling import constant_while_compiling
from cips3d.ops.library import define
from cips3d.ops.precision import takes_float16

ROWS_MAX = 1 << 30  # of x: the kernels count rows in 32 bits

# Compute capabilities whose tensor cores do three float16 products in much less time than one float32 product takes.
# Graphics cards (8.6, 8.9, 12.0) have more float32 units and half the tensor cores' rate, so splitting does not pay.
PAYS_ON = ((8, 0), (9, 0), (10, 0), (10, 3))


def split_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x W as accurate as in float32, several times as fast where tensor cores outdo float32 units.

    Both are scaled by powers of two, W column by column, and split into high and low parts of float16; then
    x W ≈ x_high W_high + x_high W_low + x_low W_high, added up in float32. An element is off by at most 2^-22 of itself
    or 2^-39 of the largest magnitude in x, or in its column of W, where that is above 2^-106. Differentiable any number
    of times, by products of the same kind. A product with an x that is not finite everywhere is NaN everywhere. Where
    kernels do not compute, it is PyTorch's `x @ weight`. Compute capability 9.0 has kernels of its own, for more than
    64 columns, and for sums over rows of more than 64 by 128; the environment variable CIPS3D_WGMMA=0 refuses them.

    Args:
        x: [..., in], all rows of any images; float32 for the kernels.
        weight: [in, out], of the same dtype; any strides.

    Returns:
        [..., out].

    Raises:
        ValueError: a shape, dtype or device does not fit; the argument is named.

    Source: products of split operands on tensor cores as in Markidis et al. (arXiv 1803.04014), with three products;
    Ootomo and Yokota (arXiv 2203.03341) find float32's accuracy with them.

    Example:
        >>> x, weight = torch.rand(5, 7, 8), torch.rand(8, 3)
        >>> torch.allclose(split_matmul(x, weight), x @ weight)
        True
    """
    check_tensor("x", x)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, got a scalar")
    width_in, width_out = check_shape("weight", weight, (x.shape[-1], None))
    if weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(f"weight must be {x.dtype} on {x.device} like x, is {weight.dtype} on {weight.device}")
    rows = math.prod(x.shape[:-1])
    if rows > ROWS_MAX:
        raise ValueError(f"x must have at most 2^30 rows, got {rows}; give it in parts")
    flat = x.reshape(rows, width_in)
    product: Tensor = _OP(flat, weight, largest_of(flat))
    return product.view(*x.shape[:-1], width_out)


def pays_for(x: Tensor) -> bool:
    """Whether `split_matmul` is the way to multiply x as PyTorch's settings ask for.

    It is for float32 where kernels compute, the precision set in PyTorch is "highest", no autocast is on and the device
    gains from it.
    """
    if x.dtype != torch.float32 or not kernels.take(x) or is_autocasting(x.device):
        return False
    return not takes_float16(None) and _pays_on(x.device)


@constant_while_compiling
def _pays_on(device: torch.device) -> bool:
    """The emulation stands for a device that gains from it."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) in PAYS_ON


def largest_of(x: Tensor) -> Tensor | None:
    """The largest magnitude in x [], which the kernels need for its scale; None where they do not compute."""
    if not (kernels.take(x) and x.dtype == torch.float32) or x.numel() == 0:
        return None
    return torch.linalg.vector_norm(x.detach(), math.inf)


# For callers that meet the same matrices again.


class Rows(NamedTuple):
    """A tensor of rows; the kernels compute with it where the largest magnitude in it is given, else PyTorch.

    Attributes:
        values: [N, C], float32 for the kernels.
        largest: [].
    """

    values: Tensor
    largest: Tensor | None

    @staticmethod
    def of(values: Tensor, *, split: bool) -> Rows:
        """Rows for the kernels if `split`, otherwise for PyTorch."""
        return Rows(values, largest_of(values) if split else None)


class PackedWeight(NamedTuple):
    """W [in, out] as the operands of the kernel.

    Attributes:
        packed: bytes.
        depth: in.
        columns: out.
    """

    packed: Tensor
    depth: int
    columns: int

    @staticmethod
    def of(weight: Tensor) -> PackedWeight:
        """Pack a float32 matrix."""
        depth, columns = weight.shape
        size = kernels.module_for(weight.device).split_matmul_packed_bytes(columns, depth)
        packed = weight.new_empty(size, dtype=torch.uint8)
        if weight.mT.is_contiguous():
            elements, strides = weight.mT, (depth, 1)
        else:
            elements, strides = weight.contiguous(), (1, columns)
        kernels.launch("split_matmul_pack", elements, packed, columns, depth, *strides)
        return PackedWeight(packed, depth, columns)

    def after(self, x: Rows) -> Tensor:
        """x W."""
        y = x.values.new_empty(x.values.shape[0], self.columns)
        if y.numel() == 0 or self.depth == 0:
            return y.zero_()
        tensors = (x.values.contiguous(), x.largest, self.packed, y)
        kernels.launch("split_matmul", *tensors, y.shape[0], self.columns, self.depth)
        return y


class SharedWeight:
    """W [in, out] of a layer that many rows pass, in parts, forward and back: packed once where the kernels compute."""

    def __init__(self, weight: Tensor, *, split: bool) -> None:
        self.weight, self.split = weight, split
        self.packed = PackedWeight.of(weight) if split else None
        self.transposed = PackedWeight.of(weight.mT) if split else None

    def forward(self, x: Rows) -> Tensor:
        """x W."""
        return x.values @ self.weight if self.packed is None or x.largest is None else self.packed.after(x)

    def backward(self, grad: Rows) -> Tensor:
        """grad Wᵀ."""
        if self.transposed is None or grad.largest is None:
            return grad.values @ self.weight.mT
        return self.transposed.after(grad)


def multiply_over_rows(x: Rows, y: Rows) -> Tensor:
    """xᵀ y, [C of x, C of y]; parts of the sum are added up in order, the same every time."""
    sizes = (*x.values.shape, y.values.shape[1])
    if x.largest is None or y.largest is None or 0 in sizes:
        return x.values.mT @ y.values
    parts = kernels.module_for(x.values.device).split_matmul_over_rows_parts(x.values.device.index or 0, *sizes)
    partial = x.values.new_empty(parts, *sizes[1:])
    tensors = (x.values.contiguous(), y.values.contiguous(), x.largest, y.largest, partial)
    kernels.launch("split_matmul_over_rows", *tensors, *sizes, parts)
    return partial.sum(0)


# The registered ops: x W, and xᵀ y. The derivatives of each are products of both kinds.


def _reference(x: Tensor, weight: Tensor, largest: Tensor | None) -> Tensor:
    with without_autocast(x.device):
        return x @ weight


def _fake(x: Tensor, weight: Tensor, largest: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def _kernel(x: Tensor, weight: Tensor, largest: Tensor | None) -> Tensor:
    if largest is None or weight.shape[1] == 0:  # no float32 numbers, or none at all
        return _reference(x, weight, largest)
    return PackedWeight.of(weight).after(Rows(x, largest))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, largest = ctx.saved_tensors
    of_x = of_weight = None
    of_grad = largest_of(grad)
    if ctx.needs_input_grad[0]:
        of_x = _OP(grad, weight.mT, of_grad)
    if ctx.needs_input_grad[1]:
        of_weight = _OVER_ROWS(x, grad, largest, of_grad)
    return of_x, of_weight, None


def _over_rows_reference(x: Tensor, y: Tensor, x_largest: Tensor | None, y_largest: Tensor | None) -> Tensor:
    with without_autocast(x.device):
        return x.mT @ y


def _over_rows_fake(x: Tensor, y: Tensor, x_largest: Tensor | None, y_largest: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[1], y.shape[1])


def _over_rows_kernel(x: Tensor, y: Tensor, x_largest: Tensor | None, y_largest: Tensor | None) -> Tensor:
    if x_largest is None or y_largest is None:
        return _over_rows_reference(x, y, x_largest, y_largest)
    return multiply_over_rows(Rows(x, x_largest), Rows(y, y_largest))


def _over_rows_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y, x_largest, y_largest = ctx.saved_tensors
    of_x = _OP(y, grad.mT, y_largest) if ctx.needs_input_grad[0] else None
    of_y = _OP(x, grad, x_largest) if ctx.needs_input_grad[1] else None
    return of_x, of_y, None, None


_OP = define(
    "split_matmul(Tensor x, Tensor weight, Tensor? largest) -> Tensor",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_gradients,
)
_OVER_ROWS = define(
    "split_matmul_over_rows(Tensor x, Tensor y, Tensor? x_largest, Tensor? y_largest) -> Tensor",
    kernel=_over_rows_kernel,
    reference=_over_rows_reference,
    fake=_over_rows_fake,
    setup_context=_setup,
    backward=_over_rows_gradients,
)
