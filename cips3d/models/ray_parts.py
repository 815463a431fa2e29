"""Rays rendered part by part: in chunks that bound memory, and with gradients for a random subset alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

from cips3d.cameras import Rays
from cips3d.draws import drawn
from cips3d.ops.checks import check_integer
from cips3d.ops.march import RayDraws

CPU_CHUNK_RAYS = 1024  # 2 MB of activations a layer of 512: what a core's L2 holds
CHUNK_RAYS = 65_536  # elsewhere: a 256² picture at once, below 2 GB of activations

# What is painted of rays: a NamedTuple of tensors [B, R, ...], or None in the place of what was not asked for.
PixelsT = TypeVar("PixelsT", bound="tuple[Tensor | None, ...]")

# Pixels of some rays of the images in a slice of the batch.
Painter = Callable[[slice, Rays, RayDraws], PixelsT]


def default_chunk_rays(device: torch.device) -> int:
    """Rays, or pixels without any, that a network of single pixels paints at a time without gradients.

    A CPU is quickest while activations stay in its caches (512 to 2048 rays are within 3%, 256 and whole pictures 10%
    slower); an accelerator wants few, large launches, and the limit only bounds memory.
    """
    return CPU_CHUNK_RAYS if device.type == "cpu" else CHUNK_RAYS


def paint_rays(
    painter: Painter[PixelsT],
    rays: Rays,
    draws: RayDraws,
    *,
    chunk_rays: int,
    grad_points: int | None = None,
    generator: torch.Generator | None = None,
) -> PixelsT:
    """Pixels of all rays; how they are divided changes memory and time, and nothing else (up to rounding).

    Args:
        painter: renders rays of some images; the slice says of which.
        rays: [B, R] rays.
        draws: their random numbers.
        chunk_rays: rays rendered at a time where no gradient is needed.
        grad_points: only so many randomly chosen rays an image carry gradients; the others are rendered without.
        generator: source of that choice.

    Raises:
        TypeError, ValueError: chunk_rays or grad_points is no integer, or less than 1.

    Source: CIPS-3D (arXiv 2110.09788), its partial gradient backpropagation.
    """
    for name, value in (("chunk_rays", chunk_rays), ("grad_points", grad_points)):
        if value is not None:
            check_integer(name, value, 1)
    if not torch.is_grad_enabled():
        return _in_chunks(painter, rays, draws, chunk_rays)
    if grad_points is not None and grad_points < rays.origins.shape[1]:
        return _with_partial_gradients(painter, rays, draws, chunk_rays, grad_points, generator)
    return painter(slice(None), rays, draws)


def _in_chunks(painter: Painter[PixelsT], rays: Rays, draws: RayDraws, chunk_rays: int) -> PixelsT:
    """At most `chunk_rays` rays at a time, so that activations stay in cache and memory is bounded.

    A chunk has whole images where they are small, so that an accelerator gets few launches, else a part of one. It goes
    into place at once: besides the pixels there are only the activations of one chunk.
    """
    batch, count = rays.origins.shape[:2]
    if batch * count <= chunk_rays:
        return painter(slice(None), rays, draws)
    whole: PixelsT | None = None
    images_at_once = max(1, chunk_rays // count)
    for first in range(0, batch, images_at_once):
        images = slice(first, first + images_at_once)
        for start in range(0, count, chunk_rays):
            part = slice(start, start + chunk_rays)
            some = Rays(rays.origins[images, part], rays.directions[images, part])
            chunk = painter(images, some, draws.part(images, part))
            if whole is None:
                whole = _like(chunk, [None if v is None else v.new_empty(batch, count, *v.shape[2:]) for v in chunk])
            for place, values in zip(whole, chunk, strict=True):
                if place is not None and values is not None:
                    place[images, part] = values
    assert whole is not None  # there are rays
    return whole


def _with_partial_gradients(
    painter: Painter[PixelsT],
    rays: Rays,
    draws: RayDraws,
    chunk_rays: int,
    grad_points: int,
    generator: torch.Generator | None,
) -> PixelsT:
    """A random subset of rays with gradients, the rest without, scattered into one picture."""
    count = rays.origins.shape[1]
    device = rays.origins.device
    permutation = drawn(torch.randperm, count, generator=generator, device=device, dtype=None)
    chosen, others = permutation[:grad_points], permutation[grad_points:]
    with_gradient = painter(slice(None), rays.subset(chosen), draws.subset(chosen))
    with torch.no_grad():
        without = _in_chunks(painter, rays.subset(others), draws.subset(others), chunk_rays)
    place = torch.empty_like(permutation).index_copy_(0, permutation, torch.arange(count, device=device))
    joined = [
        None if a is None or b is None else torch.cat([a, b], dim=1).index_select(1, place)
        for a, b in zip(with_gradient, without, strict=True)
    ]
    return _like(with_gradient, joined)


def _like(pixels: PixelsT, values: Sequence[Tensor | None]) -> PixelsT:
    make = cast(Callable[..., PixelsT], type(pixels))  # a NamedTuple takes its fields one by one
    return make(*values)


def as_picture(values: Tensor, height: int, width: int) -> Tensor:
    """Values of rays [B, H·W, C], row after row, as pictures [B, C, H, W]."""
    return values.transpose(1, 2).reshape(len(values), values.shape[2], height, width)
