"""The mirror symmetry index: is the picture from the left the mirror image of the one from the right?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cips3d.evaluation.views import FaceSample, seen_from
from cips3d.rendering import LoadedGenerator

YAWS = (0.15, 0.3, 0.45)


@dataclass(frozen=True)
class MirrorSymmetry:
    """How far the two sides of faces are mirror images."""

    index: float
    """1: truly symmetric; 0: as different as another face; negative: more so"""
    yaws: list[float]
    """radians from the front"""
    by_yaw: list[float]
    """the index at each"""


@torch.no_grad()
def mirror_symmetry(loaded: LoadedGenerator, faces: FaceSample, *, yaws: tuple[float, ...] = YAWS) -> MirrorSymmetry:
    """`symmetry_of` faces at + yaw and at - yaw, for several yaws.

    A generator that learns mirrored half-spaces (the mirror symmetry problem of CIPS-3D, arXiv 2110.09788)
    comes near 1 with faces that should not. What is right depends on the data: compare with the index of real faces
    (`python -m cips3d.evaluate heads` for synthetic heads), from which an index can differ in either direction.

    Args:
        loaded: a 3-D generator.
        faces: which faces, at least two.
        yaws: radians from the front, > 0.

    Raises:
        UserError: the model is 2-D.
    """
    if not yaws or min(yaws) <= 0:
        raise ValueError(f"yaws must hold angles above 0, got {yaws}")
    positive = torch.tensor(yaws)
    both = torch.cat([positive, -positive])
    views = [
        seen.image for seen in seen_from(loaded, faces, torch.zeros_like(both), both, title="symmetry")
    ]  # [S, 2 Y, 3, H, W] each
    at_plus, at_minus = torch.cat(views).chunk(2, dim=1)
    by_yaw = [symmetry_of(plus, minus) for plus, minus in zip(at_plus.unbind(1), at_minus.unbind(1), strict=True)]
    return MirrorSymmetry(sum(by_yaw) / len(by_yaw), list(yaws), by_yaw)


def symmetry_of(at_plus: Tensor, at_minus: Tensor) -> float:
    """Likeness of pictures to the mirrored ones from the other side, calibrated by those of other faces.

    index = 1 - mean_i |P_i - flip(M_i)|² / mean_{i≠j} |P_i - flip(M_j)|²

    It is 1 where every M_i is P_i mirrored, and 0 on average where they have no more to do with each other than the
    pictures of two different faces.

    Args:
        at_plus, at_minus: [S, 3, H, W] the same S ≥ 2 faces from both sides.
    """
    if at_plus.shape != at_minus.shape or len(at_plus) < 2:
        shapes = f"{list(at_plus.shape)} and {list(at_minus.shape)}"
        raise ValueError(f"at_plus and at_minus must be pictures of the same two faces or more, got {shapes}")
    left = at_plus.flatten(1).double()
    right = at_minus.flip(-1).flatten(1).double()
    distance = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").square()  # [S, S]
    own = distance.diagonal().mean()
    others = (distance.sum() - distance.diagonal().sum()) / (len(left) * (len(left) - 1))
    return float(1 - own / others) if others > 0 else float("nan")
