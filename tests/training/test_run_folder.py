"""The folder of a run: whose it is, what it is called, where its checkpoints lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint
from cips3d.errors import UserError
from cips3d.training import agreement, run_folder
from cips3d.training.config import TrainConfig
from cips3d.training.loop import train
from cips3d.training.run_folder import run_folder_of


def test_used_folder_is_refused(small_config: TrainConfig) -> None:
    assert small_config.out is not None
    small_config.out.mkdir()
    (small_config.out / "thesis.tex").write_text("years of work")
    strange = small_config.out.with_name("r\udce9m")
    with pytest.raises(UserError, match=r"r\\udce9m is no text, which TensorBoard needs; give another folder"):
        train(replace(small_config, out=strange))
    assert not strange.exists()
    with pytest.raises(UserError, match="is not empty"):
        train(small_config)
    assert (small_config.out / "thesis.tex").read_text() == "years of work"


def test_a_used_folder_is_noticed_before_data_are_read(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    monkeypatch.setattr(agreement, "open_training_source", lambda *_, **__: pytest.fail("data were read"))
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        train(small_config)
    with pytest.raises(UserError, match=r"--out .*notes.txt cannot be made: Not a directory"):
        train(replace(small_config, out=tmp_path / "run" / "notes.txt"))


def test_checkpoints_behind_a_link(small_config: TrainConfig, tmp_path: Path) -> None:
    """On a disk with room for them; the run stays where it was."""
    folder, _ = train(replace(small_config, steps=2))
    (tmp_path / "scratch").mkdir()
    (folder / "checkpoints").rename(tmp_path / "scratch" / "ours")
    (folder / "checkpoints").symlink_to(tmp_path / "scratch" / "ours")
    assert train(replace(small_config, out=None, resume=folder, steps=3))[0] == folder
    assert train(replace(small_config, out=None, resume=folder / "checkpoints", steps=4))[0] == folder
    newest = folder / "checkpoints" / "step-00000004.pt"
    assert train(replace(small_config, out=None, resume=newest, steps=5))[0] == folder
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["ours"]
    assert load_checkpoint(find_checkpoint(folder))["step"] == 5


def test_links_to_checkpoints(small_config: TrainConfig, tmp_path: Path) -> None:
    """Wherever they stand, whatever they are called, they lead to the run."""
    folder, _ = train(replace(small_config, steps=2))
    newest = folder / "checkpoints" / "step-00000002.pt"
    (tmp_path / "ours").symlink_to(folder / "checkpoints")
    (tmp_path / "newest.pt").symlink_to(newest)
    (folder / "checkpoints" / "newest.pt").symlink_to(newest.name)
    (tmp_path / "same").symlink_to(folder)
    (tmp_path / "newer.pt").symlink_to("newest.pt")
    disk = tmp_path / "disk"
    (folder / "checkpoints").rename(disk)
    (folder / "checkpoints").symlink_to(disk)
    for path in (newest, tmp_path / "ours" / newest.name, tmp_path / "newer.pt", folder / "checkpoints" / "newest.pt"):
        assert run_folder_of(path) == folder, path
    assert run_folder_of(tmp_path / "same" / "checkpoints" / newest.name) == tmp_path / "same"
    train(replace(small_config, out=None, resume=tmp_path / "ours", steps=3))
    assert load_checkpoint(folder / "checkpoints" / "step-00000003.pt")["step"] == 3


def test_bad_data_leave_no_folder(small_config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        train(replace(small_config, data=str(tmp_path / "empty")))
    assert small_config.out is not None and not small_config.out.exists()


def test_runs_are_numbered(small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(small_config, preset="afhq", out=None, steps=1)
    assert [train(config)[0].name for _ in range(2)] == ["00000-afhq", "00001-afhq"]


def test_numbers_of_runs_that_were_removed_are_not_given_again(tmp_path: Path) -> None:
    for name in ("00003-ffhq", "00001-tiny", "7-notes", "later"):
        (tmp_path / name).mkdir()
    assert [run_folder._next_numbered(tmp_path, "tiny").name for _ in range(2)] == ["00004-tiny", "00005-tiny"]
