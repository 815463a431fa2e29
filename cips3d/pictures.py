"""From tensors to what people look at: grids, depth maps and image files."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cips3d.errors import UserError
from cips3d.files import atomic_file

# Pillow's options for each file ending.
_JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
IMAGE_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 95},
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
}
IMAGE_ENDINGS = tuple(IMAGE_OPTIONS)

GAP = 2  # pixels between the pictures of a grid
PAPER = 255  # grey level of gaps, margins and empty cells
INK = 0  # grey level of labels
SMALLEST_TEXT, LARGEST_TEXT = 11, 20  # height of letters in pixels

MAX_SIDE = {
    ".webp": 16383,
    ".jpg": 65500,
    ".jpeg": 65500,
    ".gif": 65535,
    ".png": 65535,
    ".mp4": 16384,
}  # the formats' own limits; of MP4, those of H.264's encoder
MAX_PIXELS = 178_956_970  # Pillow refuses to open larger pictures (twice its MAX_IMAGE_PIXELS)

# The colour map "magma" (S. van der Walt and N. Smith, 2015, CC0) at ten equal steps: lightness rises evenly
# from black to a pale yellow, so equal steps in depth look equally large and survive a grey print.
MAGMA = (
    (0x00, 0x00, 0x04),
    (0x18, 0x0F, 0x3D),
    (0x44, 0x0F, 0x76),
    (0x72, 0x1F, 0x81),
    (0x9E, 0x2F, 0x7F),
    (0xCD, 0x40, 0x71),
    (0xF1, 0x60, 0x5D),
    (0xFD, 0x96, 0x68),
    (0xFE, 0xCA, 0x8D),
    (0xFC, 0xFD, 0xBF),
)


def to_uint8(images: Tensor) -> Tensor:
    """Grey levels round(127.5 (x + 1)) of values in [-1, 1], any shape; what lies outside is clipped.

    Raises:
        ValueError: a value is not a number.
    """
    if torch.isnan(images).any():
        raise ValueError("images must hold numbers, got NaN")
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(levels: Tensor) -> Tensor:
    """x / 127.5 - 1 in [-1, 1] of grey levels in 0 to 255, any shape: what `to_uint8` gives back as the same levels."""
    return levels.float() / 127.5 - 1


def psnr_of(squared_error: float) -> float:
    """Peak signal-to-noise ratio in decibels, -10 log₁₀ of a mean squared error of colours in [0, 1]."""
    if squared_error == 0:
        return math.inf
    return -10 * math.log10(squared_error) if squared_error > 0 else math.nan


def depth_image(depth: Tensor, t_near: float | Tensor, t_far: float | Tensor) -> Tensor:
    """Colour a depth map: near is bright, far is dark (the colour map magma).

    Args:
        depth: [N, 1, H, W] distances in scene units.
        t_near: distance that gets the brightest colour, as everything nearer does; one for all or [N].
        t_far: distance that gets the darkest colour, as everything farther does; one for all or [N].

    Returns:
        [N, 3, H, W] in [-1, 1].
    """
    if depth.dim() != 4 or depth.shape[1] != 1:
        raise ValueError(f"depth must have shape [N, 1, H, W], got {list(depth.shape)}")
    near, far = (torch.as_tensor(t, dtype=torch.float32, device=depth.device).view(-1, 1, 1) for t in (t_near, t_far))
    if not (near < far).all():
        raise ValueError(f"t_near must be below t_far, got {t_near} and {t_far}")
    colors = torch.tensor(MAGMA, dtype=torch.float32, device=depth.device) / 127.5 - 1  # [10, 3]
    nearness = ((far - depth[:, 0].float()) / (far - near)).clamp(0, 1)  # [N, H, W]
    place = nearness * (len(MAGMA) - 1)
    below = place.floor().clamp(max=len(MAGMA) - 2)
    share = (place - below)[..., None]
    index = below.long()
    return torch.lerp(colors[index], colors[index + 1], share).permute(0, 3, 1, 2)


def grid_size(count: int, columns: int, height: int, width: int, enlarge: int = 1) -> tuple[int, int]:
    """(width, height) in pixels of the `image_grid` of `count` pictures of height·width, without labels."""
    rows = math.ceil(count / columns)
    return columns * (width * enlarge + GAP) - GAP, rows * (height * enlarge + GAP) - GAP


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
    size = min(max(cell[1] // 8, SMALLEST_TEXT), LARGEST_TEXT)
    row_texts = [_text(label, size) for label in row_labels]
    column_texts = [_text(label, size, room=cell[0]) for label in column_labels]
    left = max((text.width for text in row_texts), default=0)
    top = max((text.height for text in column_texts), default=0)
    labelled = Image.new("RGB", (left + grid.width, top + grid.height), (PAPER, PAPER, PAPER))
    for row, text in enumerate(row_texts):
        middle = top + row * (cell[1] + GAP) + cell[1] // 2
        labelled.paste(text, (left - text.width, max(middle - text.height // 2, 0)))
    for column, text in enumerate(column_texts):
        middle = left + column * (cell[0] + GAP) + cell[0] // 2
        labelled.paste(text, (max(middle - text.width // 2, 0), 0))
    labelled.paste(grid, (left, top))  # last: over texts that are larger than their cells
    return labelled


def _text(label: str, size: int, room: float = math.inf) -> Image.Image:
    """A line of text with a margin, in smaller letters where it would be wider than `room` pixels."""
    font = _font(size)
    while font.getlength(label) > room and size > SMALLEST_TEXT:
        size -= 1
        font = _font(size)
    margin = size // 3
    ascent, descent = font.getmetrics()
    paper = (math.ceil(font.getlength(label)) + 2 * margin, ascent + descent + 2)
    text = Image.new("RGB", paper, (PAPER, PAPER, PAPER))
    ImageDraw.Draw(text).text((margin, 1), label, font=font, fill=(INK, INK, INK))
    return text


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # with a size, Pillow gives its scalable font or raises
    return font


def save_image(path: Path, image: Image.Image) -> None:
    """Write a picture whole or not at all; the format follows the ending, missing folders are made.

    Raises:
        UserError: the ending is not one of `IMAGE_ENDINGS`, or the file cannot be written.
    """
    check_path(path, IMAGE_ENDINGS, "a picture")
    check_size(path, image.width, image.height)
    with reported(path), atomic_file(path) as file:
        image.convert("RGB").save(file, **IMAGE_OPTIONS[path.suffix.lower()])


def check_path(path: Path, endings: Sequence[str], what: str) -> None:
    """Raise `UserError` where `path` cannot become a file with one of the endings; makes its folder.

    Good to call before long work whose result is to go there.
    """
    if path.suffix.lower() not in endings:
        raise UserError(f"--out {path}: {what} must end in {' or '.join(endings)}")
    with reported(path):
        if path.is_dir():
            raise UserError(f"--out {path} is a folder; give the name of a file")
        if path.parent.exists() and not path.parent.is_dir():
            raise UserError(f"--out {path} lies in {path.parent}, which is not a folder; choose another place")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # can files be made there?
            pass


def check_folder(path: Path) -> None:
    """Raise `UserError` where no pictures can be written into a folder `path`; makes it."""
    check_is_named(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is a file; give a file's name with its ending, or a folder")
    with reported(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass


def check_is_named(folder: Path) -> None:
    """Raise `UserError` for the current folder: an empty --out means it too, and nobody wants that filled."""
    if folder == Path():
        raise UserError("--out names no folder other than the current one; give one, such as faces")


def check_size(path: Path, width: int, height: int) -> None:
    """Raise `UserError` where a picture is too large for its format or for those who are to open it."""
    limit = MAX_SIDE[path.suffix.lower()]
    if max(width, height) > limit or width * height > MAX_PIXELS:
        raise UserError(
            f"--out {path} would have {width} x {height} pixels, more than {limit} a side or "
            f"{MAX_PIXELS // 10**6} million in all; give fewer seeds or views, or a lower --resolution"
        )


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what the file system says about `path` into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror or error}); choose another place") from error
