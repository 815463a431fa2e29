"""Stratified depths and points on rays."""

from __future__ import annotations

import pytest
import torch

from cips3d.ops import ray_points, stratified_depths


def test_middle_draws_are_evenly_spaced() -> None:
    depths = stratified_depths(torch.full((1, 2, 5), 0.5, dtype=torch.float64), 1.0, 2.0)
    assert depths[0, 1].tolist() == pytest.approx([1.0, 1.25, 1.5, 1.75, 2.0])


def test_formula() -> None:
    u = torch.rand(2, 3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linspace(0.88, 1.12, 12, dtype=torch.float64) + (u - 0.5) * (0.24 / 11)
    assert torch.allclose(stratified_depths(u, 0.88, 1.12), expected, atol=1e-14)


def test_depths_ascend_for_any_draws() -> None:
    u = torch.rand(10, 50, 12, generator=torch.Generator().manual_seed(1))
    assert (stratified_depths(u, 0.88, 1.12).diff(dim=-1) >= 0).all()
    extreme = torch.tensor([1 - 2**-24, 0.0]).repeat(6)[None, None]  # as near to each other as draws can be
    assert (stratified_depths(extreme, 0.88, 1.12).diff(dim=-1) >= -1e-7).all()


def test_single_sample_covers_the_range() -> None:
    u = torch.tensor([[[0.0]], [[0.5]], [[0.75]]])
    assert stratified_depths(u, 1.0, 3.0).flatten().tolist() == [1.0, 2.0, 2.5]


def test_no_rays() -> None:
    assert stratified_depths(torch.zeros(2, 0, 4), 0.0, 1.0).shape == (2, 0, 4)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="u must have shape"):
        stratified_depths(torch.zeros(2, 3), 0.0, 1.0)
    with pytest.raises(ValueError, match="u must hold"):
        stratified_depths(torch.zeros(2, 3, 0), 0.0, 1.0)
    with pytest.raises(ValueError, match="t_near"):
        stratified_depths(torch.zeros(1, 1, 1), 1.0, 1.0)
    with pytest.raises(ValueError, match="directions"):
        ray_points(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3), torch.zeros(1, 2, 4))


def test_points() -> None:
    random = torch.Generator().manual_seed(2)
    origins, directions = torch.randn(2, 2, 3, 3, generator=random, dtype=torch.float64)
    depths = torch.rand(2, 3, 4, generator=random, dtype=torch.float64)
    points = ray_points(origins, directions, depths)
    for b, r, s in ((0, 0, 0), (1, 2, 3)):
        assert torch.allclose(points[b, r, s], origins[b, r] + depths[b, r, s] * directions[b, r])
    inputs = [x.requires_grad_() for x in (origins, directions, depths)]
    assert torch.autograd.gradcheck(ray_points, inputs)
