"""Decoding: modes, depths, orientation, transparency, cropping, resizing and damage."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cips3d.data import decoding
from cips3d.data.decoding import UNREADABLE_ERRORS, decode_image, describe, read_rgb
from cips3d.files import printable

ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def colour_of(data: bytes) -> list[int]:
    """The colour of a picture that has only one."""
    pixels = decode_image(data, 4).flatten(1)
    assert (pixels == pixels[:, :1]).all()
    return pixels[:, 0].tolist()


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("RGB", (4, 4), (10, 20, 30)), "PNG", (10, 20, 30)),
        (Image.new("L", (4, 4), 77), "PNG", (77, 77, 77)),
        (Image.new("L", (4, 4), 77), "JPEG", (77, 77, 77)),
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("RGB", (4, 4), (200, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE), "PNG", (200, 20, 30)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 255)), "PNG", (10, 20, 30)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "PNG", (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 51)), "PNG", (204, 204, 204)),  # 255 - 51, a fifth of black on white
        (Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "JPEG", (0, 0, 0)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG", (255, 255, 255)),
        (Image.new("I;16", (4, 4), 65535), "PNG", (255, 255, 255)),
        (Image.new("I;16", (4, 4), 257 * 40), "PNG", (40, 40, 40)),
        (Image.new("I;16", (4, 4), 300), "PNG", (1, 1, 1)),  # clipping would give 255, dropping the high byte 44
        (Image.new("I", (4, 4), 257 * 40), "TIFF", (40, 40, 40)),
        (Image.new("I", (4, 4), 10**6), "TIFF", (255, 255, 255)),
        (Image.new("F", (4, 4), 0.5), "TIFF", (128, 128, 128)),
        (Image.new("F", (4, 4), 1.0), "TIFF", (255, 255, 255)),
        (Image.new("F", (4, 4), 128.0), "TIFF", (128, 128, 128)),
        (Image.new("RGB", (4, 4), (10, 20, 30)), "GIF", (10, 20, 30)),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, kind: str, expected: tuple[int, int, int]) -> None:
    assert colour_of(encoded(image, kind)) == list(expected)


def test_webp_is_read() -> None:
    image = noise(8, 8)
    decoded = decode_image(encoded(image, "WEBP", lossless=True), 8)
    assert torch.equal(decoded, torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_sixteen_bits_are_scaled_evenly() -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    decoded = decode_image(encoded(Image.fromarray(values)), 16)
    assert (decoded == torch.arange(256, dtype=torch.uint8).view(16, 16)).all()


@pytest.mark.parametrize("pixels", [1, 16, 48, 1000])
def test_strips_of_rows_are_one_picture(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many pixels are scaled at a time changes nothing: not the range of a picture of floats either."""
    monkeypatch.setattr(decoding, "PIXELS_AT_A_TIME", pixels)
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    assert (
        np.asarray(read_rgb(encoded(Image.fromarray(ramp))))[..., 0].tolist() == np.arange(256).reshape(16, 16).tolist()
    )
    seen = np.asarray(read_rgb(encoded(Image.fromarray(ramp), transparency=int(ramp[9, 3]))))
    assert seen[9, 3].tolist() == [255] * 3 and seen[9, 4, 0] == 9 * 16 + 4
    floats = np.zeros((5, 3), np.float32)
    floats[0, 0], floats[3, 1] = 1, 200  # where 200 were not seen, 1 would be white
    assert np.asarray(read_rgb(encoded(Image.fromarray(floats), "TIFF")))[..., 0].tolist() == floats.tolist()


def test_little_memory_for_a_large_picture_of_sixteen_bits() -> None:
    """Beside the file and Pillow's picture a few bytes a pixel, not those of several pictures of float64."""
    side = 3000
    data = encoded(Image.fromarray(np.zeros((side, side), np.uint16)))
    tracemalloc.start()
    decode_image(data, 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * side**2


def test_a_declared_transparent_value_of_sixteen_bits_becomes_white() -> None:
    values = np.array([[100, 20000], [20000, 100]], dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values), transparency=20000), 2)
    assert decoded[0].tolist() == [[0, 255], [255, 0]]


def png_of_two_pixels(depth: int, color_type: int, transparent: bytes, pixels: bytes) -> bytes:
    """With a declared transparent colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 1, depth, color_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"tRNS", transparent), chunk(b"IDAT", zlib.compress(b"\0" + pixels)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("depth", "grey"), [(1, 255), (2, 85), (4, 17), (8, 1)])
def test_a_declared_transparent_grey_of_few_bits_becomes_white(depth: int, grey: int) -> None:
    """Pillow scales the pixels, and for 2 or 4 bits not the declared value."""
    pixels = bytes([1 << (8 - 2 * depth)] if depth < 8 else [0, 1])  # 0 and 1
    for transparent, expected in ((1, [0, 255]), (0, [255, grey])):
        picture = read_rgb(png_of_two_pixels(depth, 0, struct.pack(">H", transparent), pixels))
        assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(value,) * 3 for value in expected]


def test_a_declared_transparent_colour_of_sixteen_bits_becomes_white() -> None:
    """Pillow keeps the upper 8 bits of the pixels, and all 16 of the declared colour."""
    pixels = struct.pack(">6H", 65535, 0, 256, 10, 20, 300)
    picture = read_rgb(png_of_two_pixels(16, 2, struct.pack(">3H", 65535, 0, 256), pixels))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((1, 0)) == (0, 0, 1)


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putdata([0, 1])
    decoded = np.asarray(read_rgb(encoded(image, transparency=1)))
    assert decoded.tolist() == [[[200, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(orientation: int, kind: str) -> None:
    """A picture stored in each of the eight ways comes out the same (EXIF 2.3, section 4.6.4)."""
    upright = np.asarray(noise(6, 6))
    stored = {  # how the upright picture lies in the file
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),  # to be turned 90 degrees clockwise for display
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert np.array_equal(np.asarray(read_rgb(data)), upright)


def test_the_centre_is_kept() -> None:
    wide = np.zeros((4, 10, 3), dtype=np.uint8)
    wide[:, 3:7] = 200
    for values in (wide, wide.transpose(1, 0, 2)):
        assert colour_of(encoded(Image.fromarray(np.ascontiguousarray(values)))) == [200, 200, 200]


def test_the_crop_hides_what_lies_beside_it() -> None:
    """Resizing must not look across the edges of the crop: the margin is black, the rest stays evenly white."""
    wide = np.zeros((32, 64, 3), dtype=np.uint8)
    wide[:, 16:48] = 255
    assert colour_of(encoded(Image.fromarray(wide))) == [255, 255, 255]


def test_shrinking_is_antialiased() -> None:
    """A one-pixel checkerboard has nothing but its mean to show at an eighth of the size."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    decoded = decode_image(encoded(Image.fromarray(board.astype(np.uint8))), 8).float()
    assert (decoded - 127.5).abs().max() <= 2  # Lanczos weights of a few taps do not cancel exactly at the border


def test_of_an_odd_margin_the_smaller_half_lies_before_the_picture() -> None:
    image = noise(9, 4)
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(decode_image(encoded(image), 4), whole[:, :, 2:6])
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    assert torch.equal(decode_image(encoded(turned), 4), whole.mT[:, 2:6])


def test_pictures_are_resized_by_lanczos() -> None:
    """Prepared sets and those that are decoded in training hold the same pixels, whatever the version."""
    image = noise(24, 24)
    expected = torch.from_numpy(np.array(image.resize((8, 8), Image.Resampling.LANCZOS))).permute(2, 0, 1)
    assert torch.equal(decode_image(encoded(image), 8), expected)


def test_small_pictures_are_enlarged() -> None:
    assert decode_image(encoded(noise(3, 5)), 16).shape == (3, 16, 16)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("smallest", [False, True])
def test_truncated_files_are_unreadable(kind: str, smallest: bool) -> None:
    data = encoded(noise(48, 48), kind)
    assert read_rgb(data, smallest=smallest).mode == "RGB"
    for share in (0.02, 0.5, 0.9):
        with pytest.raises(UNREADABLE_ERRORS):
            read_rgb(data[: int(share * len(data))], smallest=smallest)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encoded(noise(4, 4), "PPM"),  # which Pillow could read
    ],
)
def test_other_content_is_unreadable(data: bytes) -> None:
    with pytest.raises(UNREADABLE_ERRORS):
        read_rgb(data)


def test_unreasonably_large_pictures_are_unreadable() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(Image.DecompressionBombError):
        read_rgb(bomb)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_bytes_raise_nothing_but_the_named_errors() -> None:
    random = np.random.default_rng(1)
    files = [encoded(noise(16, 12), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")]
    unreadable = 0
    for trial in range(500):
        data = bytearray(files[trial % len(files)])
        data[random.integers(min(200, len(data)))] = random.integers(256)
        try:
            decode_image(bytes(data), 4)
        except UNREADABLE_ERRORS:
            unreadable += 1
    assert unreadable > 100  # the damage is real


def test_a_tag_of_another_type_is_unreadable() -> None:
    """Of a TIFF, where its strips are: a number with a fraction."""
    data = bytearray(encoded(noise(8, 8), "TIFF"))
    tag = data.index(struct.pack("<HH", 273, 4))
    data[tag + 2 : tag + 4] = struct.pack("<H", 11)
    with pytest.raises(UNREADABLE_ERRORS):
        read_rgb(bytes(data))


def test_zeros_that_are_white() -> None:
    """As some TIFFs say of themselves."""
    values = np.array([[0, 0x4000], [0x8000, 0xFFFF]], np.uint16)
    white_zero = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    black_zero = encoded(Image.fromarray(values), "TIFF")
    assert (decode_image(white_zero, 2) == 255 - decode_image(black_zero, 2)).all()


def test_reasons_fit_on_a_line() -> None:
    assert printable("a\nb\udcffé") == "a\\nb\\udcffé"
    assert describe(OSError("two\nlines")) == "OSError: two\\nlines"
    assert describe(EOFError()) == "EOFError"
