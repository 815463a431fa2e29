"""Pictures side by side, with labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cips3d.pictures.colors import to_uint8

GAP = 2  # pixels between the pictures of a grid
PAPER = 255  # grey level of gaps, margins and empty cells
INK = 0  # grey level of labels
SMALLEST_TEXT, LARGEST_TEXT = 11, 20  # height of letters in pixels


def grid_size(
    count: int,
    columns: int,
    height: int,
    width: int,
    enlarge: int = 1,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> tuple[int, int]:
    """(width, height) in pixels of the `image_grid` of `count` pictures of height·width."""
    rows = math.ceil(count / columns)
    left, top = _margins((width * enlarge, height * enlarge), row_labels or (), column_labels or ())
    return left + columns * (width * enlarge + GAP) - GAP, top + rows * (height * enlarge + GAP) - GAP


def image_grid(
    images: Tensor,
    columns: int,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    enlarge: int = 1,
) -> Image.Image:
    """Pictures side by side, row after row, with narrow gaps; labels lie outside and change no picture.

    Args:
        images: [N, 3, H, W] in [-1, 1].
        columns: pictures a row; an incomplete last row stays empty at its end.
        row_labels: a text for every row, drawn left of it.
        column_labels: a text for every column, drawn above it.
        enlarge: whole factor by which pixels are repeated, so that small pictures can be seen.
    """
    if images.dim() != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"images must have shape [N, 3, H, W] with N > 0, got {list(images.shape)}")
    if columns < 1 or enlarge < 1:
        raise ValueError(f"columns and enlarge must be at least 1, got {columns} and {enlarge}")
    count, _, height, width = images.shape
    rows = math.ceil(count / columns)
    for name, labels, wanted in (("row_labels", row_labels, rows), ("column_labels", column_labels, columns)):
        if labels is not None and len(labels) != wanted:
            raise ValueError(f"{name} must be {wanted} texts, got {len(labels)}")
    pixels = to_uint8(images).permute(0, 2, 3, 1).cpu()  # [N, H, W, 3]
    pixels = pixels.repeat_interleave(enlarge, 1).repeat_interleave(enlarge, 2)
    grid_width, grid_height = grid_size(count, columns, height, width, enlarge)
    canvas = torch.full((grid_height, grid_width, 3), PAPER, dtype=torch.uint8)
    for index, picture in enumerate(pixels):
        top = index // columns * (height * enlarge + GAP)
        left = index % columns * (width * enlarge + GAP)
        canvas[top : top + height * enlarge, left : left + width * enlarge] = picture
    grid = Image.fromarray(canvas.numpy())
    cell = (width * enlarge, height * enlarge)
    return _with_labels(grid, cell, row_labels or (), column_labels or ())


def _with_labels(
    grid: Image.Image, cell: tuple[int, int], row_labels: Sequence[str], column_labels: Sequence[str]
) -> Image.Image:
    """The grid in the lower right of a larger picture, with texts in the margins."""
    if not row_labels and not column_labels:
        return grid
    size = _text_size(cell)
    row_texts = [_text(label, size) for label in row_labels]
    column_texts = [_text(label, size, room=cell[0]) for label in column_labels]
    left, top = _margins(cell, row_labels, column_labels)
    labelled = Image.new("RGB", (left + grid.width, top + grid.height), (PAPER, PAPER, PAPER))
    for row, text in enumerate(row_texts):
        middle = top + row * (cell[1] + GAP) + cell[1] // 2
        labelled.paste(text, (left - text.width, max(middle - text.height // 2, 0)))
    for column, text in enumerate(column_texts):
        middle = left + column * (cell[0] + GAP) + cell[0] // 2
        labelled.paste(text, (max(middle - text.width // 2, 0), 0))
    labelled.paste(grid, (left, top))  # last: over texts that are larger than their cells
    return labelled


def _text_size(cell: tuple[int, int]) -> int:
    """Height of letters beside pictures of that (width, height)."""
    return min(max(cell[1] // 8, SMALLEST_TEXT), LARGEST_TEXT)


def _margins(cell: tuple[int, int], row_labels: Sequence[str], column_labels: Sequence[str]) -> tuple[int, int]:
    """What labels take at the left and at the top."""
    size = _text_size(cell)
    left = max((_measured(label, size)[2][0] for label in row_labels), default=0)
    return left, max((_measured(label, size, cell[0])[2][1] for label in column_labels), default=0)


def _measured(label: str, size: int, room: float = math.inf) -> tuple[ImageFont.FreeTypeFont, int, tuple[int, int]]:
    """A line's letters, margin, and (width, height) with it; letters are smaller where it would be wider than `room`
    pixels."""
    font = _font(size)
    while font.getlength(label) > room and size > SMALLEST_TEXT:
        size -= 1
        font = _font(size)
    margin = size // 3
    ascent, descent = font.getmetrics()
    return font, margin, (math.ceil(font.getlength(label)) + 2 * margin, ascent + descent + 2)


def _text(label: str, size: int, room: float = math.inf) -> Image.Image:
    font, margin, paper = _measured(label, size, room)
    text = Image.new("RGB", paper, (PAPER, PAPER, PAPER))
    ImageDraw.Draw(text).text((margin, 1), label, font=font, fill=(INK, INK, INK))
    return text


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # with a size, Pillow gives its scalable font or raises
    return font
