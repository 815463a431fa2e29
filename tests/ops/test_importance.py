"""Importance sampling against the published steps, and where the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cips3d.ops import importance_depths


def sample_inputs(batch: int = 2, rays: int = 9, samples: int = 6, fine: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    depths = torch.rand(batch, rays, samples, generator=random, dtype=torch.float64).sort(-1).values + 0.5
    weights = torch.rand(batch, rays, samples, generator=random, dtype=torch.float64) ** 4
    return depths, weights, torch.rand(batch, rays, fine, generator=random, dtype=torch.float64)


def published(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """One ray after the other: bins, distribution, inversion, in the order of pi-GAN's sample_pdf."""
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


@pytest.mark.parametrize("shape", [(2, 9, 6, 5), (1, 1, 3, 1), (2, 5, 12, 24), (1, 4, 24, 3)])
def test_values(shape: tuple[int, int, int, int]) -> None:
    inputs = sample_inputs(*shape)
    assert torch.allclose(importance_depths(*inputs).fine, published(*inputs), atol=1e-12)


def test_draws_at_the_ends() -> None:
    depths, weights, u = sample_inputs(fine=3)
    u = torch.tensor([0.0, 1 - 2**-53, 0.5], dtype=torch.float64).expand_as(u).contiguous()
    assert torch.allclose(importance_depths(depths, weights, u).fine, published(depths, weights, u), atol=1e-12)


def test_samples_gather_where_the_weight_is() -> None:
    depths = torch.linspace(0, 1, 11, dtype=torch.float64).expand(1, 1, -1)
    weights = torch.zeros(1, 1, 11, dtype=torch.float64)
    weights[..., 6] = 1.0  # the bin around depth 0.6: from 0.55 to 0.65
    u = torch.rand(1, 1, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fine = importance_depths(depths, weights, u).fine
    inside = ((fine > 0.55) & (fine < 0.65)).double().mean()
    assert inside > 0.99  # the floors leave 9 · 2e-5 of the probability outside
    assert fine.mean().item() == pytest.approx(0.6, abs=0.01)


def test_merge_order() -> None:
    depths, weights, u = sample_inputs()
    fine, merged, order = importance_depths(depths, weights, u)
    together = torch.cat([depths, fine], dim=-1)
    assert torch.equal(together.gather(-1, order), merged)
    assert torch.equal(order.sort(-1).values, torch.arange(11).expand_as(order))
    assert (merged.diff(dim=-1) >= 0).all() and (fine.diff(dim=-1) >= 0).all()


def test_no_gradient_flows() -> None:
    depths, weights, u = (x.requires_grad_() for x in sample_inputs())
    assert not any(x.requires_grad for x in importance_depths(depths, weights, u))


def test_no_rays() -> None:
    assert importance_depths(*sample_inputs(rays=0)).merged.shape == (2, 0, 11)


def test_strided_draws() -> None:
    depths, weights, u = sample_inputs()
    strided = u.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(importance_depths(depths, weights, strided).fine, importance_depths(depths, weights, u).fine)


def test_wrong_arguments_are_named() -> None:
    depths, weights, u = sample_inputs()
    with pytest.raises(ValueError, match="weights"):
        importance_depths(depths, weights[:1], u)
    with pytest.raises(ValueError, match="u must have shape"):
        importance_depths(depths, weights, u[:, :1])
    with pytest.raises(ValueError, match="at least 3 coarse samples"):
        importance_depths(depths[..., :2], weights[..., :2], u)
