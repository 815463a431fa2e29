"""A command with a strength in tests, and the pictures it has written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from PIL import Image
from torch import Tensor

from cips3d import pictures


class SweepCommand:
    """Calls a command; gives what it prints, or the error of one that must fail with code 2.

    Args:
        main: of the command.
        models: its first arguments.
        folder: where files go.
        capsys: of the test.
    """

    def __init__(
        self,
        main: Callable[[Sequence[str]], int],
        models: Sequence[Path],
        folder: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.main, self.models, self.folder, self.capsys = main, models, folder, capsys

    def __call__(
        self, *arguments: object, out: str = "out.png", models: Sequence[Path] | None = None, fails: bool = False
    ) -> str:
        before = (self.folder / out).exists()
        argv = [*(models or self.models), "--out", self.folder / out, "--device", "cpu", *arguments]
        said = run_command(self.main, argv, self.capsys, fails)
        assert not fails or (self.folder / out).exists() == before
        return said


def cells_of(path: Path, rows: int, columns: int, side: int, enlarge: int) -> np.ndarray:
    """[rows, columns, side, side, 3] of the pictures in a grid."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    step = side * enlarge + pictures.GAP
    pixels = pixels[-(rows * step - pictures.GAP) :, -(columns * step - pictures.GAP) :]
    return np.stack(
        [
            [
                pixels[row * step : row * step + side * enlarge : enlarge][
                    :, column * step : column * step + side * enlarge : enlarge
                ]
                for column in range(columns)
            ]
            for row in range(rows)
        ]
    )


def as_shown(images: Tensor) -> np.ndarray:
    """[..., H, W, 3] grey levels of pictures [..., 3, H, W]."""
    return np.moveaxis(pictures.to_uint8(images).numpy(), -3, -1)


def assert_same_picture(found: np.ndarray, expected: np.ndarray) -> None:
    """But for rounding: products of other shapes are added up in another order."""
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
