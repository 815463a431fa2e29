"""The folder that a run writes into."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from cips3d.checkpoints.trained import CHECKPOINT_FOLDER, list_checkpoints
from cips3d.errors import UserError
from cips3d.files import atomic_file, is_text, printable
from cips3d.plain import finite
from cips3d.process.versions import versions
from cips3d.training.config import TrainConfig
from cips3d.training.measuring import Measurement

RUNS = Path("runs")
METRICS_FILE = "metrics.jsonl"
SCALARS_FILE = "scalars.jsonl"
LOG_FILE = "log.txt"


def check_out(out: Path | None) -> None:
    """Raise `UserError` where the folder of `--out` can be none of a new run."""
    if out is None:
        return
    if not is_text(str(out)):
        raise UserError(f"--out {printable(str(out))} is no text, which TensorBoard needs; give another folder")
    try:
        used = out.exists() and any(out.iterdir())
    except OSError as error:
        raise _cannot_be_made(error) from None
    if used:
        raise UserError(f"--out {out} is not empty; give a new folder, or go on with a run by --resume {out}")


def make_run_folder(config: TrainConfig) -> Path:
    """A new folder: `--out`, or the next number under runs/.

    Raises:
        UserError: the folder holds something already, or cannot be made.
    """
    check_out(config.out)
    try:
        if config.out is None:
            return _next_numbered(RUNS, config.preset)
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_made(error) from None
    return config.out


def _cannot_be_made(error: OSError) -> UserError:
    return UserError(f"--out {error.filename} cannot be made: {error.strerror}; give another folder")


def _next_numbered(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    taken = [int(m[1]) for path in parent.iterdir() if (m := re.match(r"(\d{5})-", path.name))]
    number = max(taken, default=-1) + 1
    while True:  # two runs that start at once each get a folder of their own
        folder = parent / f"{number:05d}-{name}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def run_folder_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to.

    A run's folder of checkpoints may be a link, to a disk that has room for them; other links are followed to it.
    """
    path = checkpoint.absolute()
    while path.is_symlink():
        path = path.parent / path.readlink()
    folder = path.parent
    while folder.is_symlink() and folder.name != CHECKPOINT_FOLDER:
        folder = folder.parent / folder.readlink()
    return folder.parent if folder.name == CHECKPOINT_FOLDER else folder


def check_newest(checkpoints: Path, resume: Path, step: int) -> None:
    """Raise `UserError` where a run would resume from a checkpoint that is not the newest of its folder."""
    numbered = list_checkpoints(checkpoints)
    if numbered and int(numbered[-1].stem.removeprefix("step-")) > step:
        raise UserError(
            f"--resume {resume} is of step {step}, and {checkpoints} goes on to {numbered[-1].name}; give "
            "--out NEW_FOLDER to train on from there in a folder of its own, or move the later ones away"
        )


def write_configuration(folder: Path, config: TrainConfig) -> None:
    """config.json: the configuration, the versions and the command of a run.

    Raises:
        UserError: the folder cannot be written.
    """
    content: dict[str, Any] = {
        "config": json.loads(config.to_json()),
        "versions": versions(),
        "command": sys.argv,
    }
    try:
        with atomic_file(folder / "config.json") as file:
            file.write(json.dumps(content, indent=2).encode())
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); allow it, or give --out") from None


def append_measurement(folder: Path, measurement: Measurement) -> None:
    """Add a line to metrics.jsonl; what is no number becomes null.

    Raises:
        UserError: the disk is full; the lines before are kept.
    """
    path = folder / METRICS_FILE
    earlier = path.read_bytes() if path.exists() else b""
    line = {
        "step": measurement.step,
        "images": measurement.images,
        "resolution": measurement.resolution,
        "values": {name: finite(value) for name, value in measurement.values.items()},
    }
    with atomic_file(path) as file:
        file.write(earlier + json.dumps(line, allow_nan=False).encode() + b"\n")


def append_scalars(folder: Path, step: int, figures: dict[str, float]) -> None:
    """Append a line to scalars.jsonl in place: it has too many lines to write the whole file anew."""
    line = {"step": step, **{name: finite(value) for name, value in figures.items()}}
    with (folder / SCALARS_FILE).open("ab") as file:
        file.write(json.dumps(line, allow_nan=False).encode() + b"\n")


def append_to_log(folder: Path, line: str) -> None:
    """Add a line to log.txt."""
    with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def cut_records(path: Path, step: int) -> None:
    """Remove the lines of steps after `step` from metrics.jsonl or scalars.jsonl: a resumed run writes its own.

    What a power failure has left at the end, half a line or zeros, goes too.

    Raises:
        UserError: another line is not one of theirs.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    whole = list(lines)
    while whole and (b"\0" in whole[-1] or not whole[-1].endswith(b"\n")):
        whole.pop()
    kept = [line for number, line in enumerate(whole, start=1) if _step_of(line, path, number) <= step]
    if len(kept) < len(lines):
        with atomic_file(path) as file:
            file.write(b"".join(kept))


def _step_of(line: bytes, path: Path, number: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} has something else in line {number} than figures; remove that line") from None
