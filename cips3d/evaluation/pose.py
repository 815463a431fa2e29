"""Seen poses: a regressor taught by synthetic heads, and how a generator's faces answer to the camera."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.cameras import FRONT, Cameras
from cips3d.data.images import ImageSource
from cips3d.evaluation.image_network import ImageNetwork, all_pixels, roughened, seeded, teach
from cips3d.evaluation.views import FaceSample, equal_angles, resized, seen_from
from cips3d.models.family import AnyGenerator
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings
from cips3d.pictures import from_uint8
from cips3d.rendering import LoadedGenerator

LARGEST_YAW, LARGEST_PITCH, VIEWS = 0.6, 0.3, 9


class PosedImages(ImageSource, Protocol):
    """Images whose poses are known."""

    pitch: Tensor  # [N] radians
    yaw: Tensor  # [N] radians


class PoseRegressor(ImageNetwork):
    """Images [B, 3, R, R] in [-1, 1] -> (yaw, pitch) [B, 2], radians from the front; its features rank faces."""

    def __init__(self) -> None:
        super().__init__(outputs=2)


def poses_from_front(images: PosedImages) -> Tensor:
    """[N, 2] yaw and pitch, radians from the front."""
    return torch.stack([images.yaw, images.pitch], dim=1).float() - FRONT


def train_pose_regressor(
    images: PosedImages, *, steps: int = 900, batch_size: int = 64, seed: int = 0, progress: bool = True
) -> PoseRegressor:
    """Teach a regressor on images with known poses (AdamW, squared error, rate falling to 0)."""
    generator = torch.Generator().manual_seed(seed)
    regressor = seeded(PoseRegressor, seed)
    pixels, targets = all_pixels(images), poses_from_front(images)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            index = torch.randint(len(pixels), (batch_size,), generator=generator)
            rough, order = roughened(from_uint8(pixels[index]), generator)
            yield rough, targets[index[order]]

    teach(regressor, batches(), F.mse_loss, steps=steps, title="pose regressor", progress=progress)
    return regressor


@dataclass(frozen=True)
class AngleResponse:
    """A requested angle, yaw or pitch, against the one that is seen, the same faces at every angle."""

    requested: list[float]
    """radians from the front"""
    seen: list[float]
    """mean over faces"""
    slope: float
    """of the line through all (requested, seen): 1 for a head that turns as it should, 0 for a flat picture"""
    correlation: float


@torch.no_grad()
def yaw_response(
    generator: AnyGenerator,
    regressor: PoseRegressor,
    settings: VolumeSettings,
    *,
    resolution: int,
    fov_degrees: float = 12.0,
    faces: int = 32,
    largest: float = 0.6,
    views: int = 9,
    seed: int = 7,
) -> AngleResponse:
    """Turn the same faces from -largest to largest and see how far they seem to turn."""
    styles = generator.mapping(*generator.sample_z(faces, generator=torch.Generator().manual_seed(seed)))
    requested = torch.linspace(-largest, largest, views)
    seen = []
    for yaw in requested:
        angle = torch.full((faces,), FRONT)
        cameras = Cameras.from_angles(angle, angle + yaw, fov_degrees).to(generator.device)
        images = generator.render(styles, View(resolution, cameras, settings, jitter=False)).image
        seen.append(regressor(images.cpu())[:, 0])
    return response_of(requested, torch.stack(seen, dim=1))


def response_of(requested: Tensor, seen: Tensor) -> AngleResponse:
    """The response of faces: requested [V], seen [faces, V]."""
    x = requested.expand_as(seen).flatten().double()
    y = seen.flatten().double()
    x_centred, y_centred = x - x.mean(), y - y.mean()
    slope = (x_centred * y_centred).sum() / x_centred.square().sum()
    correlation = (x_centred * y_centred).sum() / (x_centred.norm() * y_centred.norm())
    return AngleResponse(requested.tolist(), seen.mean(0).tolist(), float(slope), float(correlation))


@dataclass(frozen=True)
class PoseAccuracy:
    """How faithfully faces follow the camera."""

    yaw: AngleResponse
    pitch: AngleResponse
    error_degrees: float
    """root mean square of the angle between requested and seen (yaw, pitch), over all views"""


@torch.no_grad()
def pose_accuracy(
    loaded: LoadedGenerator,
    regressor: PoseRegressor,
    faces: FaceSample,
    *,
    resolution: int,
    largest_yaw: float = LARGEST_YAW,
    largest_pitch: float = LARGEST_PITCH,
    views: int = VIEWS,
) -> PoseAccuracy:
    """Move the camera from side to side and up and down, and see how far the same faces seem to turn.

    slope = Σ (x - x̄)(y - ȳ) / Σ (x - x̄)² and the correlation of requested angles x and seen ones y, pooled over all
    faces; error = √(mean of |seen - requested|²) over both angles of all views. A regressor errs too: compare with
    what it says of real heads (`python -m cips3d.evaluate heads`).

    Args:
        loaded: a 3-D generator of synthetic heads.
        regressor: taught on them.
        faces: which faces.
        resolution: side of the pictures that the regressor was taught on.
        largest_yaw, largest_pitch: radians; views are equally spaced from minus this to this, the other angle at 0.
        views: how many of each, at least 2.

    Raises:
        UserError: the model is 2-D.
    """
    if views < 2:
        raise ValueError(f"views must be at least 2, got {views}")
    yaws, pitches, still = equal_angles(largest_yaw, views), equal_angles(largest_pitch, views), torch.zeros(views)
    requested = torch.stack([torch.cat([yaws, still]), torch.cat([still, pitches])], dim=1)  # [2 V, 2]
    # The regressor sees angles from the front of the heads, and cameras are asked for from that of the model.
    front = torch.tensor([loaded.poses.yaw_mean - FRONT, loaded.poses.front_pitch - FRONT])
    seen = torch.cat(
        [
            regressor(resized(chunk.image.flatten(0, 1), resolution)).view(-1, 2 * views, 2) - front
            for chunk in seen_from(loaded, faces, requested[:, 1], requested[:, 0], title="pose")
        ]
    )  # [S, 2 V, 2]
    error = (seen - requested).square().sum(-1).mean().sqrt()
    return PoseAccuracy(
        response_of(yaws, seen[:, :views, 0]), response_of(pitches, seen[:, views:, 1]), math.degrees(error)
    )
