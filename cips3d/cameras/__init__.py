"""Cameras: where they stand (`PoseDistribution`, `TRAJECTORIES`), how they look (`Cameras`), what they see (`Rays`)."""

from cips3d.cameras.camera import TRAINING_DISTANCE, Cameras, Projection, Rays, aspect, sides
from cips3d.cameras.camera_file import read_cameras, write_cameras
from cips3d.cameras.poses import FRONT, POSE_DISTRIBUTIONS, PoseDistribution
from cips3d.cameras.trajectories import TRAJECTORIES, CameraRange

__all__ = [
    "FRONT",
    "POSE_DISTRIBUTIONS",
    "TRAINING_DISTANCE",
    "TRAJECTORIES",
    "CameraRange",
    "Cameras",
    "PoseDistribution",
    "Projection",
    "Rays",
    "aspect",
    "read_cameras",
    "sides",
    "write_cameras",
]
