"""A small discriminator with residual blocks, and pictures for it."""

from __future__ import annotations

import torch
from torch import Tensor

from cips3d.models.residual_discriminator import ImageDiscriminator

CHANNELS = {4: 8, 8: 8, 16: 6, 32: 4}


def images(batch: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def small(minibatch_std_group: int = 0, downsample_first: bool = False) -> ImageDiscriminator:
    torch.manual_seed(0)
    return ImageDiscriminator(32, CHANNELS, minibatch_std_group, downsample_first)
