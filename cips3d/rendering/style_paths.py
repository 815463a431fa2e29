"""Styles between those of seeds: ways through several faces, and mixtures of two."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cips3d.models.generator import chosen, styles_of
from cips3d.rendering.loading import LoadedGenerator

Part = Literal["shape", "appearance", "both"]


def spline_weights(keys: int, frames: int) -> Tensor:
    """Weights of a closed, smooth way through keys: a periodic Catmull-Rom spline.

    Frame k is at u = k · keys / frames, between key i = ⌊u⌋ and the next; with s = u - i, the way there is the cubic
    with values p_i, p_{i+1} and slopes (p_{i+1} - p_{i-1}) / 2, (p_{i+2} - p_i) / 2 at its ends. Every key is met, and
    the speed has no jumps; of two keys, the slopes are 0 and the way goes straight there and back.

    Args:
        keys: how many; they follow each other in a circle.
        frames: how many; frame 0 is key 0.

    Returns:
        [frames, keys], rows sum to 1.

    Source: E. Catmull and R. Rom, A class of local interpolating splines, 1974.
    """
    if keys < 1 or frames < 1:
        raise ValueError(f"keys and frames must be at least 1, got {keys} and {frames}")
    u = torch.arange(frames, dtype=torch.float64) * keys / frames
    key = u.floor()
    s = u - key
    blend = torch.stack(
        [
            (-(s**3) + 2 * s**2 - s) / 2,
            (3 * s**3 - 5 * s**2 + 2) / 2,
            (-3 * s**3 + 4 * s**2 + s) / 2,
            (s**3 - s**2) / 2,
        ],
        dim=1,
    )  # of the keys i - 1, i, i + 1, i + 2
    places = (key.long()[:, None] + torch.arange(-1, 3)) % keys
    return torch.zeros(frames, keys, dtype=torch.float64).scatter_add_(1, places, blend)


def interpolated_styles(styles: tuple[Tensor, ...], frames: int, part: Part = "both") -> tuple[Tensor, ...]:
    """A closed way through the styles of several faces (`spline_weights`).

    Args:
        styles: of the faces, in the order of the way.
        frames: how many; the first is the first face.
        part: what changes; "shape" or "appearance" alone, of generators whose styles have these two, leaves the other
            at that of the first face.

    Returns:
        Styles of `frames` faces.

    Raises:
        ValueError: the styles have no such part.
    """
    names = style_parts(styles)
    if part != "both" and part not in names:
        raise ValueError(f"part must be both for styles of {' and '.join(names)}, got {part!r}")
    weights = spline_weights(len(styles[0]), frames)
    moved = [
        torch.tensordot(weights.to(style), style, dims=1)
        if part in ("both", name)
        else style[:1].expand(frames, *style.shape[1:])
        for name, style in zip(names, styles, strict=True)
    ]
    return styles_of(styles, moved)


def style_parts(styles: tuple[Tensor, ...]) -> tuple[str, ...]:
    """Names of the tensors that a generator's styles consist of."""
    names: tuple[str, ...] = getattr(styles, "_fields", ())
    return names


def mixed_styles(
    loaded: LoadedGenerator, first: tuple[Tensor, ...], second: tuple[Tensor, ...], layer: int
) -> tuple[Tensor, ...]:
    """Every one of A faces with the later layers of every one of B faces (style mixing): A·B faces, B for each of A.

    Args:
        first: styles of A faces, which give the layers below `layer` (in CIPS-3D, the shape too).
        second: styles of B faces, which give those from `layer` on.
        layer: 0 to the generator's `style_layers`.

    Raises:
        ValueError: the generator has no such layer.

    Source: StyleGAN (arXiv 1812.04948), section 3.1.
    """
    rows, columns = len(first[0]), len(second[0])
    pairs = torch.arange(rows * columns, device=first[0].device)
    return loaded.generator.mixed(chosen(first, pairs // columns), chosen(second, pairs % columns), layer)
