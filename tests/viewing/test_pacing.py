"""Sizes of pictures while all moves, and when all is still."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cips3d.viewing.pacing import REST_SECONDS, Pacing, sizes_up_to


def settled(pacing: Pacing, seconds: Callable[[int], float], pictures: int = 30) -> list[int]:
    """Sides of moving pictures on a machine that takes `seconds(side)` each."""
    sides = []
    for _ in range(pictures):
        sides.append(pacing.moving)
        pacing.measured(pacing.moving, seconds(pacing.moving))
    return sides


@pytest.mark.parametrize("largest", [2, 31, 32, 33, 100, 256, 300, 4096])
def test_sizes_rise_to_the_largest(largest: int) -> None:
    sizes = sizes_up_to(largest)
    assert sizes[-1] == largest
    assert sizes[0] == min(32, largest)
    assert list(sizes) == sorted(set(sizes))
    assert all(after <= 1.8 * before for before, after in zip(sizes, sizes[1:], strict=False))


def test_sizes_of_256() -> None:
    assert sizes_up_to(256) == (32, 48, 64, 96, 128, 192, 256)


@pytest.mark.parametrize("aim", [0.02, 0.08, 0.5])
@pytest.mark.parametrize("pixel_seconds", [1e-7, 1e-6, 1e-5, 1e-4])
def test_finds_the_largest_smooth_size(aim: float, pixel_seconds: float) -> None:
    sides = settled(Pacing(512, aim), lambda side: pixel_seconds * side**2)
    sizes = sizes_up_to(512)
    smooth = [size for size in sizes if pixel_seconds * size**2 < 0.8 * aim]
    assert sides[-1] == (smooth[-1] if smooth else sizes[0])
    assert len(set(sides[1:])) == 1  # it does not flicker


def test_begins_small() -> None:
    assert Pacing(512).moving == 32


def test_follows_a_machine_that_gets_slower_and_faster() -> None:
    pacing = Pacing(256, aim=0.1)
    fast = settled(pacing, lambda side: 2e-6 * side**2)
    slow = settled(pacing, lambda side: 1e-4 * side**2)
    again = settled(pacing, lambda side: 2e-6 * side**2)
    assert (fast[-1], slow[-1], again[-1]) == (192, 32, 192)


def test_small_changes_change_nothing() -> None:
    """From 0.8 to 1.25 of the aim, a size stays as it is."""
    pacing = Pacing(256, aim=0.1)
    settled(pacing, lambda side: 0.07 * (side / 128) ** 2)
    assert pacing.moving == 128
    for seconds in (0.12, 0.06, 0.12, 0.05, 0.11):
        pacing.measured(128, seconds)
        assert pacing.moving == 128


def test_work_that_does_not_depend_on_the_size_is_found_out() -> None:
    """5 ms a picture and 1 µs a pixel: size 256 takes 71 ms of 100."""
    assert settled(Pacing(512, aim=0.1), lambda side: 0.005 + 1e-6 * side**2)[-1] == 256


def test_finer_pictures_double_until_the_largest() -> None:
    pacing = Pacing(256)
    side: int | None = 48
    seen = []
    while side is not None:
        seen.append(side)
        side = pacing.finer(side)
    assert seen == [48, 96, 192, 256]
    for largest in (33, 100, 300):
        pacing, side = Pacing(largest), 32
        while (finer := pacing.finer(side)) is not None:
            assert side < finer <= 2 * side
            side = finer
        assert side == largest


def test_long_pictures_wait_for_rest() -> None:
    pacing = Pacing(256, aim=0.1)
    assert pacing.rest_before(64) == REST_SECONDS
    pacing.measured(64, 0.05)
    assert pacing.rest_before(64) == 0
    assert pacing.rest_before(128) == REST_SECONDS


def test_the_only_size() -> None:
    pacing = Pacing(1024, only=True)
    assert pacing.moving == 1024
    pacing.measured(1024, 10.0)
    assert (pacing.moving, pacing.finer(1024)) == (1024, None)


@pytest.mark.parametrize(("largest", "aim", "name"), [(1, 0.1, "largest"), (8, 0.0, "aim"), (8, float("nan"), "aim")])
def test_arguments(largest: int, aim: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        Pacing(largest, aim)
