"""How commands end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cips3d.errors import UserError
from cips3d.process.ending import exit_on_user_error


def raising(error: BaseException) -> int:
    raise error


def test_what_the_command_returns() -> None:
    assert exit_on_user_error(lambda: 3) == 3


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_on_user_error(lambda: raising(UserError("--out x.gif is taken; give another"))) == 2
    assert capsys.readouterr().err == "error: --out x.gif is taken; give another\n"


@pytest.mark.parametrize(
    ("encoding", "printed", "left"),
    [
        ("utf-8", r"r\udce9m \u03b3\u00b2", b"r\xe9m \xce\xb3\xc2\xb2\n"),
        ("cp1252", r"r\udce9\u03b3m \u00b2", b"r\xe9?m \xb2\n"),
        ("ascii", r"r\u03b3\udce9m \u00b2", b"r?\xe9m ?\n"),
    ],
)
def test_names_that_are_no_text_leave_as_they_came(encoding: str, printed: str, left: bytes) -> None:
    """Whatever the locale wants of what is printed; of letters that its encoding lacks a question mark is left."""
    program = f"from cips3d.process.ending import exit_on_user_error as run; run(lambda: print('{printed}') or 0)"
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert (ended.returncode, ended.stdout) == (0, left), ended.stderr


@pytest.mark.parametrize(("given", "line"), [((), "interrupted"), (("interrupted; go on",), "interrupted; go on")])
def test_interrupted_by_ctrl_c(capsys: pytest.CaptureFixture[str], given: tuple[str, ...], line: str) -> None:
    assert exit_on_user_error(lambda: raising(KeyboardInterrupt()), *given) == 130
    assert capsys.readouterr().err.splitlines()[-1] == line


@pytest.mark.skipif(os.name == "nt", reason="other errors")
def test_names_that_no_file_can_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_on_user_error(lambda: int(Path("a" * 300).is_file())) == 2
    assert capsys.readouterr().err == f"error: {'a' * 300} is too long a name for a file; give a shorter one\n"


def test_closed_folders(capsys: pytest.CaptureFixture[str]) -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", "/closed/run")
    assert exit_on_user_error(lambda: raising(refused)) == 2
    message = "error: /closed/run is out of reach (Permission denied); check the rights of its folders\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_other_errors_of_the_system_are_bugs(number: int) -> None:
    with pytest.raises(OSError, match="trouble"):
        exit_on_user_error(lambda: raising(OSError(number, "trouble", "a")))


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_on_user_error(lambda: raising(ZeroDivisionError()))


def run_program(program: str, **streams: int) -> subprocess.CompletedProcess[bytes]:
    code = f"from cips3d.process.ending import exit_on_user_error\n{textwrap.dedent(program)}"
    return subprocess.run([sys.executable, "-c", code], check=False, timeout=60, stderr=subprocess.PIPE, **streams)


@pytest.mark.skipif(os.name == "nt", reason="no such pipes")
@pytest.mark.parametrize("length", [1, 100_000])  # that is written in the end, and at once
@pytest.mark.parametrize("ending", ["return 0", "raise SystemExit(0)"])  # the latter as of --help
def test_a_reader_that_has_gone_is_no_error(length: int, ending: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = f"""
    def command():
        print("x" * {length})
        {ending}
    raise SystemExit(exit_on_user_error(command))
    """
    ended = run_program(program, stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.skipif(os.name == "nt", reason="no such pipes")
def test_another_program_s_broken_pipe_is_a_bug() -> None:
    with pytest.raises(BrokenPipeError):
        exit_on_user_error(lambda: raising(BrokenPipeError()))


@pytest.mark.skipif(os.name == "nt", reason="no such signal")
def test_termination_removes_unfinished_files(tmp_path: Path) -> None:
    program = f"""
    import os, pathlib, signal
    from cips3d.files import atomic_file
    def command():
        with atomic_file(pathlib.Path({str(tmp_path)!r}) / "a") as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
    raise SystemExit(exit_on_user_error(command))
    """
    ended = run_program(program)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, b"")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
