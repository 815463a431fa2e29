"""Calls of this package's commands in tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest


def run_command(
    main: Callable[[Sequence[str]], int], argv: Sequence[object], capsys: pytest.CaptureFixture[str], fails: bool
) -> str:
    """What a command prints, or the one line that it ends with where it must fail with code 2.

    Args:
        main: of the command.
        argv: its arguments.
        capsys: of the test.
        fails: whether it must fail.
    """
    code = main([str(argument) for argument in argv])
    printed = capsys.readouterr()
    assert code == (2 if fails else 0), printed.err
    if not fails:
        return printed.out
    last = printed.err.rpartition("\r")[2]  # what is left to see after a progress bar
    assert last.startswith("error: ")
    assert last.count("\n") == 1
    return last
