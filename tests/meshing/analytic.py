"""Generators whose volumes and pictures are formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cips3d.cameras import PoseDistribution
from cips3d.data.heads import render_heads, sample_heads
from cips3d.data.heads.anatomy import HeadShape
from cips3d.data.heads.render import HEAD_UNITS
from cips3d.data.heads.shapes import Points
from cips3d.models.generator import Generator, ParameterGroups
from cips3d.models.view import Picture, View
from cips3d.models.volume import VolumeSettings
from cips3d.rendering import LoadedGenerator


class BallStyles(NamedTuple):
    """Every face is the same."""

    unused: Tensor  # [B, 1]


class Balls(Generator[BallStyles]):
    """Solid balls: raw density is `sharpness` times the depth below the nearest ball's surface.

    A picture shows the nearest ball that a ray meets: in its colour, or, where it has none, the point's direction from
    the ball's centre as a colour. Its depth is exact. Points that are asked for are counted.
    """

    is_3d: ClassVar[bool] = True

    def __init__(
        self,
        balls: Sequence[tuple[tuple[float, float, float], float]] = (((0.0, 0.0, 0.0), 0.07),),
        colors: Sequence[tuple[float, float, float]] | None = None,
        sharpness: float = 1e4,
    ) -> None:
        super().__init__()
        self.centers = torch.tensor([center for center, _ in balls])
        self.radii = torch.tensor([radius for _, radius in balls])
        self.colors = None if colors is None else torch.tensor(colors)
        self.sharpness = sharpness
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.asked: list[int] = []

    @property
    def z_dims(self) -> tuple[int, ...]:
        return (1,)

    def mapping(self, *z: Tensor) -> BallStyles:
        return BallStyles(z[0])

    def depth_below(self, points: Tensor) -> Tensor:
        """[..., balls] scene units, negative outside."""
        return self.radii - (points[..., None, :] - self.centers).norm(dim=-1)

    def density(self, styles: BallStyles, points: Tensor) -> Tensor:
        assert points.dim() == 3
        assert len(points) == len(styles.unused)
        self.asked.append(points.shape[1])
        return self.sharpness * self.depth_below(points).amax(-1)

    def render(self, styles: BallStyles, view: View) -> Picture:
        assert isinstance(view.resolution, int)
        rays = view.cameras.rays(view.resolution)
        to_center = self.centers - rays.origins[..., None, :]  # [B, R, balls, 3]
        along = (to_center * rays.directions[..., None, :]).sum(-1)
        half_chord = self.radii**2 - to_center.square().sum(-1) + along**2
        t = torch.where(half_chord > 0, along - half_chord.clamp_min(0).sqrt(), torch.inf)
        nearest, ball = t.min(dim=-1)
        points = rays.origins + nearest.clamp_max(10)[..., None] * rays.directions
        if self.colors is None:
            color = (points - self.centers[ball]) / self.radii[ball][..., None]
        else:
            color = self.colors[ball]
        hit = torch.isfinite(nearest)
        image = torch.where(hit[..., None], color, 1.0)
        shape = (len(image), -1, view.resolution, view.resolution)
        depth = torch.where(hit, nearest, view.volume.t_far)
        return Picture(image.transpose(1, 2).reshape(shape), None, depth.reshape(shape))

    def parameter_groups(self) -> ParameterGroups:
        return ParameterGroups((), (), ())


class SyntheticHead(Balls):
    """A synthetic head as a solid volume, with its ground truth for pictures."""

    def __init__(self, seed: int = 0, sharpness: float = 1e5) -> None:
        super().__init__(sharpness=sharpness)
        self.parameters_of_head = sample_heads(1, torch.Generator().manual_seed(seed))
        self.shape = HeadShape(self.parameters_of_head)

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance [B, N] to the head's surface, scene units."""
        return self.shape.distance(Points(*(points * HEAD_UNITS).unbind(-1))) / HEAD_UNITS

    def density(self, styles: BallStyles, points: Tensor) -> Tensor:
        return -self.sharpness * self.distance(points)

    def render(self, styles: BallStyles, view: View) -> Picture:
        assert isinstance(view.resolution, int)
        shown = render_heads(self.parameters_of_head, view.cameras, view.resolution)
        depth = torch.where(shown.mask > 0.5, shown.depth, view.volume.t_far)
        return Picture(shown.images / 127.5 - 1, None, depth[:, None])


def loaded_balls(generator: Balls, poses: PoseDistribution | None = None) -> LoadedGenerator:
    """The generator as if it came out of a checkpoint."""
    return LoadedGenerator(
        generator=generator,
        settings=VolumeSettings(),
        fov_degrees=12.0,
        resolution=32,
        poses=poses or PoseDistribution(),
        step=1,
    )


def one_face() -> BallStyles:
    return BallStyles(torch.zeros(1, 1))
