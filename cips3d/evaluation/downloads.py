"""Weights of other people's networks, which their packages download."""

from __future__ import annotations

import urllib.error
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cips3d.errors import UserError


@contextmanager
def weights_of(what: str, remedy: str) -> Iterator[None]:
    """Raise `UserError` where weights cannot be downloaded; the libraries' own deprecation warnings are let go.

    Args:
        what: whose weights.
        remedy: what to do instead.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(f"{what} cannot be downloaded ({reason}); {remedy}") from error
