"""MP4 files: written as frames come, whole or not at all."""

from __future__ import annotations

import builtins
import errno
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from frames import moving_square, pixels
from PIL import Image

from cips3d.errors import UserError
from cips3d.pictures import video
from cips3d.pictures.animations import save_animation


@pytest.fixture
def ffmpeg() -> ModuleType:
    module: ModuleType = pytest.importorskip("imageio_ffmpeg", reason="needs pip install 'cips3d[video]'")
    return module


def read_video(ffmpeg: ModuleType, path: Path) -> tuple[list[np.ndarray], dict]:
    reader = ffmpeg.read_frames(str(path))
    facts = next(reader)
    width, height = facts["size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader], facts


class TestVideo:
    def test_frames_come_back(self, ffmpeg: ModuleType, tmp_path: Path) -> None:
        frames = moving_square(8)
        save_animation(tmp_path / "made" / "a.mp4", frames, 12.5)
        read, facts = read_video(ffmpeg, tmp_path / "made" / "a.mp4")
        assert len(read) == 8
        assert facts["fps"] == 12.5
        assert facts["codec"] == "h264"
        assert facts["pix_fmt"].startswith("yuv420p(tv, bt709")  # what all players show, with the right colours
        for shown, frame in zip(read, frames, strict=True):
            error = np.abs(shown.astype(int) - pixels(frame).astype(int))
            assert error.mean() < 4  # colours have half the resolution, which shows at the square's edges
            square = error[48:54, :][(pixels(frame)[48:54] == (250, 30, 60)).all(-1)]
            assert np.median(square, axis=0).max() < 8  # another matrix (BT.601) shifts this red by 20
        assert [p.name for p in (tmp_path / "made").iterdir()] == ["a.mp4"]

    def test_the_longest_name(self, ffmpeg: ModuleType, tmp_path: Path) -> None:
        path = tmp_path / f"{'a' * 251}.mp4"
        video.write_video(path, [Image.new("RGB", (16, 16))] * 2, 24)
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("size", [(31, 16), (16, 31), (1, 1)], ids=str)
    def test_odd_sides_get_a_white_edge(self, ffmpeg: ModuleType, tmp_path: Path, size: tuple[int, int]) -> None:
        video.write_video(tmp_path / "a.mp4", [Image.new("RGB", size, (40, 40, 40))] * 2, 24)
        read, facts = read_video(ffmpeg, tmp_path / "a.mp4")
        width, height = facts["size"]
        assert (width, height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        grey = read[0].astype(int).mean(-1)
        np.testing.assert_allclose(grey[: size[1], : size[0]], 40, atol=12)
        assert (grey[size[1] :] > 200).all()
        assert (grey[:, size[0] :] > 200).all()

    def test_frames_are_taken_one_by_one(self, ffmpeg: ModuleType, tmp_path: Path) -> None:
        """No frame is kept: each is let go before the next but one is made."""
        made: list[weakref.ref[Image.Image]] = []
        alive: list[int] = []

        def frames() -> Iterator[Image.Image]:
            for k in range(20):
                frame = Image.new("RGB", (32, 32), (k, k, k))
                made.append(weakref.ref(frame))
                alive.append(sum(each() is not None for each in made))
                yield frame

        video.write_video(tmp_path / "a.mp4", frames(), 24)
        assert max(alive) <= 2
        assert len(read_video(ffmpeg, tmp_path / "a.mp4")[0]) == 20


class TestAtomicity:
    @pytest.mark.parametrize("error", [UserError("diverged"), KeyboardInterrupt()], ids=["mistake", "interrupt"])
    def test_broken_off_on_the_way(self, ffmpeg: ModuleType, tmp_path: Path, error: BaseException) -> None:
        path = tmp_path / "a.mp4"
        path.write_bytes(b"precious")

        def frames() -> Iterator[Image.Image]:
            yield from moving_square(3)
            raise error

        with pytest.raises(type(error)):
            video.write_video(path, frames(), 24)
        assert path.read_bytes() == b"precious"
        assert list(tmp_path.iterdir()) == [path]

    def test_full_disk_at_the_end(self, ffmpeg: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match="disk is full"):
            video.write_video(tmp_path / "a.mp4", moving_square(2), 24)
        assert not list(tmp_path.iterdir())

    def test_encoder_that_fails(
        self, ffmpeg: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A video with fewer frames than were given is not taken for the whole."""
        monkeypatch.setattr(video, "OUTPUT_PARAMETERS", ["-frames:v", "2"])
        with pytest.raises(UserError, match=r"--out .*a\.mp4 cannot be written"):
            video.write_video(tmp_path / "a.mp4", moving_square(5), 24)
        assert not list(tmp_path.iterdir())

    def test_encoder_that_does_not_start(
        self, ffmpeg: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(video, "OUTPUT_PARAMETERS", ["-no_such_option"])
        with pytest.raises(UserError, match=r"a\.mp4"):
            video.write_video(tmp_path / "a.mp4", moving_square(5), 24)
        assert not list(tmp_path.iterdir())


class TestMistakes:
    def test_wrong_frames(self, ffmpeg: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="at least one"):
            video.write_video(tmp_path / "a.mp4", [], 24)
        with pytest.raises(ValueError, match="one size"):
            video.write_video(tmp_path / "a.mp4", [Image.new("RGB", (4, 4)), Image.new("RGB", (4, 6))], 24)
        assert not list(tmp_path.iterdir())

    def test_library_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original = builtins.__import__

        def without(name: str, *arguments: object, **options: object) -> object:
            if name == "imageio_ffmpeg":
                raise ModuleNotFoundError(name)
            return original(name, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(UserError, match=r"pip install 'cips3d\[video\]'"):
            video.write_video(tmp_path / "a.mp4", moving_square(2), 24)
        assert not list(tmp_path.iterdir())

    def test_there_is_no_ffmpeg(self, ffmpeg: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> str:
            raise RuntimeError("No ffmpeg exe could be found.")

        monkeypatch.setattr(ffmpeg, "get_ffmpeg_exe", fail)
        with pytest.raises(UserError, match="finds no ffmpeg"):
            video.import_ffmpeg()
