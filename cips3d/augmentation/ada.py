"""Adaptive discriminator augmentation: random transforms of all that the discriminator sees, as many as it needs.

Of the paper's pipeline the groups b, g and c are here, pixel blitting, general geometric and colour transforms: "bgc"
is what the paper recommends. Image-space filtering, noise and cutout, which it found to be of less use, are left out.
The published code resamples for pixel blitting and geometric transforms at once; here pixel blitting copies pixels.

Source: ADA (arXiv 2006.06676), sections 2 and 3, appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cips3d.augmentation import ada_transforms as transforms
from cips3d.draws import drawn
from cips3d.ops.autocast import without_autocast
from cips3d.ops.checks import check_tensor

AdaGroup = Literal["blit", "geometric", "color"]
BGC: tuple[AdaGroup, ...] = get_args(AdaGroup)

# Strengths, as in the paper's appendix B.
INTEGER_TRANSLATION = 0.125  # largest, as a share of the side
# Standard deviations of the logarithms of factors.
LOG_SCALE = 0.2 * math.log(2)
LOG_CONTRAST = 0.5 * math.log(2)
LOG_SATURATION = 1.0 * math.log(2)
FRACTIONAL_TRANSLATION = 0.125  # standard deviation, as a share of the side
BRIGHTNESS = 0.2  # standard deviation, for colours in [-1, 1]


def adaptive_augment(
    images: Tensor,
    p: float | Tensor,
    *,
    groups: Sequence[AdaGroup] = BGC,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Augment a batch; every transform befalls every image with probability p, independently.

    Args:
        images: [B, 3, H, W] in [-1, 1], square for "blit"; colours may leave this range.
        p: probability in [0, 1]; a tensor is not waited for.
        groups: which transforms: "blit" (mirrored left and right, quarter turns, whole-pixel shifts), "geometric"
            (scale, rotation, anisotropic scale, fractional shift), "color" (brightness, contrast, luma flip, hue,
            saturation). They are applied in this order.
        generator: source of the draws; they are made on its device (without one, on the images') and moved. Their
            number depends on the batch and the groups alone, save that none are made for p = 0 as a plain number.

    Returns:
        [B, 3, H, W], differentiable any number of times with respect to `images`. Images that no transform befell are
        exactly those of the input.

    Raises:
        ValueError: an argument does not fit; it is named.

    Source: ADA (arXiv 2006.06676), section 2.2 and appendix B.
    """
    check_tensor("images", images)
    if images.dim() != 4:
        raise ValueError(f"images must have shape [B, C, H, W], got {list(images.shape)}")
    if unknown := set(groups) - set(BGC):
        raise ValueError(f"groups must be out of {', '.join(BGC)}, got {', '.join(sorted(unknown))}")
    if not isinstance(p, Tensor):
        if not 0 <= p <= 1:
            raise ValueError(f"p must be between 0 and 1, got {p}")
        if p == 0:
            return images
    dtype = torch.promote_types(images.dtype, torch.float32)  # positions need more than half precision
    draws = Draws(len(images), p, dtype, images.device, generator)
    height, width = images.shape[2:]
    with without_autocast(images.device):
        augmented = images.to(dtype)
        if "blit" in groups:
            augmented = transforms.blit(augmented, *random_blits(draws, width))
        if "geometric" in groups:
            augmented = transforms.resample(augmented, random_geometry(draws, height, width))
        if "color" in groups:
            augmented = transforms.recolor(augmented, random_colors(draws))
        return augmented.to(images.dtype)


@dataclass(frozen=True)
class Draws:
    """Random numbers for a batch."""

    batch: int
    p: float | Tensor
    dtype: torch.dtype
    device: torch.device  # of the images
    generator: torch.Generator | None

    def unit(self, *rows: int) -> Tensor:
        """[*rows, B] ~ U[0, 1)."""
        return self._draw(torch.rand, rows)

    def normal(self, *rows: int) -> Tensor:
        """[*rows, B] ~ N(0, 1)."""
        return self._draw(torch.randn, rows)

    def angle(self) -> Tensor:
        """[B] ~ U[-π, π)."""
        return (2 * self.unit() - 1) * math.pi

    def applied(self, values: Tensor, neutral: float, p: float | Tensor | None = None) -> Tensor:
        """[*rows, B] `values`, with probability p an image, and otherwise what changes nothing."""
        return torch.where(self.unit() < (self.p if p is None else p), values, neutral)

    def _draw(self, distribution: Callable[..., Tensor], rows: tuple[int, ...]) -> Tensor:
        return drawn(distribution, *rows, self.batch, generator=self.generator, device=self.device, dtype=self.dtype)


def random_blits(draws: Draws, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Flips, quarter turns, and whole pixels to the right and down, [B] each, for `transforms.blit`."""
    flip = draws.applied((2 * draws.unit()).floor(), 0)
    turns = draws.applied((4 * draws.unit()).floor(), 0)
    right, down = draws.applied(((2 * draws.unit(2) - 1) * INTEGER_TRANSLATION * side).round(), 0)
    return flip > 0, turns.long(), right, down


def random_geometry(draws: Draws, height: int, width: int) -> Tensor:
    """[B, 3, 3] from positions of the result to positions of the image, for `transforms.resample`."""
    # Turned before or after the anisotropic scale, an image is turned with probability p in all.
    p_rotation = 1 - (1 - draws.p) ** 0.5
    scale = draws.applied((LOG_SCALE * draws.normal()).exp(), 1)
    turn_before = draws.applied(draws.angle(), 0, p_rotation)
    stretch = draws.applied((LOG_SCALE * draws.normal()).exp(), 1)
    turn_after = draws.applied(draws.angle(), 0, p_rotation)
    right, down = draws.applied(FRACTIONAL_TRANSLATION * draws.normal(2), 0)
    # From the result back to the image: the inverse of each, the first transform first.
    inverses = (
        transforms.scaling(1 / scale, 1 / scale),
        transforms.rotation(-turn_before),
        transforms.scaling(1 / stretch, stretch),
        transforms.rotation(-turn_after),
        transforms.translation(-right * width, -down * height),
    )
    return reduce(transforms.product, inverses)


def random_colors(draws: Draws) -> Tensor:
    """[B, 4, 4] from colours of the image to colours of the result, for `transforms.recolor`."""
    steps = (
        transforms.brightness(draws.applied(BRIGHTNESS * draws.normal(), 0)),
        transforms.contrast(draws.applied((LOG_CONTRAST * draws.normal()).exp(), 1)),
        transforms.luma_flip(draws.applied((2 * draws.unit()).floor(), 0)),
        transforms.hue(draws.applied(draws.angle(), 0)),
        transforms.saturation(draws.applied((LOG_SATURATION * draws.normal()).exp(), 1)),
    )
    return reduce(lambda before, step: transforms.product(step, before), steps)


class AdaptiveProbability:
    """The probability p that keeps the discriminator from learning its images by heart.

    r = E[sign D(x)] over the real images of `interval` steps grows from 0 to 1 as the discriminator overfits;
    p ← clamp(p + sign(r - target) · images / (1000·kimg), 0, 1).

    Args:
        target: r that p is steered to.
        interval: steps between changes of p.
        kimg: thousands of images over which p can go from 0 to 1.

    Source: ADA (arXiv 2006.06676), section 3.
    """

    def __init__(self, target: float = 0.6, *, interval: int = 4, kimg: float = 500.0) -> None:
        self.target = target
        self.interval = interval
        self.kimg = kimg
        self.p = 0.0
        # Since p was last looked at.
        self._signs: float | Tensor = 0.0
        self._images = 0
        self._steps = 0

    def observe(self, real_sign: float | Tensor, images: int) -> float:
        """Take note of one step and return p, changed where `interval` steps have been seen.

        Args:
            real_sign: mean of sign D(x) over the step's real images of all processes, who must all get the same.
            images: how many these were.
        """
        self._signs = self._signs + real_sign * images  # a tensor is only waited for when p changes
        self._images += images
        self._steps += 1
        if self._steps >= self.interval:
            # Compared, not subtracted: where logits were not numbers, p stays.
            r = float(self._signs) / self._images
            direction = (r > self.target) - (r < self.target)
            self.p = min(1.0, max(0.0, self.p + direction * self._images / (1000 * self.kimg)))
            self._signs, self._images, self._steps = 0.0, 0, 0
        return self.p

    def state_dict(self) -> dict[str, float]:
        """p and what has been seen since it changed, in plain numbers."""
        return {"p": self.p, "signs": float(self._signs), "images": self._images, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.p = float(state["p"])
        self._signs = float(state["signs"])
        self._images = int(state["images"])
        self._steps = int(state["steps"])
