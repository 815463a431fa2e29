"""bias_leaky_relu against its formula, its rule for gradients and the original's records, with every backend."""

from __future__ import annotations

import math

import pytest
import torch
from ops.backends import Backend
from reference_records import record, relative_l2, requires_record, tensor
from torch import Tensor

from cips3d.ops.bias_leaky_relu import bias_leaky_relu
from cips3d.ops.library import OPS

# Vectors of 4 and 8 elements, and sizes that none divides; more than one part a channel; one pixel; rank 2.
SHAPES = [(5, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 2, 2), (1, 1), (3, 2, 64, 48), (2, 3, 5, 7)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def sample_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randn(shape[1], generator=generator, dtype=torch.float64).to(dtype)


def formula(x: Tensor, bias: Tensor | None, negative_slope: float = 0.2, gain: float = math.sqrt(2)) -> Tensor:
    z = x if bias is None else x + bias.view(-1, *[1] * (x.dim() - 2))
    return torch.where(z > 0, gain * z, gain * negative_slope * z)


def on(backend: Backend, *tensors: Tensor) -> list[Tensor]:
    """Copies that require gradients."""
    return [t.to(backend.device).requires_grad_() for t in tensors]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.detach().double().flatten(), b.detach().double().flatten(), dim=0))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_formula(backend: Backend, shape: tuple[int, ...], dtype: torch.dtype, with_bias: bool) -> None:
    x, bias = (t.to(backend.device) for t in sample_inputs(shape, dtype))
    given = bias if with_bias else None
    y = bias_leaky_relu(x, given, negative_slope=0.1, gain=3.0)
    assert y.dtype == dtype
    expected = formula(x.double(), bias.double() if with_bias else None, 0.1, 3.0)
    # Three roundings of half a unit in the last place each.
    assert relative_l2(y, expected) < 1.5 * torch.finfo(dtype).eps


def test_defaults(backend: Backend) -> None:
    y = bias_leaky_relu(torch.tensor([[1.0, -1.0]], device=backend.device))
    torch.testing.assert_close(y.cpu(), torch.tensor([[math.sqrt(2), -0.2 * math.sqrt(2)]]))


@pytest.mark.parametrize("with_bias", [True, False])
def test_arguments_stay_as_they_are(backend: Backend, with_bias: bool) -> None:
    x, bias = (t.to(backend.device) for t in sample_inputs((2, 3, 4, 4), torch.float32))
    before = x.clone(), bias.clone()
    bias_leaky_relu(x, bias if with_bias else None, gain=1.0)
    assert torch.equal(x, before[0])
    assert torch.equal(bias, before[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(backend: Backend, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, bias = on(backend, *sample_inputs(shape, dtype))
    exact = on(backend, x.detach().double(), bias.detach().double())
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(backend.device, dtype)
    found = torch.autograd.grad(bias_leaky_relu(x, bias), (x, bias), upstream)
    expected = torch.autograd.grad(formula(*exact), exact, upstream.double())
    for gradient, value in zip(found, expected, strict=True):
        assert gradient.dtype == dtype
        # Two roundings a term. The reference rounds 16-bit bias gradients on the way; kernels add up in float32.
        assert relative_l2(gradient, value) < 2 * torch.finfo(dtype).eps
        assert cosine(gradient, value) > 1 - 1e-5


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_gradients_of_any_order(shape: tuple[int, ...]) -> None:
    x, bias = (t.requires_grad_() for t in sample_inputs(shape))
    # Finite differences must not cross the kink.
    assert (x + bias.view(-1, *[1] * (len(shape) - 2))).abs().min() > 1e-4
    assert torch.autograd.gradcheck(bias_leaky_relu, (x, bias))
    assert torch.autograd.gradgradcheck(lambda a, b: bias_leaky_relu(a, b).square(), (x, bias))


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 5), (2, 3, 8, 8)])
def test_second_and_third_derivative(backend: Backend, shape: tuple[int, ...]) -> None:
    """Of Σ y³ through Σ ‖dx‖² + Σ db²: the penalty's own gradients, as R1 takes them, and one order more."""

    def derivatives(x: Tensor, bias: Tensor, function: object) -> list[Tensor]:
        y = function(x, bias)  # type: ignore[operator]
        first = torch.autograd.grad((y**3).sum(), (x, bias), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, bias), create_graph=True)
        third = torch.autograd.grad(sum(g.sum() for g in second), (x, bias))
        return [*second, *third]

    inputs = sample_inputs(shape, torch.float32)
    found = derivatives(*on(backend, *inputs), bias_leaky_relu)
    expected = derivatives(*on(backend, *(t.double() for t in inputs)), formula)
    for gradient, value in zip(found, expected, strict=True):
        # A dozen float32 roundings; terms of both signs in the sums over a channel.
        assert relative_l2(gradient, value) < 5e-6
        assert cosine(gradient, value) > 1 - 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_a_sum_that_is_zero_counts_as_negative(backend: Backend, dtype: torch.dtype) -> None:
    """x + b is exactly 0, and so is the output, whatever the gain."""
    x, bias = sample_inputs((4, 37, 5), dtype)
    x, bias = on(backend, (-bias[:, None]).expand_as(x).clone(), bias)
    y = bias_leaky_relu(x, bias)
    assert torch.equal(y, torch.zeros_like(y))
    dx, _ = torch.autograd.grad(y.sum(), (x, bias))
    torch.testing.assert_close(dx, torch.full_like(dx, 0.2 * math.sqrt(2)))


def test_zero_counts_as_negative(backend: Backend) -> None:
    x, bias = on(backend, torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([0.0, -1.0, 1.0]))
    y = bias_leaky_relu(x, bias, gain=2.0)
    assert torch.equal(y.cpu(), torch.zeros(1, 3))
    (upstream,) = on(backend, torch.ones(1, 3))
    dx, db = torch.autograd.grad(y, (x, bias), upstream, create_graph=True)
    torch.testing.assert_close(dx.cpu(), torch.full((1, 3), 0.4))
    torch.testing.assert_close(db.cpu(), torch.full((3,), 0.4))
    # The double backward has the same slope, applied to the sum of what comes from dx and from db.
    (double,) = torch.autograd.grad((3 * dx).sum() + (5 * db).sum(), upstream)
    torch.testing.assert_close(double.cpu(), torch.full((1, 3), 0.4 * 8))


def test_zero_counts_as_negative_in_the_registered_gradients(backend: Backend) -> None:
    grad, y = torch.ones(1, 3, device=backend.device), torch.tensor([[0.0, 1.0, -1.0]], device=backend.device)
    dx, db = OPS["bias_leaky_relu_backward"](grad, y, True, 0.25, 2.0)
    assert dx.tolist() == [[0.5, 2.0, 0.5]] and torch.equal(db, dx[0])
    assert torch.equal(OPS["bias_leaky_relu_sloped"](grad, None, y, 0.25, 2.0), dx)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 0, 4)])
def test_empty(backend: Backend, shape: tuple[int, ...]) -> None:
    x, bias = on(backend, torch.zeros(shape), torch.zeros(shape[1]))
    y = bias_leaky_relu(x, bias)
    assert y.shape == shape
    dx, db = torch.autograd.grad(y.sum(), (x, bias))
    assert dx.shape == shape
    assert torch.equal(db, torch.zeros_like(bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout(backend: Backend, dtype: torch.dtype) -> None:
    """Transposed, strided, channels-last and misaligned inputs give what contiguous ones give."""
    x, bias = (t.to(backend.device) for t in sample_inputs((2, 8, 4, 6), dtype))
    expected = bias_leaky_relu(x, bias)
    shifted = torch.empty(x.numel() + 1, dtype=dtype, device=x.device)[1:].view(x.shape)  # starts off 16 bytes
    shifted.copy_(x)
    strided = torch.stack([x, x], dim=-1)[..., 1]
    for same in (
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.to(memory_format=torch.channels_last),
        strided,
        shifted,
    ):
        assert torch.equal(bias_leaky_relu(same, torch.stack([bias, bias], dim=1)[:, 0]), expected)


def test_every_schedule_gives_the_same(kernel_backend: Backend) -> None:
    x, bias = on(kernel_backend, *sample_inputs((2, 3, 40, 50), torch.float32))
    found = []
    for _ in kernel_backend.schedules():
        y = bias_leaky_relu(x, bias)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, bias))))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("with_bias", [True, False])
def test_registration(backend: Backend, with_bias: bool) -> None:
    x, bias = on(backend, *sample_inputs((2, 3, 4, 5), torch.float32))
    y = torch.randn_like(x)
    given = bias if with_bias else None
    for name, arguments in {
        "bias_leaky_relu": (x, given, 0.2, 1.5),
        "bias_leaky_relu_backward": (x, y, with_bias, 0.2, 1.5),
        "bias_leaky_relu_sloped": (x, given, y, 0.2, 1.5),
    }.items():
        torch.library.opcheck(OPS[name].overload, arguments)


def test_compiles(backend: Backend) -> None:
    def loss(x: Tensor, bias: Tensor) -> Tensor:
        return bias_leaky_relu(x * 2, bias).square().mean()

    inputs = on(backend, *sample_inputs((2, 3, 4, 5), torch.float32))
    eager = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_a_parameter_s_bias_goes_with_16_bits(backend: Backend) -> None:
    x, bias = on(backend, *sample_inputs((2, 3, 4, 5), torch.float32))
    rounded = x.detach().half().requires_grad_()
    y = bias_leaky_relu(rounded, bias)
    assert y.dtype == torch.float16
    assert torch.equal(y, bias_leaky_relu(rounded, bias.half()))
    y.float().square().sum().backward()
    assert bias.grad is not None and bias.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.zeros(3)}, "x must have shape"),
        ({"x": torch.zeros(2, 3, dtype=torch.int32)}, "x must be of a floating-point dtype"),
        ({"bias": torch.zeros(2)}, r"bias must have shape \[3\]"),
        ({"bias": torch.zeros(1, 3)}, r"bias must have shape \[3\]"),
        ({"bias": torch.zeros(3, dtype=torch.int32)}, "bias must be of a floating-point dtype"),
        ({"bias": torch.zeros(3, device="meta")}, "bias must be torch.float32 on cpu"),
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
def test_matches_original(backend: Backend, index: int) -> None:
    loaded = record("stylegan_ops")
    x, bias, upstream = (tensor(loaded, f"in/bias_act{index}/{key}").to(backend.device) for key in ("x", "b", "w"))
    y = bias_leaky_relu(x.requires_grad_(), bias.requires_grad_())
    gradients = torch.autograd.grad(y, (x, bias), upstream)
    # float32: a few roundings.
    assert relative_l2(y, tensor(loaded, f"out/bias_act{index}/y")) < 5e-7
    for gradient, key in zip(gradients, ("grad_x", "grad_b"), strict=True):
        assert relative_l2(gradient, tensor(loaded, f"out/bias_act{index}/{key}")) < 1e-6
