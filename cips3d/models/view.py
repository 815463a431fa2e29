"""From where pictures are taken, and what is seen: the two ends of every generator's `render`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.models.volume import VolumeSettings
from cips3d.ops.checks import check_number

Window = tuple[int, int, int, int]  # top, left, height, width in pixels


@dataclass(frozen=True, eq=False)
class View:
    """From where and how pictures are taken.

    2-D generators ignore cameras, volume, noise and `return_aux`, generators whose colours do not depend on directions
    `lock_view`. Refused are `window` without `has_windows`, in 3-D `return_aux` without `has_aux_image`, and in 2-D
    `grad_points`.
    """

    resolution: int | tuple[int, int]
    """side of a square picture, or (height, width)"""
    cameras: Cameras
    """one an image"""
    volume: VolumeSettings = field(default_factory=VolumeSettings)
    """how rays are sampled and composited; the default is FFHQ's, that of a loaded model is `loaded.settings`"""
    density_noise: float = 0.0
    """standard deviation of the noise added to raw densities (training)"""
    return_aux: bool = False
    """also give the auxiliary image"""
    lock_view: bool = False
    """colours as seen along -z from wherever the camera looks, of generators whose colours depend on that"""
    grad_points: int | None = None
    """only so many randomly chosen rays an image carry gradients"""
    window: Window | None = None
    """(top, left, height, width) in pixels of the part of the picture that is wanted; None: all of it"""
    jitter: bool = True
    """random depths and noise, as in training; False: the same picture every time"""
    generator: torch.Generator | None = None
    """source of everything random"""

    def __post_init__(self) -> None:
        check_number("density_noise", self.density_noise)
        if self.density_noise < 0:
            raise ValueError(f"density_noise must not be negative, got {self.density_noise}")


class Picture(NamedTuple):
    """What a view shows.

    Attributes:
        image: [B, 3, H, W] in [-1, 1].
        aux_image: [B, 3, H, W] in [-1, 1]: the NeRF's own picture, where asked for.
        depth: [B, 1, H, W] scene units, empty space at t_far; None of generators without a volume.
    """

    image: Tensor
    aux_image: Tensor | None
    depth: Tensor | None


def check_view(view: object) -> None:
    """Raise TypeError unless it is a `View`."""
    if not isinstance(view, View):
        raise TypeError(f"view must be a View, got {type(view).__name__}")
