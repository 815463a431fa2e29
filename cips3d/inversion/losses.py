"""How far a picture is from the photograph."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.evaluation.catalogue import METRICS
from cips3d.evaluation.perceptual import lpips_map
from cips3d.pictures import psnr_of

Perceptual = Literal["pyramid", "lpips", "none"]
PERCEPTUAL: tuple[str, ...] = get_args(Perceptual)

# Differences [B] of pictures [B, 3, H, W] in [-1, 1].
Distance = Callable[[Tensor, Tensor], Tensor]

COARSEST = 8  # pixels: scales go on down to pictures of this side
MOST_SCALES = 4
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
CONTRAST_FLOOR = 0.17  # Laparra et al.'s, of values in [0, 1]


class PictureLoss(NamedTuple):
    """Differences [B] from the photograph.

    Attributes:
        perceptual: weighted.
    """

    pixel: Tensor
    perceptual: Tensor

    @property
    def total(self) -> Tensor:
        return self.pixel + self.perceptual


def scales_of(side: int) -> int:
    """Scales that pictures are compared at: their own, its half, ... down to 8 pixels, four at most."""
    return min(max(int(math.log2(max(side, 1) / COARSEST)), 0) + 1, MOST_SCALES)


def multiscale_squares(pictures: Tensor, photo: Tensor) -> Tensor:
    """Mean over scales of the mean squared difference [B], each scale half the size of the one before."""
    scales = scales_of(min(pictures.shape[-2:]))
    total = pictures.new_zeros(len(pictures))
    for scale in range(scales):
        if scale:
            pictures, photo = F.avg_pool2d(pictures, 2), F.avg_pool2d(photo, 2)
        total = total + (pictures - photo).square().mean((1, 2, 3))
    return total / scales


def normalized_pyramid(pictures: Tensor, photo: Tensor) -> Tensor:
    """Squared distance [B] of normalised Laplacian pyramids: contrast counts as much in the dark as in the light.

    A level is y = z / (0.17 + blur(|z|)) with z the difference of neighbouring levels of a Gaussian pyramid, of colours
    in [0, 1]; the distance is the mean over levels of the mean squared difference of y.

    Source: V. Laparra et al., Perceptual image quality assessment using a normalized Laplacian pyramid, 2016; squared
    instead of its root, so that the gradient has no jump where pictures agree.
    """
    scales = scales_of(min(pictures.shape[-2:]))
    total = pictures.new_zeros(len(pictures))
    a, b = (pictures + 1) / 2, (photo + 1) / 2
    for scale in range(scales):
        low_a, low_b = blurred(a), blurred(b)
        if scale + 1 < scales:
            total = total + (_normalized(a - low_a) - _normalized(b - low_b)).square().mean((1, 2, 3))
            a, b = low_a[..., ::2, ::2], low_b[..., ::2, ::2]
        else:
            total = total + (_normalized(a) - _normalized(b)).square().mean((1, 2, 3))
    return total / scales


def _normalized(band: Tensor) -> Tensor:
    return band / (CONTRAST_FLOOR + blurred(band.abs()))


def blurred(pictures: Tensor) -> Tensor:
    """[B, C, H, W] smoothed by the binomial filter (1, 4, 6, 4, 1) / 16 along rows and columns; edges go on."""
    channels = pictures.shape[1]
    taps = _binomial(pictures.dtype, pictures.device)
    padded = F.pad(pictures, (2, 2, 2, 2), mode="replicate")
    rows = F.conv2d(padded, taps.view(1, 1, 1, 5).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(rows, taps.view(1, 1, 5, 1).expand(channels, -1, -1, -1), groups=channels)


@lru_cache(maxsize=8)
def _binomial(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The filter's taps, made once: a GPU would wait for a copy of them, many times a step."""
    with torch.inference_mode(False):  # they are there for those who differentiate too
        return torch.tensor(BINOMIAL, dtype=dtype, device=device)


def perceptual_distance(perceptual: Perceptual, device: torch.device | str) -> Distance | None:
    """The perceptual distance "pyramid" or "lpips"; None for "none". LPIPS enlarges pictures that are too small for it.

    Raises:
        UserError: lpips is not installed, or its weights cannot be downloaded.
        ValueError: there is no such distance.
    """
    if perceptual == "none":
        return None
    if perceptual == "pyramid":
        return normalized_pyramid
    if perceptual != "lpips":
        raise ValueError(f"perceptual must be one of {', '.join(PERCEPTUAL)}, got {perceptual!r}")
    difference, side = lpips_map(device), METRICS["lpips"].least_side

    def distance(pictures: Tensor, photo: Tensor) -> Tensor:
        if min(pictures.shape[-2:]) < side:
            pictures, photo = (F.interpolate(x, size=(side, side), mode="bilinear") for x in (pictures, photo))
        return difference(pictures, photo).mean((1, 2, 3))

    return distance


def picture_loss(pictures: Tensor, photo: Tensor, perceptual: Distance | None, weight: float) -> PictureLoss:
    """`multiscale_squares` and a weighted perceptual distance of pictures [B, 3, H, W] from a photo [1, 3, H, W]."""
    photo = photo.expand_as(pictures)
    seen = pictures.new_zeros(len(pictures)) if perceptual is None else weight * perceptual(pictures, photo)
    return PictureLoss(multiscale_squares(pictures, photo), seen)


def psnr(picture: Tensor, photo: Tensor) -> float:
    """Decibels, -10 log₁₀ of the mean squared difference of colours in [0, 1], pictures in [-1, 1]."""
    error = float((picture.clamp(-1, 1) - photo).double().square().mean()) / 4
    return psnr_of(error)
