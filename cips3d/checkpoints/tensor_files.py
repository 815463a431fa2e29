"""Safetensors files: written whole or not at all, read with a sentence for what can be wrong with one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cips3d.errors import UserError
from cips3d.files import atomic_file, is_text

ENDING = ".safetensors"


@dataclass(frozen=True)
class FileKind:
    """A kind of file, as messages describe it."""

    name: str
    """without an article, which is "a" """
    source: str
    """what a user can give in its place"""
    renewal: str
    """how a broken one is made anew"""
    version: int
    """the newest that can be read"""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: the place cannot be written, or the disk is full.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_file(path) as file:
            file.write(safetensors.torch.save(stored, metadata))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another place") from None


@contextmanager
def open_tensors(path: str | Path, kind: FileKind) -> Iterator[Any]:
    """A file that is open for reading; what is raised inside because of its contents becomes a sentence.

    Raises:
        UserError: there is no such file, it is truncated, or of another kind.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; give {kind.source}")
    try:
        with _named_in_utf8(Path(path)) as name, safe_open(name, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give {kind.source}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path} is not a complete {kind.name} ({type(error).__name__}); it may be truncated: {kind.renewal}"
        ) from error


@contextmanager
def _named_in_utf8(path: Path) -> Iterator[str]:
    """The path, or another one to the same file: safetensors takes no names that are not UTF-8, as Linux may have."""
    if is_text(str(path)):
        yield str(path)
        return
    with path.open("rb") as file:
        yield f"/proc/self/fd/{file.fileno()}"


def tensors_in(file: Any) -> dict[str, Tensor]:
    """All tensors of an open file, by name."""
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def check_version(path: str | Path, kind: FileKind, version: int | None) -> None:
    """Raise `UserError` where a file is of another kind (None) or newer than the package."""
    if version is None:
        raise UserError(f"{path} is not a {kind.name}; give {kind.source}")
    if version > kind.version:
        raise UserError(f"{path} was written by a newer version of cips3d; update the package to read it")
