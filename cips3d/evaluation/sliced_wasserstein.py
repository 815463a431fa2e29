"""Sliced Wasserstein distance of image patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 7
DIRECTIONS = 64
PATCHES_AN_IMAGE = 32
SCALES = (1, 2, 4)  # the images, and halved once and twice


def patch_sliced_wasserstein(a: Tensor, b: Tensor, *, seed: int = 0) -> float:
    """Mean sliced Wasserstein-1 distance of 7x7 patches at three scales, times 100.

    Patches at the same random places of both sets are projected on random unit directions; the distance of two
    one-dimensional sets of equal size is the mean difference of their sorted values.

    Args:
        a, b: [N, 3, H, W] and [M, 3, H, W] in [-1, 1]; the first min(N, M) of each are compared.
        seed: of places and directions.

    Raises:
        ValueError: the sizes differ, are below 4 pixels, or a set is empty.

    Source: sliced Wasserstein distance of ProGAN (arXiv 1710.10196), section 5, without its Laplacian bands and its
    normalisation of patches.
    """
    if a.dim() != 4 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"a and b must be images of one size, got {list(a.shape)} and {list(b.shape)}")
    if min(len(a), len(b)) < 1 or min(a.shape[2:]) < max(SCALES):
        sizes = f"{list(a.shape)} and {list(b.shape)}"
        raise ValueError(f"a and b must hold images of {max(SCALES)} pixels or more, got {sizes}")
    generator = torch.Generator().manual_seed(seed)
    count = min(len(a), len(b))
    distances = []
    for scale in SCALES:
        patches_a, patches_b = (_patches(F.avg_pool2d(images[:count], scale)) for images in (a, b))
        width, places = patches_a.shape[1:]
        chosen = torch.randint(places, (count, min(PATCHES_AN_IMAGE, places)), generator=generator)
        directions = F.normalize(torch.randn(width, DIRECTIONS, generator=generator), dim=0)
        sorted_a, sorted_b = (
            (_at(patches, chosen) @ directions.to(patches.dtype)).sort(dim=0).values
            for patches in (patches_a, patches_b)
        )
        distances.append((sorted_a - sorted_b).abs().mean())
    return float(torch.stack(distances).mean()) * 100


def _patches(images: Tensor) -> Tensor:
    """[N, 3·7·7, places]"""
    return F.unfold(images, min(PATCH, *images.shape[-2:]))


def _at(patches: Tensor, places: Tensor) -> Tensor:
    """Patches [N, D, P] at places [N, K] -> [N·K, D]."""
    index = places[:, None].expand(-1, patches.shape[1], -1)
    return patches.gather(2, index).transpose(1, 2).reshape(-1, patches.shape[1])
