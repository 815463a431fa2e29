"""What commands that take a trained model have in common."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cips3d.errors import UserError
from cips3d.evaluate import Options, check_options

COMMANDS: dict[str, tuple[str, ...]] = {
    "render": ("run", "--out", "a.png"),
    "mesh": ("run", "--out", "a.ply"),
    "evaluate": ("run",),
    "invert": ("run", "photo.png", "--out", "inverted"),
    "edit": ("run", "--out", "a.png"),
    "stylise": ("run", "style", "--out", "a.png"),
    "viewer": ("run", "--no-open"),
}
FLAGS = {"--device", "--precision", "--resolution", "--help"}


class Loaded(Exception):
    """The command has asked for its model."""


@pytest.mark.parametrize("name", COMMANDS)
class TestEveryCommand:
    def test_flags(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            run(name, ["--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        flags = set(re.findall(r"--[a-z][a-z-]*", text))
        assert flags >= FLAGS
        assert flags & {"--seed", "--seeds"}
        assert "RUN_OR_CHECKPOINT" in text or "BASE" in text
        assert "Examples:" in text

    @pytest.mark.parametrize(("arguments", "precision"), [((), None), (("--precision", "fast"), "fast")])
    def test_precision(
        self,
        name: str,
        arguments: Sequence[str],
        precision: str | None,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def asked(path: Path, device: Any, *, precision: str | None = None) -> None:
            raise Loaded(precision)

        monkeypatch.chdir(tmp_path)
        for model in ("run", "style"):
            (tmp_path / model).touch()
        monkeypatch.setattr(f"cips3d.{name}.load_generator", asked)
        with pytest.raises(Loaded) as loaded:
            run(name, [*COMMANDS[name], *arguments])
        assert loaded.value.args == (precision,)

    def test_nothing_there(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run(name, COMMANDS[name]) == 2
        told = capsys.readouterr().err
        assert "run" in told and "Traceback" not in told
        assert not list(tmp_path.iterdir())


def run(name: str, arguments: Sequence[str]) -> int:
    code: int = importlib.import_module(f"cips3d.{name}").main(arguments)
    return code


@pytest.mark.parametrize("arguments", [("heads",), ("--generated", "pictures")])
def test_precision_of_no_model(arguments: tuple[str, ...]) -> None:
    given = {"run": arguments[0]} if len(arguments) == 1 else {"generated": Path(arguments[1])}
    with pytest.raises(UserError, match="--precision high is for a model's products; leave it out"):
        check_options(Options(**given, precision="high"))  # type: ignore[arg-type]  # of two types
