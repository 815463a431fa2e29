"""Files of pictures."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from frames import moving_square, pixels
from PIL import Image

from cips3d import pictures
from cips3d.errors import UserError


class TestSaveImage:
    @pytest.mark.parametrize("ending", pictures.IMAGE_ENDINGS)
    def test_is_read_back(self, tmp_path: Path, ending: str) -> None:
        image = moving_square(1)[0]
        path = tmp_path / "made" / "on the way" / f"picture{ending}"
        pictures.save_image(path, image)
        with Image.open(path) as read:
            assert read.format == {".png": "PNG", ".webp": "WEBP"}.get(ending, "JPEG")
            error = np.abs(pixels(read).astype(int) - pixels(image).astype(int))
        # PNG keeps everything; the others, at quality 95, lose some at the square's sharp edges
        assert error.max() == 0 if ending == ".png" else error.mean() < 2
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    @pytest.mark.parametrize("ending", [".jpg", ".jpeg"])
    def test_colours_have_all_of_the_resolution(self, tmp_path: Path, ending: str) -> None:
        """Red and blue columns of one pixel stay apart in a JPEG."""
        columns = np.zeros((16, 16, 3), np.uint8)
        columns[:, ::2, 0] = columns[:, 1::2, 2] = 200
        pictures.save_image(tmp_path / f"a{ending}", Image.fromarray(columns))
        with Image.open(tmp_path / f"a{ending}") as read:
            assert np.abs(pixels(read).astype(int) - columns).mean() < 10

    def test_permissions_are_those_of_plain_files(self, tmp_path: Path) -> None:
        pictures.save_image(tmp_path / "a.png", moving_square(1)[0])
        (tmp_path / "plain").write_bytes(b"")
        modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.png", "plain")]
        assert modes[0] == modes[1]

    def test_unknown_ending(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"--out .*picture\.bmp.*\.png"):
            pictures.save_image(tmp_path / "picture.bmp", moving_square(1)[0])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("made", ["folder", "file above", "file far above"])
    def test_place_is_not_possible(self, tmp_path: Path, made: str) -> None:
        path = tmp_path / "x" / "y" / "a.png"
        if made == "folder":
            path.mkdir(parents=True)
        elif made == "file above":
            path.parent.parent.mkdir()
            path.parent.write_text("mine")
        else:
            path.parent.parent.write_text("mine")
        with pytest.raises(UserError, match=r"--out .*a\.png"):
            pictures.save_image(path, moving_square(1)[0])

    def test_too_large_for_the_format(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="16383"):
            pictures.save_image(tmp_path / "wide.webp", Image.new("RGB", (16384, 1)))
        pictures.save_image(tmp_path / "wide.png", Image.new("RGB", (16384, 1)))


class TestAtomicity:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
    def test_failed_write_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(b"precious")

        def fail(descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fail)
        message = "disk is full" if code == errno.ENOSPC else os.strerror(code)
        with pytest.raises(UserError, match=message) as raised:
            pictures.save_image(path, moving_square(1)[0])
        assert str(path) in str(raised.value)
        assert path.read_bytes() == b"precious"
        assert list(tmp_path.iterdir()) == [path]

    def test_interrupted_encoding_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(self: Image.Image, file: object, **options: object) -> None:
            file.write(b"half a picture")  # type: ignore[attr-defined]
            raise KeyboardInterrupt

        monkeypatch.setattr(Image.Image, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pictures.save_image(tmp_path / "a.png", moving_square(1)[0])
        assert not list(tmp_path.iterdir())
