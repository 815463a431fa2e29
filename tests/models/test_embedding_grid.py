"""The grid of embeddings against the trilinear formula, corner by corner."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from cips3d.models.embedding_grid import EmbeddingGrid

WIDTH, RESOLUTION = 3, 4


def small_grid() -> EmbeddingGrid:
    torch.manual_seed(0)
    return EmbeddingGrid(WIDTH, RESOLUTION, init_std=1.0).double()


def some_points() -> Tensor:
    """[2, 7, 3]: inside, between the faces and one step outside, and far away."""
    points = torch.rand(2, 7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    points[0, 0] = torch.tensor([1.3, 0.2, -0.1])
    points[1, 0] = torch.tensor([-1.2, -1.4, 1.1])
    points[1, 1] = 5.0
    return points


def by_corners(embeddings: Tensor, point: Tensor) -> Tensor:
    """Σ over the 8 corners of embedding · Π (1 - |distance|), embeddings beyond the grid being 0."""
    place = (point + 1) / 2 * (RESOLUTION - 1)  # x, y, z in steps of the grid
    total = torch.zeros(WIDTH, dtype=torch.float64)
    for corner in itertools.product(*([int(p.floor()), int(p.floor()) + 1] for p in place)):
        if all(0 <= c < RESOLUTION for c in corner):
            share = torch.stack([1 - (p - c).abs() for p, c in zip(place, corner, strict=True)]).prod()
            x, y, z = corner
            total = total + share * embeddings[0, :, z, y, x]
    return total


def test_trilinear_with_zeros_outside() -> None:
    grid, points = small_grid(), some_points()
    expected = torch.stack([torch.stack([by_corners(grid.embeddings, p) for p in image]) for image in points])
    found = grid(points)
    assert found.shape == (2, 7, WIDTH)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # float64 rounding
    assert (found[0, 0] != 0).any() and (found[1, 1] == 0).all()


def test_corners_of_the_cube_are_the_outermost_embeddings() -> None:
    grid = small_grid()
    found = grid(torch.tensor([[[-1.0, -1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]]], dtype=torch.float64))[0]
    for row, place in zip(found, [(0, 0, 0), (0, 0, -1), (-1, 0, 0)], strict=True):
        torch.testing.assert_close(row, grid.embeddings[0][(slice(None), *place)])


def test_gradients() -> None:
    grid = small_grid()
    points = some_points().requires_grad_()

    def run(points: Tensor, embeddings: Tensor) -> Tensor:
        return torch.func.functional_call(grid, {"embeddings": embeddings}, (points,))

    assert torch.autograd.gradcheck(run, (points, grid.embeddings))


@pytest.mark.parametrize("std", [0.01, 0.1])
def test_initial_embeddings(std: float) -> None:
    embeddings = EmbeddingGrid(32, 12, std).embeddings
    assert embeddings.shape == (1, 32, 12, 12, 12)
    assert embeddings.std().item() == pytest.approx(std, rel=0.02)  # of 55 296 draws: 0.3% is one deviation
    assert embeddings.mean().abs().item() < 5 * std / embeddings.numel() ** 0.5
