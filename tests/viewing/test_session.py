"""What of a browser's wishes is made, and in which order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from cips3d.errors import UserError
from cips3d.viewing.orbit import Orbit
from cips3d.viewing.pacing import REST_SECONDS, Pacing
from cips3d.viewing.session import Frame, Session, Snapshot
from cips3d.viewing.shots import GivenUpError, Shot, Studio

FRONT = Shot(Orbit(1.5, 1.5))
ASIDE = Shot(Orbit(1.2, 1.5))


class Camera(Studio):
    """Takes its time on a clock of its own, and remembers what it took; pictures show the seed."""

    def __init__(self, pixel_seconds: float = 1e-5) -> None:
        self.now = 100.0
        self.pixel_seconds = pixel_seconds
        self.taken: list[tuple[Shot, int]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        """happens in the middle of every picture"""
        self.problem: UserError | None = None

    def take(self, shot: Shot, resolution: int, unwanted: Callable[[], bool] = lambda: False) -> np.ndarray:
        self.taken.append((shot, resolution))
        self.now += self.pixel_seconds * resolution**2
        self.meanwhile()
        if unwanted():
            raise GivenUpError
        if self.problem is not None:
            raise self.problem
        return np.zeros((resolution, resolution, 3), np.uint8)


class Watched:
    """A session and what became of it."""

    def __init__(self, largest: int = 128) -> None:
        self.camera = Camera()
        self.shown: list[Frame] = []
        self.said: list[str] = []
        self.session = Session(
            self.camera, Pacing(largest, aim=0.1), self.shown.append, self.said.append, lambda: self.camera.now
        )

    def work_until_still(self, turns: int = 20) -> None:
        while (due := self.session.due()) is not None:
            self.camera.now = max(self.camera.now, due)
            self.session.work()
            turns -= 1
            assert turns > 0

    @property
    def sides(self) -> list[int]:
        return [len(each.pixels) for each in self.shown]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_nothing_is_due_before_anything_is_asked(watched: Watched) -> None:
    assert watched.session.due() is None
    watched.session.work()
    assert not watched.camera.taken


def test_gets_finer_when_all_is_still(watched: Watched) -> None:
    assert watched.session.ask(FRONT)
    watched.work_until_still()
    assert watched.sides == [32, 64, 128]
    assert [each.finest for each in watched.shown] == [False, False, True]
    assert all(each.shot == FRONT for each in watched.shown)


def test_asking_for_the_same_changes_nothing(watched: Watched) -> None:
    watched.session.ask(FRONT)
    watched.work_until_still()
    assert not watched.session.ask(dataclasses.replace(FRONT))
    assert watched.session.due() is None
    assert watched.session.ask(FRONT, anew=True)
    watched.work_until_still()
    assert watched.sides[-1] == 128


def test_shots_that_were_replaced_are_not_rendered(watched: Watched) -> None:
    for yaw in (1.0, 1.1, 1.2, 1.3):
        watched.session.ask(Shot(Orbit(yaw, 1.5)))
    watched.work_until_still()
    assert {shot.orbit.yaw for shot, _ in watched.camera.taken} == {1.3}


def test_moving_pictures_are_always_finished(watched: Watched) -> None:
    """A movement without a pause shows its pictures, each from the newest camera."""
    yaws = iter(range(1000))
    watched.camera.meanwhile = lambda: [watched.session.ask(Shot(Orbit(next(yaws), 1.5))) for _ in range(3)]
    watched.session.ask(FRONT)
    for _ in range(10):
        watched.session.work()
    assert [each.shot.orbit.yaw for each in watched.shown] == [1.5, *range(2, 28, 3)]


def test_moving_pictures_are_as_large_as_is_smooth(watched: Watched) -> None:
    for yaw in range(10):
        watched.session.ask(Shot(Orbit(yaw, 1.5)))
        watched.session.work()
    # 1e-5 s a pixel: 64² takes 41 ms of 100; 96² would take 92, above 0.8 of the aim.
    assert watched.sides[-1] == 64


def test_finer_pictures_are_given_up_for_newer_shots(watched: Watched) -> None:
    watched.session.ask(FRONT)
    watched.session.work()
    watched.camera.meanwhile = lambda: watched.session.ask(ASIDE)
    watched.session.work()
    assert [each.shot for each in watched.shown] == [FRONT]
    watched.camera.meanwhile = lambda: None
    watched.work_until_still()
    assert [each.shot for each in watched.shown[1:]] == [ASIDE] * (len(watched.shown) - 1)
    assert watched.shown[-1].finest


def test_long_pictures_wait_for_rest(watched: Watched) -> None:
    watched.session.ask(FRONT)
    asked = watched.camera.now
    watched.session.work()
    assert (due := watched.session.due()) is not None
    assert due <= watched.camera.now  # 64² takes 41 ms: at once
    watched.session.work()
    assert watched.session.due() == asked + REST_SECONDS  # 128² takes 160 ms of 100


def test_nothing_is_finished_for_one_who_has_left(watched: Watched) -> None:
    watched.session.ask(FRONT)
    watched.session.has_left = True
    watched.session.work()
    assert watched.camera.taken
    assert not watched.shown


def test_a_problem_is_told_once(watched: Watched) -> None:
    watched.camera.problem = UserError("the model gives pictures that are not numbers")
    watched.session.ask(FRONT)
    watched.work_until_still()
    assert watched.said == ["the model gives pictures that are not numbers"]
    assert not watched.shown
    watched.camera.problem = None
    watched.session.ask(ASIDE)
    watched.work_until_still()
    assert watched.shown[-1].finest


def test_an_unknown_error_is_told(watched: Watched) -> None:
    watched.session.broken(ZeroDivisionError("x"))
    assert watched.said == ["the viewer met an error it does not know (ZeroDivisionError); its terminal says more"]


def test_snapshot() -> None:
    camera, kept, said = Camera(), [], []
    snapshot = Snapshot(camera, FRONT, 200, kept.append, said.append)
    assert (snapshot.due(), snapshot.is_over) == (0, False)
    snapshot.work()
    assert snapshot.is_over
    assert snapshot.due() is None
    assert [len(pixels) for pixels in kept] == [200]
    Snapshot(camera, FRONT, 200, kept.append, said.append, lambda: True).work()
    camera.problem = UserError("no")
    failed = Snapshot(camera, FRONT, 200, kept.append, said.append)
    failed.work()
    failed.broken(ZeroDivisionError())
    assert len(kept) == 1
    assert said == ["no", "the picture was not made (ZeroDivisionError); the viewer's terminal says more"]
