"""One generator, several browsers: whose picture is made next."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence


class Task(ABC):
    """Something that wants pictures, one at a turn."""

    @abstractmethod
    def due(self) -> float | None:
        """The time (of the clock in use) from which on a turn is wanted; None: no turn for now."""

    @abstractmethod
    def work(self) -> None:
        """Take a turn: make one picture, or find that nobody waits for it any more."""

    @property
    def is_over(self) -> bool:
        """No turn will be wanted any more."""
        return False

    @abstractmethod
    def broken(self, error: Exception) -> None:
        """Told of an error that `work` did not expect; there will be no more turns."""


def next_task(tasks: Sequence[Task], now: float) -> tuple[Task | None, float | None]:
    """Whose turn it is, of tasks in the order in which they had their last turn.

    Returns:
        The first task that is due, or None and the seconds until one will be (None: until something happens).
    """
    times = [(task, due) for task in tasks if (due := task.due()) is not None]
    for task, due in times:
        if due <= now:
            return task, None
    return None, min((due - now for _, due in times), default=None)


class Turns:
    """A thread that gives tasks their turns, one after the other, round and round.

    Nothing but this thread uses the generator, so that two browsers never compute at once, and a busy one waits for
    one picture of the other at most.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._tasks: list[Task] = []  # those that have waited longest first
        self._changed = threading.Condition()
        self._woken = self._ended = False
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)
        self._thread.start()

    def add(self, task: Task) -> None:
        with self._changed:
            self._tasks.append(task)
            self._wake()

    def remove(self, task: Task) -> None:
        """No more turns; one that is under way ends by itself."""
        with self._changed:
            if task in self._tasks:
                self._tasks.remove(task)

    def wake(self) -> None:
        """A task may be due sooner than it said."""
        with self._changed:
            self._wake()

    def end(self) -> None:
        """Give no more turns, and return when the last one is over."""
        with self._changed:
            self._ended = True
            self._wake()
        self._thread.join()

    def _wake(self) -> None:
        self._woken = True
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._ended:
                    return
                self._woken = False
                waiting = list(self._tasks)
            task, pause = next_task(waiting, self.clock())
            if task is None:
                with self._changed:
                    if not self._woken:
                        self._changed.wait(pause)
                continue
            with self._changed:
                if task not in self._tasks:
                    continue
                self._tasks.remove(task)  # to the end of the row
                self._tasks.append(task)
            try:
                task.work()
            except Exception as error:
                traceback.print_exception(error, file=sys.stderr)
                self.remove(task)
                task.broken(error)
            if task.is_over:
                self.remove(task)
