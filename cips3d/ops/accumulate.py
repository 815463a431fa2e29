"""Weighted sums along rays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.autocast import gradients_without_autocast
from cips3d.ops.checks import check_device, check_shape
from cips3d.ops.library import define
from cips3d.ops.ray_tensors import kernels_take_float32, require_float32


def accumulate(weights: Tensor, values: Tensor) -> Tensor:
    """Weighted sums along rays: Σ_i w_i v_i.

    Args:
        weights: [B, R, S].
        values: [B, R, S, C], of any floating dtype.

    Returns:
        [B, R, C] in the dtype of the values, added up in the dtype of the weights. Kernels take float32 weights, and
        values of 16 or 32 bits; the rest is computed in plain PyTorch.

    Raises:
        ValueError: a shape or device does not fit; the argument is named.

    Source: the sum in NeRF (arXiv 2003.08934), eq. 3.

    Example:
        >>> accumulate(torch.tensor([[[0.25, 0.5]]]), torch.tensor([[[[1.0], [4.0]]]]))
        tensor([[[2.2500]]])
    """
    check_accumulate(weights, values)
    if kernels_take_float32(weights) and kernels.take(values):
        return _FORWARD(weights, values)
    return weighted_sum(weights, values).to(values.dtype)


def check_accumulate(weights: Tensor, values: Tensor) -> None:
    """Raise ValueError, naming the argument, unless `accumulate` is defined for these."""
    check_shape("values", values, (*check_shape("weights", weights, (None, None, None)), None))
    check_device("weights", weights, values=values)


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """`accumulate` in plain PyTorch, differentiable any number of times, with a result in the dtype of the weights."""
    return _Accumulate.apply(weights, values)


class _Accumulate(torch.autograd.Function):
    """Σ_i w_i v_i and its gradients, each in the form that is quickest.

    They are products of very small matrices, one a ray, for which a CPU's batched product is slow: 3 to 10 times
    slower than adding up sample by sample, and than multiplying out the gradient of the values.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values)
        if values.device.type != "cpu":
            return torch.matmul(weights[..., None, :], values.to(weights.dtype))[..., 0, :]
        sums = weights.new_zeros(*values.shape[:2], values.shape[3])
        for i in range(values.shape[2]):
            sums.addcmul_(weights[..., i, None], values[..., i, :].to(weights.dtype))
        return sums.clone()  # changed in place, it would have wrong gradients under torch.compile of PyTorch 2.11

    @staticmethod
    @gradients_without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights, values = ctx.saved_tensors
        of_weights, of_values = _gradients(grad, weights, values, *ctx.needs_input_grad)
        return of_weights, of_values


def _gradients(
    grad: Tensor, weights: Tensor, values: Tensor, with_weights: bool, with_values: bool
) -> tuple[Tensor | None, Tensor | None]:
    of_weights = torch.matmul(values.to(weights.dtype), grad[..., None])[..., 0] if with_weights else None
    of_values = (weights[..., None] * grad[..., None, :]).to(values.dtype) if with_values else None
    return of_weights, of_values


# The registered op and its gradient.


def _reference(weights: Tensor, values: Tensor) -> Tensor:
    return weighted_sum(weights, values).to(values.dtype)


def _kernel(weights: Tensor, values: Tensor) -> Tensor:
    require_float32(weights=weights)
    sums = _fake(weights, values)
    if values.numel() == 0:
        return sums.zero_()
    batch, rays, samples, channels = values.shape
    sizes = batch * rays, samples, channels
    kernels.launch("accumulate", values.dtype, weights.contiguous(), values.contiguous(), sums, *sizes)
    return sums


def _fake(weights: Tensor, values: Tensor) -> Tensor:
    check_accumulate(weights, values)
    return values.new_empty(*values.shape[:2], values.shape[3])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _op_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    weights, values = ctx.saved_tensors
    with_weights, with_values = ctx.needs_input_grad
    if torch.is_grad_enabled():  # to be differentiated again
        return _gradients(grad.to(weights.dtype), weights, values, with_weights, with_values)
    of_weights, of_values = _BACKWARD(grad, weights, values, with_weights, with_values)
    return of_weights if with_weights else None, of_values if with_values else None


def _backward_reference(
    grad: Tensor, weights: Tensor, values: Tensor, with_weights: bool, with_values: bool
) -> tuple[Tensor, Tensor]:
    of_weights, of_values = _gradients(grad.to(weights.dtype), weights, values, with_weights, with_values)
    return _or_empty(of_weights, weights), _or_empty(of_values, values)


def _or_empty(gradient: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if gradient is None else gradient


def _backward_kernel(
    grad: Tensor, weights: Tensor, values: Tensor, with_weights: bool, with_values: bool
) -> tuple[Tensor, Tensor]:
    require_float32(weights=weights)
    of_weights, of_values = _backward_fake(grad, weights, values, with_weights, with_values)
    if values.numel() == 0:
        return of_weights.zero_(), of_values
    batch, rays, samples, channels = values.shape
    kernels.launch(
        "accumulate_backward",
        values.dtype,
        grad.contiguous(),
        weights.contiguous(),
        values.contiguous(),
        of_weights if with_weights else None,
        of_values if with_values else None,
        batch * rays,
        samples,
        channels,
    )
    return of_weights, of_values


def _backward_fake(
    grad: Tensor, weights: Tensor, values: Tensor, with_weights: bool, with_values: bool
) -> tuple[Tensor, Tensor]:
    return weights.new_empty(weights.shape if with_weights else 0), values.new_empty(values.shape if with_values else 0)


_FORWARD = define(
    "accumulate(Tensor weights, Tensor values) -> Tensor",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_op_gradients,
)
_BACKWARD = define(
    "accumulate_backward(Tensor grad, Tensor weights, Tensor values, bool with_weights, bool with_values)"
    " -> (Tensor, Tensor)",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=_backward_fake,
)
