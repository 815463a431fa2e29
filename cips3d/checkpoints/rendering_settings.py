"""How pictures of a model are taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cips3d.cameras import PoseDistribution
from cips3d.models.generator import GeneratorConfig
from cips3d.models.volume import VolumeSettings


@dataclass(frozen=True)
class RenderingSettings:
    """What a model's pictures depend on besides its networks, as it was trained."""

    volume: VolumeSettings
    """sampling and compositing, of 3-D generators; pictures of some close its back, see `volume_of_pictures`"""
    fov_degrees: float
    """the cameras' angle of view"""
    resolution: int
    """side of the pictures that it was trained on last"""
    poses: PoseDistribution
    """where the training cameras stood"""


def volume_of_pictures(generator: GeneratorConfig, trained: VolumeSettings) -> VolumeSettings:
    """How pictures of a model are composited that was trained in this volume.

    As in training, but pi-GAN's published pictures and evaluations give the light that is left over to the last sample
    (`last_back`) where the background is not white, which its training does not.
    """
    closed = generator.closes_pictures and not trained.white_back
    return replace(trained, last_back=trained.last_back or closed)
