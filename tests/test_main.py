"""`python -m cips3d`: every command with what it does, and the version."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cips3d
from cips3d.__main__ import commands, main

ROOT = Path(cips3d.__file__).parent


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    run = [file.relative_to(ROOT) for file in ROOT.rglob("*.py") if "\nif __name__ == " in file.read_text()]
    expected = {file.parts[0].removesuffix(".py") for file in run} - {"__main__"}
    assert set(commands()) == expected >= {"train", "render", "convert", "info"}
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name in expected:
        assert re.search(rf"^  python -m cips3d\.{name} +\w+s .+$", printed, re.M)


@pytest.mark.parametrize(("flags", "words"), [([], "cips3d.train "), (["--version"], f"cips3d {cips3d.__version__}\n")])
def test_in_a_process_of_its_own(flags: list[str], words: str) -> None:
    """Nothing large is imported: it takes no time."""
    command = [sys.executable, "-X", "importtime", "-m", "cips3d", *flags]
    ended = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert words in ended.stdout
    assert "torch" not in ended.stderr


def test_commands_are_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With their own exit codes and errors."""
    monkeypatch.setattr(sys, "argv", ["cips3d"])
    for arguments, code in ((["info", "--json"], 0), (["train", "--preset", "none"], 2), (["convert", "none.pt"], 2)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code, arguments
    printed = capsys.readouterr()
    assert '"torch"' in printed.out and "none" in printed.err


def test_there_is_no_such_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert (
        "error: trian is nothing that python -m cips3d knows; give a command such as train" in capsys.readouterr().err
    )
