"""Mistakes that a user can mend, and checks of settings."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real

LARGEST_COUNT = 2**31 - 1  # of samples, channels, layers, images: more than any memory holds
LARGEST_NUMBER = 1000.0  # of strengths, weights and angles in flags: float32 holds what networks make of it


class UserError(Exception):
    """Something outside the program is wrong and its user can mend it.

    The message is one sentence that names the argument, the value and the remedy. Commands print it without a
    traceback and exit with code 2; library callers may catch it like any other exception.
    """


def require_range(name: str, value: float, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise `UserError`, naming the setting, unless it is a finite number in a range."""
    if not isinstance(value, Real):
        raise UserError(f"{name} {value!r} is no number; give one")
    # An integer is finite, however large: as a float it might not be one any more.
    if least <= value <= most and (isinstance(value, int) or math.isfinite(value)):
        return
    if math.isinf(most):
        allowed = "a finite number" if math.isinf(least) else f"{_shown(least)} or more"
    else:
        allowed = f"a number from {_shown(least)} to {_shown(most)}"
    raise UserError(f"{name} {_shown(value)} makes no sense; give {allowed}")


def require_whole(name: str, value: int, least: int) -> None:
    """Raise `UserError`, naming the setting, unless it is an integer from `least` to what tensors can have."""
    require_range(name, value, least)
    if value > LARGEST_COUNT:
        require_range(name, value, least, LARGEST_COUNT)
    if not isinstance(value, Integral):
        raise UserError(f"{name} {value:g} is no whole number; give {least} or more")


def require_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise `UserError`, naming the setting, unless it is one of the choices."""
    if value not in choices:
        raise UserError(f"{name} {value!r} is unknown; choose one of {', '.join(map(str, choices))}")


def _shown(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
