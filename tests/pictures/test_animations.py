"""Pictures that move."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from frames import moving_square, pixels
from PIL import Image

from cips3d.errors import UserError
from cips3d.pictures import animations


def read_animation(path: Path) -> tuple[list[np.ndarray], list[int], int]:
    """Frames, their milliseconds, and how often they are shown (0: for ever)."""
    with Image.open(path) as file:
        frames, durations = [], []
        for k in range(getattr(file, "n_frames", 1)):
            file.seek(k)
            file.load()
            frames.append(pixels(file))
            durations.append(file.info["duration"])
        return frames, durations, file.info["loop"]


class TestAnimation:
    @pytest.mark.parametrize("name", ["a.gif", "a.webp"])
    @pytest.mark.parametrize("fps", [24.0, 10.0, 30.0])
    def test_frames_and_durations(self, tmp_path: Path, name: str, fps: float) -> None:
        frames = moving_square(8)
        animations.save_animation(tmp_path / name, frames, fps)
        read, durations, loop = read_animation(tmp_path / name)
        assert len(read) == 8
        assert loop == 0
        tick = animations.TICK_MS[Path(name).suffix]
        assert abs(sum(durations) - 8000 / fps) <= tick / 2
        assert max(durations) - min(durations) <= tick
        for shown, frame in zip(read, frames, strict=True):
            error = np.abs(shown.astype(int) - pixels(frame).astype(int))
            assert error.mean() < 6  # 256 colours and a dither of ±6; lossy WebP stays well below

    def test_equal_frames_are_shown_longer(self, tmp_path: Path) -> None:
        frames = moving_square(4)
        animations.save_animation(tmp_path / "a.gif", [frames[0], frames[1], frames[1], frames[2]], 10)
        assert read_animation(tmp_path / "a.gif")[1] == [100, 200, 100]

    def test_still_parts_do_not_flicker(self, tmp_path: Path) -> None:
        frames = moving_square(8)
        animations.save_animation(tmp_path / "a.gif", frames, 10)
        read, _, _ = read_animation(tmp_path / "a.gif")
        still = np.logical_and.reduce([(pixels(f) == pixels(frames[0])).all(-1) for f in frames])
        assert still.mean() > 0.5
        for shown in read[1:]:
            np.testing.assert_array_equal(shown[still], read[0][still])

    def test_dithering_keeps_mean_colours(self) -> None:
        """Over 8 x 8 pixels the dither's offsets cancel, so that slow ramps do not become stairs."""
        ramp = np.linspace(90, 110, 256)
        frame = Image.fromarray(np.stack([np.tile(ramp, (64, 1))] * 3, axis=-1).round().astype(np.uint8))
        coarse = Image.new("P", (1, 1))
        coarse.putpalette([v for level in range(0, 256, 12) for v in (level,) * 3])

        def stairs(shown: Image.Image) -> float:
            blocks = pixels(shown).reshape(8, 8, 32, 8, 3).astype(float).mean(axis=(0, 1, 3, 4))
            return float(np.abs(blocks - ramp.reshape(32, 8).mean(1)).max())

        plain = frame.quantize(palette=coarse, dither=Image.Dither.NONE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(animations, "shared_palette", lambda frames: coarse)
            dithered = next(animations.with_shared_palette([frame]))
        assert stairs(plain) > 4  # half of 12 levels, less rounding
        assert stairs(dithered) < 2

    def test_colours_of_a_palette_are_from_all_places(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where every other pixel is looked at, the frames take turns."""
        columns = np.zeros((8, 8, 3), np.uint8)
        columns[:, ::2, 0] = columns[:, 1::2, 2] = 255
        monkeypatch.setattr(animations, "PALETTE_PIXELS", 64)
        palette = animations.shared_palette([Image.fromarray(columns)] * 2)
        np.testing.assert_array_equal(pixels(Image.fromarray(columns).quantize(palette=palette)), columns)

    def test_bayer_matrix(self) -> None:
        np.testing.assert_array_equal(animations.bayer_matrix(1), np.array([[0.5, 2.5], [3.5, 1.5]]) / 4 - 0.5)
        values = np.sort(animations.bayer_matrix(3), axis=None)
        np.testing.assert_allclose(values, (np.arange(64) + 0.5) / 64 - 0.5)

    @pytest.mark.parametrize(
        ("count", "fps", "tick", "expected"),
        [(4, 10, 10, [100] * 4), (3, 30, 10, [30, 40, 30]), (6, 24, 10, [40, 40, 40, 50, 40, 40]), (1, 3, 1, [333])],
    )
    def test_frame_durations(self, count: int, fps: float, tick: int, expected: list[int]) -> None:
        durations = animations.frame_durations(count, fps, tick)
        assert abs(sum(durations) - sum(expected)) <= tick / 2
        assert sorted(durations) == sorted(expected)

    @pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.mp4"])
    @pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), 1e6])
    def test_impossible_fps(self, tmp_path: Path, name: str, fps: float) -> None:
        with pytest.raises(UserError, match="--fps"):
            animations.save_animation(tmp_path / name, moving_square(2), fps)

    def test_a_gif_that_lasts_too_long(self, tmp_path: Path) -> None:
        """Equal frames become one, whose duration has 16 bits."""
        still = [Image.new("RGB", (8, 8))] * 66
        with pytest.raises(
            UserError, match=r"a\.gif would last 660 s, and frames of a \.gif 655\.35 at most; give fewer"
        ):
            animations.save_animation(tmp_path / "a.gif", still, 0.1)
        animations.save_animation(tmp_path / "a.gif", still[:65], 0.1)
        animations.save_animation(tmp_path / "a.webp", still, 0.1)

    def test_unknown_ending_names_the_possible_ones(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"--out .*a\.avi.*\.gif or \.webp or \.mp4"):
            animations.save_animation(tmp_path / "a.avi", moving_square(2), 10)

    def test_frames_may_be_made_on_the_way(self, tmp_path: Path) -> None:
        for name in ("a.gif", "b.gif"):
            frames = moving_square(3)
            animations.save_animation(tmp_path / name, frames if name == "a.gif" else iter(frames), 10)
        assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()

    @pytest.mark.parametrize("name", ["a.gif", "a.webp"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
    def test_failed_write_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
    ) -> None:
        path = tmp_path / name
        path.write_bytes(b"precious")

        def fail(descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fail)
        message = "disk is full" if code == errno.ENOSPC else os.strerror(code)
        with pytest.raises(UserError, match=message) as raised:
            animations.save_animation(path, moving_square(3), 10)
        assert str(path) in str(raised.value)
        assert path.read_bytes() == b"precious"
        assert list(tmp_path.iterdir()) == [path]

    def test_wrong_frames(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="frames"):
            animations.save_animation(tmp_path / "a.gif", [], 10)
        with pytest.raises(ValueError, match="one size"):
            animations.save_animation(tmp_path / "a.gif", [Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))], 10)
