"""Image files decoded to square uint8 tensors.

Decoding is one fixed sequence: EXIF orientation; grey, palette and CMYK to RGB; transparency onto white;
centre crop to a square; antialiased resize. The same file gives the same pixels wherever it is decoded: while
a set is opened, in a worker process, or when a set is prepared in advance.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torch import Tensor

from cips3d.errors import UserError
from cips3d.files import printable
from cips3d.pictures import MAX_PIXELS

# What a file may hold, whatever its ending: collected photographs often carry a wrong one. The list is closed
# since Pillow would otherwise hand a file to any of its decoders, some of which start other programs.
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

try:
    import lzma
except ImportError:  # a Python that was built without it, whose zipfile refuses such entries
    _LZMA_ERRORS: tuple[type[Exception], ...] = ()
else:
    _LZMA_ERRORS = (lzma.LZMAError,)

# What Pillow and zipfile raise on damaged files.
UNREADABLE_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,  # zipfile: an encrypted entry, or a compression it does not know
    TypeError,  # TIFF: a number of another kind than the tag's
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
    *_LZMA_ERRORS,
)

LARGEST_SIDE = math.isqrt(MAX_PIXELS)  # of squares that can be opened again

PIXELS_AT_A_TIME = 1 << 20  # of those that are brought to 8 bits, in float64

PNG_DEPTH_AT = 24  # where the header of a PNG has the bits of a channel
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF 2.3, section 4.6.4: what turns a picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check_resolution(resolution: int) -> None:
    """Raise `UserError` for a side that no picture can be given."""
    if resolution < 1:
        raise UserError(f"--resolution {resolution} is not a size in pixels; give 1 or more")
    if resolution > LARGEST_SIDE:
        raise UserError(f"--resolution {resolution} is too large for a picture; give {LARGEST_SIDE} or less")


def decode_image(data: bytes, resolution: int) -> Tensor:
    """Decode an image file, crop its central square and resize it with antialiasing (Lanczos).

    Args:
        data: contents of the file.
        resolution: side of the result in pixels.

    Returns:
        uint8 [3, resolution, resolution].

    Raises:
        one of UNREADABLE_ERRORS, see `read_rgb`.
    """
    image = read_rgb(data)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.size != (side, side):
        image = image.crop((left, top, left + side, top + side))
    if side != resolution:
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def read_rgb(data: bytes, *, smallest: bool = False) -> Image.Image:
    """Decode an image file to upright RGB; of an animation, its first frame.

    Grey gets three equal channels; 16-bit grey is scaled (65535 becomes 255), not clipped; transparency is
    composited onto white. Colour profiles are not applied.

    Args:
        data: contents of the file.
        smallest: decode a JPEG at its smallest scale, which reads all of the file in a part of the time.

    Raises:
        one of UNREADABLE_ERRORS when the file is damaged, truncated, unreasonably large or of an unknown
        format.
    """
    with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
        if smallest:
            image.draft("RGB", (1, 1))
        image.load()
        _scale_transparency(image, data)
        turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
        rgb = _flatten(_to_eight_bits(image))
    return rgb if turn is None else rgb.transpose(turn)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale modes of more than 8 bits to L, or to LA where one grey value is declared transparent.

    "I;16" and "I" hold 0 to 65535; "F" holds 0 to 1, or 0 to 255 where its largest value is above 1.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image)
    # Pillow sees to white zeros in pictures of 8 bits alone.
    inverted = image.mode.startswith("I;16") and _is_white_zero(image)

    def values(rows: slice) -> NDArray[np.float64]:  # which hold every mode's values exactly
        of_rows = np.nan_to_num(pixels[rows].astype(np.float64))
        return 65535.0 - of_rows if inverted else of_rows

    transparent = image.info["transparency"] if image.has_transparency_data else None
    step = max(1, PIXELS_AT_A_TIME // pixels.shape[1])
    strips = [slice(top, top + step) for top in range(0, pixels.shape[0], step)]
    full = 65535.0 if image.mode.startswith("I") else (255.0 if max(values(s).max() for s in strips) > 1 else 1.0)
    grey, opaque = (np.empty(pixels.shape, np.uint8) for _ in range(2))
    for rows in strips:
        of_rows = values(rows)
        grey[rows] = np.rint(of_rows.clip(0, full) * (255 / full))
        if transparent is not None:
            opaque[rows] = np.where(of_rows == transparent, 0, 255)
    result = Image.fromarray(grey)
    if transparent is not None:
        result.putalpha(Image.fromarray(opaque))
    return result


def _is_white_zero(image: Image.Image) -> bool:
    """A TIFF whose zeros are white."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _scale_transparency(image: Image.Image, data: bytes) -> None:
    """The transparent colour of a PNG whose pixels Pillow brings to 8 bits, as they now have it.

    Of 16 bits a channel it keeps the upper 8; grey of 2 or 4 it scales.
    """
    color = image.info.get("transparency")
    if image.format != "PNG" or color is None:
        return
    depth = data[PNG_DEPTH_AT]
    if isinstance(color, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in color)
    elif image.mode == "L" and depth in (2, 4):
        image.info["transparency"] = color * 255 // (2**depth - 1)


def _flatten(image: Image.Image) -> Image.Image:
    """RGB, with transparency composited onto white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def describe(error: Exception) -> str:
    """One line on why a file is unreadable."""
    if isinstance(error, UnidentifiedImageError):  # its own text shows an address in memory
        return f"no {', '.join(PILLOW_FORMATS)} content"
    return printable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
