"""Synthetic heads as a generator: what every measure gives for faces that are right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cips3d.cameras import PoseDistribution
from cips3d.data.heads import render_heads, sample_heads
from cips3d.models.generator import Generator, ParameterGroups
from cips3d.models.view import Picture, View
from cips3d.models.volume import VolumeSettings
from cips3d.pictures import from_uint8
from cips3d.rendering import LoadedGenerator

HEADS = 1024  # z chooses one of so many
HEADS_SEED = 0  # of these
FOV_DEGREES = 12.0


class HeadStyles(NamedTuple):
    """Which heads.

    Attributes:
        head: [B] positions in the pool.
    """

    head: Tensor


class GroundTruthHeads(Generator[HeadStyles]):
    """Rendered synthetic heads behind the interface of a generator; z [B, 1] chooses a head of a fixed pool."""

    is_3d = True

    def __init__(self) -> None:
        super().__init__()
        self.heads = sample_heads(HEADS, torch.Generator().manual_seed(HEADS_SEED))

    @property
    def z_dims(self) -> tuple[int]:
        return (1,)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def mapping(self, *z: Tensor) -> HeadStyles:
        """The head at position ⌊HEADS · Φ(z)⌋, every one equally likely."""
        place = torch.special.ndtr(z[0][:, 0].double()) * HEADS
        return HeadStyles(place.long().clamp(0, HEADS - 1))

    def render(self, styles: HeadStyles, view: View) -> Picture:
        """Pictures of heads; pixels that a head covers by less than half have the depth t_far.

        Raises:
            ValueError: a window or a picture that is not square is asked for.
        """
        if view.window is not None or not isinstance(view.resolution, int):
            raise ValueError(
                "synthetic heads are rendered as whole square pictures; leave out window and give one side"
            )
        shown = render_heads(self.heads[styles.head], view.cameras, view.resolution)
        depth = torch.where(shown.mask >= 0.5, shown.depth, view.volume.t_far)
        return Picture(from_uint8(shown.images), None, depth[:, None])

    def parameter_groups(self) -> ParameterGroups:
        return ParameterGroups((), (), ())


def ground_truth_heads(resolution: int) -> LoadedGenerator:
    """Synthetic heads as a loaded generator of pictures of this side, seen by the cameras of training."""
    return LoadedGenerator(
        GroundTruthHeads().eval(), VolumeSettings(), FOV_DEGREES, resolution, PoseDistribution(), step=None
    )
