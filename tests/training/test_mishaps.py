"""What goes wrong in the middle of a run: nothing that was trained is lost, and who trains is told what to do."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.runs import after_steps, assert_equal_states

from cips3d import render
from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint
from cips3d.data.images import ImageFiles
from cips3d.errors import UserError
from cips3d.files import temporary_beside
from cips3d.training import loop
from cips3d.training.config import Amp, TrainConfig
from cips3d.training.loop import Training, train
from cips3d.training.report import Reporter
from cips3d.training.run_folder import SCALARS_FILE
from cips3d.training.step import TrainingStep


def rare_checkpoints(config: TrainConfig) -> TrainConfig:
    return replace(config, reports=replace(config.reports, checkpoint_every=100))


def steps_of(folder: Path) -> list[int]:
    return sorted(load_checkpoint(path)["step"] for path in (folder / "checkpoints").glob("step-*.pt"))


def raising(error: Exception) -> Callable[..., None]:
    def action(*_: object, **__: object) -> None:
        raise error

    return action


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_in_words() -> UserError:
    """As `atomic_file` says it."""
    error = UserError("the disk is full: step-00000003.pt was not written")
    error.__cause__ = full_disk()
    return error


def out_of_memory() -> RuntimeError:
    return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (ZeroDivisionError("a bug"), ZeroDivisionError, "a bug"),
        (full_disk(), UserError, "the disk is full; free some space; go on with: python -m cips3d.train --resume"),
        (
            full_disk_in_words(),
            UserError,
            "the disk is full; free some space; go on with: python -m cips3d.train --resume",
        ),
        (out_of_memory(), UserError, "cpu has too little memory; give a smaller --batch-size"),
    ],
)
def test_whatever_ends_a_run_it_is_saved(
    small_config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    raised: type[Exception],
    told: str,
) -> None:
    after_steps(monkeypatch, 5, raising(error))
    with pytest.raises(raised, match=told):
        train(rare_checkpoints(small_config))
    assert small_config.out is not None
    assert steps_of(small_config.out) == [0, 4]  # of the fifth step nothing is counted
    told = capfd.readouterr().err
    assert f"--resume {small_config.out}" in told
    assert "step 5 was half done; it is made once more" in told


def test_an_error_between_two_steps_leaves_none_half_done(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Reporter, "step", raising(full_disk()))
    with pytest.raises(UserError, match="the disk is full"):
        train(rare_checkpoints(small_config))
    assert "half done" not in capfd.readouterr().err


def test_an_animation_for_which_there_is_no_room(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is complete and cannot go on: another command makes the animation."""
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "animation", raising(full_disk()))
        with pytest.raises(UserError, match=r"the disk is full; free some space; training is complete") as raised:
            train(small_config)
    assert small_config.out is not None and steps_of(small_config.out)[-1] == 6
    command = shlex.split(str(raised.value).split("python -m cips3d.render ")[1])
    assert render.main([*command, "--frames", "3"]) == 0
    assert (small_config.out / "animation.webp").is_file()


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_networks_that_find_no_room(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr(loop, "TrainingState", raising(RuntimeError(words)))
    with pytest.raises(UserError, match="cpu has too little memory for the networks; give smaller ones"):
        train(small_config)
    assert small_config.out is not None and not small_config.out.exists()
    monkeypatch.setattr(loop, "TrainingState", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        train(small_config)


def test_a_saved_step_is_not_saved_again_half_changed(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = train(replace(small_config, out=tmp_path / "whole"))
    for _ in range(2):  # from the start, and from the checkpoint on
        with monkeypatch.context() as patch:
            after_steps(patch, 4, raising(ZeroDivisionError()))
            resume = tmp_path / "part" if (tmp_path / "part").exists() else None
            with pytest.raises(ZeroDivisionError):
                train(replace(small_config, out=None if resume else tmp_path / "part", resume=resume))
        assert steps_of(tmp_path / "part") == [0, 3]
    resumed, _ = train(replace(small_config, out=None, resume=tmp_path / "part"))
    assert_equal_states(load_checkpoint(find_checkpoint(whole)), load_checkpoint(find_checkpoint(resumed)))


def test_what_cannot_be_saved_is_said(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise full_disk()

    def fill_the_disk() -> None:
        monkeypatch.setattr(loop, "save_checkpoint", refuse)
        raise full_disk()

    after_steps(monkeypatch, 3, fill_the_disk)
    with pytest.raises(UserError, match="the disk is full"):
        train(rare_checkpoints(small_config))
    assert "could not be saved" in capfd.readouterr().err


def test_a_picture_that_is_gone(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ImageFiles.__getitem__
    read: list[int] = []

    def get(self: ImageFiles, index: int) -> torch.Tensor:
        read.append(index)
        if len(read) > 3 * 4 + 1:
            raise UserError("photo.png cannot be read")
        return original(self, index)

    monkeypatch.setattr(ImageFiles, "__getitem__", get)
    with pytest.raises(UserError, match=r"photo\.png cannot be read"):
        train(rare_checkpoints(replace(small_config, workers=0, x_flip=False)))
    assert small_config.out is not None
    assert steps_of(small_config.out) == [0, 3]


def test_going_on_from_an_older_checkpoint(small_config: TrainConfig, tmp_path: Path) -> None:
    """In a folder of its own: the later ones stay."""
    folder, _ = train(small_config)
    older = folder / "checkpoints" / "step-00000003.pt"
    before = older.read_bytes()
    with pytest.raises(UserError, match=r"step 3.*goes on to step-00000006.pt; give --out NEW_FOLDER"):
        train(replace(small_config, out=None, resume=older, steps=5))
    assert older.read_bytes() == before and steps_of(folder) == [3, 6]
    branch, _ = train(replace(small_config, out=tmp_path / "branch", resume=older))
    assert_equal_states(load_checkpoint(find_checkpoint(folder)), load_checkpoint(find_checkpoint(branch)))


def test_one_process_a_folder(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals: list[str] = []

    def train_there_too() -> None:
        with pytest.raises(UserError, match="another process is training in") as raised:
            train(replace(small_config, out=None, resume=small_config.out))
        refusals.append(str(raised.value))

    with monkeypatch.context() as patch:
        after_steps(patch, 2, train_there_too)
        folder, _ = train(small_config)
    assert len(refusals) == 1
    assert not list((folder / "checkpoints").glob(".*"))
    train(replace(small_config, out=None, resume=folder, steps=8))  # it is over


def test_a_start_that_fails_leaves_the_folder_free(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = train(small_config)
    resumed = replace(small_config, out=None, resume=folder, steps=8)
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "__init__", raising(ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError) as kept:
            train(resumed)
    train(resumed)
    assert kept.tb is not None  # all that took part in the one that failed is still alive
    assert steps_of(folder) == [6, 8]


def test_a_folder_that_cannot_be_written(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = train(small_config)
    original = Path.open

    def refuse(self: Path, *arguments: object, **others: object) -> object:
        if self.parent == folder.resolve():
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return original(self, *arguments, **others)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"run cannot be written \(Read-only file system\).*--out"):
        train(replace(small_config, out=None, resume=folder, steps=8))


def test_other_pictures_than_before(
    small_config: TrainConfig, photo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in photo_folder.iterdir():
        (photos / path.name).write_bytes(path.read_bytes())
    folder, _ = train(replace(small_config, data=str(photos)))
    train(replace(small_config, data=str(photos), out=None, resume=folder, steps=7))
    assert "not the pictures" not in capfd.readouterr().err
    next(photos.iterdir()).unlink()
    train(replace(small_config, data=str(photos), out=None, resume=folder, steps=8))
    assert "these are not the pictures of the first 7 steps (12 then, 11 now)" in capfd.readouterr().err


def test_flags_that_change_when_a_run_goes_on(small_config: TrainConfig) -> None:
    folder, _ = train(small_config)
    changes = {
        "adam_betas": (0.5, 0.9),
        "slow_ema_decay": 0.9999,
        "amp": Amp(discriminator="fp16"),
    }
    train(replace(small_config, out=None, resume=folder, steps=7, **changes))  # type: ignore[arg-type]
    state = load_checkpoint(find_checkpoint(folder))
    assert state["step"] == 7
    assert all(group["betas"] == (0.5, 0.9) for name in "gd" for group in state[f"optimizer_{name}"]["param_groups"])
    assert state["generator_slow_ema"].keys() == state["generator"].keys()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up")
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
@pytest.mark.parametrize("ignored", [False, True])
def test_signals_that_are_ignored_stay_so(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, ignored: bool, name: str
) -> None:
    """A closed terminal ends a run like Ctrl-C, but for one that was told to live on; so one in the background."""
    number = signal.Signals[name]
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    before = signal.signal(number, handler)
    try:
        after_steps(monkeypatch, 2, lambda: os.kill(os.getpid(), number))
        folder, exit_code = train(small_config)
        assert exit_code == (0 if ignored else 128 + number)
        assert load_checkpoint(find_checkpoint(folder))["step"] == (6 if ignored else 2)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up")
def test_another_signal_does_not_end_that(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def terminate_and_interrupt() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    try:
        after_steps(monkeypatch, 2, terminate_and_interrupt)
        assert train(small_config)[1] == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_killed_run_has_left_of_a_checkpoint_goes(small_config: TrainConfig) -> None:
    folder, _ = train(small_config)
    left = temporary_beside(folder / "checkpoints" / "step-00000007.pt")
    left.write_bytes(b"half of it")
    train(replace(small_config, out=None, resume=folder, steps=8))
    assert not left.exists() and steps_of(folder) == [6, 8]


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="who sent a signal is not told")
def test_a_job_that_is_ended_with_all_its_processes(photo_folder: Path, tmp_path: Path) -> None:
    """The workers hear of it too, and go on until the run is saved."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "cips3d.train", "--preset", "tiny", "--device", "cpu", "--out", str(out)]
    flags = ["--data", str(photo_folder), "--workers", "1", "--reports.metrics-interval", "0"]
    with subprocess.Popen([*command, *flags], start_new_session=True, stderr=subprocess.PIPE) as run:
        while run.poll() is None and not (out / "pictures").exists():  # the first are of what is not trained yet
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGTERM)
        _, error = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM, error.decode()
    assert b"go on with: python -m cips3d.train --resume" in error


def test_curves_and_words_are_written_down(small_config: TrainConfig) -> None:
    config = replace(small_config, reports=replace(small_config.reports, scalars_every=1))
    folder, _ = train(replace(config, steps=4))
    scalars = folder / SCALARS_FILE
    whole = scalars.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["d/loss"] > 0 and line["schedule/resolution"] == 8 for line in lines)
    scalars.write_bytes(whole + b'{"step": 5, "d/loss": 0.69}\n{"step": 5, "d/lo')  # of steps that were not saved
    train(replace(config, out=None, resume=folder))
    assert scalars.read_bytes().startswith(whole)
    assert [json.loads(line)["step"] for line in scalars.read_bytes().splitlines()] == [1, 2, 3, 4, 5, 6]
    log = (folder / "log.txt").read_text()
    assert "12 images" in log and log.count("done: checkpoint") == 2


def test_precision_of_a_run_is_the_models(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--precision` of all other commands, and under what mixed precision says of a part."""
    seen: list[tuple[str | None, str | None]] = []
    rounded_to: list[torch.dtype] = []
    original = TrainingStep.__init__

    def init(self: TrainingStep, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        generator = self.state.generator
        seen.append((generator.nerf.precision, generator.inr.precision))  # type: ignore[union-attr]
        rounded_to.append(generator.inr.fast_dtype)  # type: ignore[union-attr]

    monkeypatch.setattr(TrainingStep, "__init__", init)
    cases = ((None, Amp()), ("high", Amp()), ("fast", Amp()), ("high", Amp(inr="bf16")), (None, Amp(inr="fp16")))
    for precision, amp in cases:
        loop_config = replace(small_config, steps=1, precision=precision, amp=amp, out=None, data=small_config.data)
        with monkeypatch.context() as patch:
            patch.setattr(Training, "run", lambda _: 0)
            patch.setattr(loop, "make_run_folder", lambda _: small_config.out)
            assert small_config.out is not None
            small_config.out.mkdir(exist_ok=True)
            train(loop_config)
    assert seen == [(None, None), ("high", "high"), ("fast", "fast"), ("high", "fast"), (None, "fast")]
    assert rounded_to == [torch.bfloat16] * 4 + [torch.float16]
