"""Colours of vertices from rendered pictures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.errors import UserError
from cips3d.meshing.density import FloatArray
from cips3d.meshing.surface import Mesh
from cips3d.pictures import to_uint8
from cips3d.rendering import LoadedGenerator, Look, render_views

POSE_SAMPLES = 4096  # random training poses, whose quantiles give the range of training views
OUTER_SHARE = 0.025  # of poses on either side that are beyond the outermost views: ± 2 std of a Gaussian
SIDE_TO_SIDE = 5  # views from one side to the other

DEPTH_TOLERANCE = 0.05  # of t_far - t_near: between a voxel and the height of a nose
FACING = 0.5  # cosine from which on a vertex counts as facing a camera, so that its depth is reliable
FACING_POWER = 2  # a picture counts by cos²: half at 45 degrees
LEAST_WEIGHT = 0.1  # that a view must have for a vertex to be seen: 72 degrees aslant, where silhouettes blur
NEIGHBORS = 4  # nearest seen vertices that an unseen one takes its colour from ...
ANCHORS = 1024  # ... and seen ones from everywhere, without which far sides are a patchwork
NEARNESS_POWER = 8  # of 1/distance
CHUNK = 4096  # unseen vertices that are filled at a time: distances to all anchors take 16 MB


class VertexColors(NamedTuple):
    """Colours, and where they come from.

    Attributes:
        colors: [V, 3] sRGB.
        seen: [V] the vertex is visible in a picture; others have the colours of their neighbours.
    """

    colors: npt.NDArray[np.uint8]
    seen: npt.NDArray[np.bool_]


def coloring_views(poses: PoseDistribution) -> tuple[Tensor, Tensor]:
    """Pitch and yaw [V], radians, of views that cover where the training cameras stood.

    Five from one side to the other, between the yaws that 95% of the cameras are within, and two from above and
    below: a generator has learned to paint no other views.
    """
    pitch, yaw = poses.sample(POSE_SAMPLES, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([OUTER_SHARE, 0.5, 1 - OUTER_SHARE])
    low_pitch, middle_pitch, high_pitch = torch.quantile(pitch, ends)
    low_yaw, middle_yaw, high_yaw = torch.quantile(yaw, ends)
    share = torch.linspace(0, 1, SIDE_TO_SIDE)
    yaws = torch.cat([low_yaw + (high_yaw - low_yaw) * share, middle_yaw.expand(2)])
    return torch.cat([middle_pitch.expand(SIDE_TO_SIDE), torch.stack([low_pitch, high_pitch])]), yaws


def vertex_colors(
    loaded: LoadedGenerator,
    styles: tuple[Tensor, ...],
    mesh: Mesh,
    pitch: Tensor,
    yaw: Tensor,
    resolution: int,
    *,
    progress: bool = False,
) -> VertexColors:
    """Colour vertices with what pictures of the same face show at their places.

    A vertex at distance d that a view shows at the rendered depth D counts with cos²(angle between its normal and the
    line of sight) · (1 - ((D - d - m) / tolerance)²), both factors 0 where negative: turned away, hidden behind
    something, or seen through. m is the median of D - d over vertices that face a camera: light enters a soft volume,
    and its mean depth lies below its surface. The tolerance is 5% of t_far - t_near. Vertices for which no view counts
    0.1 are unseen: they take the mean of seen ones, the nearest four and 1024 from everywhere, weighted by 1/distance⁸
    (Shepard).

    Args:
        styles: of one face.
        mesh: with normals.
        pitch, yaw: [V] radians, the views.
        resolution: side of the pictures.
        progress: show a progress bar on stderr.

    Raises:
        UserError: no view shows any vertex.
    """
    if mesh.normals is None:
        raise ValueError("mesh must have normals")
    views = render_views(
        loaded, styles, pitch, yaw, Look(resolution, ("image", "depth"), batch_size=1), progress=progress
    )
    if views.depth is None:
        raise ValueError("styles must be those of a 3-D generator")
    cameras = Cameras.from_angles(pitch.float(), yaw.float(), loaded.fov_degrees)
    vertices, normals = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.normals)
    sights = [
        _sight(torch.cat([views.image[0, k], views.depth[0, k]]), cameras[k : k + 1], vertices, normals)
        for k in range(len(cameras))
    ]
    behind = torch.cat([sight.behind[sight.facing > FACING] for sight in sights])
    median = behind.median() if len(behind) > 0 else behind.new_zeros(())
    tolerance = DEPTH_TOLERANCE * (loaded.settings.t_far - loaded.settings.t_near)
    total, best, blended = torch.zeros(len(vertices)), torch.zeros(len(vertices)), torch.zeros(len(vertices), 3)
    for sight in sights:
        weight = sight.facing**FACING_POWER * (1 - ((sight.behind - median) / tolerance) ** 2).clamp_min(0)
        total += weight
        best = torch.maximum(best, weight)
        blended += weight[:, None] * sight.color
    seen = (best > LEAST_WEIGHT).numpy()
    if not seen.any():
        raise UserError("no picture shows a surface where the mesh has one; give another --threshold")
    colors = (blended / total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]).numpy()
    _fill_unseen(colors, seen, mesh.vertices)
    return VertexColors(to_uint8(torch.from_numpy(colors)).numpy(), seen)


class _Sight(NamedTuple):
    """What a view shows where vertices project to.

    Attributes:
        color: [V, 3] in [-1, 1].
        behind: [V] how far behind the vertex the rendered surface is, scene units.
        facing: [V] cosine of the angle between normal and line of sight; 0 where turned away or outside.
    """

    color: Tensor
    behind: Tensor
    facing: Tensor


def _sight(picture: Tensor, camera: Cameras, vertices: Tensor, normals: Tensor) -> _Sight:
    """Look up vertices in a picture [4, H, W] of colour and depth, whose outer pixels are centred at ±1."""
    place, ahead = camera.project(vertices)  # [1, V, 2], [1, V]
    found = F.grid_sample(picture[None], place[:, :, None], mode="bilinear", padding_mode="border", align_corners=True)
    shown = found[0, :, :, 0]  # [4, V]
    to_camera = camera.position - vertices
    distance = to_camera.norm(dim=1)
    inside = (place[0].abs().amax(1) <= 1) & (ahead[0] > 0)
    facing = (normals * to_camera).sum(1).clamp_min(0) / distance * inside
    return _Sight(shown[:3].T, shown[3] - distance, facing)


def _fill_unseen(colors: FloatArray, seen: npt.NDArray[np.bool_], vertices: FloatArray) -> None:
    """Give unseen vertices the colours of seen ones near them, in place."""
    from scipy.spatial import cKDTree
    from scipy.spatial.distance import cdist

    places, known = vertices[seen], colors[seen]
    tree = cKDTree(places)
    nearest = np.arange(1, min(NEIGHBORS, len(places)) + 1)
    anchors = np.unique(np.linspace(0, len(places) - 1, ANCHORS).astype(int))
    unseen = np.flatnonzero(~seen)
    for start in range(0, len(unseen), CHUNK):
        chunk = unseen[start : start + CHUNK]
        near_distance, near = tree.query(vertices[chunk], k=nearest)
        distance = np.concatenate([near_distance, cdist(vertices[chunk], places[anchors])], axis=1)
        # Relative to the nearest: powers of small distances would leave the range of numbers.
        weight = (near_distance[:, :1] / np.maximum(distance, np.finfo(np.float32).tiny)) ** NEARNESS_POWER
        weight[:, 0] = 1.0  # also where it lies at the very place
        weight /= weight.sum(1, keepdims=True)
        of_near, of_anchors = np.split(weight, [len(nearest)], axis=1)
        colors[chunk] = np.einsum("vk,vkc->vc", of_near, known[near]) + of_anchors @ known[anchors]
