"""Seen poses: a regressor taught by synthetic heads, and how a generator's faces answer to the camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cips3d.cameras import FRONT, Cameras
from cips3d.data.images import ImageSource
from cips3d.models.generator import Generator
from cips3d.models.volume import VolumeSettings
from cips3d.training.diff_augment import diff_augment

CHANNELS = (3, 24, 32, 48, 64)
NOISE = 0.05  # largest standard deviation of the noise that training images get: generated ones are not clean
FEATURES = 64


class PosedImages(ImageSource, Protocol):
    """Images whose poses are known."""

    pitch: Tensor  # [N] radians
    yaw: Tensor  # [N] radians


class PoseRegressor(nn.Module):
    """Images [B, 3, R, R] in [-1, 1] -> (yaw, pitch) [B, 2], radians from the front; its features rank faces."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in zip(CHANNELS, CHANNELS[1:], strict=False):
            layers += [
                nn.Conv2d(width_in, width_out, 3, stride=2, padding=1),
                nn.BatchNorm2d(width_out),
                nn.LeakyReLU(0.1),
            ]
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(CHANNELS[-1] * 4, FEATURES)
        self.output = nn.Linear(FEATURES, 2)

    def features(self, images: Tensor) -> Tensor:
        """[B, 64]"""
        pooled = F.adaptive_avg_pool2d(self.convolutions(images), 2).flatten(1)
        return F.leaky_relu(self.hidden(pooled), 0.1)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.features(images))


def poses_from_front(images: PosedImages) -> Tensor:
    """[N, 2] yaw and pitch, radians from the front."""
    return torch.stack([images.yaw, images.pitch], dim=1).float() - FRONT


def train_pose_regressor(
    images: PosedImages, *, steps: int = 900, batch_size: int = 64, seed: int = 0, progress: bool = True
) -> PoseRegressor:
    """Teach a regressor on images with known poses (AdamW, squared error, rate falling to 0)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        regressor = PoseRegressor()
    pixels = torch.stack([images[i] for i in range(len(images))])  # uint8 [N, 3, R, R]
    targets = poses_from_front(images)
    optimizer = torch.optim.AdamW(regressor.parameters(), lr=2e-3)
    for step in tqdm(range(steps), desc="pose regressor", unit="step", disable=not progress, leave=False):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        index = torch.randint(len(pixels), (batch_size,), generator=generator)
        batch = pixels[index].float() / 127.5 - 1
        # Generated pictures are blurred, oddly coloured and wrong in places: no single clue may decide.
        blurred = F.interpolate(F.avg_pool2d(batch[::2], 2), scale_factor=2.0, mode="bilinear")
        batch = diff_augment(torch.cat([blurred, batch[1::2]]), ("color", "cutout"), generator=generator)
        amount = NOISE * torch.rand(batch_size, 1, 1, 1, generator=generator)
        batch = batch + amount * torch.randn(batch.shape, generator=generator)
        loss = F.mse_loss(regressor(batch), targets[torch.cat([index[::2], index[1::2]])])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return regressor.eval()


@dataclass(frozen=True)
class YawResponse:
    """Requested yaw against the yaw that is seen, the same faces at every yaw."""

    requested: list[float]
    """radians from the front"""
    seen: list[float]
    """mean over faces"""
    slope: float
    """of the line through all (requested, seen): 1 for a head that turns as it should, 0 for a flat picture"""
    correlation: float


@torch.no_grad()
def yaw_response(
    generator: Generator,
    regressor: PoseRegressor,
    settings: VolumeSettings,
    *,
    resolution: int,
    fov_degrees: float = 12.0,
    faces: int = 32,
    largest: float = 0.6,
    views: int = 9,
    seed: int = 7,
) -> YawResponse:
    """Turn the same faces from -largest to largest and see how far they seem to turn."""
    styles = generator.mapping(*generator.sample_z(faces, generator=torch.Generator().manual_seed(seed)))
    requested = torch.linspace(-largest, largest, views)
    seen = []
    for yaw in requested:
        angle = torch.full((faces,), FRONT)
        cameras = Cameras.from_angles(angle, angle + yaw, fov_degrees).to(generator.device)
        images = generator.synthesis(styles, cameras, settings, resolution=resolution, jitter=False).image
        seen.append(regressor(images.cpu())[:, 0])
    return response_of(requested, torch.stack(seen, dim=1))


def response_of(requested: Tensor, seen: Tensor) -> YawResponse:
    """The response of faces: requested [V], seen [faces, V]."""
    x = requested.expand_as(seen).flatten().double()
    y = seen.flatten().double()
    x_centred, y_centred = x - x.mean(), y - y.mean()
    slope = (x_centred * y_centred).sum() / x_centred.square().sum()
    correlation = (x_centred * y_centred).sum() / (x_centred.norm() * y_centred.norm())
    return YawResponse(requested.tolist(), seen.mean(0).tolist(), float(slope), float(correlation))
