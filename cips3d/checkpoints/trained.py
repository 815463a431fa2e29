"""Training's checkpoints: written whole or not at all, read without executing anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from cips3d.checkpoints.torch_file import read_torch_file
from cips3d.errors import UserError
from cips3d.files import atomic_file, is_left_over

FORMAT = "cips3d training checkpoint"
FORMAT_VERSION = 1
CHECKPOINT_FOLDER = "checkpoints"
BEST = "best.pt"
DIVERGED = "diverged.pt"  # of a run that stopped for losses that were not finite
STEP_NAME = re.compile(r"step-(\d{8,})\.pt")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `path`, atomically."""
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **state}, file)


def is_training_checkpoint(content: object) -> bool:
    """Training wrote it, as far as the content of a file of torch.save tells."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain values are ever built.

    Raises:
        UserError: there is no such file, it is truncated, or it is something else.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give a run folder or a checkpoint in it")
    return checked_checkpoint(path, read_torch_file(path, "checkpoint of this package", "try an older one"))


def checked_checkpoint(path: Path, state: Any) -> dict[str, Any]:
    """The content of a file, once it is known to be a checkpoint of this version or an older one.

    Raises:
        UserError: it is something else.
    """
    version = state.get("format_version") if is_training_checkpoint(state) else None
    if not isinstance(version, int):
        raise UserError(f"{path} is not a training checkpoint of this package; give one that cips3d.train wrote")
    if version > FORMAT_VERSION:
        raise UserError(f"{path} was written by a newer version of cips3d; update the package to read it")
    checked: dict[str, Any] = state
    return checked


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file that `path` means: itself, or the newest one of a run folder.

    Raises:
        UserError: nothing is there.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder or a checkpoint file")
    newest = list_checkpoints(path / CHECKPOINT_FOLDER if (path / CHECKPOINT_FOLDER).is_dir() else path)
    if not newest:
        raise UserError(f"{path} holds no checkpoint; give a run folder of cips3d.train or a checkpoint file")
    return newest[-1]


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint file of a step."""
    return f"step-{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """The numbered checkpoints of a folder, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("*.pt") if (match := STEP_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def remove_left_overs(folder: Path) -> None:
    """Delete what killed processes have left of checkpoints; no other process may be writing any."""
    for path in list(folder.glob(".*")):
        if is_left_over(path):
            path.unlink()


def keep_checkpoints(folder: Path, keep: int) -> None:
    """Delete all numbered checkpoints but the newest `keep`."""
    for path in list_checkpoints(folder)[:-keep]:
        path.unlink()
