"""Importance sampling against the published steps, and where the answer is known; every backend."""

from __future__ import annotations

import pytest
import torch
from ops.backends import Backend, shared_limit
from torch import Tensor

from cips3d.ops import MergedDepths, importance_depths
from cips3d.ops.library import OPS

# B, R, S, F: from one lane a ray on, fewer and more samples than a group of lanes.
SHAPES = [(2, 9, 6, 5), (1, 1, 3, 1), (2, 17, 12, 12), (2, 5, 12, 24), (1, 4, 24, 3), (1, 3, 40, 70), (1, 2, 5, 0)]


def sample_inputs(
    batch: int = 2, rays: int = 9, samples: int = 6, fine: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    depths = torch.rand(batch, rays, samples, generator=random, dtype=torch.float64).sort(-1).values + 0.5
    weights = torch.rand(batch, rays, samples, generator=random, dtype=torch.float64) ** 4
    u = torch.rand(batch, rays, fine, generator=random, dtype=torch.float64)
    return depths.to(dtype), weights.to(dtype), u.to(dtype)


def published(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """One ray after the other: bins, distribution, inversion, in the order of pi-GAN's sample_pdf, in float64."""
    depths, weights, u = depths.double().cpu(), weights.double().cpu(), u.double().cpu()
    fine = torch.empty_like(u)
    for place in [(b, r) for b in range(u.shape[0]) for r in range(u.shape[1])]:
        t, w = depths[place], weights[place] + 1e-5
        bins = (t[:-1] + t[1:]) / 2
        inner = w[1:-1] + 1e-5
        cdf = torch.cat([torch.zeros(1, dtype=t.dtype), torch.cumsum(inner / inner.sum(), 0)])
        for k, draw in enumerate(u[place]):
            upper = int((cdf < draw).sum())  # searchsorted, left
            lower, upper = max(upper - 1, 0), min(upper, len(inner))
            step = cdf[upper] - cdf[lower]
            step = step if step >= 1e-5 else torch.ones_like(step)
            fine[(*place, k)] = bins[lower] + (draw - cdf[lower]) / step * (bins[upper] - bins[lower])
    return fine.sort(-1).values


def assert_consistent(found: MergedDepths, depths: Tensor) -> None:
    """`merged` is `order` of cat(coarse, fine), ascending, and `order` a permutation."""
    fine, merged, order = found
    together = torch.cat([depths, fine], dim=-1)
    assert order.dtype == torch.int64
    assert torch.equal(together.gather(-1, order), merged)
    assert torch.equal(order.sort(-1).values, torch.arange(order.shape[-1], device=order.device).expand_as(order))
    assert (merged.diff(dim=-1) >= 0).all() and (fine.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_float64_values(shape: tuple[int, int, int, int]) -> None:
    inputs = sample_inputs(*shape)
    found = importance_depths(*inputs)
    assert torch.allclose(found.fine, published(*inputs), atol=1e-12)
    assert_consistent(found, inputs[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_values(backend: Backend, shape: tuple[int, int, int, int]) -> None:
    depths, weights, u = (x.to(backend.device) for x in sample_inputs(*shape, dtype=torch.float32))
    found = importance_depths(depths, weights, u)
    assert_consistent(found, depths)
    # The distribution has an error of 1e-7, which steps of it, mostly above 1e-3, divide.
    error = (found.fine.double().cpu() - published(depths, weights, u)).abs()
    assert error.numel() == 0 or (error.max() < 1e-3 and error.mean() < 1e-5)


@pytest.mark.parametrize("shape", [(2, 17, 12, 12), (1, 3, 40, 70)])
def test_rays_of_the_usual_kind(backend: Backend, shape: tuple[int, int, int, int]) -> None:
    """Weights that are 0 but for a surface: steps of the distribution below the floor, and draws that fall there."""
    depths, weights, u = sample_inputs(*shape, dtype=torch.float32)
    weights[..., : shape[2] // 2] = 0.0
    weights[..., shape[2] // 2 + 2 :] = 0.0
    u[..., 0] = 1e-6
    depths, weights, u = (x.to(backend.device) for x in (depths, weights, u))
    found = importance_depths(depths, weights, u)
    assert_consistent(found, depths)
    error = (found.fine.double().cpu() - published(depths, weights, u)).abs()
    # A draw beside an edge of a step may fall on its other side, anywhere within two bins: few do.
    assert error.quantile(0.98) < 1e-4 and error.max() < 1.0


@pytest.mark.parametrize(("rays", "samples"), [(9, 6), (30, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_at_the_ends(backend: Backend, dtype: torch.dtype, rays: int, samples: int) -> None:
    """Of many weights some rays' sum in float32 stays below the largest draw."""
    depths, weights, u = sample_inputs(rays=rays, samples=samples, fine=3, dtype=dtype)
    largest = 1 - torch.finfo(dtype).eps / 2
    u = torch.tensor([0.0, largest, 0.5], dtype=dtype).expand_as(u).contiguous()
    depths, weights, u = (x.to(backend.device) for x in (depths, weights, u))
    error = importance_depths(depths, weights, u).fine.double().cpu() - published(depths, weights, u)
    assert error.abs().max() < (1e-4 if dtype == torch.float32 else 1e-12)  # as in test_values


def test_draws_on_the_edges_give_midpoints(backend: Backend) -> None:
    """Exactly: a depth in front of the one that it is drawn up to would change their order."""
    depths = sample_inputs(1, 50, 6, dtype=torch.float32)[0].to(backend.device) ** 9  # differences that are rounded
    u = torch.tensor([0.25, 0.5, 0.75], device=backend.device).expand(1, 50, -1)  # of a distribution of equal steps
    middle = 0.5 * (depths[..., :-1] + depths[..., 1:])
    assert torch.equal(importance_depths(depths, torch.ones_like(depths), u).fine, middle[..., 1:4])


def test_samples_gather_where_the_weight_is(backend: Backend) -> None:
    depths = torch.linspace(0, 1, 11, device=backend.device).expand(1, 1, -1)
    weights = torch.zeros(1, 1, 11, device=backend.device)
    weights[..., 6] = 1.0  # the bin around depth 0.6: from 0.55 to 0.65
    u = torch.rand(1, 1, 500, generator=torch.Generator().manual_seed(1)).to(backend.device)
    fine = importance_depths(depths, weights, u).fine
    inside = ((fine > 0.55) & (fine < 0.65)).double().mean()
    assert inside > 0.99  # the floors leave 9 · 2e-5 of the probability outside
    assert fine.mean().item() == pytest.approx(0.6, abs=0.01)


def test_coarse_samples_come_first_among_equal_depths(kernel_backend: Backend) -> None:
    depths = torch.tensor([[[1.0, 2.0, 2.0, 2.0, 3.0]]], device=kernel_backend.device)
    weights = torch.ones(1, 1, 5, device=kernel_backend.device)
    # Between the midpoints 2 and 2 every draw gives 2.
    u = torch.tensor([[[0.5, 0.45, 0.55, 0.01]]], device=kernel_backend.device)
    fine, merged, order = importance_depths(depths, weights, u)
    assert fine[0, 0, 1:].tolist() == [2.0, 2.0, 2.0]
    assert order[0, 0].tolist() == [0, 5, 1, 2, 3, 6, 7, 8, 4]
    assert merged[0, 0].tolist() == [1.0, fine[0, 0, 0].item(), 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3.0]


def test_both_zeros_are_one_depth(kernel_backend: Backend) -> None:
    depths = torch.tensor([[[-1.0, 0.0, -0.0, 0.0, 1.0]]], device=kernel_backend.device)
    u = torch.full((1, 1, 1), 0.9, device=kernel_backend.device)
    assert importance_depths(depths, torch.ones_like(depths), u).order[0, 0].tolist() == [0, 1, 2, 3, 5, 4]


def test_order_is_a_permutation_whatever_comes_in(kernel_backend: Backend) -> None:
    """NaN, negative and descending depths: what is gathered by the order must never lie outside."""
    depths, weights, u = sample_inputs(3, 7, 12, 9, dtype=torch.float32)
    weights[0] = torch.nan
    depths[1, :, 3] = torch.nan
    depths[1, :, 5] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # as a GPU's arithmetic gives it
    depths[1, :3] *= -1
    depths[2, :, 2:5] = torch.inf
    depths, weights, u = (x.to(kernel_backend.device) for x in (depths, weights, u))
    order = importance_depths(depths, weights, u).order
    assert torch.equal(order.sort(-1).values, torch.arange(21, device=order.device).expand_as(order))


def test_no_gradient_flows(backend: Backend) -> None:
    inputs = (x.to(backend.device).requires_grad_() for x in sample_inputs(dtype=torch.float32))
    assert not any(x.requires_grad for x in importance_depths(*inputs))


@pytest.mark.parametrize("shape", [(2, 0, 6, 5), (0, 3, 6, 5)])
def test_no_rays(backend: Backend, shape: tuple[int, int, int, int]) -> None:
    inputs = (x.to(backend.device) for x in sample_inputs(*shape, dtype=torch.float32))
    assert importance_depths(*inputs).merged.shape == (*shape[:2], 11)


def test_strided_inputs(backend: Backend) -> None:
    inputs = [x.to(backend.device) for x in sample_inputs(dtype=torch.float32)]
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    for found, expected in zip(importance_depths(*strided), importance_depths(*inputs), strict=True):
        assert torch.equal(found, expected)


def test_every_schedule_gives_the_same(kernel_backend: Backend) -> None:
    inputs = [x.to(kernel_backend.device) for x in sample_inputs(2, 17, 12, 12, dtype=torch.float32)]
    found = [importance_depths(*inputs) for _ in kernel_backend.schedules()]
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def test_registration(backend: Backend) -> None:
    inputs = tuple(x.to(backend.device) for x in sample_inputs(dtype=torch.float32))
    torch.library.opcheck(OPS["importance_depths"].overload, inputs)


def test_compiles(backend: Backend) -> None:
    inputs = [x.to(backend.device) for x in sample_inputs(dtype=torch.float32)]
    compiled = torch.compile(importance_depths, fullgraph=True, backend="aot_eager")(*inputs)
    for a, b in zip(compiled, importance_depths(*inputs), strict=True):
        assert torch.equal(a, b)


def test_wrong_arguments_are_named() -> None:
    depths, weights, u = sample_inputs()
    with pytest.raises(ValueError, match="weights must have shape"):
        importance_depths(depths, weights[:1], u)
    with pytest.raises(ValueError, match="u must have shape"):
        importance_depths(depths, weights, u[:, :1])
    with pytest.raises(ValueError, match="u must be on cpu like depths"):
        importance_depths(depths, weights, u.to("meta"))
    with pytest.raises(ValueError, match="at least 3 coarse samples"):
        importance_depths(depths[..., :2], weights[..., :2], u)


def test_rays_too_long_for_the_kernel(kernel_backend: Backend) -> None:
    inputs = [x.to(kernel_backend.device) for x in sample_inputs(1, 1, 2000, 1400, dtype=torch.float32)]
    with pytest.raises(ValueError, match="hold 2000 coarse and 1400 fine samples"):
        importance_depths(*inputs)
    longest = [x.to(kernel_backend.device) for x in sample_inputs(1, 2, 2400, 800, dtype=torch.float32)]
    assert_consistent(importance_depths(*longest), longest[0])


def test_longest_rays_need_what_every_device_has(kernel_backend: Backend) -> None:
    longest = [x.to(kernel_backend.device) for x in sample_inputs(1, 5, 2400, 800, dtype=torch.float32)]
    with shared_limit(kernel_backend, 99):
        assert_consistent(importance_depths(*longest), longest[0])


def test_registered_op_refuses_what_a_kernel_cannot_read(kernel_backend: Backend) -> None:
    depths, weights, u = (x.to(kernel_backend.device) for x in sample_inputs(dtype=torch.float32))
    with pytest.raises(TypeError, match=r"depths must be torch\.float32"):
        OPS["importance_depths"](depths.half(), weights, u)
