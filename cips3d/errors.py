"""Mistakes that a user can mend: one sentence, no traceback, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


class UserError(Exception):
    """Something outside the program is wrong and its user can mend it.

    The message is one sentence that names the argument, the value and the remedy. Commands print it without a
    traceback and exit with code 2; library callers may catch it like any other exception.
    """


def exit_on_user_error(command: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run a command's body; its `UserError` and Ctrl-C become a line on stderr and the exit codes 2 and 130.

    Args:
        command: what to run; returns its exit code.
        interrupted: the line for Ctrl-C.
    """
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED
