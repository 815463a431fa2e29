"""Who has the generator next."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import pytest

from cips3d.viewing.turns import Task, Turns, next_task

PATIENCE = 10.0  # seconds until a test that waits in vain fails


class Recorded(Task):
    """Is due at a time, and says when it worked."""

    def __init__(self, due: float | None = 0.0, work: Callable[[], None] = lambda: None) -> None:
        self.time, self._work = due, work
        self.error: Exception | None = None
        self.told = threading.Event()

    def due(self) -> float | None:
        return self.time

    def work(self) -> None:
        self._work()

    def broken(self, error: Exception) -> None:
        self.error = error
        self.told.set()


def test_the_first_that_is_due() -> None:
    never, later, now, also = Recorded(None), Recorded(7.0), Recorded(4.0), Recorded(1.0)
    assert next_task([never, later, now, also], 5.0) == (now, None)
    assert next_task([never, later], 5.0) == (None, 2.0)
    assert next_task([never], 5.0) == (None, None)
    assert next_task([], 5.0) == (None, None)


def test_busy_tasks_take_turns() -> None:
    order: list[str] = []
    enough = threading.Event()
    start = threading.Event()

    def named(name: str) -> Callable[[], None]:
        def work() -> None:
            start.wait(PATIENCE)
            order.append(name)
            if len(order) >= 31:
                enough.set()

        return work

    turns = Turns(clock=lambda: 1.0)
    for name in "abc":
        turns.add(Recorded(work=named(name)))
    start.set()
    assert enough.wait(PATIENCE)
    turns.end()
    # The first may have had its turn before the others came.
    assert all(set(order[k : k + 3]) == set("abc") for k in range(1, 28))


def test_one_at_a_time() -> None:
    working = threading.Lock()
    rounds = threading.Semaphore(0)
    overlaps = []

    def work() -> None:
        if not working.acquire(blocking=False):
            overlaps.append(True)
            return
        working.release()
        rounds.release()

    turns = Turns(clock=lambda: 1.0)
    tasks = [Recorded(work=work) for _ in range(3)]
    for task in tasks:
        turns.add(task)
    assert all(rounds.acquire(timeout=PATIENCE) for _ in range(30))
    turns.end()
    assert not overlaps


def test_wakes_for_what_becomes_due() -> None:
    done = threading.Event()
    task = Recorded(None)

    def work() -> None:
        task.time = None
        done.set()

    task._work = work
    turns = Turns(clock=lambda: 1.0)
    turns.add(task)
    task.time = 0.5
    turns.wake()
    assert done.wait(PATIENCE)
    turns.end()


def test_removed_tasks_have_no_turns() -> None:
    first, second = threading.Semaphore(0), threading.Semaphore(0)
    gone, stays = Recorded(work=first.release), Recorded(work=second.release)
    turns = Turns(clock=lambda: 1.0)
    turns.add(gone)
    turns.add(stays)
    assert first.acquire(timeout=PATIENCE)
    turns.remove(gone)
    turns.remove(gone)  # twice is once
    assert all(second.acquire(timeout=PATIENCE) for _ in range(2))  # a turn of `gone` under way is over by now
    while first.acquire(blocking=False):
        pass
    assert all(second.acquire(timeout=PATIENCE) for _ in range(10))
    assert not first.acquire(blocking=False)
    turns.end()


def test_tasks_that_are_over_are_let_go() -> None:
    class Once(Recorded):
        is_over = True

    ended, other = Once(), threading.Semaphore(0)
    gone = weakref.ref(ended)
    turns = Turns(clock=lambda: 1.0)
    turns.add(ended)
    del ended
    turns.add(Recorded(work=other.release))
    assert all(other.acquire(timeout=PATIENCE) for _ in range(5))
    turns.end()
    assert gone() is None


def test_an_error_ends_one_task_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ZeroDivisionError("planted")

    rounds = threading.Semaphore(0)
    broken = Recorded(work=fail)
    turns = Turns(clock=lambda: 1.0)
    turns.add(broken)
    turns.add(Recorded(work=rounds.release))
    assert broken.told.wait(PATIENCE)
    assert all(rounds.acquire(timeout=PATIENCE) for _ in range(5))
    turns.end()
    assert isinstance(broken.error, ZeroDivisionError)
    assert capsys.readouterr().err.count("ZeroDivisionError: planted") == 1
