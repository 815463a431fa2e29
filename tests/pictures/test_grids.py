"""Pictures side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from frames import pixels

from cips3d import pictures


def random_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


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

    def test_labels_end_at_their_rows(self) -> None:
        """Short ones too."""
        grid = pixels(pictures.image_grid(random_images(2, 40, 40), 1, row_labels=["8", "8888888888"]))
        inked = (grid[:, : grid.shape[1] - 40] < 128).all(axis=-1)
        short, long = (np.flatnonzero(inked[top : top + 40].any(axis=0)) for top in (0, 42))
        assert abs(short.max() - long.max()) <= 1 < short.min() - long.min()

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
