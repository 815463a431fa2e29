"""Multi-view consistency: does a surface point keep its colour when the camera moves?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.evaluation.views import FaceSample, equal_angles, seen_from
from cips3d.evaluation.warping import warp
from cips3d.models.volume import VolumeSettings
from cips3d.pictures import psnr_of
from cips3d.rendering import LoadedGenerator, RenderedViews

LARGEST_YAW, VIEWS = 0.4, 5  # neighbouring views are 0.2 radians (11°) apart
TOLERANCE = 0.05  # share of a ray's length by which the two depths of one surface point may differ
EMPTY = 0.02  # share of a ray's length: surfaces nearer to its end are empty space

# Differences [B, 1, H, W] of pictures [B, 3, H, W] in [-1, 1], such as `cips3d.evaluation.perceptual.lpips_map`.
DifferenceMap = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Consistency:
    """How well the views of a face agree."""

    psnr: float
    """decibels over the overlap, of colours in [0, 1]; not a number where nothing overlaps"""
    overlap: float
    """share of the pixels that show something, from 0 to 1, whose surface point both cameras see"""
    perceptual: float | None = None
    """mean of the perceptual difference over the overlap, where one was asked for"""


class _Sums:
    """Running totals of pictures that were compared."""

    def __init__(self) -> None:
        self.squared_error = self.perceptual = self.compared = self.solid = 0.0

    def add(
        self, target: Tensor, warped: Tensor, visible: Tensor, solid: Tensor, distance: DifferenceMap | None
    ) -> None:
        self.squared_error += float(((target - warped).double().square().mean(dim=1, keepdim=True) * visible).sum())
        self.compared += float(visible.sum())
        self.solid += float(solid.sum())
        if distance is not None:
            pasted = torch.where(visible, warped, target)  # what cannot be compared shows no difference
            self.perceptual += float((distance(target, pasted).double() * visible).sum())

    def result(self, with_perceptual: bool) -> Consistency:
        overlap = self.compared / self.solid if self.solid else 0.0
        if not self.compared:
            return Consistency(math.nan, overlap, math.nan if with_perceptual else None)
        error = self.squared_error / self.compared / 4  # colours in [-1, 1] differ twice as much as in [0, 1]
        return Consistency(psnr_of(error), overlap, self.perceptual / self.compared if with_perceptual else None)


@torch.no_grad()
def view_consistency(
    loaded: LoadedGenerator,
    faces: FaceSample,
    *,
    largest_yaw: float = LARGEST_YAW,
    views: int = VIEWS,
    distance: DifferenceMap | None = None,
) -> Consistency:
    """Compare every view with its neighbours as warped into it by depth.

    For neighbouring yaws a, b and surface points p that both cameras see (`warp`'s visible pixels, set V):
    PSNR = -10 log10(mean over V of |I_a(p) - I_b(p)|²), colours in [0, 1], overlap = |V| / |solid pixels of a|, both
    pooled over all faces, all neighbours and both directions. A texture that sticks to the picture instead of the head,
    flicker and wrong depth lower the PSNR; depths that contradict each other lower the overlap. Resampling alone costs
    something too, less at higher resolution: compare at one resolution.

    Args:
        loaded: a 3-D generator.
        faces: which faces.
        largest_yaw: radians; views are equally spaced from minus this to this.
        views: how many.
        distance: also average this difference map over the overlap.

    Raises:
        UserError: the model is 2-D.
    """
    if views < 2 or not 0 < largest_yaw < math.pi / 2:
        raise ValueError(f"views must be at least 2 and largest_yaw in (0, π/2), got {views} and {largest_yaw}")
    yaw = equal_angles(largest_yaw, views)
    poses, sums = loaded.poses, _Sums()
    pitch = torch.full((views,), poses.front_pitch)
    cameras = Cameras.from_angles(pitch, poses.yaw_mean + yaw, loaded.fov_degrees).to(dtype=loaded.generator.dtype)
    for seen in seen_from(loaded, faces, torch.zeros(views), yaw, title="consistency", depth=True):
        for left in range(views - 1):
            for source, target in ((left, left + 1), (left + 1, left)):
                _compare(seen, source, target, cameras, loaded.settings, sums, distance)
    return sums.result(distance is not None)


def _compare(
    seen: RenderedViews,
    source: int,
    target: int,
    cameras: Cameras,
    settings: VolumeSettings,
    sums: _Sums,
    distance: DifferenceMap | None,
) -> None:
    """Warp view `source` of some faces into view `target` and count the difference."""
    assert seen.depth is not None
    each = torch.zeros(len(seen.image), dtype=torch.long)
    length = settings.t_far - settings.t_near
    empty = EMPTY * length
    warped = warp(
        seen.image[:, source],
        seen.depth[:, source],
        cameras[each + source],
        seen.depth[:, target],
        cameras[each + target],
        t_far=settings.t_far,
        tolerance=TOLERANCE * length,
        empty=empty,
    )
    solid = seen.depth[:, target] < settings.t_far - empty
    sums.add(seen.image[:, target], warped.image, warped.visible, solid, distance)
