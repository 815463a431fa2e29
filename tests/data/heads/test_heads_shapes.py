"""Signed distances against closed forms."""

import math

import pytest
import torch

from cips3d.data.heads.shapes import (
    Ellipsoid,
    Ellipsoids,
    Points,
    select,
    smooth_max,
    smooth_min,
    smooth_step,
    smooth_union,
)

CPU = torch.device("cpu")


def sample_points(heads: int = 2, count: int = 200, seed: int = 0) -> Points:
    generator = torch.Generator().manual_seed(seed)
    return Points(*(2 * torch.rand(3, heads, count, generator=generator) - 1))


def distances(part: Ellipsoid, points: Points) -> torch.Tensor:
    return Ellipsoids({"part": part}, len(points.x), CPU).distances(points)["part"]


def test_an_ellipsoid_of_equal_radii_is_a_sphere():
    points = sample_points()
    centre = (torch.tensor([0.1, -0.2]), 0.3, -0.1)
    got = distances(Ellipsoid(centre, (0.4, 0.4, 0.4), turn=(0.3, -0.7, 1.1)), points)
    away = [axis - torch.as_tensor(c).view(-1, 1) for axis, c in zip(points, centre, strict=True)]
    expected = sum(a.square() for a in away).sqrt() - 0.4
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)  # float32 squares that cancel: some 1e-6 / radius


def test_distance_on_the_axes_of_a_turned_ellipsoid_is_exact():
    radii, turn = (0.1, 0.5, 0.3), 0.6
    for axis, radius in enumerate(radii):  # far from a thin one, k0 is 15: float32 leaves some 1e-5
        direction = torch.zeros(3)
        direction[axis] = 1
        cos, sin = math.cos(turn), math.sin(turn)
        around_z = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        places = torch.linspace(0.6, 1.5, 7)[:, None] * (around_z @ direction)
        got = distances(Ellipsoid((0.0, 0.0, 0.0), radii, turn=(0.0, 0.0, turn)), Points(*places.T[:, None]))
        torch.testing.assert_close(got[0], torch.linspace(0.6, 1.5, 7) - radius, atol=1e-4, rtol=0)


def test_distance_has_the_sign_of_the_implicit_equation():
    points = sample_points(seed=1)
    got = distances(Ellipsoid((0.0, 0.1, 0.0), (0.5, 0.8, 0.6)), points)
    implicit = (points.x / 0.5) ** 2 + ((points.y - 0.1) / 0.8) ** 2 + (points.z / 0.6) ** 2 - 1
    assert 20 < int((got < 0).sum()) < got.numel() - 20
    assert torch.equal(got < 0, implicit < 0)


@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.0), (0.2, 0.5, -0.4)])
def test_a_mirrored_pair_is_the_same_on_both_sides_and_the_single_one_on_its_own(turn):
    points = sample_points(seed=2)
    single = Ellipsoid((0.4, 0.1, -0.2), (0.1, 0.2, 0.3), turn)
    pair = Ellipsoid(single.centre, single.radii, turn, mirrored=True)
    flipped = Points(-points.x, points.y, points.z)
    torch.testing.assert_close(distances(pair, points), distances(pair, flipped))
    right = Points(points.x.abs(), points.y, points.z)
    torch.testing.assert_close(distances(pair, points), distances(single, right), atol=1e-5, rtol=1e-5)


def test_parts_are_found_by_name_and_by_span():
    points = sample_points()
    parts = {name: Ellipsoid((0.0, 0.0, 0.0), (r, r, r)) for name, r in (("a", 0.1), ("b", 0.2), ("c", 0.3))}
    found = Ellipsoids(parts, 2, CPU).distances(points)
    assert torch.equal(found.span("b", "c"), torch.stack([found["b"], found["c"]], dim=1))
    torch.testing.assert_close(found["a"] - found["b"], torch.full_like(found["a"], 0.1), atol=1e-5, rtol=0)


def test_smooth_unions_lie_below_the_minimum_by_at_most_a_quarter_of_the_radius():
    a, b = torch.randn(2, 1, 500, generator=torch.Generator().manual_seed(3)) * 0.2
    smooth, sharp = smooth_min(a, b, 0.1), torch.minimum(a, b)
    assert (smooth <= sharp).all() and (smooth >= sharp - 0.1 / 4 - 1e-6).all()
    assert torch.equal(smooth[(a - b).abs() > 0.1], sharp[(a - b).abs() > 0.1])
    assert (smooth < sharp - 1e-4).any()
    torch.testing.assert_close(smooth_max(a, b, 0.1), -smooth_min(-a, -b, 0.1))
    assert math.isclose(float(smooth_min(torch.zeros(1), torch.zeros(1), 0.1)), -0.1 / 4, rel_tol=1e-6)


def test_a_union_with_one_part_is_the_smooth_minimum():
    a, b = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(4)) * 0.2
    got = smooth_union(a, b[:, None], torch.tensor([0.15]))
    torch.testing.assert_close(got, smooth_min(a, b, 0.15))
    far = torch.full_like(b, 9.0)
    torch.testing.assert_close(smooth_union(a, torch.stack([far, b], 1), torch.tensor([0.3, 0.15])), got)


def test_smooth_step_rises_and_falls():
    values = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0])
    torch.testing.assert_close(smooth_step(0.0, 1.0, values), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    torch.testing.assert_close(smooth_step(1.0, 0.0, values), torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0]))


def test_select_takes_the_last_mask_that_holds():
    masks = [torch.tensor(m) for m in ([True, False, True], [False, True, True], [False, False, True])]
    values = [torch.full((3,), float(i)) for i in range(3)]
    assert select(masks, values).tolist() == [0.0, 1.0, 2.0]
