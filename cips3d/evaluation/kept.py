"""Results that are computed once and kept in the cache folder."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cips3d.errors import UserError
from cips3d.files import atomic_file


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Tensors and plain values by name, from a file of the cache; made and written where it is missing or damaged.

    Raises:
        UserError: the cache cannot be written.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(content, dict):
            return content
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
        pass  # never made, or cut short
    content = make()
    try:
        with atomic_file(file) as opened:
            torch.save(content, opened)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror or error}); set CIPS3D_CACHE to a folder that can"
        ) from error
    return content
