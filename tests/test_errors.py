"""How commands end."""

from __future__ import annotations

import pytest

from cips3d.errors import UserError, exit_on_user_error


def raising(error: BaseException) -> int:
    raise error


def test_what_the_command_returns() -> None:
    assert exit_on_user_error(lambda: 3) == 3


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_on_user_error(lambda: raising(UserError("--out x.gif is taken; give another"))) == 2
    assert capsys.readouterr().err == "error: --out x.gif is taken; give another\n"


@pytest.mark.parametrize(("given", "line"), [((), "interrupted"), (("interrupted; go on",), "interrupted; go on")])
def test_interrupted_by_ctrl_c(capsys: pytest.CaptureFixture[str], given: tuple[str, ...], line: str) -> None:
    assert exit_on_user_error(lambda: raising(KeyboardInterrupt()), *given) == 130
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_on_user_error(lambda: raising(ZeroDivisionError()))
