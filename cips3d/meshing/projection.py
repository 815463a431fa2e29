"""From points in space to places in pictures: the inverse of `Cameras.rays`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cips3d.cameras import Cameras


def project(cameras: Cameras, points: Tensor) -> tuple[Tensor, Tensor]:
    """Where cameras see points.

    Args:
        points: [P, 3] in scene units.

    Returns:
        places [B, P, 2] in units of the picture's half height, x to the right and y up: in a square picture, -1 and 1
        are the centres of the outer pixels; and depths [B, P] along the viewing axis, negative behind the camera.
    """
    local = (points - cameras.position[:, None]) @ cameras.rotation  # [B, P, 3]: right, up, backward
    depth = -local[..., 2]
    focal = 1 / torch.tan(cameras.fov_degrees * (math.pi / 360))
    return local[..., :2] * (focal[:, None] / depth)[..., None], depth
