"""Photographs to prepare a set of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photographs, one of them broken."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(5):
        picture = Image.fromarray(random.integers(0, 256, (20 + i, 31, 3), dtype=np.uint8))
        picture.save(folder / ("sub" if i % 2 else "") / f"{i}.jpg")
    (folder / "4b.png").write_bytes(b"broken")
    return folder
