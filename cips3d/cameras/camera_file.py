"""Lists of cameras in JSON files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cips3d.cameras.camera import FARTHEST_CAMERA, NARROWEST_FOV, WIDEST_FOV, Cameras
from cips3d.cameras.poses import FRONT
from cips3d.errors import UserError
from cips3d.files import atomic_file

MATRIX, FOV = "camera_to_world", "fov_degrees"
NUMBERS = ("pitch", "yaw", "radius", "roll")
VECTORS = ("look_at", "translation")
KEYS = (*NUMBERS, *VECTORS, MATRIX, FOV)
ROTATION_TOLERANCE = 1e-3  # of each entry of RᵀR against the identity: numbers written with four digits pass
MAX_CAMERAS = 100_000


def read_cameras(
    path: str | Path, *, fov_degrees: float = 12.0, front_pitch: float = FRONT, front_yaw: float = FRONT
) -> Cameras:
    """Cameras of a JSON file, in its order.

    The file holds a list of objects, one a camera, or an object with that list under "cameras". A camera is either

    - angles: "pitch" and "yaw", radians from the front (default 0; a positive yaw looks from the left, a positive pitch
      from below), "radius", scene units from the origin (default 1), "look_at", [x, y, z] in the world (default: the
      origin), then "roll", radians around the viewing axis (default 0; positive leans the camera to its left), and
      "translation", scene units along the camera's own right, up and backward axes ([0, 0, 0]), in this order; or
    - "camera_to_world", a 4 x 4 or 3 x 4 matrix by rows whose columns are the camera's right, up and backward axes and
      its position. The camera looks along -z; the world's +y is up, and on +z at
      distance 1 stands the camera whose pitch and yaw are π/2: the front one, where the means are these.

    Both may have "fov_degrees", the full angle of view over the picture's height.

    Args:
        path: of the file.
        fov_degrees: of cameras that do not tell.
        front_pitch, front_yaw: the front, in radians.

    Raises:
        UserError: the file cannot be read, or a camera in it makes no sense; its place is named.
    """
    entries = _entries(Path(path))
    cameras = []
    for k, entry in enumerate(entries):
        try:
            cameras.append(_camera(entry, fov_degrees, (front_pitch, front_yaw)))
        except ValueError as error:
            raise UserError(f"camera {k} (counted from 0) of {path} {error}") from None
    return Cameras(*(torch.cat([getattr(c, part) for c in cameras]) for part in ("rotation", "position", FOV)))


def write_cameras(path: str | Path, cameras: Cameras) -> None:
    """Write a file that `read_cameras` reads: "camera_to_world", 4 x 4 by rows, and "fov_degrees" of each camera.

    Raises:
        UserError: the disk is full.
        OSError: the file cannot be written for another reason.
    """
    matrices = cameras.camera_to_world.detach().double().tolist()
    entries = [{MATRIX: rows, FOV: fov} for rows, fov in zip(matrices, cameras.fov_degrees.tolist(), strict=True)]
    with atomic_file(Path(path)) as file:
        file.write((json.dumps(entries, indent=1) + "\n").encode())


def _entries(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows begin files with a mark
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a JSON file of cameras") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not JSON ({error}); give a list of cameras such as [{{"yaw": 0.3}}]') from error
    if isinstance(content, dict) and "cameras" in content and (others := sorted(set(content) - {"cameras"})):
        raise UserError(f'{path} has the key {others[0]!r} beside the list "cameras"; give each camera its own')
    entries = content.get("cameras") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{path} holds no list of cameras; give one such as [{{"yaw": -0.3}}, {{"yaw": 0.3}}]')
    if len(entries) > MAX_CAMERAS:
        raise UserError(f"{path} holds {len(entries)} cameras; give {MAX_CAMERAS} at most")
    return entries


def _camera(entry: object, fov_degrees: float, front: tuple[float, float]) -> Cameras:
    """One camera; a ValueError goes on after "camera K of FILE"."""
    if not isinstance(entry, dict):
        raise ValueError(f'is no object; give one such as {{"yaw": 0.3}}, not {entry!r}')
    if unknown := sorted(set(entry) - set(KEYS)):
        raise ValueError(f"has the unknown key {unknown[0]!r}; there are {', '.join(KEYS)}")
    fov = _number(entry, FOV, fov_degrees)
    if not NARROWEST_FOV <= fov <= WIDEST_FOV:
        raise ValueError(f"has the {FOV} {fov:g}; give degrees from {NARROWEST_FOV} to {WIDEST_FOV}")
    if MATRIX in entry:
        if others := sorted(set(entry) - {MATRIX, FOV}):
            raise ValueError(f"has {MATRIX!r} and {others[0]!r}; give one or the other")
        camera = _of_matrix(_numbers(entry, MATRIX), fov)
    else:
        camera = _of_angles(entry, fov, front)
    camera = Cameras(camera.rotation.float(), camera.position.float(), camera.fov_degrees.float())
    if not float(camera.distance) <= FARTHEST_CAMERA:
        raise ValueError(f"is too far away for a picture; give one within {FARTHEST_CAMERA:g} of the origin")
    return camera


def _of_angles(entry: dict[str, Any], fov: float, front: tuple[float, float]) -> Cameras:
    pitch, yaw, roll = (
        torch.tensor([_number(entry, name, 0.0)], dtype=torch.float64) for name in ("pitch", "yaw", "roll")
    )
    radius = _number(entry, "radius", 1.0)
    if radius <= 0:
        raise ValueError(f"has the radius {radius:g}; give a positive distance")
    pitch = pitch + front[0]
    if not 0 < float(pitch) < math.pi:
        low, high = -front[0], math.pi - front[0]
        raise ValueError(f"goes over a pole; give a pitch between {low:.2f} and {high:.2f}")
    camera = Cameras.from_angles(pitch, yaw + front[1], fov, radius)
    if "look_at" in entry:
        camera = Cameras.look_at(camera.position, _vector(entry, "look_at")[None], fov)
    if not _is_rotation(camera.rotation[0]):
        if "look_at" not in entry:
            raise ValueError("stands at the origin; give a larger radius")
        raise ValueError("looks at itself; move look_at")
    offset = _vector(entry, "translation") if "translation" in entry else torch.zeros(3, dtype=torch.float64)
    return camera.rolled(roll).moved(offset)


def _of_matrix(matrix: Tensor, fov: float) -> Cameras:
    if tuple(matrix.shape) not in ((3, 4), (4, 4)):
        raise ValueError(f"has a {MATRIX} of shape {list(matrix.shape)}; give 4 rows (or 3) of 4 numbers")
    last = matrix.new_tensor([0.0, 0.0, 0.0, 1.0])
    if len(matrix) == 4 and not torch.allclose(matrix[3], last, atol=ROTATION_TOLERANCE):
        raise ValueError(f"has a {MATRIX} whose last row is not 0 0 0 1; give rows, not columns")
    rotation = matrix[:3, :3]
    if not _is_rotation(rotation):
        raise ValueError(
            f"has a {MATRIX} whose first three columns are no rotation; give unit axes at right angles, "
            "right-handed: right, up, backward"
        )
    u, _, v = torch.linalg.svd(rotation)  # the nearest rotation: what rounding has bent is straight again
    return Cameras((u @ v)[None], matrix[None, :3, 3], matrix.new_tensor([fov]))


def _is_rotation(rotation: Tensor) -> bool:
    identity = torch.eye(3, dtype=rotation.dtype)
    orthonormal = torch.allclose(rotation.T @ rotation, identity, rtol=0, atol=ROTATION_TOLERANCE)
    return orthonormal and bool(torch.linalg.det(rotation) > 0)


def _number(entry: dict[str, Any], name: str, default: float) -> float:
    value = entry.get(name, default)
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"has a {name} that is no number; give one")
    return number


def _vector(entry: dict[str, Any], name: str) -> Tensor:
    vector = _numbers(entry, name)
    if tuple(vector.shape) != (3,):
        raise ValueError(f"has the {name} {entry[name]!r}; give three numbers")
    return vector


def _numbers(entry: dict[str, Any], name: str) -> Tensor:
    try:
        numbers = torch.tensor(entry[name], dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = torch.tensor(math.nan)
    if not torch.isfinite(numbers).all():
        raise ValueError(f"has a {name} that does not consist of numbers; give a list of them")
    return numbers
