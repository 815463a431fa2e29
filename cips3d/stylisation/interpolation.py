"""Interpolation of two models' weights, block by block."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from cips3d.errors import UserError
from cips3d.models.generator import WeightParts
from cips3d.rendering import LoadedGenerator


@dataclass(frozen=True)
class Shares:
    """How much of the style's weights is in every part: 0 is the base, 1 the style; others are between or beyond."""

    blocks: tuple[float, ...]
    """γ_b of what makes the picture, in order of depth, each with its ToRGB"""
    mapping: float = 0.0
    """of what gives the blocks their styles"""
    shape: float = 0.0
    """of the 3-D part with its mapping, in models whose blocks only paint"""

    @property
    def keeps_styles(self) -> bool:
        """The mappings are those of the base, so that a z has the same styles as in it."""
        return self.mapping == self.shape == 0

    def times(self, strength: float) -> Shares:
        """All shares times a factor."""
        return Shares(tuple(strength * share for share in self.blocks), strength * self.mapping, strength * self.shape)


def swapped(blocks: int, first: int) -> tuple[float, ...]:
    """Shares of layer swapping: blocks from `first` on are the style's, those before it the base's.

    Source: J. Pinkney and D. Adler, Resolution dependent GAN interpolation (arXiv 2010.05334), section 2.
    """
    if not 0 <= first <= blocks:
        raise ValueError(f"first must be 0 to {blocks}, got {first}")
    return tuple(float(block >= first) for block in range(blocks))


def interpolated_state(
    parts: WeightParts, base: Mapping[str, Tensor], style: Mapping[str, Tensor], shares: Shares
) -> dict[str, Tensor]:
    """θ = (1 - γ) θ_base + γ θ_style for all weights and buffers, with the γ of the part that each belongs to.

    Args:
        parts: of the model (`Generator.weight_parts`).
        base, style: state dicts of two models with the same networks.
        shares: γ of every part; 0 and 1 give the weights themselves, bit for bit.

    Returns:
        A state dict of new tensors.

    Raises:
        ValueError: shares are not as many as blocks, or a weight is in no part of the model.

    Source: CIPS-3D (arXiv 2110.09788), section 4 (interpolation of INR networks).
    """
    if len(shares.blocks) != len(parts.blocks):
        raise ValueError(f"shares.blocks must be {len(parts.blocks)} numbers, got {len(shares.blocks)}")
    groups = [*zip(parts.blocks, shares.blocks, strict=True)]
    groups += [(parts.mapping, shares.mapping), (parts.shape, shares.shape)]
    share_of = {prefix: share for prefixes, share in groups for prefix in prefixes}

    def between(name: str) -> Tensor:
        found = [share for prefix, share in share_of.items() if name == prefix or name.startswith(f"{prefix}.")]
        if len(found) != 1:
            raise ValueError(f"parts must hold every weight once, got {name} {len(found)} times")
        (share,) = found
        return base[name].clone() if share == 0 else torch.lerp(base[name], style[name], share)

    return {name: between(name) for name in base}


def stylised(base: LoadedGenerator, style: LoadedGenerator, shares: Shares) -> LoadedGenerator:
    """A model whose weights lie between those of two (`interpolated_state`).

    Two models that came from one, by going on with its training in two ways, have a sensible way between them; others
    may not. Cameras, the range of rays and the resolution are the base's.

    Args:
        base: the model at 0.
        style: the model at 1, usually the base after training on other pictures.
        shares: of every part.

    Raises:
        UserError: they have not the same networks.
        ValueError: shares are not as many as blocks.
    """
    check_same_networks(base, style)
    generator = copy.deepcopy(base.generator)
    state = interpolated_state(
        generator.weight_parts(), base.generator.state_dict(), style.generator.state_dict(), shares
    )
    generator.load_state_dict(state)
    return replace(base, generator=generator)  # which forgets the base's mean styles


def check_same_networks(first: LoadedGenerator, second: LoadedGenerator) -> None:
    """Raise `UserError` for two models whose weights do not mean the same."""
    kinds = [type(model.generator).__name__ for model in (first, second)]
    if kinds[0] != kinds[1]:
        raise UserError(f"the second checkpoint is a {kinds[1]}, the first a {kinds[0]}; give another {kinds[0]}")
    configs: list[Any] = [model.generator.config for model in (first, second)]
    for each in fields(configs[0]):
        one, other = (getattr(config, each.name) for config in configs)
        if one != other:
            raise UserError(
                f"the second checkpoint's networks differ from the first one's: {each.name} is {other}, not {one}; "
                "give one of the same networks, such as one that was trained on from the first (--init-from)"
            )
