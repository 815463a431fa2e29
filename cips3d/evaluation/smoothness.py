"""Depth smoothness: are surfaces even, or noisy and full of holes?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cips3d.evaluation.consistency import EMPTY
from cips3d.evaluation.views import FaceSample, seen_from
from cips3d.rendering import LoadedGenerator

YAWS = (-0.4, 0.0, 0.4)
EDGE = 0.1  # share of a ray's length: neighbours that differ more lie on different surfaces
UNIT = 1000.0  # roughness is given in thousandths of a ray's length


@dataclass(frozen=True)
class DepthSmoothness:
    """How even the surfaces are."""

    roughness: float
    """thousandths of a ray's length; not a number where there is no surface"""
    edges: float
    """share of neighbouring pixels, from 0 to 1, between which the depth jumps"""


@torch.no_grad()
def depth_smoothness(loaded: LoadedGenerator, faces: FaceSample, *, yaws: tuple[float, ...] = YAWS) -> DepthSmoothness:
    """`roughness_of` the depth maps of faces from several sides; t_near and t_far are the model's.

    Args:
        loaded: a 3-D generator.
        faces: which faces.
        yaws: radians from the front.

    Raises:
        UserError: the model is 2-D.
    """
    yaw = torch.tensor(yaws)
    maps = [
        seen.depth.flatten(0, 1)
        for seen in seen_from(loaded, faces, torch.zeros_like(yaw), yaw, title="smoothness", depth=True)
        if seen.depth is not None
    ]
    return roughness_of(torch.cat(maps), loaded.settings.t_near, loaded.settings.t_far)


def roughness_of(depth: Tensor, t_near: float, t_far: float) -> DepthSmoothness:
    """Mean second difference of depth along rows and columns, away from silhouettes and empty space.

    roughness = 1000 · mean |t_{k-1} - 2 t_k + t_{k+1}| / (t_far - t_near) over triples of neighbours on one surface:
    none of the three is empty, and neither step is larger than a tenth of the ray. A plane has next to none,
    independent noise of standard deviation s gives √(12/π) s, and a surface's own curvature counts with the square of
    the pixel's size: compare at one resolution.

    Args:
        depth: [N, 1, H, W] distances in scene units, t_far where nothing is.
        t_near, t_far: ends of the rays.

    Raises:
        ValueError: depth maps have a side of one pixel.
    """
    if min(depth.shape[-2:]) < 2:
        raise ValueError(f"depth must have sides of 2 pixels or more, got {list(depth.shape)}")
    length = t_far - t_near
    scaled = depth.double() / length
    solid = depth < t_far - EMPTY * length
    bends = bent = jumps = steps = 0.0
    for dim in (-2, -1):
        step = scaled.diff(dim=dim)
        both = _before(solid, dim) & _after(solid, dim)
        even = both & (step.abs() <= EDGE)
        on_surface = _before(even, dim) & _after(even, dim)
        bend = step.diff(dim=dim).abs()
        bent += float(bend[on_surface].sum())
        bends += float(on_surface.sum())
        jumps += float((both & ~even).sum())
        steps += float(both.sum())
    return DepthSmoothness(UNIT * bent / bends if bends else math.nan, jumps / steps if steps else math.nan)


def _before(values: Tensor, dim: int) -> Tensor:
    return values.narrow(dim, 0, values.shape[dim] - 1)


def _after(values: Tensor, dim: int) -> Tensor:
    return values.narrow(dim, 1, values.shape[dim] - 1)
