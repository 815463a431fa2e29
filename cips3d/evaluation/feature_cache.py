"""The features of real pictures that torch-fidelity keeps, looked at before it reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from cips3d.checkpoints.torch_file import read_torch_file
from cips3d.errors import UserError
from cips3d.evaluation.cache import writing_to_cache


@contextmanager
def feature_cache(folder: Path, name: str, count: int) -> Iterator[None]:
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
                file.unlink(missing_ok=True)  # another process may measure the same set
        yield


def _is_sound(file: Path, count: int) -> bool:
    """Whether a file holds features [count, D] and nothing else.

    Their mean and covariance, which it keeps too, are made of them in seconds and never taken from a file.
    """
    try:
        content: Any = read_torch_file(file)
    except UserError:
        return False
    return isinstance(content, Tensor) and content.dim() == 2 and len(content) == count
