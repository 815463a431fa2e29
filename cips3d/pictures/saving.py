"""Pictures in files, and whether they can be written there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

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

MAX_SIDE = {
    ".webp": 16383,
    ".jpg": 65500,
    ".jpeg": 65500,
    ".gif": 65535,
    ".png": 65535,
    ".mp4": 16384,
}  # the formats' own limits; of MP4, those of H.264's encoder
MAX_PIXELS = 178_956_970  # Pillow refuses to open larger pictures (twice its MAX_IMAGE_PIXELS)


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
