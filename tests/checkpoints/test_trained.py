"""Checkpoints: whole or not at all, and never executed."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from cips3d.checkpoints.trained import (
    FORMAT,
    FORMAT_VERSION,
    checkpoint_name,
    find_checkpoint,
    keep_checkpoints,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from cips3d.errors import UserError
from cips3d.files import atomic_file


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a" / "step-00000001.pt"
    save_checkpoint(path, {"weights": torch.arange(3.0), "step": 1})
    state = load_checkpoint(path)
    assert state["step"] == 1
    assert torch.equal(state["weights"], torch.arange(3.0))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_failed_write_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step-00000001.pt"
    save_checkpoint(path, {"step": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk is full.*step-00000001.pt"):
        save_checkpoint(path, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is not there")
def test_torch_reports_a_full_disk_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save wraps a failed write in an error of its own; it must still be recognised."""
    from cips3d.files import is_disk_full

    with pytest.raises((OSError, RuntimeError)) as raised, Path("/dev/full").open("wb", buffering=0) as file:
        torch.save({"weights": torch.zeros(100_000)}, file)
    assert is_disk_full(raised.value)


def test_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    save_checkpoint(path, {"weights": torch.zeros(1000)})
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a complete checkpoint"):
            load_checkpoint(path)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("write", ["pickle", "torch", "nested"])
def test_code_in_a_file_is_never_run(tmp_path: Path, write: str) -> None:
    target, path = tmp_path / "executed", tmp_path / "step-00000001.pt"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Malicious(target)))
    elif write == "torch":
        torch.save(Malicious(target), path)
    else:
        torch.save({"format": "cips3d training checkpoint", "state": [{"x": Malicious(target)}]}, path)
    with pytest.raises(UserError):
        load_checkpoint(path)
    assert not target.exists()


def test_other_kinds_of_checkpoint_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"model": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a training checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("version", [None, "1"])
def test_checkpoints_of_no_version_are_refused(tmp_path: Path, version: object) -> None:
    path = tmp_path / "step-00000001.pt"
    torch.save({"format": FORMAT, **({} if version is None else {"format_version": version})}, path)
    with pytest.raises(UserError, match="not a training checkpoint of this package; give one"):
        load_checkpoint(path)


def test_newer_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    torch.save({"format": FORMAT, "format_version": FORMAT_VERSION + 1}, path)
    with pytest.raises(UserError, match="newer version of cips3d; update"):
        load_checkpoint(path)


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_checkpoint(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)


def test_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (9, 10, 100):
        save_checkpoint(folder / f"step-{step:08d}.pt", {"step": step})
    save_checkpoint(folder / "best.pt", {"step": 9})
    assert load_checkpoint(find_checkpoint(tmp_path))["step"] == 100
    keep_checkpoints(folder, 2)
    assert sorted(p.name for p in folder.iterdir()) == ["best.pt", "step-00000010.pt", "step-00000100.pt"]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    """Also where a number has more digits than others."""
    for step in (100_000_000, 99_999_999, 7):
        (tmp_path / checkpoint_name(step)).touch()
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000007.pt",
        "step-99999999.pt",
        "step-100000000.pt",
    ]
