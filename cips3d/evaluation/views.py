"""The faces that measures look at, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cips3d.data.loader import random_words
from cips3d.rendering import (
    BATCH_SIZE,
    LoadedGenerator,
    Look,
    RenderedViews,
    check_is_3d,
    render_views,
    styles_of_seeds,
)
from cips3d.rendering.prefetch import prefetched

FACES_AT_ONCE = 8  # their views are held in memory together
IMAGES_INSTEAD = "choose metrics of images, such as fid"  # of a 2-D model


@dataclass(frozen=True)
class FaceSample:
    """Which faces a measure looks at, and how."""

    count: int = 32
    seed: int = 0
    """chooses the faces"""
    truncation: float = 1.0
    resolution: int | None = None
    """side of the pictures; None: the model's"""
    batch_size: int = BATCH_SIZE
    """pictures rendered at a time"""
    progress: bool = False
    """show a bar on stderr"""

    def seeds(self) -> list[int]:
        """The faces as `styles_of_seeds` takes them; two seeds have hardly a face in common."""
        return seeds_of(self.seed, range(self.count))

    def resolution_of(self, loaded: LoadedGenerator) -> int:
        return loaded.resolution if self.resolution is None else self.resolution


def seeds_of(seed: int, indices: Sequence[int]) -> list[int]:
    """Seeds in [0, 2^63) of the faces at `indices` of an endless series that `seed` chooses."""
    words = random_words(seed, np.asarray(indices, dtype=np.uint64))
    return [int(word >> np.uint64(1)) for word in words]


def seen_from(
    loaded: LoadedGenerator, faces: FaceSample, pitch: Tensor, yaw: Tensor, *, title: str, depth: bool = False
) -> Iterator[RenderedViews]:
    """All faces from every view, without jitter, some faces at a time; a GPU renders the next ones meanwhile.

    Args:
        pitch, yaw: [V] radians from the front, the median of the training cameras.
        title: what the progress bar says.
        depth: also give depth maps.

    Raises:
        UserError: the model is 2-D and has no sides.
    """
    check_is_3d(loaded, title, IMAGES_INSTEAD)
    if faces.count < 1:
        raise ValueError(f"count must be at least 1, got {faces.count}")
    seeds = faces.seeds()
    chunks = [seeds[start : start + FACES_AT_ONCE] for start in range(0, len(seeds), FACES_AT_ONCE)]
    look = Look(faces.resolution_of(loaded), ("image", "depth") if depth else ("image",), batch_size=faces.batch_size)
    made = (
        render_views(
            loaded,
            styles_of_seeds(loaded, chunk, faces.truncation),
            loaded.poses.front_pitch + pitch,
            loaded.poses.yaw_mean + yaw,
            look,
        )
        for chunk in chunks
    )
    with tqdm(total=len(seeds), desc=title, unit="face", disable=not faces.progress, leave=False) as bar:
        for chunk, views in zip(chunks, prefetched(made, loaded.device), strict=True):
            yield views
            bar.update(len(chunk))


def resized(images: Tensor, resolution: int) -> Tensor:
    """Pictures [N, 3, H, W] at side `resolution`, float32 as networks take them.

    They are averaged where it is smaller, interpolated where it is larger.
    """
    images = images.float()
    if images.shape[-2:] == (resolution, resolution):
        return images
    if images.shape[-1] > resolution:
        return F.interpolate(images, size=(resolution, resolution), mode="area")
    return F.interpolate(images, size=(resolution, resolution), mode="bilinear")


def equal_angles(largest: float, count: int) -> Tensor:
    """[count] angles from -largest to largest, in radians."""
    return torch.linspace(-largest, largest, count)
