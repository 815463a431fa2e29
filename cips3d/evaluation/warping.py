"""Seeing a picture from another camera: warp by depth, with an occlusion test."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.cameras import Cameras

BEHIND = 1e-6  # scene units in front of the camera's plane: points nearer have no place in the picture


class Projection(NamedTuple):
    """Where points are seen."""

    grid: Tensor  # [B, N, 2] column and row; -1 and 1 are the outer pixels' centres (`grid_sample`, aligned corners)
    distance: Tensor  # [B, N] scene units from the camera
    in_front: Tensor  # [B, N] bool


class Warped(NamedTuple):
    """A picture as another camera sees it."""

    image: Tensor  # [B, C, H, W]
    visible: Tensor  # [B, 1, H, W] bool: both cameras see the same surface point


def project(points: Tensor, cameras: Cameras, aspect: float = 1.0) -> Projection:
    """Place points in pictures, the inverse of `Cameras.rays`.

    With p' = Rᵀ (p - position): column = f x' / (-z' aspect), row = -f y' / (-z'), f = 1 / tan(fov / 2).

    Args:
        points: [B, N, 3] in scene units.
        cameras: B cameras.
        aspect: half width of the picture's pixel grid over its half height, (W - 1) / (H - 1).
    """
    offset = points - cameras.position[:, None]
    local = offset @ cameras.rotation  # rows are p'
    depth = -local[..., 2]
    focal = 1 / torch.tan(cameras.fov_degrees * (math.pi / 360))
    scale = focal[:, None] / depth.clamp_min(BEHIND)
    grid = torch.stack([local[..., 0] * scale / aspect, -local[..., 1] * scale], dim=-1)
    return Projection(grid, offset.norm(dim=-1), depth > BEHIND)


def warp(
    image: Tensor,
    depth: Tensor,
    cameras: Cameras,
    target_depth: Tensor,
    target_cameras: Cameras,
    *,
    t_far: float,
    tolerance: float,
    empty: float,
) -> Warped:
    """The picture of one camera as the target camera sees it.

    Every target pixel's surface point p = o + t d is projected into the other picture and takes the colour found
    there (bilinear). It counts as visible where it lies within the picture, neither depth is that of empty space
    (t > t_far - empty), and the other camera's depth there is the point's distance within ± tolerance.

    Args:
        image: [B, C, H, W] seen by `cameras`.
        depth: [B, 1, H, W] distances along its rays in scene units, t_far where nothing is.
        cameras: B cameras.
        target_depth: [B, 1, H, W] seen by `target_cameras`.
        target_cameras: B cameras.
        t_far: end of the rays.
        tolerance: scene units.
        empty: scene units; surfaces nearer to the rays' end than this are taken for empty space.

    Source: depth-based reprojection as in structure from motion learned from video (arXiv 1704.07813), section 3.2.
    """
    if image.shape[-2:] != target_depth.shape[-2:] or depth.shape != target_depth.shape:
        shapes = f"{list(image.shape)}, {list(depth.shape)} and {list(target_depth.shape)}"
        raise ValueError(f"image, depth and target_depth must be of one size, got {shapes}")
    batch, _, height, width = image.shape
    rays = target_cameras.rays((height, width))
    t = target_depth.flatten(1)[..., None]  # [B, R, 1]
    seen = project(rays.origins + t * rays.directions, cameras, aspect=_aspect(height, width))
    grid = seen.grid.view(batch, height, width, 2)
    found = _sampled(image, grid)
    # Bilinear like the colours: across a silhouette, the mean of two surfaces' depths is that of neither.
    found_depth = _sampled(depth, grid)
    distance = seen.distance.view(batch, 1, height, width)
    inside = (grid.abs() <= 1).all(dim=-1)[:, None] & seen.in_front.view(batch, 1, height, width)
    solid = (target_depth < t_far - empty) & (found_depth < t_far - empty)
    return Warped(found, inside & solid & ((found_depth - distance).abs() <= tolerance))


def _aspect(height: int, width: int) -> float:
    """As in `Cameras.rays`: pixels are square."""
    return 1.0 if height == width else max(width - 1, 1) / max(height - 1, 1)


def _sampled(values: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=True)
