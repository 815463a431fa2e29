"""Weighted sums along rays against an einsum in float64, with every backend."""

from __future__ import annotations

import pytest
import torch
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import accumulate
from cips3d.ops.library import OPS

# B, R, S, C: vectors and none, groups of 1 to 32 lanes, more samples and more channels than lanes take at a time.
SHAPES = [(2, 3, 5, 4), (1, 1, 1, 1), (1, 37, 2, 1), (2, 5, 12, 64), (1, 3, 40, 3), (1, 2, 6, 264)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def sample_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    return torch.rand(shape[:3], generator=random), torch.randn(shape, generator=random).to(dtype)


def formula(weights: Tensor, values: Tensor) -> Tensor:
    return torch.einsum("brs,brsc->brc", weights, values)


def on(backend: Backend, *tensors: Tensor) -> list[Tensor]:
    """Copies that require gradients."""
    return [t.detach().to(backend.device, copy=True).requires_grad_() for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_formula_and_gradients(backend: Backend, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weights, values = on(backend, *sample_inputs(shape, dtype))
    sums = accumulate(weights, values)
    assert sums.dtype == dtype
    upstream = torch.randn(sums.shape, generator=torch.Generator().manual_seed(1)).to(backend.device, dtype)
    exact = on(backend, weights.double(), values.double())
    # One rounding to the dtype of the values; sums in float32.
    assert relative_l2(sums, formula(*exact)) < torch.finfo(dtype).eps + 3e-7
    of_weights, of_values = torch.autograd.grad(sums, (weights, values), upstream)
    expected = torch.autograd.grad(formula(*exact), exact, upstream.double())
    assert of_weights.dtype == torch.float32 and of_values.dtype == dtype
    assert relative_l2(of_weights, expected[0]) < 1e-6
    assert relative_l2(of_values, expected[1]) < torch.finfo(dtype).eps


def test_second_derivative(backend: Backend) -> None:
    def derivative(weights: Tensor, values: Tensor, function: object) -> list[Tensor]:
        first = torch.autograd.grad((function(weights, values) ** 3).sum(), (weights, values), create_graph=True)  # type: ignore[operator]
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), (weights, values)))

    inputs = sample_inputs((2, 3, 5, 4))
    found = derivative(*on(backend, *inputs), accumulate)
    expected = derivative(*on(backend, *(x.double() for x in inputs)), formula)
    for gradient, value in zip(found, expected, strict=True):
        assert relative_l2(gradient, value) < 5e-6  # a dozen float32 roundings, terms of both signs


def test_gradients_of_any_order() -> None:
    inputs = [x.double().requires_grad_() for x in sample_inputs((1, 2, 3, 2))]
    assert torch.autograd.gradcheck(accumulate, inputs)
    assert torch.autograd.gradgradcheck(accumulate, inputs)


@pytest.mark.parametrize("shape", [(2, 0, 5, 4), (0, 3, 5, 4), (2, 3, 0, 4), (2, 3, 5, 0)])
def test_empty(backend: Backend, shape: tuple[int, ...]) -> None:
    weights, values = on(backend, *sample_inputs(shape))
    sums = accumulate(weights, values)
    assert torch.equal(sums, torch.zeros(*shape[:2], shape[3], device=sums.device))
    of_weights, of_values = torch.autograd.grad(sums.sum(), (weights, values))
    assert torch.equal(of_weights, torch.zeros_like(weights)) and of_values.shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout(backend: Backend, dtype: torch.dtype) -> None:
    """Transposed and misaligned inputs give what contiguous ones give."""
    weights, values = (x.to(backend.device) for x in sample_inputs((2, 3, 5, 16), dtype))
    expected = accumulate(weights, values)
    shifted = torch.empty(values.numel() + 1, dtype=dtype, device=values.device)[1:].view(values.shape)
    shifted.copy_(values)
    for same in (shifted, values.transpose(1, 3).contiguous().transpose(1, 3)):
        found = accumulate(weights.transpose(0, 1).contiguous().transpose(0, 1), same)
        assert relative_l2(found, expected) <= torch.finfo(dtype).eps  # another order of the sum, then one rounding


def test_values_that_no_kernel_knows(backend: Backend) -> None:
    weights, values = on(backend, *sample_inputs((2, 3, 5, 4), torch.float64))
    sums = accumulate(weights, values)
    assert sums.dtype == torch.float64
    assert relative_l2(sums, formula(weights.double(), values)) < 1e-6


def test_every_schedule_gives_the_same(kernel_backend: Backend) -> None:
    weights, values = on(kernel_backend, *sample_inputs((2, 9, 40, 8)))
    found = []
    for _ in kernel_backend.schedules():
        sums = accumulate(weights, values)
        found.append((sums, *torch.autograd.grad(sums.square().sum(), (weights, values))))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def test_registration(backend: Backend) -> None:
    weights, values = on(backend, *sample_inputs((2, 3, 5, 4)))
    torch.library.opcheck(OPS["accumulate"].overload, (weights, values))
    grad = torch.randn(2, 3, 4, device=backend.device)
    torch.library.opcheck(OPS["accumulate_backward"].overload, (grad, weights.detach(), values.detach(), True, False))


def test_wrong_arguments_are_named() -> None:
    weights, values = sample_inputs((2, 3, 5, 4))
    with pytest.raises(ValueError, match="weights must have shape"):
        accumulate(weights[0], values)
    with pytest.raises(ValueError, match=r"values must have shape \[2, 3, 5, any\]"):
        accumulate(weights, values[:, :, :4])
    with pytest.raises(ValueError, match="values must be on cpu like weights"):
        accumulate(weights, values.to("meta"))


def test_registered_op_refuses_what_a_kernel_cannot_read(kernel_backend: Backend) -> None:
    weights, values = (x.to(kernel_backend.device) for x in sample_inputs((1, 1, 2, 3)))
    with pytest.raises(TypeError, match=r"weights must be torch\.float32"):
        OPS["accumulate"](weights.half(), values)
