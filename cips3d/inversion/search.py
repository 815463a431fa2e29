"""Where inversion begins: a coarse search over cameras and faces."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cips3d.cameras import PoseDistribution
from cips3d.inversion.objective import Candidates, Objective

FACES = 16  # the mean face and 15 of random z
GRID_STEP = 0.15  # radians, at most
COVERED = 0.96  # share of the training cameras' angles, each, that the grid spans
ANGLES_DRAWN = 4096  # to measure that
AT_ONCE = 64  # candidates that are rendered together


def pose_grid(poses: PoseDistribution) -> tuple[Tensor, Tensor]:
    """Pitch and yaw [P] of cameras on a grid where those of training stood, no more than 0.15 radians apart."""
    drawn = poses.sample(ANGLES_DRAWN, generator=torch.Generator().manual_seed(0))
    pitches, yaws = (_even(angles) for angles in drawn)
    pitch, yaw = torch.cartesian_prod(pitches, yaws).unbind(1)
    return pitch, yaw


def _even(angles: Tensor) -> Tensor:
    low, high = torch.quantile(angles, torch.tensor([(1 - COVERED) / 2, (1 + COVERED) / 2])).tolist()
    return torch.linspace(low, high, 1 + math.ceil((high - low) / GRID_STEP))


@torch.no_grad()
def search(
    objective: Objective, pose: tuple[float, float] | None, starts: int, resolution: int, seed: int
) -> Candidates:
    """The most promising of all pairs of a camera and a face.

    The mean face and 15 random ones are seen from every camera of `pose_grid`; every camera keeps its best face, and
    the best cameras are kept. Where there is one camera alone, the best faces are.

    Args:
        pose: (pitch, yaw) in radians of the camera, where it is known; None: it is searched for.
        starts: how many to keep.
        resolution: side of the pictures to compare.
        seed: chooses the faces.
    """
    loaded = objective.loaded
    random = loaded.generator.sample_z(FACES - 1, generator=torch.Generator().manual_seed(seed))
    coordinates = objective.space.coordinates(loaded.generator.mapping(*random))
    faces = tuple(torch.cat([torch.zeros_like(u[:1]), u]) for u in coordinates)
    if not loaded.generator.is_3d:
        pose = (loaded.poses.front_pitch, loaded.poses.yaw_mean)  # the picture does not depend on it
    pitch, yaw = pose_grid(loaded.poses) if pose is None else (torch.tensor([angle]) for angle in pose)
    cameras = len(pitch)
    pairs = torch.arange(FACES * cameras)
    device = loaded.device

    def candidates(pair: Tensor) -> Candidates:
        camera, face = pair % cameras, (pair // cameras).to(device)
        angles = (x[camera].to(device) for x in (pitch, yaw))
        return Candidates(tuple(u[face] for u in faces), *angles)

    losses = torch.cat([objective.picture_losses(candidates(pair), resolution).total for pair in pairs.split(AT_ONCE)])
    by_camera = losses.cpu().view(FACES, cameras)
    if cameras == 1:
        return candidates(by_camera[:, 0].argsort()[:starts])
    best = by_camera.min(0)
    camera = best.values.argsort()[:starts]
    return candidates(best.indices[camera] * cameras + camera)
