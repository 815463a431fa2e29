"""Pinhole cameras and their rays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.ops.autocast import product, without_autocast
from cips3d.ops.checks import check_alike, check_device, check_number, check_shape, check_tensor

TRAINING_DISTANCE = 1.0  # scene units from the origin to every training camera, in all systems
# Degrees. The focal length of much narrower cameras has no square in float32, and rays no length; wider ones round to
# 180 there.
NARROWEST_FOV, WIDEST_FOV = 1e-15, 179.99999
TRAINING_FOV = (0.1, 170.0)  # what can be trained on
# Scene units from the origin, of cameras that are asked for: much farther ones have rays whose ends are one float32.
NEAREST_CAMERA, FARTHEST_CAMERA = 1e-3, 1e4
SHORTEST = 1e-12  # of a unit vector's horizontal part: `F.normalize` gives no direction to what is shorter
NEAREST_DEPTH = 1e-6  # scene units in front of the camera: of points nearer than this, places would be without bounds


class Rays(NamedTuple):
    """Rays of a batch of images; `origins + t * directions` is at distance t (scene units) from the camera.

    Attributes:
        origins: [B, R, 3].
        directions: [B, R, 3], unit length.
    """

    origins: Tensor
    directions: Tensor

    def subset(self, index: Tensor) -> Rays:
        """The rays at positions `index` [N] of every image."""
        return Rays(self.origins[:, index], self.directions[:, index])


class Projection(NamedTuple):
    """Where cameras see points.

    Attributes:
        place: [B, N, 2] column to the right and row down, in units of the picture's half height.
        depth: [B, N] scene units along the viewing axis, negative behind the camera.
    """

    place: Tensor
    depth: Tensor


@dataclass(frozen=True, eq=False)
class Cameras:
    """A batch of pinhole cameras that look along their own -z axis, which meets the middle of their pictures.

    World up is +y. Columns of `rotation` are the camera's right, up and backward axes in world coordinates. Autocast
    does not reach what cameras work out: rays of bfloat16 would miss their pixels.

    Camera-to-world matrices in OpenCV's axes (right, down, forward) become these with columns 1 and 2 of the rotation
    negated; a focal length of f pixels is 2 · atan((height - 1) / 2f) as an angle of view (see `rays`).

    Attributes:
        rotation: [B, 3, 3] camera to world, orthonormal, which is not checked (`read_cameras` does).
        position: [B, 3] in scene units.
        fov_degrees: [B] full angle of view over the picture's height.
    """

    rotation: Tensor
    position: Tensor
    fov_degrees: Tensor

    def __post_init__(self) -> None:
        count, _, _ = check_shape("rotation", self.rotation, (None, 3, 3))
        check_shape("position", self.position, (count, 3))
        check_shape("fov_degrees", self.fov_degrees, (count,))
        check_alike("rotation", self.rotation, {"position": self.position, "fov_degrees": self.fov_degrees})

    @classmethod
    def from_angles(
        cls, pitch: Tensor, yaw: Tensor, fov_degrees: float | Tensor = 12.0, radius: float | Tensor = TRAINING_DISTANCE
    ) -> Cameras:
        """Cameras on a sphere around the origin that look at its centre (CIPS-3D's and pi-GAN's).

        position = radius · (sin φ cos θ, cos φ, sin φ sin θ), with pitch φ and yaw θ; both at π/2 is the front.

        Args:
            pitch: [B] radians in (0, π).
            yaw: [B] radians.
            fov_degrees: angle of view, one for all or [B].
            radius: distance from the origin in scene units, one for all or [B].

        Raises:
            TypeError: an argument is of another kind.
            ValueError: the shape or device of an argument does not fit, or a number is out of range (those of tensors
                are not looked at, since a GPU would have to be waited for); the argument is named.
        """
        check_tensor("pitch", pitch)
        check_tensor("yaw", yaw)
        check_device("pitch", pitch, yaw=yaw)
        if pitch.dim() != 1 or pitch.shape != yaw.shape:
            raise ValueError(f"pitch and yaw must both have shape [B], got {tuple(pitch.shape)} and {tuple(yaw.shape)}")
        _check_for_each("radius", radius, len(pitch))
        if not isinstance(radius, Tensor) and radius <= 0:
            raise ValueError(f"radius must be positive, got {radius}")
        direction = torch.stack(
            [torch.sin(pitch) * torch.cos(yaw), torch.cos(pitch), torch.sin(pitch) * torch.sin(yaw)], dim=1
        )
        return cls.look_at(_like(radius, direction).reshape(-1, 1) * direction, fov_degrees=fov_degrees)

    @classmethod
    def look_at(cls, position: Tensor, target: Tensor | None = None, fov_degrees: float | Tensor = 12.0) -> Cameras:
        """Cameras at `position` [B, 3] that look at `target` [B, 3] or [3] (default: the origin), upright in +y.

        One that looks straight down or up has the top of its picture where the front camera, raised or lowered that
        far, has it: towards -z or +z.

        Raises:
            TypeError: an argument is of another kind.
            ValueError: the shape, dtype or device of an argument does not fit, or the angle of view, given as a number,
                is out of range; the argument is named.
        """
        count, _ = check_shape("position", position, (None, 3))
        _check_for_each("fov_degrees", fov_degrees, count)
        if not isinstance(fov_degrees, Tensor) and not NARROWEST_FOV <= fov_degrees <= WIDEST_FOV:
            raise ValueError(f"fov_degrees must lie between {NARROWEST_FOV} and {WIDEST_FOV}, got {fov_degrees}")
        if target is not None:
            check_alike("position", position, {"target": target})
            _check_for_each("target", target, count, 3)
        forward = -position if target is None else target - position
        forward = F.normalize(forward, dim=1)
        upright, at_pole = torch.zeros_like(forward), torch.zeros_like(forward)
        upright[:, 1] = 1
        at_pole[:, 2] = forward[:, 1].detach()
        is_vertical = forward[:, ::2].norm(dim=1, keepdim=True) < SHORTEST
        world_up = torch.where(is_vertical, at_pole, upright)
        left = F.normalize(torch.cross(world_up, forward, dim=1), dim=1)
        up = F.normalize(torch.cross(forward, left, dim=1), dim=1)
        rotation = torch.stack([-left, up, -forward], dim=-1)
        return cls(rotation, position, _like(fov_degrees, position).expand(count))

    def __len__(self) -> int:
        return len(self.position)

    def __getitem__(self, index: int | slice | Tensor) -> Cameras:
        """Some of the cameras; a number gives a batch of one."""
        parts = [part[index] for part in (self.rotation, self.position, self.fov_degrees)]
        is_one = parts[-1].dim() == 0
        return Cameras(*(part[None] if is_one else part for part in parts))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cameras:
        """The cameras on a device and with a dtype; None leaves it."""
        return Cameras(*(part.to(device, dtype) for part in (self.rotation, self.position, self.fov_degrees)))

    def moved(self, offset: Tensor) -> Cameras:
        """The cameras shifted without turning.

        Args:
            offset: [B, 3] or [3] scene units along each camera's right, up and backward axes.

        Raises:
            TypeError: the offset is no tensor.
            ValueError: its shape, dtype or device does not fit.
        """
        self._check_of_each("offset", offset, 3)
        step = product(self.rotation, offset.to(self.rotation.dtype).expand(len(self), 3)[..., None])
        return Cameras(self.rotation, self.position + step[..., 0], self.fov_degrees)

    def rolled(self, angle: Tensor) -> Cameras:
        """The cameras turned around their viewing axes, each tilting its up towards its left.

        right' = cos α right + sin α up, up' = cos α up - sin α right.

        Args:
            angle: α [B] radians, or one for all.

        Raises:
            TypeError: the angle is no tensor.
            ValueError: its dtype or device does not fit, or there are not as many angles as cameras.
        """
        self._check_of_each("angle", angle)
        cos, sin = torch.cos(angle), torch.sin(angle)
        zero, one = torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=-1).view(-1, 3, 3)
        return Cameras(product(self.rotation, turn.to(self.rotation.dtype)), self.position, self.fov_degrees)

    def _check_of_each(self, name: str, value: Tensor, *size: int) -> None:
        """Raise, naming the argument, unless it is a tensor of this size, for all cameras, or one of it for each."""
        check_tensor(name, value)
        check_device("position", self.position, **{name: value})
        _check_for_each(name, value, len(self), *size)

    @property
    def device(self) -> torch.device:
        return self.position.device

    @property
    def camera_to_world(self) -> Tensor:
        """[B, 4, 4]: columns are the right, up and backward axes and the position; the last row is 0, 0, 0, 1."""
        last = torch.eye(4, dtype=self.position.dtype, device=self.device)[3:].expand(len(self), 1, 4)
        return torch.cat([torch.cat([self.rotation, self.position[..., None]], dim=2), last], dim=1)

    @property
    def distance(self) -> Tensor:
        """[B] scene units from the origin."""
        return self.position.norm(dim=1)

    @property
    def yaw(self) -> Tensor:
        """[B] radians: the angle of the position around +y; π/2 is the front."""
        return torch.atan2(self.position[:, 2], self.position[:, 0])

    @property
    def pitch(self) -> Tensor:
        """[B] radians: the angle of the position from +y; π/2 is the horizon."""
        return torch.acos((self.position[:, 1] / self.position.norm(dim=1)).clamp(-1, 1))

    def rays(self, resolution: int | tuple[int, int]) -> Rays:
        """Rays [B, height·width] through the pixels of pictures, row after row.

        Pixels lie on an inclusive grid: the first and last rows are at ±1 of the picture's half height, and columns at
        ± (width - 1) / (height - 1) of it (`aspect`), so that pixels are square. A single row or column lies in the
        middle.

        Args:
            resolution: side of a square picture, or (height, width).

        Raises:
            TypeError: the resolution is something else.
            ValueError: it is less than 1.
        """
        height, width = sides(resolution)
        dtype, device = self.position.dtype, self.device

        def places(end: float, count: int) -> Tensor:
            return torch.linspace(-end if count > 1 else 0, end, count, dtype=dtype, device=device)

        column, row = places(aspect(height, width), width), -places(1, height)
        x, y = column.repeat(height), row.repeat_interleave(width)
        with without_autocast(self.device):
            focal = 1 / torch.tan(self.fov_degrees * (math.pi / 360))  # of a picture whose half height is 1
            xy = torch.stack([x, y], dim=-1).expand(len(self), -1, 2)
            local = torch.cat([xy, -focal[:, None, None].expand(-1, xy.shape[1], 1)], dim=-1)
            directions = product(F.normalize(local, dim=-1), self.rotation.transpose(1, 2))
        return Rays(self.position[:, None].expand_as(directions), directions)

    def project(self, points: Tensor) -> Projection:
        """Where points are seen: the inverse of `rays`.

        With p' = Rᵀ (p - position) and f = 1 / tan(fov / 2): depth = -p'_z, column = f p'_x / depth and
        row = -f p'_y / depth, from the picture's middle in units of its half height. Centres of the outer pixels of a
        picture of (height, width) lie at rows ±1 and columns ± (width - 1) / (height - 1): pixel (i, j) is at
        row = 2 i / (height - 1) - 1 and column = (2 j - (width - 1)) / (height - 1).

        Args:
            points: [N, 3] or [B, N, 3] in scene units.

        Returns:
            `Projection`; places of points that are not in front of the camera (depth ≤ 0) are finite and mean nothing.

        Raises:
            TypeError: the points are no tensor.
            ValueError: their shape, dtype or device does not fit.

        Source: R. Hartley and A. Zisserman, Multiple View Geometry, section 6.1.
        """
        check_tensor("points", points)
        check_alike("position", self.position, {"points": points})
        if points.dim() not in (2, 3) or points.shape[-1] != 3 or (points.dim() == 3 and len(points) != len(self)):
            raise ValueError(f"points must have shape [N, 3] or [{len(self)}, N, 3], got {list(points.shape)}")
        with without_autocast(self.device):
            local = product(points - self.position[:, None], self.rotation)  # [B, N, 3]: right, up, backward
            depth = -local[..., 2]
            focal = 1 / torch.tan(self.fov_degrees * (math.pi / 360))
            scale = focal[:, None] / depth.clamp_min(NEAREST_DEPTH)
            return Projection(torch.stack([local[..., 0] * scale, -local[..., 1] * scale], dim=-1), depth)


def sides(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of pictures of `resolution`, which names the side of square ones, or both.

    Raises:
        TypeError: it is something else.
        ValueError: one is less than 1.
    """
    pair = (resolution, resolution) if isinstance(resolution, int) else resolution
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(side, int) for side in pair):
        raise TypeError(f"resolution must be an int or (height, width), got {resolution!r}")
    height, width = pair
    if height < 1 or width < 1:
        raise ValueError(f"resolution must be at least 1, got {resolution}")
    return height, width


def aspect(height: int, width: int) -> float:
    """Half the width over half the height between the centres of outer pixels: (width - 1) / (height - 1).

    A single row counts as one of a square picture; a single column reaches half a pixel to each side.
    """
    return 1.0 if height in (1, width) else max(width - 1, 1) / (height - 1)


def _check_for_each(name: str, value: float | Tensor, count: int, *size: int) -> None:
    """Raise, naming the argument, unless it is of this size, for all cameras, or one of it for each, or a number."""
    if not isinstance(value, Tensor):
        check_number(name, value)
        return
    batch = value.dim() - len(size)
    fits = batch in (0, 1) and tuple(value.shape[batch:]) == size and (batch == 0 or value.shape[0] in (1, count))
    if not fits:
        wanted = f"[{', '.join(str(x) for x in (count, *size))}], as many as cameras"
        raise ValueError(f"{name} must have shape {wanted}, or {list(size)} for all, got {list(value.shape)}")


def _like(value: float | Tensor, like: Tensor) -> Tensor:
    """The value with the dtype and device of `like`; a number gets there without a copy that a GPU would wait for."""
    return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)
