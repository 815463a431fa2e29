"""Grids, depth colours and image files."""

from __future__ import annotations

import errno
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from frames import moving_square, pixels
from PIL import Image

from cips3d import pictures
from cips3d.errors import UserError


def random_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def lightness(image: torch.Tensor) -> torch.Tensor:
    """CIE 1976 L* of sRGB colours [3, ...] in [-1, 1] (IEC 61966-2-1, D65)."""
    srgb = (image.double() + 1) / 2
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    y = torch.tensordot(torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64), linear, dims=1)
    return torch.where(y > (6 / 29) ** 3, 116 * y.clamp(min=1e-12) ** (1 / 3) - 16, y * (29 / 3) ** 3)


class TestToUint8:
    def test_every_grey_level_comes_back(self) -> None:
        levels = torch.arange(256, dtype=torch.uint8)
        assert torch.equal(pictures.to_uint8(levels / 127.5 - 1), levels)

    def test_outside_values_are_clipped(self) -> None:
        assert pictures.to_uint8(torch.tensor([-9.0, -1.001, 1.001, torch.inf])).tolist() == [0, 0, 255, 255]

    def test_half_precision_is_widened(self) -> None:
        assert pictures.to_uint8(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.bfloat16)).tolist() == [0, 128, 255]

    def test_nan_is_refused(self) -> None:
        with pytest.raises(ValueError, match="NaN"):
            pictures.to_uint8(torch.tensor([0.0, torch.nan]))


class TestGrid:
    def test_layout(self) -> None:
        images = random_images(5, 6, 8)
        grid = pixels(pictures.image_grid(images, 2))
        step_y, step_x = 6 + pictures.GAP, 8 + pictures.GAP
        assert grid.shape == (3 * step_y - pictures.GAP, 2 * step_x - pictures.GAP, 3)
        covered = np.zeros(grid.shape[:2], dtype=bool)
        for k, image in enumerate(pictures.to_uint8(images)):
            y, x = k // 2 * step_y, k % 2 * step_x
            np.testing.assert_array_equal(grid[y : y + 6, x : x + 8], image.permute(1, 2, 0).numpy())
            covered[y : y + 6, x : x + 8] = True
        assert (grid[~covered] == pictures.PAPER).all()

    def test_size_is_known_beforehand(self) -> None:
        grid = pictures.image_grid(random_images(5, 6, 8), 2, enlarge=3)
        assert grid.size == pictures.grid_size(5, 2, 6, 8, 3)

    def test_enlargement_repeats_pixels(self) -> None:
        images = random_images(1, 4, 5)
        small, large = (pixels(pictures.image_grid(images, 1, enlarge=factor)) for factor in (1, 3))
        np.testing.assert_array_equal(large, small.repeat(3, axis=0).repeat(3, axis=1))

    @pytest.mark.parametrize("size", [(3, 4), (40, 24)], ids=["smaller than letters", "larger"])
    @pytest.mark.parametrize("rows", [["seed 1", "seed 22222"], None], ids=["rows", "no rows"])
    @pytest.mark.parametrize("columns", [["yaw -0.4", "a rather long label", "g"], None], ids=["cols", "no cols"])
    def test_labels_change_no_picture(
        self, size: tuple[int, int], rows: list[str] | None, columns: list[str] | None
    ) -> None:
        images = random_images(6, *size)
        plain = pixels(pictures.image_grid(images, 3))
        labelled = pixels(pictures.image_grid(images, 3, row_labels=rows, column_labels=columns))
        height, width = plain.shape[:2]
        np.testing.assert_array_equal(labelled[-height:, -width:], plain)
        assert (labelled.shape[1] > width) == (rows is not None)
        assert (labelled.shape[0] > height) == (columns is not None)

    def test_labels_stand_beside_their_rows(self) -> None:
        images = random_images(3, 40, 40)
        grid = pixels(pictures.image_grid(images, 1, row_labels=["8", "", "8"]))
        margin = grid[:, : grid.shape[1] - 40]
        inked = (margin < 128).all(axis=-1).any(axis=1)
        assert [inked[top : top + 40].any() for top in (0, 42, 84)] == [True, False, True]
        rows = np.flatnonzero(inked[:40])
        assert abs(rows.mean() - 19.5) < 4  # in the middle, but for the line's own ascent and descent

    def test_long_column_labels_take_smaller_letters(self) -> None:
        def ink(label: str) -> int:
            grid = pictures.image_grid(random_images(1, 160, 90), 1, column_labels=[label])
            margin = pixels(grid)[: grid.height - 160]
            return int(np.flatnonzero((margin < 128).any(axis=(1, 2))).size)

        assert ink("yaw") > ink("yaw yaw yaw") > 0  # rows of pixels that letters cover

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            ({"images": torch.zeros(2, 1, 4, 4)}, "images"),
            ({"images": torch.zeros(0, 3, 4, 4)}, "images"),
            ({"columns": 0}, "columns"),
            ({"enlarge": 0}, "enlarge"),
            ({"row_labels": ["a"]}, "row_labels"),
            ({"column_labels": ["a", "b"]}, "column_labels"),
        ],
    )
    def test_wrong_arguments_are_named(self, arguments: dict, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            pictures.image_grid(**({"images": torch.zeros(2, 3, 4, 4), "columns": 1} | arguments))


class TestDepthImage:
    def colors(self, depth: torch.Tensor) -> torch.Tensor:
        return pictures.depth_image(depth.view(1, 1, 1, -1), 0.88, 1.12)[0, :, 0]  # [3, N]

    def test_nearer_is_lighter_in_even_steps(self) -> None:
        light = lightness(self.colors(torch.linspace(1.12, 0.88, 200)))
        steps = light.diff()
        assert (steps > 0).all()
        assert light[0] < 1
        assert light[-1] > 97
        # Straight lines in sRGB between ten anchors of an even map: single steps bend, never by more than 3 to 1.
        assert steps.max() / steps[20:].min() < 3

    def test_range_is_clipped(self) -> None:
        near, far = self.colors(torch.tensor([0.88, 1.12])).T
        beyond = self.colors(torch.tensor([-3.0, 0.87, 1.13, 9.0])).T
        assert torch.equal(beyond, torch.stack([near, near, far, far]))

    def test_ends_are_the_published_ones(self) -> None:
        ends = pictures.to_uint8(self.colors(torch.tensor([0.88, 1.12])))
        assert ends.T.tolist() == [list(pictures.MAGMA[-1]), list(pictures.MAGMA[0])]

    def test_shape_and_place(self) -> None:
        depth = torch.full((2, 1, 3, 5), 1.12)
        depth[1, 0, 2, 4] = 0.88
        image = pictures.depth_image(depth, 0.88, 1.12)
        assert image.shape == (2, 3, 3, 5)
        bright = image.sum(1) > 0
        assert bright.nonzero().tolist() == [[1, 2, 4]]

    def test_range_of_each_picture(self) -> None:
        depth = torch.rand(2, 1, 4, 5) + 0.5
        near, far = torch.tensor([0.5, 0.7]), torch.tensor([1.0, 1.5])
        together = pictures.depth_image(depth, near, far)
        for k in range(2):
            alone = pictures.depth_image(depth[k : k + 1], float(near[k]), float(far[k]))
            assert torch.equal(together[k], alone[0])
        with pytest.raises(ValueError, match="t_near"):
            pictures.depth_image(depth, near, torch.tensor([1.0, 0.6]))

    def test_wrong_arguments_are_named(self) -> None:
        with pytest.raises(ValueError, match="depth"):
            pictures.depth_image(torch.zeros(1, 3, 4, 4), 0.88, 1.12)
        with pytest.raises(ValueError, match="t_near"):
            pictures.depth_image(torch.zeros(1, 1, 4, 4), 1.12, 0.88)


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


@pytest.mark.parametrize(("error", "decibels"), [(1.0, 0.0), (0.01, 20.0), (0.0, math.inf)])
def test_psnr(error: float, decibels: float) -> None:
    assert pictures.psnr_of(error) == pytest.approx(decibels)
    assert math.isnan(pictures.psnr_of(math.nan))
