"""Bias, leaky ReLU and gain in one operation: the activation of the StyleGAN2 family."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.checks import check_number, check_tensor
from cips3d.ops.library import define

SQRT_2 = math.sqrt(2)  # keeps the second moment of a normal input about 1 behind a leaky ReLU of slope 0.2


def check_bias_leaky_relu(x: Tensor, bias: Tensor | None, negative_slope: float, gain: float) -> None:
    """Raise ValueError, naming the argument, unless `bias_leaky_relu` is defined for these."""
    check_tensor("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must have shape [B, C, ...], got {list(x.shape)}")
    if bias is not None:
        check_tensor("bias", bias)
        if bias.shape != x.shape[1:2]:
            raise ValueError(f"bias must have shape [{x.shape[1]}], got {list(bias.shape)}")
        if bias.dtype != x.dtype or bias.device != x.device:
            raise ValueError(f"bias must be {x.dtype} on {x.device} like x, got {bias.dtype} on {bias.device}")
    check_number("negative_slope", negative_slope)
    check_number("gain", gain)
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
        bias: [C], or None; of whatever dtype a parameter has, it is rounded to that of x.
        negative_slope: not negative.
        gain: positive.

    Returns:
        The shape of x.

    Raises:
        ValueError: an argument does not fit; it is named.

    Source: StyleGAN2 (arXiv 1912.04958), the fused activation of its published code.

    Example:
        >>> bias_leaky_relu(torch.tensor([[1.0, -1.0]]), torch.zeros(2), gain=1.0)
        tensor([[ 1.0000, -0.2000]])
    """
    check_tensor("x", x)
    if bias is not None:
        check_tensor("bias", bias)
        bias = bias.to(x.dtype)
    check_bias_leaky_relu(x, bias, negative_slope, gain)
    if kernels.take(x):
        return _FORWARD(x, bias, negative_slope, gain)
    return _reference(x, bias, negative_slope, gain)


def _on_channels(bias: Tensor, x: Tensor) -> Tensor:
    return bias.view(-1, *[1] * (x.dim() - 2))


def _slopes(y: Tensor, negative_slope: float, gain: float) -> Tensor:
    return torch.where(y > 0, gain, gain * negative_slope).to(y.dtype)


# The forward.


def _reference(x: Tensor, bias: Tensor | None, negative_slope: float, gain: float) -> Tensor:
    # lrelu(gain (x + b)), of which only the output is kept. Not gain x + gain b, which saves a pass: it need not be 0
    # where x + b is, and the sign decides the slope.
    scaled = x * gain if bias is None else (x + _on_channels(bias, x)).mul_(gain)
    return F.leaky_relu_(scaled, negative_slope)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Images, channels, elements of a channel of one image."""
    return x.shape[0], x.shape[1], x[0, 0].numel() if x.numel() else 0


def _kernel(x: Tensor, bias: Tensor | None, negative_slope: float, gain: float) -> Tensor:
    return _activate(x, bias, None, negative_slope, gain)


def _activate(x: Tensor, bias: Tensor | None, sign: Tensor | None, negative_slope: float, gain: float) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() > 0:
        x, bias = x.contiguous(), None if bias is None else bias.contiguous()
        kernels.launch("bias_leaky_relu", x.dtype, x, bias, sign, y, *_sizes(x), negative_slope, gain)
    return y


def _fake(x: Tensor, bias: Tensor | None, negative_slope: float, gain: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bias, ctx.negative_slope, ctx.gain = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(output)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (y,) = ctx.saved_tensors
    with_bias = ctx.has_bias and ctx.needs_input_grad[1]
    dx, db = _BACKWARD(grad, y, with_bias, ctx.negative_slope, ctx.gain)
    return dx, db if with_bias else None, None, None


# Its gradients: dx = slope(y) · dy, db = Σ dx over images and pixels.


def _backward_reference(
    grad: Tensor, y: Tensor, with_bias: bool, negative_slope: float, gain: float
) -> tuple[Tensor, Tensor]:
    dx = grad * _slopes(y, negative_slope, gain)
    over = [d for d in range(dx.dim()) if d != 1]
    return dx, dx.sum(over) if with_bias else dx.new_empty(0)


def _backward_kernel(
    grad: Tensor, y: Tensor, with_bias: bool, negative_slope: float, gain: float
) -> tuple[Tensor, Tensor]:
    dx, db = _backward_fake(grad, y, with_bias, negative_slope, gain)
    if grad.numel() == 0:
        return dx, db.zero_()
    grad, y = grad.contiguous(), y.contiguous()
    batch, channels, inner = _sizes(grad)
    parts = kernels.module_for(grad.device).bias_leaky_relu_parts(batch, channels, inner)
    partial = grad.new_empty(parts, channels, dtype=torch.float32) if with_bias else None
    kernels.launch(
        "bias_leaky_relu_backward",
        grad.dtype,
        grad,
        y,
        dx,
        partial,
        db if with_bias else None,
        batch,
        channels,
        inner,
        parts,
        negative_slope,
        gain,
    )
    return dx, db


def _backward_fake(
    grad: Tensor, y: Tensor, with_bias: bool, negative_slope: float, gain: float
) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(grad, memory_format=torch.contiguous_format)
    return dx, grad.new_empty(grad.shape[1] if with_bias else 0)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, y, ctx.with_bias, ctx.negative_slope, ctx.gain = inputs
    ctx.save_for_backward(y)


def _backward_gradients(ctx: Any, grad_dx: Tensor, grad_db: Tensor) -> tuple[Any, ...]:
    (y,) = ctx.saved_tensors
    bias = grad_db if ctx.with_bias else None
    return _SLOPED(grad_dx, bias, y, ctx.negative_slope, ctx.gain), None, None, None, None


# The linear map whose adjoint the backward is, slope(y) · (x + b): derivatives of any order alternate between the two.


def _sloped_reference(x: Tensor, bias: Tensor | None, y: Tensor, negative_slope: float, gain: float) -> Tensor:
    summed = x if bias is None else x + _on_channels(bias, x)
    return summed * _slopes(y, negative_slope, gain)


def _sloped_kernel(x: Tensor, bias: Tensor | None, y: Tensor, negative_slope: float, gain: float) -> Tensor:
    return _activate(x, bias, y.contiguous(), negative_slope, gain)


def _sloped_fake(x: Tensor, bias: Tensor | None, y: Tensor, negative_slope: float, gain: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _sloped_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bias, y, ctx.negative_slope, ctx.gain = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(y)


def _sloped_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (y,) = ctx.saved_tensors
    dx, db = _BACKWARD(grad, y, ctx.has_bias, ctx.negative_slope, ctx.gain)
    return dx, db if ctx.has_bias else None, None, None, None


_FORWARD = define(
    "bias_leaky_relu(Tensor x, Tensor? bias, float negative_slope, float gain) -> Tensor",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_gradients,
)
_BACKWARD = define(
    "bias_leaky_relu_backward(Tensor grad, Tensor y, bool with_bias, float negative_slope, float gain)"
    " -> (Tensor, Tensor)",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=_backward_fake,
    setup_context=_backward_setup,
    backward=_backward_gradients,
)
_SLOPED = define(
    "bias_leaky_relu_sloped(Tensor x, Tensor? bias, Tensor y, float negative_slope, float gain) -> Tensor",
    kernel=_sloped_kernel,
    reference=_sloped_reference,
    fake=_sloped_fake,
    setup_context=_sloped_setup,
    backward=_sloped_gradients,
)
