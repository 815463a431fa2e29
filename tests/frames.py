"""Frames to write and to read back."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def moving_square(count: int, side: int = 64) -> list[Image.Image]:
    """A square that wanders along the lower half of a smooth background, and back."""
    ramp = np.linspace(40, 220, side)
    background = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], 128.0), axis=-1).astype(np.uint8)
    frames = []
    for k in range(count):
        frame = Image.fromarray(background)
        left = 2 + round((side - 20) * abs(2 * k / count - 1))
        ImageDraw.Draw(frame).rectangle((left, side - 20, left + 12, side - 8), fill=(250, 30, 60))
        frames.append(frame)
    return frames
