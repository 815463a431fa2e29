"""Ctrl-C, SIGTERM and a closed terminal: a run ends between two steps, long work within one is left, waiting ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal came within `StopRequest.interrupting`; no error, so that nobody takes it for one."""


class StopRequest:
    """Set by the first signal; a second Ctrl-C interrupts at once, as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.interrupts = False

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells count."""
        return 0 if self.signal is None else 128 + self.signal

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal raises `Interrupted` at once, and so does one that came before: for long work that can be
        left half done and made once more."""
        try:
            self.interrupts = True
            if self:
                raise Interrupted
            yield
        finally:
            self.interrupts = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Collect SIGINT, SIGTERM and SIGHUP in a `StopRequest`; outside the main thread nothing is collected.

    What is ignored stays so: SIGHUP under `nohup`, SIGINT in what a script has sent to the background.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        if signal.SIGINT in numbers:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if request.interrupts:
            raise Interrupted

    known = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    numbers = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end the process at once, as without Python: its own handlers do not run in calls that
    wait outside of it. What is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
