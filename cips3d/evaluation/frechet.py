"""Fréchet distances between sets of images, by features that need no download."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

RANDOM_CONV_FORMAT = 1  # counted up whenever the same seed and channels would give other features
RANDOM_CONV_SEED = 5
RANDOM_CONV_CHANNELS = (3, 32, 48, 32)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of feature vectors, each taken as Gaussian.

    ‖μ_a - μ_b‖² + tr(C_a + C_b - 2 (C_a C_b)^½), computed in float64.

    Args:
        a, b: [N, D] and [M, D] features.

    Returns:
        the distance; NaN where a feature is not finite.

    Raises:
        ValueError: the widths differ, or a set has fewer than two vectors.

    Source: arXiv 1706.08500 (FID), eq. 6.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must be [N, D] and [M, D], got {list(a.shape)} and {list(b.shape)}")
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"a and b must each hold two vectors or more, got {len(a)} and {len(b)}")
    a, b = a.double(), b.double()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return math.nan
    width = a.shape[1]
    covariance_a, covariance_b = (torch.cov(x.T).reshape(width, width) for x in (a, b))
    # The product's eigenvalues are real and not negative, nor is the distance; rounding may say otherwise.
    eigenvalues = torch.linalg.eigvals(covariance_a @ covariance_b).real.clamp_min(0)
    means = (a.mean(0) - b.mean(0)).square().sum()
    distance = means + covariance_a.trace() + covariance_b.trace() - 2 * eigenvalues.sqrt().sum()
    return max(float(distance), 0.0)


def random_conv_features(images: Tensor) -> Tensor:
    """Features of three fixed random convolutions: cheap, the same everywhere, and sensitive to what is seen early on.

    They rank generators of one data set at one resolution; they are no substitute for FID between papers.

    Args:
        images: [N, 3, H, W] in [-1, 1], sides of 16 or more.

    Returns:
        [N, 128]: 32 channels at 2 x 2 places.
    """
    generator = torch.Generator().manual_seed(RANDOM_CONV_SEED)
    x = images
    for width_in, width_out in zip(RANDOM_CONV_CHANNELS, RANDOM_CONV_CHANNELS[1:], strict=False):
        weight = torch.randn(width_out, width_in, 3, 3, generator=generator) * math.sqrt(2 / (9 * width_in))
        x = F.relu(F.conv2d(x, weight.to(x), stride=2, padding=1))
    return F.adaptive_avg_pool2d(x, 2).flatten(1)


def random_conv_digest() -> str:
    """What the features depend on besides the pictures, for the names of files that keep some."""
    made = {"format": RANDOM_CONV_FORMAT, "seed": RANDOM_CONV_SEED, "channels": RANDOM_CONV_CHANNELS}
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]


@torch.no_grad()
def features_of(batches: Iterable[Tensor], features: Callable[[Tensor], Tensor] = random_conv_features) -> Tensor:
    """Features [N, D] of batches of images in [-1, 1], on the CPU."""
    return torch.cat([features(batch).cpu() for batch in batches])
