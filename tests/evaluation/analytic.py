"""Generators whose pictures and depths are known in closed form: what 3-D metrics must find is known too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cips3d.cameras import Cameras, PoseDistribution, Rays
from cips3d.models.generator import Generator, ParameterGroups
from cips3d.models.view import Picture, View
from cips3d.models.volume import VolumeSettings
from cips3d.rendering import LoadedGenerator

FRONT = math.pi / 2
SETTINGS = VolumeSettings()  # rays from 0.88 to 1.12
BACKGROUND = 0.25


class Phases(NamedTuple):
    """What tells two faces apart."""

    phase: Tensor  # [B, 3]


# Colours [B, N, 3] of surface points [B, N, 3] of faces with phases [B, 3], seen by cameras.
Texture = Callable[[Tensor, Tensor, Cameras], Tensor]


def waves(points: Tensor, phase: Tensor, cameras: Cameras) -> Tensor:
    """A smooth pattern of world coordinates, without any symmetry."""
    u = 60 * points[..., 0] + 25 * points[..., 1] + 15 * points[..., 2]
    return 0.8 * torch.sin(u[..., None] + phase[:, None])


def even_waves(points: Tensor, phase: Tensor, cameras: Cameras) -> Tensor:
    """The same at x and -x."""
    return (
        waves(points * points.new_tensor([1, 1, 1]), phase, cameras) / 2
        + waves(points * points.new_tensor([-1, 1, 1]), phase, cameras) / 2
    )


class Analytic(Generator[Phases]):
    """A surface in closed form.

    Args:
        hit: distances [B, N] along rays, t_far where nothing is met.
        texture: its colours.
        mirrored: views from the right (yaw below the front) are those from the left, flipped: the mirror symmetry
            problem in its pure form.
    """

    is_3d = True

    def __init__(self, hit: Callable[[Rays], Tensor], texture: Texture = waves, *, mirrored: bool = False) -> None:
        super().__init__()
        self.hit, self.texture, self.mirrored = hit, texture, mirrored

    @property
    def z_dims(self) -> tuple[int]:
        return (3,)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def mapping(self, *z: Tensor) -> Phases:
        return Phases(2 * math.pi * torch.special.ndtr(z[0]))

    def render(self, styles: Phases, view: View) -> Picture:
        if not self.mirrored:
            return self.seen(styles, view, view.cameras)
        yaw, pitch = view.cameras.yaw - FRONT, view.cameras.pitch
        cameras = Cameras.from_angles(pitch, FRONT + yaw.abs(), view.cameras.fov_degrees)
        shown = self.seen(styles, view, cameras)
        turned = (yaw < 0)[:, None, None, None]
        assert shown.depth is not None
        return Picture(
            torch.where(turned, shown.image.flip(-1), shown.image),
            None,
            torch.where(turned, shown.depth.flip(-1), shown.depth),
        )

    def seen(self, styles: Phases, view: View, cameras: Cameras) -> Picture:
        height, width = (view.resolution, view.resolution) if isinstance(view.resolution, int) else view.resolution
        rays = cameras.rays((height, width))
        t = self.hit(rays)
        colour = self.texture(rays.origins + t[..., None] * rays.directions, styles.phase, cameras)
        colour = torch.where(t[..., None] < SETTINGS.t_far, colour, BACKGROUND)
        image = colour.transpose(1, 2).reshape(len(cameras), 3, height, width)
        return Picture(image, None, t.view(-1, 1, height, width))

    def parameter_groups(self) -> ParameterGroups:
        return ParameterGroups((), (), ())


def sphere(radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Callable[[Rays], Tensor]:
    """First intersection with a sphere: t = -b - √(b² - c), b = d·(o - m), c = |o - m|² - r²."""

    def hit(rays: Rays) -> Tensor:
        offset = rays.origins - rays.origins.new_tensor(centre)
        b = (offset * rays.directions).sum(-1)
        root = b.square() - offset.square().sum(-1) + radius**2
        return torch.where(root > 0, -b - root.clamp_min(0).sqrt(), SETTINGS.t_far)

    return hit


def plane(z: float = 0.0) -> Callable[[Rays], Tensor]:
    """The plane at depth z, across the front camera's view."""

    def hit(rays: Rays) -> Tensor:
        return (z - rays.origins[..., 2]) / rays.directions[..., 2]

    return hit


def nearest(*surfaces: Callable[[Rays], Tensor]) -> Callable[[Rays], Tensor]:
    """Whichever surface is met first."""

    def hit(rays: Rays) -> Tensor:
        return torch.stack([surface(rays) for surface in surfaces]).amin(0)

    return hit


def nothing(rays: Rays) -> Tensor:
    return torch.full(rays.directions.shape[:2], SETTINGS.t_far)


def loaded_of(generator: Generator[Phases], resolution: int = 32) -> LoadedGenerator:
    return LoadedGenerator(generator, SETTINGS, 12.0, resolution, PoseDistribution(), 0)


class Flat(Analytic):
    """A 2-D generator: the camera changes nothing."""

    is_3d = False

    def __init__(self) -> None:
        super().__init__(plane())

    def render(self, styles: Phases, view: View) -> Picture:
        front = torch.full((len(styles.phase),), FRONT)
        still = replace(view, cameras=Cameras.from_angles(front, front))
        return Picture(self.seen(styles, still, still.cameras).image, None, None)
