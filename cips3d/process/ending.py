"""How commands end: mistakes that a user can mend, signals and closed pipes without a traceback."""

from __future__ import annotations

import codecs
import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType

from cips3d.errors import UserError

# What shells report for programs that a signal has ended: 128 + its number.
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
PIPE_CLOSED = 128 + 13  # SIGPIPE, which Windows does not have


def exit_on_user_error(command: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run a command's body; its `UserError` and Ctrl-C become a line on stderr and the exit codes 2 and 130.

    So do names that no file can have, and those in folders that are closed to the user (2). SIGTERM ends it with 143,
    after it has tidied up; a reader that closes its end of stdout (`... | head`) with 141.

    Args:
        command: what to run; returns its exit code.
        interrupted: the line for Ctrl-C.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        codecs.register_error("cips3d", _as_it_came)
        sys.stdout.reconfigure(errors="cips3d")
    try:
        with _tidy_termination():
            try:
                return command()
            finally:
                sys.stdout.flush()  # here, where a closed pipe can be told from a bug
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains of it at its end
        return PIPE_CLOSED
    except OSError as error:
        refused = refused_name(error)
        if refused is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        return 2


def _as_it_came(error: UnicodeError) -> tuple[bytes, int]:
    """Names of files that are no text leave as they came; of other letters that the output's encoding lacks, such as
    Greek ones in a terminal of Windows, a question mark is left."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    return letter.encode("ascii", "surrogateescape" if "\udc80" <= letter <= "\udcff" else "replace"), error.start + 1


def refused_name(error: OSError) -> str | None:
    """What is wrong with a file name that the system refuses even to look up; None: the error is another one."""
    if error.errno == errno.ENAMETOOLONG:
        return f"{error.filename} is too long a name for a file; give a shorter one"
    if error.errno == errno.EACCES and error.filename is not None:
        return f"{error.filename} is out of reach ({error.strerror}); check the rights of its folders"
    return None


@contextmanager
def _tidy_termination() -> Iterator[None]:
    """SIGTERM unwinds the stack, so that unfinished files are removed, where it would end the process at once."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stdout_is_closed() -> bool:
    """Whether it is stdout's pipe that broke, and not one to another program."""
    if not hasattr(select, "poll"):  # Windows
        return True
    ends = select.poll()
    ends.register(sys.stdout.fileno(), select.POLLERR)
    return len(ends.poll(0)) > 0
