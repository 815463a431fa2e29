"""Which way surfaces face, from depth maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.ops.autocast import product


def normals_from_depth(depth: Tensor, cameras: Cameras) -> Tensor:
    """Unit normals of the surface that a depth map shows, in the camera's axes.

    n = (∂p/∂x × ∂p/∂y) / |∂p/∂x × ∂p/∂y|, where p = t d is the point seen in a pixel, d its ray's direction in the
    camera's axes, x goes along rows and y up columns; differences of neighbours on both sides, one-sided at the edges.
    Normals of visible surfaces face the camera: n · d < 0.

    Args:
        depth: [B, 1, H, W] distances along rays in scene units; H and W at least 2.
        cameras: B cameras that saw it.

    Returns:
        [B, 3, H, W]: right, up and towards the camera, each in [-1, 1].
    """
    if depth.dim() != 4 or depth.shape[1] != 1 or min(depth.shape[2:]) < 2:
        raise ValueError(f"depth must have shape [B, 1, H, W] with H and W at least 2, got {list(depth.shape)}")
    if len(depth) != len(cameras):
        raise ValueError(f"cameras must be as many as depth maps, got {len(cameras)} and {len(depth)}")
    height, width = depth.shape[2:]
    directions = product(cameras.rays((height, width)).directions, cameras.rotation)  # [B, H·W, 3] right, up, backward
    points = depth[:, 0, :, :, None] * directions.to(depth).view(-1, height, width, 3)
    down, along = torch.gradient(points, dim=(1, 2))
    normals = torch.linalg.cross(along, -down)
    return F.normalize(normals, dim=-1, eps=torch.finfo(depth.dtype).tiny).permute(0, 3, 1, 2)
