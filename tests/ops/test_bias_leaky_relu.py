"""bias_leaky_relu against its formula, its rule for gradients and the original's records."""

from __future__ import annotations

import math

import pytest
import torch
from reference_records import record, relative_l2, requires_record, tensor
from torch import Tensor

from cips3d.ops.bias_leaky_relu import bias_leaky_relu

SHAPES = [(5, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 2, 2)]


def sample_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randn(shape[1], generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_formula(shape: tuple[int, ...]) -> None:
    x, bias = sample_inputs(shape)
    z = x + bias.view(-1, *[1] * (len(shape) - 2))
    expected = torch.where(z > 0, 3 * z, 3 * 0.1 * z)
    y = bias_leaky_relu(x, bias, negative_slope=0.1, gain=3.0)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=0)


def test_defaults() -> None:
    y = bias_leaky_relu(torch.tensor([[1.0, -1.0]]))
    torch.testing.assert_close(y, torch.tensor([[math.sqrt(2), -0.2 * math.sqrt(2)]]))


@pytest.mark.parametrize("with_bias", [True, False])
def test_arguments_stay_as_they_are(with_bias: bool) -> None:
    x, bias = sample_inputs((2, 3, 4, 4))
    before = x.clone(), bias.clone()
    bias_leaky_relu(x, bias if with_bias else None, gain=1.0)
    assert torch.equal(x, before[0])
    assert torch.equal(bias, before[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    x, bias = sample_inputs((2, 3, 4, 5), dtype)
    y = bias_leaky_relu(x, bias)
    assert y.dtype == dtype
    # Three roundings of half a unit in the last place each.
    assert relative_l2(y, bias_leaky_relu(x.double(), bias.double())) < 1.5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape: tuple[int, ...]) -> None:
    x, bias = (t.requires_grad_() for t in sample_inputs(shape))
    # Finite differences must not cross the kink.
    assert (x + bias.view(-1, *[1] * (len(shape) - 2))).abs().min() > 1e-4
    assert torch.autograd.gradcheck(bias_leaky_relu, (x, bias))
    assert torch.autograd.gradgradcheck(lambda a, b: bias_leaky_relu(a, b).square(), (x, bias))


def test_zero_counts_as_negative() -> None:
    x = torch.tensor([[0.0, 1.0, -1.0]], requires_grad=True)
    bias = torch.tensor([0.0, -1.0, 1.0], requires_grad=True)
    y = bias_leaky_relu(x, bias, gain=2.0)
    assert torch.equal(y, torch.zeros(1, 3))
    upstream = torch.ones(1, 3, requires_grad=True)
    dx, db = torch.autograd.grad(y, (x, bias), upstream, create_graph=True)
    torch.testing.assert_close(dx, torch.full((1, 3), 0.4))
    torch.testing.assert_close(db, torch.full((3,), 0.4))
    # The double backward has the same slope, applied to the sum of what comes from dx and from db.
    (double,) = torch.autograd.grad((3 * dx).sum() + (5 * db).sum(), upstream)
    torch.testing.assert_close(double, torch.full((1, 3), 0.4 * 8))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.zeros(3)}, "x must have shape"),
        ({"x": torch.zeros(2, 3, dtype=torch.int32)}, "x must be of a floating-point dtype"),
        ({"bias": torch.zeros(2)}, r"bias must have shape \[3\]"),
        ({"bias": torch.zeros(1, 3)}, r"bias must have shape \[3\]"),
        ({"bias": torch.zeros(3, dtype=torch.float64)}, "bias must be torch.float32"),
        ({"negative_slope": -0.1}, "negative_slope must not be negative"),
        ({"gain": 0.0}, "gain must be positive"),
    ],
)
def test_wrong_arguments_are_named(change: dict, named: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 4)} | change
    with pytest.raises(ValueError, match=named):
        bias_leaky_relu(**arguments)


@requires_record("stylegan_ops")
@pytest.mark.parametrize("index", range(3))
def test_matches_original(index: int) -> None:
    loaded = record("stylegan_ops")
    x, bias, upstream = (tensor(loaded, f"in/bias_act{index}/{key}") for key in ("x", "b", "w"))
    y = bias_leaky_relu(x.requires_grad_(), bias.requires_grad_())
    gradients = torch.autograd.grad(y, (x, bias), upstream)
    # float32: a few roundings.
    assert relative_l2(y, tensor(loaded, f"out/bias_act{index}/y")) < 5e-7
    for gradient, key in zip(gradients, ("grad_x", "grad_b"), strict=True):
        assert relative_l2(gradient, tensor(loaded, f"out/bias_act{index}/{key}")) < 1e-6
