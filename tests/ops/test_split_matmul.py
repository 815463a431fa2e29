"""Float32 products through three of float16 against float64: any magnitude, derivatives, layouts, limits."""

from __future__ import annotations

import math

import pytest
import torch
from ops.backends import Backend
from ops.split_products import TOLERANCE, check, on, products, sample
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import ModulatedWeight, kernels, modulated_inr, modulated_layer, split_matmul
from cips3d.ops.library import OPS
from cips3d.ops.split_matmul import PackedWeight, pays_for

# Rows, in, out: one number, less than a step; odd widths in one tile of 64 columns; several tiles of rows and of
# columns; a matrix that fits into shared memory, and ones that stream.
SHAPES = [(1, 1, 1), (70, 33, 65), (300, 16, 64), (270, 128, 140), (40, 600, 80), (130, 512, 512)]


@pytest.fixture
def every_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of every architecture (test_split_matmul_warpgroups.py has the others)."""
    monkeypatch.setenv("CIPS3D_WGMMA", "0")


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(backend: Backend, every_architectures: None, shape: tuple[int, int, int]) -> None:
    rows, *widths = shape
    given = on(backend, sample([rows], *widths))
    found = products(*given)
    assert all(product.dtype == torch.float32 for product in found)
    # A sum over rows is left to tensor cores, which round toward zero, for up to 512 of them at a time.
    check(found, *given, over_rows=2 * TOLERANCE)


def test_kernels_are_as_accurate_as_float32(kernel_backend: Backend, every_architectures: None) -> None:
    x, weight, _ = sample([300], 512, 128)
    given = [t.to(kernel_backend.device, torch.float32) for t in (x, weight)]
    exact = given[0].double() @ given[1].double()
    plain = (given[0].cpu() @ given[1].cpu()).to(exact)
    found = split_matmul(*given)
    assert relative_l2(found, exact) < 2 * relative_l2(plain, exact) + 1e-7
    assert not torch.equal(found, plain)


@pytest.mark.parametrize(
    ("x_factor", "weight_factor", "grad_factor"),
    [(x, weight, 1) for x in (1e-20, 1e-6, 1, 1e5, 1e25) for weight in (1e-12, 1e7)]
    + [(1e-30, 1e34, 1), (1e34, 1e-12, 1e-20), (1e-20, 1, 1e34)],
)
def test_magnitudes(backend: Backend, x_factor: float, weight_factor: float, grad_factor: float) -> None:
    """Far beyond those of float16, in x and in W, and in what is undone at the end."""
    x, weight, grad = on(backend, sample([50], 40, 66))
    grad = grad * grad_factor
    scaled = [(t * by).detach().requires_grad_() for t, by in ((x, x_factor), (weight, weight_factor))]
    y = split_matmul(*scaled)
    exact = [t.detach().double().cpu() for t in scaled]
    assert relative_l2(y, exact[0] @ exact[1]) < TOLERANCE
    found = torch.autograd.grad(y, scaled, grad)
    grad_ = grad.detach().double().cpu()
    assert relative_l2(found[0], grad_ @ exact[1].mT) < TOLERANCE
    assert relative_l2(found[1], exact[0].mT @ grad_) < TOLERANCE


def test_columns_and_elements_of_different_magnitudes(backend: Backend) -> None:
    """A column of W has a scale of its own; an element of x counts down to 2^-39 of the largest one."""
    x, weight, _ = (t.float().to(backend.device) for t in sample([60], 48, 80))
    weight = weight * torch.logspace(-20, 15, 80, device=weight.device)
    x[:, 7] *= 2.0**14
    small = x.clone()
    small[20:40] *= 2.0**-10
    for given in (x, small):
        found, expected = split_matmul(given, weight), given.double() @ weight.double()
        for column in range(0, 80, 13):
            assert relative_l2(found[:, column], expected[:, column]) < TOLERANCE
    # Of these rows the largest elements are 2^-10 of x's, the others 2^-24: the latter keep 15 bits.
    rows = split_matmul(small, weight)[20:40], (small.double() @ weight.double())[20:40]
    assert relative_l2(rows[0][:, 50], rows[1][:, 50]) < TOLERANCE


def test_long_sums_are_rounded_to_nearest(backend: Backend) -> None:
    """Left to tensor cores, which round toward zero, this one would lose 2e-5."""
    random = torch.Generator().manual_seed(3)
    x, weight = torch.rand(16_384, 32, generator=random) + 0.5, torch.rand(32, 40, generator=random)
    x, weight = x.to(backend.device), weight.to(backend.device).requires_grad_()
    (found,) = torch.autograd.grad(split_matmul(x, weight).sum(), weight)
    assert relative_l2(found, x.double().sum(0)[:, None].expand(32, 40)) < 3e-6


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_not_finite(kernel_backend: Backend, value: float) -> None:
    """What is not finite can be seen in the product, and in gradients."""
    x, weight, grad = (t.float().to(kernel_backend.device) for t in sample([30], 20, 24))
    for index, tensor in enumerate((x, weight, grad)):
        broken = [t.clone() for t in (x, weight, grad)]
        broken[index][3, 5] = value
        a, b, c = broken
        y = split_matmul(a.requires_grad_(), b.requires_grad_())
        of_x, of_weight = torch.autograd.grad(y, [a, b], c)
        for found, has in ((y, index < 2), (of_x, index > 0), (of_weight, index != 1)):
            assert bool(found.isnan().any()) == has, (index, tensor.shape)


def test_zeros_stay_zeros(backend: Backend) -> None:
    x, weight, _ = (t.float().to(backend.device) for t in sample([30], 20, 24))
    assert torch.equal(split_matmul(torch.zeros_like(x), weight), torch.zeros(30, 24, device=x.device))
    assert torch.equal(split_matmul(x, torch.zeros_like(weight)), torch.zeros(30, 24, device=x.device))


def test_gradients_to_any_order() -> None:
    x, weight, _ = (t.requires_grad_() for t in sample([4], 3, 2))
    assert torch.autograd.gradcheck(split_matmul, (x, weight))
    assert torch.autograd.gradgradcheck(split_matmul, (x, weight))


def test_third_derivatives(backend: Backend) -> None:
    """Through the kernels, all the way: no derivative is left to plain PyTorch."""
    exact = [t.requires_grad_() for t in sample([20], 9, 12)[:2]]

    def derivatives(tensors: list[Tensor], product: object) -> list[Tensor]:
        x, weight = tensors
        first = torch.autograd.grad(product(x, weight).pow(3).sum(), tensors, create_graph=True)  # type: ignore[operator]
        second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors, create_graph=True)
        return [*first, *second, *torch.autograd.grad(sum(g.square().mean() for g in second), tensors)]

    found = derivatives(on(backend, exact), split_matmul)
    for gradient, value in zip(found, derivatives(exact, torch.matmul), strict=True):
        assert relative_l2(gradient, value) < 1e-5


@pytest.mark.parametrize(
    "shape", [([2, 3, 5], 7, 4), ([], 7, 4), ([0], 7, 4), ([3, 0], 7, 4), ([5], 0, 4), ([5], 7, 0)]
)
def test_shapes(backend: Backend, shape: tuple[list[int], int, int]) -> None:
    x, weight, grad = on(backend, sample(*shape))
    y = split_matmul(x, weight)
    assert y.shape == grad.shape
    torch.testing.assert_close(y, x.detach() @ weight.detach())
    for gradient, tensor in zip(torch.autograd.grad(y, [x, weight], grad), (x, weight), strict=True):
        assert gradient.shape == tensor.shape


def test_layout(backend: Backend) -> None:
    """Transposed, strided, expanded and misaligned tensors give what contiguous ones give."""
    x, weight, _ = (t.float().to(backend.device) for t in sample([70], 36, 20))
    shifted = torch.empty(x.numel() + 1, device=x.device)[1:].view(x.shape).copy_(x)
    rows = (x, x.mT.contiguous().mT, torch.stack([x, x], -1)[..., 1], shifted)
    expected = split_matmul(x, weight)
    for a in rows:
        for b in (weight, weight.mT.contiguous().mT, torch.stack([weight, weight], -1)[..., 1]):
            torch.testing.assert_close(split_matmul(a, b), expected)
            if backend.uses_kernels:
                assert torch.equal(split_matmul(a, b), expected)
    torch.testing.assert_close(split_matmul(x[:1].expand(5, -1), weight), expected[:1].expand(5, -1))
    one = weight[:1]  # both a matrix and its transpose are contiguous
    torch.testing.assert_close(split_matmul(x[:, :1], one), x[:, :1] @ one)
    torch.testing.assert_close(split_matmul(x[:, :20], one.mT), x[:, :20] @ one.mT)


@pytest.mark.parametrize("shape", SHAPES[1:5])
def test_every_schedule_gives_the_same(
    kernel_backend: Backend, every_architectures: None, shape: tuple[int, int, int]
) -> None:
    rows, *widths = shape
    given = on(kernel_backend, sample([rows], *widths))
    found = [products(*given) for _ in kernel_backend.schedules()]
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_pytorchs(backend: Backend, dtype: torch.dtype) -> None:
    x, weight, _ = (t.to(backend.device, dtype).requires_grad_() for t in sample([9], 12, 5))
    assert torch.equal(split_matmul(x, weight), x @ weight)
    split_matmul(x, weight).sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype


def test_autocast_does_not_reach_it(backend: Backend) -> None:
    x, weight, grad = on(backend, sample([30], 20, 24))
    expected = (split_matmul(x, weight), *torch.autograd.grad(split_matmul(x, weight), [x, weight], grad))
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        y = split_matmul(x, weight)
        found = (y, *torch.autograd.grad(y, [x, weight], grad))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_registration(backend: Backend) -> None:
    x, weight, grad = on(backend, sample([7], 9, 6))
    largest = [t.detach().abs().amax() for t in (x, grad)]
    torch.library.opcheck(OPS["split_matmul"].overload, (x, weight, largest[0]))
    torch.library.opcheck(OPS["split_matmul_over_rows"].overload, (x, grad, *largest))


def test_compiles(backend: Backend) -> None:
    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return split_matmul(x, weight).square().mean()

    given = on(backend, sample([2, 9], 12, 5)[:2])
    eager = torch.autograd.grad(loss(*given), given)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*given), given)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_wrong_arguments_are_named(backend: Backend) -> None:
    x, weight, _ = (t.float().to(backend.device) for t in sample([9], 12, 5))
    with pytest.raises(ValueError, match="weight must have shape"):
        split_matmul(x[:, :5], weight)
    with pytest.raises(ValueError, match="weight must be"):
        split_matmul(x, weight.double())
    with pytest.raises(ValueError, match="x must have at least one dimension"):
        split_matmul(x[0, 0], weight)
    with pytest.raises(ValueError, match=r"x must have at most 2\^30 rows"):
        split_matmul(x[:1, :1].expand(2**30 + 1, 1), weight[:1])


# Where it is used by itself.


def test_it_pays_where_pytorch_would_compute_in_float32(backend: Backend) -> None:
    x = torch.ones(2, 3, device=backend.device)
    computes = backend.name == "emulated"  # a GPU may be one that does not gain from it
    assert pays_for(x) == computes or backend.name == "cuda"
    assert not pays_for(x.half())
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        assert not pays_for(x)
    before = torch.get_float32_matmul_precision()
    for setting in ("high", "medium"):
        torch.set_float32_matmul_precision(setting)
        try:
            assert not pays_for(x)
        finally:
            torch.set_float32_matmul_precision(before)
    with kernels.disabled():
        assert not pays_for(x)


def test_layers_use_it(kernel_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single layer and its gradients, and the gradients of a network that is one kernel."""
    packed: list[tuple[int, ...]] = []
    pack = PackedWeight.of
    monkeypatch.setattr(PackedWeight, "of", staticmethod(lambda w: packed.append(tuple(w.shape)) or pack(w)))
    x, weight, grad = on(kernel_backend, sample([2, 30], 12, 16))
    if not pays_for(x):
        pytest.skip("not on this device")
    layer = ModulatedWeight.of(weight, torch.ones(2, 12, device=x.device))
    y = modulated_layer(layer.modulate(x), layer).output
    assert y is not None and packed == [(12, 16)]
    torch.autograd.grad(y, [x, weight], grad)
    assert packed == [(12, 16), (16, 12)]
    packed.clear()
    layer = ModulatedWeight.of(weight, torch.ones(2, 12, device=x.device))
    second = ModulatedWeight.of(torch.eye(16, device=x.device), torch.ones(2, 16, device=x.device))
    rgb = modulated_inr(x, [layer, second], [torch.ones(3, 16, device=x.device)], skip_from=1)
    assert packed == []  # it is one kernel
    torch.autograd.grad(rgb.sum(), [x, weight])
    assert sorted(packed) == [(12, 16), (16, 12), (16, 16), (16, 16)]
