"""What inversion minimises, and the candidates that it moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.inversion.losses import Distance, PictureLoss, picture_loss
from cips3d.inversion.style_space import StyleSpace
from cips3d.models.view import View
from cips3d.rendering import LoadedGenerator


class Candidates(NamedTuple):
    """Faces and cameras that might be the photograph's.

    Attributes:
        coordinates: [B, K] each, see `StyleSpace`.
        pitch: [B] radians.
        yaw: [B] radians.
    """

    coordinates: tuple[Tensor, ...]
    pitch: Tensor
    yaw: Tensor

    def chosen(self, index: Tensor) -> Candidates:
        """The candidates at these positions, without gradients."""
        return Candidates(
            tuple(u.detach()[index] for u in self.coordinates), self.pitch.detach()[index], self.yaw.detach()[index]
        )


class Record(NamedTuple):
    """The weighted losses of the best candidate at one step."""

    stage: str
    pixel: float
    perceptual: float
    prior: float = 0.0
    """of styles"""
    locality: float = 0.0
    """of weights: how much other faces have changed"""

    @property
    def total(self) -> float:
        return self.pixel + self.perceptual + self.prior + self.locality


@dataclass(frozen=True, eq=False)
class Objective:
    """loss = pixel + weight · perceptual + prior · Σ mean(u²), of styles at coordinates u, seen by a camera.

    Pictures are rendered without jitter and noise: the same candidate always has the same loss.
    """

    loaded: LoadedGenerator
    space: StyleSpace
    photo: Tensor
    """[1, 3, R, R] in [-1, 1]"""
    perceptual: Distance | None
    perceptual_weight: float
    prior: float
    records: list[Record] = field(default_factory=list)
    """what was reached so far, step by step"""

    @property
    def resolution(self) -> int:
        return self.photo.shape[-1]

    def pictures(self, candidates: Candidates, resolution: int) -> Tensor:
        """[B, 3, resolution, resolution] in [-1, 1]"""
        styles = self.space.styles(candidates.coordinates)
        return seen_by(self.loaded, styles, candidates.pitch, candidates.yaw, resolution)

    def photo_at(self, resolution: int) -> Tensor:
        """[1, 3, resolution, resolution]: the photograph at the places of coarser pixels, whose grid has its edges."""
        if resolution == self.resolution:
            return self.photo
        return F.interpolate(self.photo, size=(resolution, resolution), mode="bilinear", align_corners=True)

    def picture_losses(self, candidates: Candidates, resolution: int) -> PictureLoss:
        """The differences [B] from the photograph."""
        pictures = self.pictures(candidates, resolution)
        return picture_loss(pictures, self.photo_at(resolution), self.perceptual, self.perceptual_weight)

    def prior_loss(self, candidates: Candidates) -> Tensor:
        """[B] how untypical the faces are."""
        return self.prior * torch.stack([u.square().mean(1) for u in candidates.coordinates]).sum(0)


def seen_by(loaded: LoadedGenerator, styles: tuple[Tensor, ...], pitch: Tensor, yaw: Tensor, resolution: int) -> Tensor:
    """Pictures [B, 3, R, R] in [-1, 1] of B styles from cameras at pitch and yaw [B], with gradients to all of them.

    Where a picture overshoots it has the value at the end of the range, and the gradient of what lies beyond: a pixel
    that is white as it should be is right, and one that should not be is pulled back.
    """
    cameras = Cameras.from_angles(pitch, yaw, loaded.fov_degrees)
    image = loaded.generator.render(styles, View(resolution, cameras, loaded.settings, jitter=False)).image
    return image + (image.clamp(-1, 1) - image).detach()
