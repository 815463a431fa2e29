"""How pictures of a model are taken."""

from __future__ import annotations

from dataclasses import dataclass

from cips3d.cameras import PoseDistribution
from cips3d.models.volume import VolumeSettings


@dataclass(frozen=True)
class RenderingSettings:
    """What a model's pictures depend on besides its networks, as it was trained."""

    volume: VolumeSettings
    """sampling and compositing, of 3-D generators"""
    fov_degrees: float
    """the cameras' angle of view"""
    resolution: int
    """side of the pictures that it was trained on last"""
    poses: PoseDistribution
    """where the training cameras stood"""
