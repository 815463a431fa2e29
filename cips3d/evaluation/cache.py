"""Results that are computed once and kept in the cache folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from cips3d.checkpoints.torch_file import read_torch_file
from cips3d.errors import UserError
from cips3d.files import atomic_file, is_disk_full


def cached(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Tensors and plain values by name, from a file of the cache; made and written where it is missing or damaged.

    Raises:
        UserError: the cache cannot be written.
    """
    with suppress(UserError):  # never made, or cut short
        content = read_torch_file(file)
        if isinstance(content, dict):
            return content
    content = make()
    with writing_to_cache(file), atomic_file(file) as opened:
        torch.save(content, opened)
    return content


@contextmanager
def writing_to_cache(path: Path) -> Iterator[None]:
    """Raise `UserError` where a file or folder of the cache cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and not is_disk_full(error):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UserError(f"{path} cannot be written ({reason}); set CIPS3D_CACHE to a folder that can") from error
