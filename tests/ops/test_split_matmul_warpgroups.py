"""The kernels of float32 products that only compute capability 9.0 has: of wide rows, and of sums over rows."""

from __future__ import annotations

import math

import pytest
import torch
from ops.backends import FEW_MULTIPROCESSORS, Backend, multiprocessors, require_warpgroups
from ops.split_products import TOLERANCE, check, on, products, sample
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import kernels, split_matmul


def chosen(backend: Backend, width_in: int, width_out: int) -> tuple[bool, bool]:
    """Whether warpgroups compute x W, and xᵀ y."""
    module, index = kernels.module_for(backend.device), backend.device.index or 0
    return (
        module.split_matmul_warpgroups(index, width_out),
        module.split_matmul_over_rows_warpgroups(index, width_in, width_out),
    )


@pytest.fixture
def warpgroup_backend(monkeypatch: pytest.MonkeyPatch, kernel_backend: Backend) -> Backend:
    monkeypatch.setenv("CIPS3D_WGMMA", "split_matmul")  # no other one, which may be wrong
    require_warpgroups(kernel_backend, all(chosen(kernel_backend, 512, 512)))
    return kernel_backend


# Rows, in, out: two panels of columns a block and several tiles; an odd number of panels; rows that are not aligned and
# columns that are not four at a time; less than a step; rows enough for sums to be stored on the way, and to be added.
SHAPES = [(300, 256, 512), (530, 72, 260), (150, 131, 131), (1, 65, 129), (3_400, 130, 132)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(warpgroup_backend: Backend, shape: tuple[int, int, int]) -> None:
    rows, *widths = shape
    assert all(chosen(warpgroup_backend, *widths))
    given = on(warpgroup_backend, sample([rows], *widths))
    found = products(*given)
    check(found, *given)
    if rows > 1_000:
        return
    for _ in warpgroup_backend.schedules():
        assert all(torch.equal(a, b) for a, b in zip(found, products(*given), strict=True))


def test_columns_of_a_block_change_nothing(warpgroup_backend: Backend) -> None:
    """A block has 256 columns, or 128 of them where multiprocessors would idle otherwise."""
    x, weight, _ = on(warpgroup_backend, sample([200], 96, 256))
    expected = split_matmul(x, weight)
    with multiprocessors(kernels.module_for(x.device), 2 * FEW_MULTIPROCESSORS):
        assert torch.equal(split_matmul(x, weight), expected)


def test_same_as_of_every_architecture(warpgroup_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The products' operands are the same numbers: what differs is the order of sums."""
    given = on(warpgroup_backend, sample([140], 160, 192))
    found = products(*given)
    monkeypatch.setenv("CIPS3D_WGMMA", "modulated_inr")
    assert not any(chosen(warpgroup_backend, 160, 192))
    for a, b in zip(found, products(*given), strict=True):
        assert relative_l2(a, b) < TOLERANCE


def test_narrow_ones_are_left_to_others(warpgroup_backend: Backend) -> None:
    """Instructions of 128 columns would leave more than half of them empty."""
    assert chosen(warpgroup_backend, 32, 512) == (True, False)
    assert chosen(warpgroup_backend, 512, 32) == (False, False)


@pytest.mark.parametrize(("x_factor", "weight_factor", "grad_factor"), [(1e-20, 1.0, 1e34), (1e25, 1e-12, 1e-20)])
def test_magnitudes(warpgroup_backend: Backend, x_factor: float, weight_factor: float, grad_factor: float) -> None:
    """Far beyond those of float16, and undone at the end in an order that gives neither zero nor infinity."""
    factors = (x_factor, weight_factor, grad_factor)
    given = [by * t for t, by in zip(sample([70], 80, 140), factors, strict=True)]
    given = on(warpgroup_backend, given)
    check(products(*given), *given)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_not_finite(warpgroup_backend: Backend, value: float) -> None:
    given = on(warpgroup_backend, sample([40], 80, 140))
    for index in range(3):
        broken = [t.detach().clone() for t in given]
        broken[index][3, 5] = value
        found = products(*(t.requires_grad_() for t in broken))
        for product, has in zip(found, (index < 2, index > 0, index != 1), strict=True):
            assert bool(product.isnan().any()) == has, (index, product.shape)


def test_layout(warpgroup_backend: Backend) -> None:
    """Transposed and misaligned tensors give what contiguous ones give."""

    def shifted(t: Tensor) -> Tensor:
        return torch.empty(t.numel() + 1, device=t.device)[1:].view(t.shape).copy_(t)

    x, weight, grad = (t.to(warpgroup_backend.device, torch.float32) for t in sample([150], 96, 136))
    expected = products(x.requires_grad_(), weight.requires_grad_(), grad)
    for other in (shifted, lambda t: t.mT.contiguous().mT):
        found = products(*(other(t.detach()).requires_grad_() for t in (x, weight)), other(grad))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_zeros_stay_zeros(warpgroup_backend: Backend) -> None:
    x, weight, _ = (t.to(warpgroup_backend.device, torch.float32) for t in sample([30], 70, 140))
    assert not split_matmul(torch.zeros_like(x), weight).any()
    assert not split_matmul(x, torch.zeros_like(weight)).any()
