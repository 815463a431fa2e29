"""Paths of a camera around the scene, one camera a frame; all of them end where they began.

Example:
    >>> cameras = TRAJECTORIES["circle"].cameras(48, CameraRange(fov_degrees=12.0))
    >>> len(cameras)
    48
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cips3d.cameras.camera import Cameras
from cips3d.cameras.poses import FRONT


@dataclass(frozen=True)
class CameraRange:
    """How far a trajectory goes."""

    pitch: tuple[float, float] = (FRONT - 0.2, FRONT + 0.2)
    """lowest and highest angle from +y, in radians; π/2 is the horizon"""
    yaw: tuple[float, float] = (FRONT - 0.4, FRONT + 0.4)
    """lowest and highest angle around +y, in radians; π/2 is the front"""
    distance: tuple[float, float] = (0.5, 2.0)
    """nearest and farthest of the dolly, in scene units; all others stay at 1, where training cameras stand"""
    shift: float = 0.4
    """how far translations go, as a share of the half height that is seen at the origin"""
    fov_degrees: float = 12.0
    """angle of view at distance 1"""

    def __post_init__(self) -> None:
        for name in ("pitch", "yaw", "distance"):
            low, high = getattr(self, name)
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"{name} must be two numbers, the lower one first, got {low} and {high}")
        if not 0 < self.pitch[0] <= self.pitch[1] < math.pi:
            raise ValueError(f"pitch must lie between 0 and π, got {self.pitch[0]} and {self.pitch[1]}")
        if self.distance[0] <= 0:
            raise ValueError(f"distance must be positive, got {self.distance[0]}")
        if not 0 < self.fov_degrees < 180:
            raise ValueError(f"fov_degrees must lie between 0 and 180, got {self.fov_degrees}")


def swing(ends: tuple[float, float], turn: Tensor) -> Tensor:
    """middle + half · sin(2π turn): between two ends and back, slow where it turns round; `turn` of any shape."""
    low, high = ends
    return (low + high) / 2 + (high - low) / 2 * torch.sin(2 * math.pi * turn)


def yaw_sweep(yaw_range: tuple[float, float], frames: int) -> Tensor:
    """A swing from the middle of a range to its end, to its beginning and back, to be shown over and over.

    yaw_k = middle + half · sin(2πk / frames): slow where it turns round.

    Args:
        yaw_range: where it turns round, in radians.
        frames: how many views.

    Returns:
        [frames] radians.
    """
    return swing(yaw_range, _turns(frames)).float()


def front(frames: int, extent: CameraRange) -> Cameras:
    """The camera stands still in the middle of the ranges."""
    return _around(*_middle(frames, extent), extent.fov_degrees)


def yaw(frames: int, extent: CameraRange) -> Cameras:
    """From side to side at the middle pitch (`yaw_sweep`)."""
    pitch, _ = _middle(frames, extent)
    return _around(pitch, swing(extent.yaw, _turns(frames)), extent.fov_degrees)


def circle(frames: int, extent: CameraRange) -> Cameras:
    """Yaw and pitch on an ellipse: sine and cosine of the same angle; the camera looks at the origin throughout."""
    return _around(*_ellipse(frames, extent), extent.fov_degrees)


def dolly(frames: int, extent: CameraRange) -> Cameras:
    """A circle that comes near and goes far, while the angle of view keeps the head's size: perspective alone changes.

    d_k = √(near · far) · (far / near)^(½ cos 2πk/frames) and tan(fov_k / 2) · d_k = tan(fov / 2): what lies in the
    plane through the origin, across the viewing axis, has the size that it has from distance 1.
    """
    near, far = extent.distance
    distance = math.sqrt(near * far) * (far / near) ** (torch.cos(2 * math.pi * _turns(frames)) / 2)
    half = math.tan(math.radians(extent.fov_degrees) / 2)
    fov = torch.rad2deg(2 * torch.atan(half / distance))
    return _around(*_ellipse(frames, extent), fov, distance)


def translate(frames: int, extent: CameraRange) -> Cameras:
    """To the right, to the left and back, then up, down and back, without turning: the head goes the other way."""
    turn = 2 * _turns(frames)
    return _shifted(front(frames, extent), _eased(turn), _eased(turn - 1), extent)


def translate_rotate(frames: int, extent: CameraRange) -> Cameras:
    """As `translate`, then once around the viewing axis (a roll): pictures stand on their heads on the way."""
    turn = 3 * _turns(frames)
    moved = _shifted(front(frames, extent), _eased(turn), _eased(turn - 1), extent)
    return moved.rolled((2 * math.pi * _eased(turn - 2)).float())


class Trajectory(NamedTuple):
    """A path of the camera."""

    cameras: Callable[[int, CameraRange], Cameras]
    """of so many frames"""
    ranges: tuple[str, ...]
    """fields of `CameraRange` that it goes through; of the others it takes the middle"""


TRAJECTORIES: dict[str, Trajectory] = {
    "front": Trajectory(front, ()),
    "yaw": Trajectory(yaw, ("yaw",)),
    "circle": Trajectory(circle, ("pitch", "yaw")),
    "dolly": Trajectory(dolly, ("pitch", "yaw", "distance")),
    "translate": Trajectory(translate, ("shift",)),
    "translate-rotate": Trajectory(translate_rotate, ("shift",)),
}


def _turns(frames: int) -> Tensor:
    """k / frames [frames]: the share of the way that is done; the frame after the last is the first."""
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    return torch.arange(frames, dtype=torch.float64) / frames


def _eased(turn: Tensor) -> Tensor:
    """u² (3 - 2u), u = turn clamped to [0, 1]: starts and ends without a jerk."""
    u = turn.clamp(0, 1)
    return u.square() * (3 - 2 * u)


def _middle(frames: int, extent: CameraRange) -> tuple[Tensor, Tensor]:
    """Pitch and yaw [frames] of a camera that stays in the middle of the ranges."""
    still = torch.zeros_like(_turns(frames))
    return swing(extent.pitch, still), swing(extent.yaw, still)


def _ellipse(frames: int, extent: CameraRange) -> tuple[Tensor, Tensor]:
    """Pitch and yaw [frames]; it begins at the middle yaw and the highest pitch angle, a quarter turn ahead."""
    turn = _turns(frames)
    return swing(extent.pitch, turn + 0.25), swing(extent.yaw, turn)


def _around(pitch: Tensor, yaw: Tensor, fov_degrees: float | Tensor, distance: Tensor | None = None) -> Cameras:
    """Cameras in single precision that look at the origin."""
    fov = torch.as_tensor(fov_degrees, dtype=torch.float32)
    radius = torch.ones_like(pitch) if distance is None else distance
    return Cameras.from_angles(pitch.float(), yaw.float(), fov, radius.float())


def _shifted(cameras: Cameras, right: Tensor, up: Tensor, extent: CameraRange) -> Cameras:
    """The cameras on a swing of `extent.shift` to each side; `right` and `up` are the shares of it that are done."""
    length = extent.shift * math.tan(math.radians(extent.fov_degrees) / 2)
    ends = (-length, length)
    offset = torch.stack([swing(ends, right), swing(ends, up), torch.zeros_like(up)], dim=1)
    return cameras.moved(offset.float())
