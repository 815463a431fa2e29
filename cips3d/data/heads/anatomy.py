"""The body of a head: signed distances to its skin, shirt, hair, hat and glasses."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from cips3d.data.heads.parameters import Glasses, HairStyle, Hat, HeadParameters
from cips3d.data.heads.shapes import (
    Ellipsoid,
    Ellipsoids,
    Parts,
    Points,
    smooth_max,
    smooth_min,
    smooth_step,
    smooth_union,
)


class Material(IntEnum):
    """What a surface is made of, in the order of `HeadShape.distances`."""

    SKIN = 0
    SHIRT = 1
    HAIR = 2
    HAT = 3
    GLASSES = 4


ABSENT = 9.0  # added to the distance of what a head does not wear: farther away than anything in the scene

EYE_Y = 0.06
SKULL_Y, SKULL_Z = 0.17, -0.06


@dataclass(frozen=True)
class Landmarks:
    """Where the parts of the face are; heights and depths as tensors [N, 1] or [N], like the parameters given."""

    nose_y: Tensor  # tip of the nose
    nose_z: Tensor
    mouth_y: Tensor
    mouth_z: Tensor
    chin_y: Tensor

    @classmethod
    def of(cls, parameters: HeadParameters) -> Landmarks:
        length = parameters.face_length
        return cls(
            nose_y=-0.15 * parameters.nose_length * length,
            nose_z=0.44 * parameters.depth + 0.095 * parameters.nose_depth,
            mouth_y=-0.315 * length - 0.04 * (parameters.nose_length - 1),
            mouth_z=0.385 * parameters.depth,
            chin_y=-0.455 * length,
        )


class HeadShape:
    """The signed distance functions of a batch of heads."""

    def __init__(self, parameters: HeadParameters) -> None:
        self.parameters = p = parameters.columns()
        parts = _flesh(parameters) | _features(parameters) | _shirt(parameters) | _hair(parameters) | _worn(parameters)
        device = parameters.width.device
        self._ellipsoids = Ellipsoids(parts, len(parameters), device)
        self._flesh_radii = torch.tensor(FLESH_RADII, device=device)
        self._feature_radii = torch.tensor(FEATURE_RADII, device=device)
        # What follows is the same for all points of a head, [N, 1].
        self._hat_absent = torch.where(p.hat == Hat.NONE, ABSENT, 0.0)
        self._hair_over_hat = torch.where(p.hat == Hat.NONE, ABSENT, 0.03)
        self._fold_absent = torch.where(p.hat == Hat.BEANIE, 0.0, ABSENT)
        self._brim_absent = torch.where(p.hat == Hat.CAP, 0.0, ABSENT)
        self._hat_gap = torch.where(p.hat == Hat.BEANIE, 0.075, 0.07)
        hangs = (p.style == HairStyle.BOB) | (p.style == HairStyle.LONG)
        self._hair_end = torch.where(hangs, p.hair_length, p.side_length - 0.02)
        self._nape_rise = torch.where(hangs, 0.0, 0.5)
        self._spectacled = torch.nonzero(parameters.glasses != Glasses.NONE)[:, 0]
        self._round_rims = (p.glasses == Glasses.ROUND)[self._spectacled]
        self._dark_lenses = (p.glasses == Glasses.SUN)[self._spectacled]

    def distances(self, points: Points) -> list[Tensor]:
        """Signed distances [N, R] in head units, one for each `Material`."""
        parts = self._ellipsoids.distances(points)
        return [
            self._skin(parts),
            self._shirt(parts),
            self._hair(points, parts),
            self._hat(points, parts),
            self._glasses(points),
        ]

    def distance(self, points: Points) -> Tensor:
        """The signed distance [N, R] to the nearest material."""
        return functools.reduce(torch.minimum, self.distances(points))

    def _skin(self, parts: Parts) -> Tensor:
        skin = smooth_min(parts["skull"], parts["jaw"], 0.18)
        skin = smooth_union(skin, parts.span("chin", "neck"), self._flesh_radii)
        skin = smooth_max(skin, -parts["sockets"], 0.08)
        skin = smooth_union(skin, parts.span("eyeballs", "chest"), self._feature_radii)
        return smooth_min(skin, parts["nostrils"], 0.05)

    def _shirt(self, parts: Parts) -> Tensor:
        shirt = smooth_min(parts["torso"], parts["shoulders"], 0.2)
        shirt = smooth_min(shirt, parts["collar"], 0.14)
        return smooth_max(shirt, -parts["neckline"], 0.03)

    def _hair(self, points: Points, parts: Parts) -> Tensor:
        hair = parts["skull"] - self._hair_thickness(points)
        hair = smooth_min(hair, parts["back hair"], 0.1)
        hair = smooth_max(hair, -self._face_opening(points), 0.05)
        # Short hair ends in a line that falls to the nape, long hair nearly level, lower on the fringe's side.
        end = self._hair_end + self._nape_rise * points.z + 0.06 * points.x
        hair = smooth_max(hair, end - points.y, 0.06)
        hair = smooth_min(hair, parts["front lock"], 0.1)
        hair = smooth_min(hair, parts["bun"], 0.03)
        return smooth_max(hair, self._above_hat_edge(points) - self._hair_over_hat, 0.03)

    def _hair_thickness(self, points: Points) -> Tensor:
        """How far the hair stands off the skull: more on top, most where it is combed from the parting to -x."""
        p = self.parameters
        from_parting = points.x - p.parting
        top = smooth_step(-0.05, 0.55, points.y)
        combed = smooth_step(0.05, -0.12, from_parting)
        front = smooth_step(0.0, 0.35, points.z)
        groove = 0.03 * top / (1 + (from_parting / 0.03).square())
        thickness = torch.lerp(p.hair_side, p.hair_top, top) + p.fringe_lift * combed * front * top.clamp_min(0.4)
        curls = torch.sin(23 * points.x + 9 * points.y) * torch.sin(23 * points.y - 7 * points.z)
        return thickness - groove + p.curl * curls * torch.sin(23 * points.z + 5 * points.x)

    def _face_opening(self, points: Points) -> Tensor:
        """The region that hair leaves free, negative inside: in front of the temples and below the slanted fringe."""
        p = self.parameters
        from_parting = points.x - p.parting
        left = from_parting.clamp(-0.9, 0) / -0.55
        right = from_parting.clamp_min(0)
        fringe = p.hairline - p.fringe_drop * left * (2 - left).sqrt() - 1.2 * right.square()
        # Sideburns in front of the ears; below the jaw the opening recedes and frees the neck.
        temple = 0.13 - 0.35 * (points.y - 0.1).clamp(-0.4, 0) + 1.5 * (points.y + 0.3).clamp(-0.35, 0)
        return smooth_max(points.y - fringe, temple - points.z, 0.1)

    def _above_hat_edge(self, points: Points) -> Tensor:
        p = self.parameters
        return points.y - p.hat_height - 0.2 * points.z - p.hat_tilt * points.x

    def _hat(self, points: Points, parts: Parts) -> Tensor:
        """A dome that follows the skull, with the brim of a cap or the fold of a beanie."""
        above = self._above_hat_edge(points)
        dome = smooth_max(parts["skull"] - self._hat_gap, -above, 0.04)
        fold = smooth_max(parts["skull"] - 0.1, (above - 0.06).abs() - 0.06, 0.05)
        hat = torch.minimum(dome, fold + self._fold_absent)
        return smooth_min(hat, parts["brim"] + self._brim_absent, 0.03) + self._hat_absent

    def _glasses(self, points: Points) -> Tensor:
        """Two rims (dark discs for sunglasses), a bridge and the arms that lead to the ears."""
        glasses = torch.full_like(points.x, ABSENT)
        rows = self._spectacled
        if len(rows) == 0:
            return glasses
        width, depth, eye = (getattr(self.parameters, name)[rows] for name in ("width", "depth", "eye_distance"))
        x, y, z = (axis[rows] for axis in points)
        side, up = x.abs(), y - EYE_Y + 0.01
        plane = z - 0.46 * depth + 0.35 * side.square()  # the rims follow the face
        across = side - eye - 0.01
        round_rim = (across.square() + up.square()).sqrt() - 0.112
        square_rim = ((across / 1.15).square().square() + (up / 0.85).square().square()).sqrt().sqrt() - 0.108
        rim = torch.where(self._round_rims, round_rim, square_rim)
        rim = torch.where(self._dark_lenses, rim.clamp_min(0), rim.abs())
        frame = (rim.square() + plane.square()).sqrt() - 0.014
        bridge = torch.maximum(((up - 0.03).square() + plane.square()).sqrt() - 0.014, side - 0.07)
        front_end, back_end = 0.46 * depth - 0.03, -0.06
        along = (front_end - z) / (front_end - back_end)
        outward = side - torch.lerp(eye + 0.125, 0.455 * width, along)
        arms = ((up - 0.04).square() + outward.square()).sqrt() - 0.015
        arms = torch.maximum(arms, torch.maximum(z - front_end, back_end - z))
        glasses[rows] = torch.minimum(torch.minimum(frame, bridge), arms)
        return glasses


# How widely parts run into what they sit on: chin to neck of `_flesh`, and eyeballs to chest of `_features`.
FLESH_RADII = (0.12, 0.14, 0.14, 0.08, 0.1)
FEATURE_RADII = (0.025, 0.06, 0.035, 0.035, 0.03, 0.12)


def _flesh(p: HeadParameters) -> dict[str, Ellipsoid]:
    """Skull, jaw, what lies upon them, and the hollows of the eyes."""
    at = Landmarks.of(p)
    w, d, length = p.width, p.depth, p.face_length
    bridge_y, bridge_z = 0.5 * (at.nose_y + 0.09), 0.5 * (at.nose_z + 0.37 * d)
    bridge_radii = (0.045 * p.nose_width, 0.15 * p.nose_length, 0.06)
    return {
        "skull": Ellipsoid((0.0, SKULL_Y, SKULL_Z), (0.41 * w, 0.49 * p.height, 0.5 * d)),
        "jaw": Ellipsoid((0.0, -0.16 * length, 0.1), (0.355 * w * p.jaw_width, 0.37 * length, 0.33 * d)),
        "chin": Ellipsoid((0.0, at.chin_y, 0.31 * d), (0.125 * p.chin_size, 0.085, 0.1)),
        "cheeks": Ellipsoid((0.21 * w, -0.08, 0.27 * d), (0.12 * p.cheek_size, 0.12, 0.12), mirrored=True),
        "brows": Ellipsoid((0.12, EYE_Y + 0.115, 0.35 * d), (0.14, 0.05, 0.065), (0.0, 0.45, 0.0), mirrored=True),
        "nose bridge": Ellipsoid((0.0, bridge_y, bridge_z), bridge_radii, (-0.42 * p.nose_depth, 0.0, 0.0)),
        "neck": Ellipsoid((0.0, -0.6, -0.1), (0.2 * p.neck_width, 0.5, 0.2), (0.18, 0.0, 0.0)),
        "sockets": Ellipsoid((p.eye_distance + 0.005, EYE_Y, 0.455 * d), (0.12, 0.07, 0.075), mirrored=True),
    }


def _features(p: HeadParameters) -> dict[str, Ellipsoid]:
    """Eyes, tip of the nose, lips, ears, and the chest."""
    at = Landmarks.of(p)
    nostril = (0.055 * p.nose_width, at.nose_y - 0.012, at.nose_z - 0.04)
    ear = (0.035, 0.12 * p.ear_size, 0.08 * p.ear_size)
    return {
        "eyeballs": Ellipsoid((p.eye_distance, EYE_Y, 0.295 * p.depth), (0.105, 0.085, 0.095), mirrored=True),
        "nose tip": Ellipsoid((0.0, at.nose_y, at.nose_z), (0.06 * p.nose_width, 0.05, 0.065)),
        "upper lip": Ellipsoid((0.0, at.mouth_y + 0.018, at.mouth_z), (0.85 * p.mouth_width, 0.024, 0.055)),
        "lower lip": Ellipsoid((0.0, at.mouth_y - 0.028, at.mouth_z), (0.7 * p.mouth_width, 0.03, 0.052)),
        "ears": Ellipsoid((0.425 * p.width, -0.01, -0.05), ear, (0.2, 0.5, 0.0), mirrored=True),
        "chest": Ellipsoid((0.0, -1.1, -0.12), (0.5 * p.shoulder_width, 0.34, 0.23)),
        "nostrils": Ellipsoid(nostril, (0.035, 0.034, 0.05), mirrored=True),
    }


def _shirt(p: HeadParameters) -> dict[str, Ellipsoid]:
    """The shirt."""
    s = p.shoulder_width
    return {
        "torso": Ellipsoid((0.0, -1.42, -0.1), (0.8 * s, 0.64, 0.36)),
        "shoulders": Ellipsoid((0.52 * s, -1.03, -0.12), (0.36, 0.2, 0.22), (0.0, 0.0, -0.38), mirrored=True),
        "collar": Ellipsoid((0.0, -0.82, -0.12), (0.28 * p.neck_width, 0.18, 0.25)),
        "neckline": Ellipsoid((0.0, -0.64, 0.12), (0.24 * p.neck_width, 0.16 + p.neckline, 0.3), (-0.3, 0.0, 0.0)),
    }


def _hair(p: HeadParameters) -> dict[str, Ellipsoid]:
    """Masses of hair beside the layer on the skull; a style without one has it far away."""
    long, bob, bun = (p.style == style for style in (HairStyle.LONG, HairStyle.BOB, HairStyle.BUN))
    away = torch.where(long | bob, 0.0, ABSENT)
    reach = torch.where(long, 0.75, 0.5)
    return {
        "back hair": Ellipsoid((0.0, -0.12 - away, -0.16), (0.42 * p.width + p.hair_side, reach, 0.42)),
        "front lock": Ellipsoid(
            (-0.37 * p.width, -0.4 - torch.where(long, 0.0, ABSENT), 0.05), (0.12, 0.46, 0.16), (0.1, 0.0, 0.06)
        ),
        "bun": Ellipsoid((-0.1, 0.7 - torch.where(bun, 0.0, ABSENT), -0.3), (0.19, 0.17, 0.19)),
    }


def _worn(p: HeadParameters) -> dict[str, Ellipsoid]:
    """The brim of a cap."""
    return {"brim": Ellipsoid((0.0, p.hat_height + 0.085, 0.4), (0.33, 0.035, 0.33), (0.22, 0.0, p.hat_tilt))}
