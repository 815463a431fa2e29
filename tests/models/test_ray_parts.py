"""Rays rendered part by part: what the painter is asked for, and that it comes back in place."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cips3d.cameras import Rays
from cips3d.models.ray_parts import paint_rays
from cips3d.ops.march import RayDraws

IMAGES, RAYS = 3, 10


class Pixels(NamedTuple):
    place: Tensor  # [B, N, 3]
    draw: Tensor  # [B, N, 2]
    missing: Tensor | None


class Recorder:
    """A painter that gives back where rays begin, times a weight, and remembers how many it was given."""

    def __init__(self) -> None:
        self.weight = torch.ones(IMAGES, 1, 1, requires_grad=True)
        self.given: list[tuple[int, int]] = []

    def __call__(self, images: slice, rays: Rays, draws: RayDraws) -> Pixels:
        weight = self.weight[images]
        assert len(weight) == len(rays.origins) == len(draws.stratified)
        self.given.append((len(weight), rays.origins.shape[1]))
        return Pixels(weight * rays.origins, draws.stratified, None)


def rays_and_draws() -> tuple[Rays, RayDraws]:
    random = torch.Generator().manual_seed(0)
    origins, directions = torch.randn(2, IMAGES, RAYS, 3, generator=random)
    stratified = torch.rand(IMAGES, RAYS, 2, generator=random)
    return Rays(origins, directions), RayDraws(stratified, None, None, None)


def check(pixels: Pixels) -> None:
    rays, draws = rays_and_draws()
    assert isinstance(pixels, Pixels)
    assert torch.equal(pixels.place, rays.origins) and torch.equal(pixels.draw, draws.stratified)
    assert pixels.missing is None


PARTS = [(1, 4), (1, 4), (1, 2)]


@pytest.mark.parametrize(
    ("chunk_rays", "given"),
    [(4, PARTS * IMAGES), (10, [(1, 10)] * IMAGES), (29, [(2, 10), (1, 10)]), (30, [(IMAGES, 10)])],
)
def test_chunks(chunk_rays: int, given: list[tuple[int, int]]) -> None:
    """Parts of an image, or several small ones at once."""
    painter = Recorder()
    with torch.no_grad():
        check(paint_rays(painter, *rays_and_draws(), chunk_rays=chunk_rays))
    assert painter.given == given


def test_all_at_once_with_gradients() -> None:
    for grad_points in (None, RAYS, RAYS + 1):
        painter = Recorder()
        check(paint_rays(painter, *rays_and_draws(), chunk_rays=4, grad_points=grad_points))
        assert painter.given == [(IMAGES, RAYS)]


def test_partial_gradients() -> None:
    painter = Recorder()
    random = torch.Generator().manual_seed(1)
    pixels = paint_rays(painter, *rays_and_draws(), chunk_rays=4, grad_points=3, generator=random)
    check(pixels)
    assert painter.given == [(IMAGES, 3), *[(1, 4), (1, 3)] * IMAGES]
    (gradient,) = torch.autograd.grad(pixels.place.sum(), painter.weight)
    chosen = torch.randperm(RAYS, generator=torch.Generator().manual_seed(1))[:3]
    expected = rays_and_draws()[0].origins[:, chosen].sum((1, 2))
    torch.testing.assert_close(gradient.flatten(), expected)


@pytest.mark.parametrize("name", ["chunk_rays", "grad_points"])
def test_wrong_counts_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        paint_rays(Recorder(), *rays_and_draws(), **{"chunk_rays": 1, name: 0})
    with pytest.raises(TypeError, match=f"{name} must be an integer, got 2.5"):
        paint_rays(Recorder(), *rays_and_draws(), **{"chunk_rays": 1, name: 2.5})
