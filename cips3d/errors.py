"""Mistakes that a user can mend: one sentence, no traceback, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something outside the program is wrong and its user can mend it.

    The message is one sentence that names the argument, the value and the remedy. Commands print it without a
    traceback and exit with code 2; library callers may catch it like any other exception.
    """


def exit_on_user_error(command: Callable[[], int]) -> int:
    """Run a command's body and turn its `UserError` into a line on stderr and exit code 2."""
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
