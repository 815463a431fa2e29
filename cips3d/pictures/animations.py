"""Pictures that move: GIF, animated WebP and MP4."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cips3d.errors import UserError
from cips3d.files import atomic_file
from cips3d.pictures.saving import check_path, check_size, reported
from cips3d.pictures.video import write_video

# Pillow's options for each file ending.
PILLOW_OPTIONS: dict[str, dict[str, Any]] = {
    ".gif": {"format": "GIF"},
    ".webp": {"format": "WEBP", "quality": 90},
}
VIDEO_ENDING = ".mp4"
ANIMATION_ENDINGS = (*PILLOW_OPTIONS, VIDEO_ENDING)

# Frames a second. A GIF counts in hundredths of a second; viewers slow down frames shorter than two of them.
MIN_FPS = 0.1
MAX_FPS = {".gif": 50.0, ".webp": 1000.0, ".mp4": 240.0}
LONGEST_GIF = 655.35  # seconds: 16 bits of hundredths
TICK_MS = {".gif": 10, ".webp": 1}  # the formats' unit of a frame's duration

PALETTE_PIXELS = 2**19  # looked at to choose a GIF's colours
DITHER_STEP = 12.0  # grey levels: about the distance of neighbouring colours in a palette of 256


def save_animation(path: Path, frames: Iterable[Image.Image], fps: float) -> None:
    """Write frames that are shown over and over, as a GIF or an animated WebP, or as an MP4; whole or not at all.

    A GIF has one palette for all frames, chosen from all of them, and ordered dithering: what does not change
    from frame to frame does not flicker. In a GIF, equal frames that follow each other become one that is shown longer,
    in a WebP those that differ by no more than about three grey levels anywhere, and a WebP of such frames alone is a
    picture that stands still. Where the format cannot express 1/fps, durations differ by one unit: together they last
    len(frames)/fps. Both need all frames in memory. An MP4 takes one frame after the other, and may be as long as one
    likes.

    Args:
        path: ends in .gif, .webp or .mp4; missing folders are made.
        frames: pictures of one size; an MP4 is written while they are made.
        fps: frames a second.

    Raises:
        UserError: the ending is another, fps is out of the format's range, a GIF would last too long, the file cannot
            be written, or an MP4 is asked for and imageio-ffmpeg is missing.
    """
    check_path(path, ANIMATION_ENDINGS, "an animation")
    ending = path.suffix.lower()
    check_fps(ending, fps)
    if ending == VIDEO_ENDING:
        write_video(path, frames, fps)
        return
    kept = list(frames)
    if not kept:
        raise ValueError("frames must hold at least one picture, got none")
    check_duration(path, len(kept), fps)
    if len({frame.size for frame in kept}) > 1:
        raise ValueError(f"frames must have one size, got {sorted({frame.size for frame in kept})}")
    check_size(path, kept[0].width, kept[0].height)
    durations = frame_durations(len(kept), fps, TICK_MS[ending])
    shown = with_shared_palette(kept) if ending == ".gif" else (frame.convert("RGB") for frame in kept)
    first = next(shown)
    options = PILLOW_OPTIONS[ending]
    with reported(path), atomic_file(path) as file:
        first.save(file, save_all=True, append_images=shown, duration=durations, loop=0, **options)


def frame_durations(count: int, fps: float, tick_ms: int) -> list[int]:
    """Milliseconds of `count` frames, in whole ticks; their sum is count/fps to the nearest tick."""
    ends = [round(index * 1000 / fps / tick_ms) for index in range(count + 1)]
    return [tick_ms * (end - start) for start, end in pairwise(ends)]


def with_shared_palette(frames: Sequence[Image.Image]) -> Iterator[Image.Image]:
    """The frames in one palette of 256 colours, with ordered dithering.

    Error diffusion would look better in a single frame, but its noise depends on the whole picture and crawls
    when anything moves; a threshold that only depends on a pixel's place stands still.
    """
    palette = shared_palette(frames)
    threshold = bayer_matrix(3)
    for frame in frames:
        pixels = np.asarray(frame.convert("RGB"), dtype=np.float32)
        repeats = (math.ceil(frame.height / 8), math.ceil(frame.width / 8))
        pattern = np.tile(threshold, repeats)[: frame.height, : frame.width, None]
        dithered = np.clip(np.rint(pixels + DITHER_STEP * pattern), 0, 255).astype(np.uint8)
        yield Image.fromarray(dithered).quantize(palette=palette, dither=Image.Dither.NONE)


def shared_palette(frames: Sequence[Image.Image]) -> Image.Image:
    """256 colours for all frames, from an even selection of their pixels.

    Pillow's octree is here as exact as its median cut with k-means (RMS error 3.2 against 3.2 grey levels on smooth
    pictures, 3.9 against 3.6 on a photograph), and finer where colours change slowly, at a thirtieth of the time.
    """
    total = len(frames) * frames[0].width * frames[0].height
    stride = math.ceil(total / PALETTE_PIXELS)
    chosen = [np.asarray(frame.convert("RGB")).reshape(-1, 3)[k % stride :: stride] for k, frame in enumerate(frames)]
    pixels = np.concatenate(chosen)[None]  # [1, N, 3]
    return Image.fromarray(pixels).quantize(256, method=Image.Quantize.FASTOCTREE)


def bayer_matrix(order: int) -> np.ndarray:
    """Bayer's threshold matrix of side 2^order with values in (-0.5, 0.5), each once (B. Bayer, 1973)."""
    matrix = np.zeros((1, 1), dtype=np.float32)
    for _ in range(order):
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return (matrix + 0.5) / matrix.size - 0.5


def check_duration(path: Path, count: int, fps: float) -> None:
    """Raise `UserError` for a GIF that lasts longer than one of its frames can: all of them may be equal."""
    if path.suffix.lower() == ".gif" and count / fps > LONGEST_GIF:
        raise UserError(
            f"--out {path} would last {count / fps:.0f} s, and frames of a .gif {LONGEST_GIF:g} at most; give fewer "
            "--frames, a larger --fps, or a .webp"
        )


def check_fps(ending: str, fps: float) -> None:
    """Raise `UserError` where a format cannot show `fps` frames a second."""
    if not MIN_FPS <= fps <= MAX_FPS[ending]:
        raise UserError(f"--fps {fps:g} is out of range; a {ending} takes {MIN_FPS:g} to {MAX_FPS[ending]:g}")
