"""The small network that judges pictures, and how pictures are roughened to teach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cips3d.augmentation.diff_augment import diff_augment
from cips3d.data.images import ImageSource

CHANNELS = (3, 24, 32, 48, 64)
FEATURES = 64
NOISE = 0.05  # largest standard deviation of the noise that training images get: generated ones are not clean
LEARNING_RATE = 2e-3


class ImageNetwork(nn.Module):
    """Images [B, 3, R, R] in [-1, 1] -> [B, outputs]; the layer before gives features that rank pictures."""

    def __init__(self, outputs: int) -> None:
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
        self.output = nn.Linear(FEATURES, outputs)

    def features(self, images: Tensor) -> Tensor:
        """[B, 64]"""
        pooled = F.adaptive_avg_pool2d(self.convolutions(images), 2).flatten(1)
        return F.leaky_relu(self.hidden(pooled), 0.1)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.features(images))


Network = TypeVar("Network", bound=ImageNetwork)


def seeded(network: Callable[[], Network], seed: int) -> Network:
    """A network whose first weights come from the seed; global random numbers stay as they were, those of GPUs too."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs, which are not forked
        return network()


def all_pixels(images: ImageSource) -> Tensor:
    """All pictures of a source, uint8 [N, 3, R, R]."""
    return torch.stack([images[i] for i in range(len(images))])


def roughened(batch: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blur every other picture, shift colours, cut holes and add noise, and reorder: blurred ones come first.

    Generated pictures are blurred, oddly coloured and wrong in places: no single clue may decide.

    Args:
        batch: [B, 3, R, R] in [-1, 1].
        generator: source of everything random.

    Returns:
        the pictures, and the positions [B] that they had in `batch`.
    """
    blurred = F.interpolate(F.avg_pool2d(batch[::2], 2), scale_factor=2.0, mode="bilinear")
    rough = diff_augment(torch.cat([blurred, batch[1::2]]), ("color", "cutout"), generator=generator)
    amount = NOISE * torch.rand(len(batch), 1, 1, 1, generator=generator)
    order = torch.arange(len(batch))
    return rough + amount * torch.randn(rough.shape, generator=generator), torch.cat([order[::2], order[1::2]])


def teach(
    network: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    title: str,
    progress: bool,
) -> None:
    """Minimise loss(network(images), targets) by AdamW, with a rate that falls to 0, and switch to evaluation."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    network.train()
    for step in tqdm(range(steps), desc=title, unit="step", disable=not progress, leave=False):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        images, targets = next(batches)
        value = loss(network(images), targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    network.eval()
