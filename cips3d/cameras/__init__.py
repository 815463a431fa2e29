"""Cameras: where they stand (`PoseDistribution`), how they look (`Cameras`) and what they see (`Rays`)."""

from cips3d.cameras.camera import Cameras, Rays
from cips3d.cameras.poses import FRONT, POSE_DISTRIBUTIONS, PoseDistribution

__all__ = ["FRONT", "POSE_DISTRIBUTIONS", "Cameras", "PoseDistribution", "Rays"]
