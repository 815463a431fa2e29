"""Integers that stand for faces."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from cips3d.errors import LARGEST_NUMBER, UserError
from cips3d.models.generator import truncated
from cips3d.rendering.loading import LoadedGenerator

SEED = re.compile(r"[0-9]{1,19}")
SEED_LIMIT = 2**63
MAX_SEEDS = 4096  # in one picture
MAX_SEEDS_APART = 100_000  # in a folder of single pictures


@torch.no_grad()
def styles_of_seeds(loaded: LoadedGenerator, seeds: Iterable[int], truncation: float = 1.0) -> tuple[Tensor, ...]:
    """Styles of the faces that integers stand for.

    Every seed's z is drawn on the CPU by a random generator of its own, so that a seed means the same face on
    every device and whatever other seeds are asked for. That generator counts modulo 2^32: s and s + 2^32 are one face.

    Args:
        seeds: integers in [0, 2^63), as many as faces.
        truncation: ψ of mean + ψ (style - mean); 1 leaves styles as they are, 0 gives the mean face.

    Returns:
        The generator's styles of len(seeds) faces, on its device.

    Raises:
        ValueError: there are no seeds, or one is out of range.
    """
    seeds = [operator.index(seed) for seed in seeds]
    if not seeds:
        raise ValueError("seeds must hold at least one integer, got none")
    for seed in seeds:
        if not 0 <= seed < SEED_LIMIT:
            raise ValueError(f"seeds must lie between 0 and 2^63 - 1, got {seed}")
    styles = loaded.generator.mapping(*loaded.generator.z_of_seeds(seeds))
    return styles if truncation == 1 else truncated(styles, loaded.mean_styles, truncation)


def check_seed(seed: int) -> None:
    """Raise `UserError` for a --seed that torch's random generators do not take."""
    if not 0 <= seed < SEED_LIMIT:
        raise UserError(f"--seed {seed} is out of range; give an integer from 0 to 2^63 - 1")


def check_truncation(truncation: float) -> None:
    """Raise `UserError` for a --truncation that is NaN or beyond what networks compute with."""
    if not abs(truncation) <= LARGEST_NUMBER:
        raise UserError(f"--truncation {truncation:g} is out of range; give a number such as 0.7")


def parse_seeds(text: str, flag: str = "--seeds", most: int = MAX_SEEDS) -> list[int]:
    """`parse_integers` of faces."""
    return parse_integers(text, flag, "seeds", most)


def parse_integers(text: str, flag: str, what: str, most: int = MAX_SEEDS) -> list[int]:
    """The integers of a list such as "0-7", "3" or "1,5,9-12", in the order given.

    Args:
        text: the list.
        flag: what errors call it.
        what: that it numbers, in the plural.
        most: how many it may name.

    Raises:
        UserError: it is not such a list, or names too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [end.strip() for end in ((first, last) if dash else (first, first))]
        if not all(SEED.fullmatch(end) for end in ends):
            raise UserError(f"{flag} {text!r} is not a list of {what}; give integers and ranges such as 3 or 1,5,9-12")
        low, high = int(ends[0]), int(ends[1])
        if high < low:
            raise UserError(f"{flag} {text!r} counts down in {part.strip()}; write it as {high}-{low}")
        if high >= SEED_LIMIT:
            raise UserError(f"{flag} {text!r} holds {high}; give integers below 2^63")
        if len(seeds) + high - low + 1 > most:
            raise UserError(f"{flag} {text!r} names more than {most} {what}; give fewer")
        seeds.extend(range(low, high + 1))
    return seeds
