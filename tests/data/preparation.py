"""Sets that tests prepare, and interruptions of that."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cips3d.data import PreparedSet, prepare_dataset


def run(source: Path | str, destination: Path, resolution: int = 8, **options: object) -> PreparedSet:
    return prepare_dataset(source, destination, resolution, **{"workers": 2, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def interrupt_after(pictures: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let a number of pictures be written, then raise in the middle of writing the next file."""
    written = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # folders are synchronised, too
            written.append(descriptor)
        if len(written) > 1 + pictures:  # the first is the manifest
            raise error
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
