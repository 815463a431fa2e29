"""The features of real pictures that torch-fidelity keeps, looked at before it reads them."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from cips3d.evaluation.kept import writing_to_cache

# What numbers for FID are pickled by, besides tensors.
ARRAY_PARTS: list[Any] = [np.array(0.0).__reduce__()[0], np.ndarray, np.dtype]
ARRAY_PARTS += [type(np.dtype(kind)) for kind in (np.float32, np.float64)]
STATISTICS = {"mu", "sigma"}


@contextmanager
def kept_features(folder: Path, name: str, count: int) -> Iterator[None]:
    """Inside, torch-fidelity may read what it has kept in a folder, and write more.

    It would run what code there is in a file, and end at one that was cut short: such files are removed before, and it
    makes them anew.

    Args:
        folder: where it keeps files; made where there is none.
        name: what it calls the set of pictures.
        count: pictures in that set.

    Raises:
        UserError: the folder cannot be written.
    """
    with writing_to_cache(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.name.startswith(f"{name}-") and not _is_sound(file, count):
                file.unlink()
        yield


def _is_sound(file: Path, count: int) -> bool:
    """Whether a file holds features [count, D], or the mean and covariance of some, and nothing else."""
    try:
        with _arrays_allowed():
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
        return False
    if "-stat-fid-" in file.name:
        return isinstance(content, dict) and content.keys() == STATISTICS and _all_arrays(content.values())
    return isinstance(content, Tensor) and content.dim() == 2 and len(content) == count


def _all_arrays(values: Iterable[Any]) -> bool:
    return all(isinstance(value, np.ndarray) for value in values)


@contextmanager
def _arrays_allowed() -> Iterator[None]:
    """Inside, NumPy's arrays may be read without running anything."""
    before = get_safe_globals()
    add_safe_globals(ARRAY_PARTS)
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)
