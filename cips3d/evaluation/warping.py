"""Seeing a picture from another camera: warp by depth, with an occlusion test."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from cips3d.cameras import Cameras, aspect


class Warped(NamedTuple):
    """A picture as another camera sees it.

    Attributes:
        image: [B, C, H, W].
        visible: [B, 1, H, W] bool: both cameras see the same surface point.
    """

    image: Tensor
    visible: Tensor


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
    points = rays.origins + t * rays.directions
    place, ahead = cameras.project(points)
    grid = (place / place.new_tensor([aspect(height, width), 1.0])).view(batch, height, width, 2)
    found = _sampled(image, grid)
    # Bilinear like the colours: across a silhouette, the mean of two surfaces' depths is that of neither.
    found_depth = _sampled(depth, grid)
    distance = (points - cameras.position[:, None]).norm(dim=-1).view(batch, 1, height, width)
    inside = (grid.abs() <= 1).all(dim=-1)[:, None] & (ahead > 0).view(batch, 1, height, width)
    solid = (target_depth < t_far - empty) & (found_depth < t_far - empty)
    return Warped(found, inside & solid & ((found_depth - distance).abs() <= tolerance))


def _sampled(values: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=True)
