"""upfirdn2d against its definition, its own gradient formula and the original's records, with every backend."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from ops.backends import Backend
from reference_records import meta, record, relative_l2, requires_record, tensor
from torch import Tensor

from cips3d.ops.library import OPS
from cips3d.ops.upfirdn2d import Factor, Padding, binomial_kernel, upfirdn2d

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Case(NamedTuple):
    """The shape of the kernel, and what is done with it."""

    kernel: list[int]
    up: Factor
    down: Factor
    padding: Padding
    size: tuple[int, int] = (6, 7)


# What the networks use, and everything odd. Sizes: rows of whole vectors of 4 and 8 elements and rows of none, longer
# than a warp has columns, more rows than a strip has; one pixel.
CASES = {
    "blur before a 3x3 of stride 2": Case([4], 1, 1, 2, (11, 16)),
    "and its adjoint": Case([4], 1, 1, 1, (12, 17)),
    "blur, same size": Case([4], 1, 1, (2, 1), (19, 24)),
    "and the adjoint of that": Case([4], 1, 1, (1, 2), (9, 8)),
    "blur and halve": Case([4], 1, 2, 1, (14, 32)),
    "double": Case([4], 2, 1, (2, 1), (9, 16)),
    "blur, odd sizes": Case([4], 1, 1, (2, 2, 2, 3), (21, 71)),
    "halve, odd sizes": Case([4], 1, 2, (3, 1, 0, 2)),
    "double, odd sizes": Case([4], 2, 1, (1, 3, -1, 2)),
    "one pixel": Case([4], 1, 1, 2, (1, 1)),
    "far pads and a crop": Case([4], 1, 1, (7, -3, -2, 9), (8, 8)),
    "separable, all different": Case([3], (2, 3), (3, 2), (-1, 2, 3, -2)),
    "separable, crop inside an upsampled pixel": Case([2], 3, 2, (-4, -1)),
    "twelve taps, double": Case([12], 2, 1, (6, 5), (5, 9)),
    "twelve taps, halve": Case([12], 1, 2, 5, (10, 12)),
    "six taps by four": Case([6], 4, 1, (3, 2), (4, 33)),
    "two-dimensional": Case([4, 4], 1, 1, (2, 1, 2, 1)),
    "two-dimensional, all different": Case([3, 5], (2, 3), (3, 2), (-1, 2, 3, -2)),
    "more taps than pixels": Case([13, 11], 1, 1, 6),
    "one tap": Case([1, 1], 2, 1, 0),
}


def sample_inputs(
    case: str, dtype: torch.dtype = torch.float64, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor, Factor, Factor, Padding]:
    kernel_shape, up, down, padding, usual_size = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *(size or usual_size), generator=generator, dtype=torch.float64).to(dtype)
    kernel = torch.randn(kernel_shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, kernel, up, down, padding


def on(backend: Backend, case: str, dtype: torch.dtype = torch.float32) -> tuple:
    x, kernel, *rest = sample_inputs(case, dtype)
    return x.to(backend.device), kernel.to(backend.device), *rest


def double(arguments: tuple) -> tuple:
    x, kernel, *rest = arguments
    return x.double(), kernel.double(), *rest


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.detach().double().flatten(), b.detach().double().flatten(), dim=0))


def pair(factor: Factor) -> list[int]:
    return [factor, factor] if isinstance(factor, int) else list(factor)


def sides(padding: Padding) -> tuple[int, ...]:
    return (padding,) * 4 if isinstance(padding, int) else padding if len(padding) == 4 else (*padding, *padding)


def by_definition(x: Tensor, kernel: Tensor, up: Factor, down: Factor, padding: Padding) -> Tensor:
    """Zeros inserted, padded or cropped, convolved and decimated, one output pixel after the other, in float64."""
    (up_x, up_y), (down_x, down_y) = pair(up), pair(down)
    x0, x1, y0, y1 = sides(padding)
    taps = kernel.double().cpu().numpy()
    taps = np.outer(taps, taps) if taps.ndim == 1 else taps
    b, c, h, w = x.shape
    large = np.zeros((b, c, h * up_y, w * up_x))
    large[:, :, ::up_y, ::up_x] = x.double().cpu().numpy()
    large = np.pad(large, ((0, 0), (0, 0), (max(y0, 0), max(y1, 0)), (max(x0, 0), max(x1, 0))))
    large = large[:, :, max(-y0, 0) : large.shape[2] - max(-y1, 0), max(-x0, 0) : large.shape[3] - max(-x1, 0)]
    kh, kw = taps.shape
    rows, columns = (large.shape[2] - kh) // down_y + 1, (large.shape[3] - kw) // down_x + 1
    y = np.zeros((b, c, rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = large[:, :, i * down_y : i * down_y + kh, j * down_x : j * down_x + kw]
            y[:, :, i, j] = (window * taps[::-1, ::-1]).sum((2, 3))
    return torch.from_numpy(y)


@pytest.mark.parametrize("case", CASES)
def test_matches_definition_in_float64(case: str) -> None:
    arguments = sample_inputs(case)
    torch.testing.assert_close(upfirdn2d(*arguments), by_definition(*arguments), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_matches_definition(backend: Backend, case: str, dtype: torch.dtype) -> None:
    arguments = on(backend, case, dtype)
    y = upfirdn2d(*arguments)
    assert y.dtype == dtype
    # Kernels add up in float32 and round once. The reference may round what the first axis gives too.
    tolerance = 5e-7 if dtype == torch.float32 else torch.finfo(dtype).eps / (2 if backend.uses_kernels else 1)
    assert relative_l2(y, by_definition(*arguments)) < tolerance


def test_kernels_take_float32_taps(backend: Backend) -> None:
    x, taps, *rest = on(backend, "blur, same size", torch.bfloat16)
    taps = taps.float() + 1e-3
    expected = by_definition(x, taps if backend.uses_kernels else taps.bfloat16(), *rest)
    assert relative_l2(upfirdn2d(x, taps, *rest), expected) < torch.finfo(torch.bfloat16).eps
    as_double = upfirdn2d(x.float(), taps.double(), *rest)
    torch.testing.assert_close(as_double, upfirdn2d(x.float(), taps, *rest))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["blur, same size", "blur and halve", "two-dimensional, all different"])
def test_layout(backend: Backend, case: str, dtype: torch.dtype) -> None:
    """Transposed, strided, channels-last and misaligned images give what contiguous ones give."""
    x, kernel, *rest = on(backend, case, dtype)
    expected = upfirdn2d(x, kernel, *rest)
    shifted = torch.empty(x.numel() + 1, dtype=dtype, device=x.device)[1:].view(x.shape)  # starts off 16 bytes
    shifted.copy_(x)
    for same in (
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.to(memory_format=torch.channels_last),
        torch.stack([x, x], dim=-1)[..., 1],
        shifted,
    ):
        y = upfirdn2d(same, torch.stack([kernel, kernel], dim=-1)[..., 1], *rest)
        # Kernels for other alignments may add up in another order.
        assert relative_l2(y, expected) < torch.finfo(dtype).eps


def test_separable_is_the_outer_product(backend: Backend) -> None:
    for case in ("separable, all different", "blur and halve"):
        x, taps, up, down, padding = on(backend, case)
        expected = upfirdn2d(x, torch.outer(taps, taps), up, down, padding)
        assert relative_l2(upfirdn2d(x, taps, up, down, padding), expected) < 5e-7


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_any_order_in_float64(case: str) -> None:
    """Through plain PyTorch, and through the registered op, whose backward is what the kernels have."""
    x, kernel, up, down, padding = sample_inputs(case, size=(4, 5))
    x = x[:1, :1].requires_grad_()

    def registered(image: Tensor) -> Tensor:
        return OPS["upfirdn2d"](image, kernel, pair(up), pair(down), list(sides(padding)), False)

    for function in (lambda image: upfirdn2d(image, kernel, up, down, padding), registered):
        assert torch.autograd.gradcheck(function, x)
        # The operation is linear: its double backward is trivial, so a nonlinear function of it is checked.
        assert torch.autograd.gradgradcheck(lambda image, f=function: f(image).square(), x, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_gradient(backend: Backend, case: str, dtype: torch.dtype) -> None:
    arguments = on(backend, case, dtype)
    x, exact = arguments[0].requires_grad_(), arguments[0].detach().double().requires_grad_()
    y = upfirdn2d(*arguments)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    (expected,) = torch.autograd.grad(upfirdn2d(exact, *double(arguments)[1:]), exact, upstream.double())
    assert gradient.dtype == dtype
    # As for the forward; PyTorch rounds partial sums too.
    eps = torch.finfo(dtype).eps * (1 if backend.uses_kernels else 2)
    assert relative_l2(gradient, expected) < (5e-7 if dtype == torch.float32 else eps)
    assert cosine(gradient, expected) > 1 - 1e-4


@pytest.mark.parametrize("case", CASES)
def test_adjoint(kernel_backend: Backend, case: str) -> None:
    """<U x, y> = <x, U* y> and <U* y, x'> = <y, U** x'>, all through kernels."""
    arguments = on(kernel_backend, case)
    x = arguments[0].requires_grad_()
    output = upfirdn2d(*arguments)
    y = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output).requires_grad_()
    (adjoint,) = torch.autograd.grad(output, x, y, create_graph=True)
    (twice,) = torch.autograd.grad(adjoint, y, x)
    # float32 sums of terms of both signs, against the size that these could add up to.
    scale = 1e-6 * output.norm().item() * y.norm().item()
    assert inner(output, y) == pytest.approx(inner(x, adjoint), abs=scale)
    assert relative_l2(twice, output) < 5e-7


def inner(a: Tensor, b: Tensor) -> float:
    return (a.double() * b.double()).sum().item()


@pytest.mark.parametrize("case", CASES)
def test_second_and_third_derivative(backend: Backend, case: str) -> None:
    """Of Σ y³ through Σ dx²: the penalty's own gradient, as R1 takes it, and one order more."""

    def derivatives(x: Tensor, *rest: object) -> list[Tensor]:
        x.requires_grad_()
        y = upfirdn2d(x, *rest)  # type: ignore[arg-type]
        (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        (third,) = torch.autograd.grad(second.sum(), x)
        return [second, third]

    arguments = on(backend, case)
    for gradient, expected in zip(derivatives(*arguments), derivatives(*double(arguments)), strict=True):
        # Four applications in float32, of both signs; measured up to 5e-7.
        assert relative_l2(gradient, expected) < 2e-6
        assert cosine(gradient, expected) > 1 - 1e-9


@pytest.mark.parametrize("case", ["blur, odd sizes", "halve, odd sizes", "double", "separable, all different"])
def test_gradient_is_upfirdn2d(case: str) -> None:
    """Flipped kernel, up and down swapped, pads k - p0 - 1 and in·up - out·down + p0 - up + 1."""
    x, taps, up, down, padding = sample_inputs(case, size=(8, 9))
    x.requires_grad_()
    y = upfirdn2d(x, taps, up, down, padding)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    ups, downs = pair(up), pair(down)
    pads = []
    for axis, dim in ((0, 3), (1, 2)):
        before = sides(padding)[2 * axis]
        pads.append(len(taps) - before - 1)
        pads.append(x.shape[dim] * ups[axis] - y.shape[dim] * downs[axis] + before - ups[axis] + 1)
    torch.testing.assert_close(upfirdn2d(upstream, taps.flip(0), tuple(downs), tuple(ups), tuple(pads)), gradient)


@pytest.mark.parametrize("kernel", [torch.ones(1), torch.ones(1, 1)])
def test_adjoint_that_crops_everything(backend: Backend, kernel: Tensor) -> None:
    """The one output lies between two upsampled pixels: nothing is met, forward or backward."""
    x = torch.ones(1, 2, 1, 1, device=backend.device, requires_grad=True)
    y = upfirdn2d(x, kernel.to(backend.device), up=3, padding=(-2, 0))
    assert torch.equal(y.cpu(), torch.zeros(1, 2, 1, 1))
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.equal(gradient.cpu(), torch.zeros(1, 2, 1, 1))
    exact = x.detach().double().requires_grad_()  # by the registered op's reference
    y = OPS["upfirdn2d"](exact, kernel.to(exact), [3, 3], [1, 1], [-2, 0, -2, 0], False)
    assert torch.equal(torch.autograd.grad(y.sum(), exact)[0].cpu(), torch.zeros(1, 2, 1, 1).double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_kernels_read_nothing_else(kernel_backend: Backend, case: str, dtype: torch.dtype) -> None:
    """Wide loads reach over the ends of rows and planes; no number from there, finite or not, leaves a trace."""
    x, *rest = on(kernel_backend, case, dtype)
    expected = upfirdn2d(x, *rest)
    for plane in range(x.shape[1]):
        poisoned = x.clone()
        poisoned[:, plane] = torch.nan
        clean = [c for c in range(x.shape[1]) if c != plane]
        assert torch.equal(upfirdn2d(poisoned, *rest)[:, clean], expected[:, clean])
    if case.startswith("double"):
        return  # its kernel multiplies one neighbour of every window by a tap of zero
    bottom, right = x.clone(), x.clone()
    bottom[:, :, -1], right[..., -1] = torch.nan, torch.nan
    for poisoned in (bottom, right):
        meets = by_definition(poisoned.isnan(), torch.ones_like(rest[0]), *rest[1:]).to(x.device) > 0
        assert torch.equal(upfirdn2d(poisoned, *rest)[~meets], expected[~meets])


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8)])
@pytest.mark.parametrize("kernel_shape", [(4,), (3,), (2, 4)])
def test_empty(backend: Backend, shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, device=backend.device, requires_grad=True)
    y = upfirdn2d(x, torch.ones(kernel_shape, device=backend.device), down=2, padding=1)
    assert y.shape[:2] == shape[:2]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == shape


@pytest.mark.parametrize("case", ["blur before a 3x3 of stride 2", "blur, odd sizes", "double", "six taps by four"])
def test_every_schedule_gives_the_same(kernel_backend: Backend, case: str) -> None:
    for dtype in (torch.float32, torch.float16):
        arguments = on(kernel_backend, case, dtype)
        found = [upfirdn2d(*arguments) for _ in kernel_backend.schedules()]
        assert all(torch.equal(found[0], again) for again in found[1:])


@pytest.mark.parametrize("case", ["blur and halve", "two-dimensional, all different"])
def test_registration(backend: Backend, case: str) -> None:
    x, kernel, up, down, padding = on(backend, case)
    arguments = (x.requires_grad_(), kernel, pair(up), pair(down), list(sides(padding)), False)
    torch.library.opcheck(OPS["upfirdn2d"].overload, arguments)


def test_compiles(backend: Backend) -> None:
    x, *rest = on(backend, "blur and halve")

    def loss(x: Tensor) -> Tensor:
        return upfirdn2d(x * 2, *rest).square().mean()

    x.requires_grad_()
    (eager,) = torch.autograd.grad(loss(x), x)
    (compiled,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), x)
    torch.testing.assert_close(compiled, eager)


def test_binomial_kernel_preserves_constants() -> None:
    assert binomial_kernel().tolist() == [0.125, 0.375, 0.375, 0.125]
    assert binomial_kernel(gain=2.0).sum().item() == 2.0
    ones = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(upfirdn2d(ones, binomial_kernel(), down=2, padding=-1), torch.ones(1, 1, 2, 2))
    doubled = upfirdn2d(ones, binomial_kernel(gain=2.0), up=2, padding=(2, 1))
    assert doubled.shape == (1, 1, 16, 16)
    torch.testing.assert_close(doubled[:, :, 2:-2, 2:-2], torch.ones(1, 1, 12, 12))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.zeros(3, 8, 8)}, "x must have shape"),
        ({"x": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}, "x must be of a floating-point dtype"),
        ({"kernel": torch.zeros(4, dtype=torch.int64)}, "kernel must be of a floating-point dtype"),
        ({"kernel": torch.zeros(1, 1, 4)}, "kernel must have shape"),
        ({"kernel": torch.zeros(0)}, "kernel must have shape"),
        ({"kernel": torch.zeros(4, requires_grad=True)}, "kernel must be a constant"),
        ({"kernel": torch.zeros(4, device="meta")}, "kernel must be on the device of x"),
        ({"kernel": torch.zeros(9)}, "kernel has 9 taps along the columns of x"),
        ({"kernel": torch.zeros(4, 2), "padding": (0, 0, -3, -2)}, "kernel has 4 taps along the rows of x"),
        ({"up": 0}, "up must be"),
        ({"down": (1, 0)}, "down must be"),
        ({"down": (1, 1, 1)}, "down must be"),
        ({"padding": (1, 2, 3)}, "padding must be"),
        ({"padding": (-9, 12)}, "crops away all 8 columns"),
    ],
)
def test_wrong_arguments_are_named(change: dict, named: str) -> None:
    arguments = {"x": torch.zeros(1, 3, 8, 8), "kernel": torch.zeros(4)} | change
    with pytest.raises(ValueError, match=named):
        upfirdn2d(**arguments)


@requires_record("stylegan_ops")
@pytest.mark.parametrize("index", range(4))
def test_matches_original(backend: Backend, index: int) -> None:
    loaded = record("stylegan_ops")
    settings = meta(loaded)["upfirdn"][index]
    x, kernel, upstream = (
        tensor(loaded, f"in/upfirdn{index}/{key}").to(backend.device) for key in ("x", "kernel", "w")
    )
    x.requires_grad_()
    y = upfirdn2d(x, kernel, *(tuple(settings[key]) for key in ("up_xy", "down_xy", "pad_x0x1y0y1")))
    (gradient,) = torch.autograd.grad(y, x, upstream)
    # float32 sums of up to 16 products.
    assert relative_l2(y, tensor(loaded, f"out/upfirdn{index}/y")) < 1e-6
    assert relative_l2(gradient, tensor(loaded, f"out/upfirdn{index}/grad_x")) < 1e-6


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("shape", [(1, 2, 5, 1300), (1, 2, 1300, 5)])
def test_long_rows_and_columns(backend: Backend, shape: tuple[int, ...], up: int, down: int) -> None:
    """Separable filters give what the same ones of two dimensions do, without matrices of a row's size squared."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(backend.device)
    taps = binomial_kernel(device=backend.device)
    found = upfirdn2d(x, taps, up=up, down=down, padding=(2, 1))
    expected = upfirdn2d(x.double(), torch.outer(taps, taps).double(), up=up, down=down, padding=(2, 1))
    assert relative_l2(found, expected) < 1e-6


def test_autocast_leaves_the_dtype(backend: Backend) -> None:
    x, taps = torch.ones(1, 1, 8, 8, device=backend.device), binomial_kernel(device=backend.device)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        assert upfirdn2d(x, taps, padding=2).dtype == torch.float32
