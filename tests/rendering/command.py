"""The command `python -m cips3d.render` in tests, and what it has written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from PIL import Image

from cips3d.render import main


class RenderCommand:
    """Calls the command; gives what it prints, or the error of one that must fail with code 2.

    Args:
        run_folder: the model that is rendered where no other is named.
        folder: where files go.
        capsys: of the test.
    """

    def __init__(self, run_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run_folder, self.folder, self.capsys = run_folder, folder, capsys

    def __call__(
        self, *arguments: object, out: str = "out.png", source: Path | None = None, fails: bool = False
    ) -> str:
        argv = [source or self.run_folder, "--out", self.folder / out, "--device", "cpu", *arguments]
        said = run_command(main, argv, self.capsys, fails)
        assert not (fails and (self.folder / out).is_file())
        return said


def shown_in(path: Path, expected: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The lower right of a picture, where the grid is, and the expected grid."""
    wanted = np.asarray(expected)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))[-wanted.shape[0] :, -wanted.shape[1] :], wanted


def frames_of(path: Path) -> list[np.ndarray]:
    """Frames of an animation."""
    if path.suffix == ".mp4":
        reader = pytest.importorskip("imageio_ffmpeg").read_frames(str(path))
        width, height = next(reader)["size"]
        return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    frames = []
    with Image.open(path) as animation:
        for k in range(animation.n_frames):
            animation.seek(k)
            frames.append(np.asarray(animation.convert("RGB")))
    return frames
