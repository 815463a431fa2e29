"""The score that chooses a run's best checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.data.images import ImageSource
from cips3d.evaluation.frechet import features_of, frechet_distance
from cips3d.models.family import AnyGenerator
from cips3d.models.generator import View
from cips3d.training.config import TrainConfig

SCORE_SEED = 20_211
BATCH = 32


class Score:
    """Fréchet distance of random convolution features, averages' images against real ones; smaller is better.

    It has random numbers of its own, so that measuring does not change the training.
    """

    def __init__(self, source: ImageSource, count: int) -> None:
        self.count = min(count, len(source))
        self.real = features_of(_batches_of(source, self.count))

    def __call__(self, generator: AnyGenerator, config: TrainConfig, resolution: int) -> float:
        images = generated_images(generator, config, resolution, self.count)
        return frechet_distance(features_of(images), self.real)


def generated_images(
    generator: AnyGenerator, config: TrainConfig, resolution: int, count: int, seed: int = SCORE_SEED
) -> Iterator[Tensor]:
    """Batches [B, 3, H, W] of `count` images of random z from cameras of the training distribution."""
    random = torch.Generator().manual_seed(seed)
    for start in range(0, count, BATCH):
        batch = min(BATCH, count - start)
        z = generator.sample_z(batch, generator=random)
        pitch, yaw = config.poses.sample(batch, generator=random)
        cameras = Cameras.from_angles(pitch, yaw, config.fov_degrees).to(generator.device)
        with torch.no_grad():
            yield generator.render(
                generator.mapping(*z), View(resolution, cameras, config.volume, generator=random)
            ).image


def _batches_of(source: ImageSource, count: int) -> Iterator[Tensor]:
    for start in range(0, count, BATCH):
        images = [source[i] for i in range(start, min(start + BATCH, count))]
        yield torch.stack(images).float() / 127.5 - 1
