"""One browser: what it asks for, and which of it is made next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cips3d.errors import UserError
from cips3d.viewing.pacing import Pacing
from cips3d.viewing.shots import GivenUpError, Shot, Studio
from cips3d.viewing.turns import Task


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture, on its way to the browser."""

    pixels: np.ndarray
    """[side, side, 3] in 0 to 255"""
    shot: Shot
    finest: bool
    """nothing finer will follow"""


class Session(Task):
    """Makes pictures of the newest shot: quick ones while shots keep coming, then finer and finer ones.

    A shot that a newer one replaced before its turn is never rendered. The first picture of a shot is always
    finished, so that a movement without a pause is seen; a finer one is given up as soon as a newer shot has come.

    Args:
        studio: where pictures are taken.
        pacing: how large they are.
        show: is given every picture.
        complain: is given a sentence that says why there is no picture.
        clock: seconds; that of the turns.
    """

    def __init__(
        self,
        studio: Studio,
        pacing: Pacing,
        show: Callable[[Frame], None],
        complain: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.studio = studio
        self.pacing = pacing
        self._show = show
        self._complain = complain
        self._clock = clock
        self._lock = threading.Lock()
        self._wanted: Shot | None = None
        self._number = self._shown_number = 0  # of the wanted shot, and of that whose picture was shown last
        self._wanted_since = 0.0
        self._shown_side: int | None = None  # None: nothing more can be shown of the shot
        self.has_left = False
        """nobody looks any more: whatever is under way is given up"""

    def ask(self, shot: Shot, *, anew: bool = False) -> bool:
        """Want pictures of this shot from now on.

        Args:
            shot: what.
            anew: also where it is what is wanted already, since the models have changed.

        Returns:
            False where it changes nothing.
        """
        with self._lock:
            if shot == self._wanted and not anew:
                return False
            self._wanted = shot
            self._number += 1
            self._wanted_since = self._clock()
            return True

    @property
    def wanted(self) -> Shot | None:
        """The newest shot."""
        return self._wanted

    def due(self) -> float | None:
        with self._lock:
            if self._wanted is None:
                return None
            if self._shown_number != self._number:
                return self._wanted_since
            side = None if self._shown_side is None else self.pacing.finer(self._shown_side)
            return None if side is None else self._wanted_since + self.pacing.rest_before(side)

    def work(self) -> None:
        with self._lock:
            shot, number, shown_side = self._wanted, self._number, self._shown_side
            is_first = self._shown_number != number
        side = self.pacing.moving if is_first or shown_side is None else self.pacing.finer(shown_side)
        if shot is None or side is None:
            return
        begun = self._clock()
        try:
            pixels = self.studio.take(shot, side, lambda: self.has_left or (not is_first and self._number != number))
        except GivenUpError:
            return
        except UserError as error:
            self._shown(number, None)
            self._complain(str(error))
            return
        self._show(Frame(pixels, shot, self.pacing.finer(side) is None))
        self.pacing.measured(side, self._clock() - begun)
        self._shown(number, side)

    def broken(self, error: Exception) -> None:
        self._complain(f"the viewer met an error it does not know ({type(error).__name__}); its terminal says more")

    def _shown(self, number: int, side: int | None) -> None:
        with self._lock:
            self._shown_number, self._shown_side = number, side


class Snapshot(Task):
    """One picture in full size, whatever is asked for meanwhile.

    Args:
        studio: where it is taken.
        shot: of what.
        side: in pixels.
        keep: is given it.
        complain: is given a sentence that says why there is none.
        unwanted: says True once nobody waits for it any more.
    """

    def __init__(
        self,
        studio: Studio,
        shot: Shot,
        side: int,
        keep: Callable[[np.ndarray], None],
        complain: Callable[[str], None],
        unwanted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._studio, self._shot, self._side = studio, shot, side
        self._keep, self._complain, self._unwanted = keep, complain, unwanted
        self._is_done = False

    @property
    def is_over(self) -> bool:
        return self._is_done

    def due(self) -> float | None:
        return None if self._is_done else 0.0

    def work(self) -> None:
        self._is_done = True
        try:
            pixels = self._studio.take(self._shot, self._side, self._unwanted)
        except GivenUpError:
            return
        except UserError as error:
            self._complain(str(error))
        else:
            self._keep(pixels)

    def broken(self, error: Exception) -> None:
        self._complain(f"the picture was not made ({type(error).__name__}); the viewer's terminal says more")
