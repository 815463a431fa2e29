"""DiffAugment: random changes of all images that the discriminator sees, through which gradients flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cips3d.draws import drawn
from cips3d.errors import UserError
from cips3d.ops.checks import check_tensor

TRANSLATION_RATIO = 0.125  # largest shift, as a share of the side
CUTOUT_RATIO = 0.2  # side of the cut square, as a share of the side; CIPS-3D's (0.5 in the paper)


def color(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Brightness, saturation and contrast, each with a draw u ~ U[0, 1) of its own for every image.

    x += u - ½;  x = m_c + 2u·(x - m_c) with m_c the mean over channels;  x = m + (u + ½)·(x - m) with m the
    mean of the image.

    Args:
        images: [B, C, H, W].
        generator: source of the draws.

    Returns:
        [B, C, H, W].
    """
    brightness, saturation, contrast = _uniform(3 * len(images), images, generator).view(3, -1, 1, 1, 1)
    images = images + (brightness - 0.5)
    gray = images.mean(1, keepdim=True)
    images = gray + 2 * saturation * (images - gray)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (images - mean)


def translation(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Shift each image by whole pixels, up to 1/8 of its sides in all four directions; zeros move in.

    Args:
        images: [B, C, H, W].
        generator: source of the draws.

    Returns:
        [B, C, H, W].
    """
    height, width = images.shape[2:]
    rows = _shifts(len(images), int(height * TRANSLATION_RATIO + 0.5), images, generator)
    columns = _shifts(len(images), int(width * TRANSLATION_RATIO + 0.5), images, generator)
    return shift(images, rows, columns)


def cutout(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Set a square of a fifth of each image's sides to zero; centred anywhere, it may reach over the edge.

    Args:
        images: [B, C, H, W].
        generator: source of the draws.

    Returns:
        [B, C, H, W].
    """
    batch, _, height, width = images.shape
    in_rows = _random_interval(batch, height, images, generator)
    in_columns = _random_interval(batch, width, images, generator)
    return images * ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}


def diff_augment(
    images: Tensor,
    policy: Sequence[str] | str = ("color", "translation", "cutout"),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Augment a batch, every image with draws of its own.

    Args:
        images: [B, C, H, W] in [-1, 1]; colours may leave this range.
        policy: names out of color, translation, cutout, in the order to apply; or one string with commas.
            With none, the images come back as they are.
        generator: source of the draws; they are made on its device (without one, on the images') and moved.

    Returns:
        [B, C, H, W], differentiable with respect to `images`.

    Raises:
        UserError: the policy names an augmentation that does not exist.

    Source: DiffAugment (arXiv 2006.10738), section 3.3.
    """
    check_tensor("images", images)
    if images.dim() != 4:
        raise ValueError(f"images must have shape [B, C, H, W], got {list(images.shape)}")
    if isinstance(policy, str):
        policy = [name.strip() for name in policy.split(",") if name.strip()]
    for name in policy:
        if name not in AUGMENTATIONS:
            raise UserError(f"augmentation {name!r} is unknown; choose out of {', '.join(AUGMENTATIONS)}")
        images = AUGMENTATIONS[name](images, generator)
    return images


def shift(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Move each image down by `rows` [B] and right by `columns` [B] whole pixels; zeros move in."""
    for dim, offset in ((2, rows), (3, columns)):
        shape = [len(images), 1, 1, 1]
        shape[dim] = images.shape[dim]
        source = torch.arange(shape[dim], device=images.device) - offset[:, None]  # [B, H or W]
        inside = (source >= 0) & (source < shape[dim])
        nearest = source.clamp(0, shape[dim] - 1).view(shape).expand_as(images)
        images = images.gather(dim, nearest) * inside.view(shape)
    return images


def _random_interval(batch: int, size: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """[B, size] true in an interval of a fifth of `size` whose centre may be anywhere."""
    length = int(size * CUTOUT_RATIO + 0.5)
    # An even interval has its centre between two pixels or at an end: one place more than an odd one.
    centre = _integers(0, size + 1 - length % 2, batch, like, generator)
    first = (centre - length // 2)[:, None]
    position = torch.arange(size, device=like.device)
    return (position >= first) & (position < first + length)


def _shifts(batch: int, largest: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return _integers(-largest, largest + 1, batch, like, generator)


def _integers(low: int, high: int, count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return drawn(torch.randint, low, high, (count,), generator=generator, device=like.device, dtype=None)


def _uniform(count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return drawn(torch.rand, count, generator=generator, device=like.device, dtype=like.dtype)
