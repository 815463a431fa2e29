"""Signed distances: ellipsoids in any position, smooth unions and cuts.

A signed distance is negative inside a body, zero on its surface and grows outside. `N` is the number of heads and `R`
the number of points examined in each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Scalar = float | Tensor  # a number for all heads, or one per head [N]
Triple = tuple[Scalar, Scalar, Scalar]

SQUARE_FLOOR = 1e-12  # rounding can leave a sum of squares slightly negative at an ellipsoid's centre


class Points(NamedTuple):
    """Points in head units: +y is up, +z is where the face looks, +x is the picture's right.

    Attributes:
        x: [N, R].
        y: [N, R].
        z: [N, R].
    """

    x: Tensor
    y: Tensor
    z: Tensor

    def moved(self, x: Scalar = 0.0, y: Scalar = 0.0, z: Scalar = 0.0) -> Points:
        """The points after a step."""
        return Points(self.x + x, self.y + y, self.z + z)


def smooth_min(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Union of two bodies with a fillet of about `radius`: min(a, b) - max(0, radius - |a - b|)² / (4 radius).

    Source: I. Quilez, "smooth minimum" (the quadratic polynomial form).
    """
    overlap = (a - b).abs_().sub_(radius).clamp_max_(0)
    return torch.minimum(a, b).sub_(overlap.square_(), alpha=0.25 / radius)


def smooth_max(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Intersection of two bodies with a rounded edge: max(a, b) + max(0, radius - |a - b|)² / (4 radius)."""
    overlap = (a - b).abs_().sub_(radius).clamp_max_(0)
    return torch.maximum(a, b).add_(overlap.square_(), alpha=0.25 / radius)


def smooth_union(body: Tensor, parts: Tensor, radii: Tensor) -> Tensor:
    """Union of a body [N, R] with parts [N, K, R] that each have a fillet [K] where they meet it.

    min(body, parts) - sum of max(0, radius - |body - part|)² / (4 radius): `smooth_min` with all parts at once, which
    is the same where no two fillets overlap.
    """
    body = body[:, None]
    overlap = (parts - body).abs_().sub_(radii[:, None]).clamp_max_(0).square_().mul_(0.25 / radii[:, None])
    return torch.minimum(body[:, 0], parts.amin(1)).sub_(overlap.sum(1))


def smooth_step(low: Scalar, high: Scalar, value: Tensor) -> Tensor:
    """Rise from 0 at `low` to 1 at `high` as 3t² - 2t³; `low` above `high` makes it fall."""
    t = ((value - low) / (high - low)).clamp_(0, 1)
    return t * t * (3 - 2 * t)


def select(masks: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """At every point, the last of `values` whose mask is True; the first one where no mask is."""
    chosen = values[0]
    for mask, value in zip(masks[1:], values[1:], strict=True):
        chosen = torch.where(mask, value, chosen)
    return chosen


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid, the same for all heads or different for each."""

    centre: Triple
    radii: Triple
    turn: Triple = (0.0, 0.0, 0.0)
    """Radians around the x axis, then y, then z."""
    mirrored: bool = False
    """A pair: a second one stands at -x."""


@dataclass(frozen=True)
class Parts:
    """Signed distances to named ellipsoids."""

    distances: Tensor  # [N, parts, R]
    places: dict[str, int]

    def __getitem__(self, name: str) -> Tensor:  # [N, R]
        return self.distances[:, self.places[name]]

    def span(self, first: str, last: str) -> Tensor:
        """Distances [N, K, R] to the parts from `first` to `last`, both included, in the order they were given in."""
        return self.distances[:, self.places[first] : self.places[last] + 1]


class Ellipsoids:
    """Several ellipsoids whose distances are found together.

    With q(p) = (p - c)ᵀ A (p - c), A = R diag(1/r²) Rᵀ, k0 = √q and k1 = √((p - c)ᵀ A² (p - c)), the distance is
    k0 (k0 - 1) / k1, exact on the axes and to first order near the surface. Both squares are quadratic in x, |x|, y
    and z, so that one matrix product with a table of coefficients serves all ellipsoids.
    """

    def __init__(self, parts: Mapping[str, Ellipsoid], heads: int, device: torch.device) -> None:
        def table(triples: list[Triple]) -> Tensor:  # [N, parts, 3]
            columns = [torch.as_tensor(value, dtype=torch.float64, device=device) for t in triples for value in t]
            return torch.stack([column.expand(heads) for column in columns], dim=1).view(heads, -1, 3)

        self.places = {name: place for place, name in enumerate(parts)}
        centre = table([part.centre for part in parts.values()])
        radii = table([part.radii for part in parts.values()])
        rotation = _rotation(table([part.turn for part in parts.values()]))
        mirrored = torch.tensor([part.mirrored for part in parts.values()], device=device)
        k0, k1 = (_coefficients(rotation, radii.pow(power), centre, mirrored) for power in (-2, -4))
        self.coefficients = torch.cat([k0, k1], dim=1)  # [N, 2·parts, 13]

    def distances(self, points: Points) -> Parts:
        """The signed distance to every ellipsoid."""
        squares = torch.bmm(self.coefficients, _monomials(points))
        k0, k1 = squares.clamp_min_(SQUARE_FLOOR).sqrt_().chunk(2, dim=1)  # [N, parts, R]
        distance = (k0 - 1).mul_(k0).div_(k1)
        return Parts(distance, self.places)


def _monomials(points: Points) -> Tensor:
    """The 13 monomials [N, 13, R] in which a pair of mirrored ellipsoids is quadratic."""
    x, y, z = points
    mirrored = x.abs()
    return torch.stack(
        [x * x, y * y, z * z, y * z, x * y, x * z, mirrored * y, mirrored * z, x, mirrored, y, z, torch.ones_like(x)],
        dim=1,
    )


def _coefficients(rotation: Tensor, scale: Tensor, centre: Tensor, mirrored: Tensor) -> Tensor:
    """(p - c)ᵀ R diag(scale) Rᵀ (p - c) multiplied out, in the order of `_monomials`.

    Args:
        rotation: [N, parts, 3, 3].
        scale: [N, parts, 3].
        centre: [N, parts, 3].
        mirrored: [parts] bool.

    Returns:
        [N, parts, 13] float32, computed in float64 since the constant nearly cancels the squares.
    """
    matrix = rotation @ torch.diag_embed(scale) @ rotation.transpose(-1, -2)
    linear = -2 * (matrix @ centre[..., None])[..., 0]
    constant = -0.5 * (linear * centre).sum(-1)
    xy, xz, yz = 2 * matrix[..., 0, 1], 2 * matrix[..., 0, 2], 2 * matrix[..., 1, 2]
    with_x = torch.stack([xy, xz, linear[..., 0]], dim=-1)
    signed = torch.where(mirrored[:, None], 0.0, with_x)
    absolute = with_x - signed
    columns = [matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 2, 2], yz, signed[..., 0], signed[..., 1]]
    columns += [absolute[..., 0], absolute[..., 1], signed[..., 2], absolute[..., 2]]
    columns += [linear[..., 1], linear[..., 2], constant]
    return torch.stack(columns, dim=-1).float()


def _rotation(angles: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] around x, then y, then z by `angles` [..., 3]."""
    one, none = torch.ones_like(angles[..., 0]), torch.zeros_like(angles[..., 0])
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))

    around_x = matrix(one, none, none, none, cx, -sx, none, sx, cx)
    around_y = matrix(cy, none, sy, none, one, none, -sy, none, cy)
    around_z = matrix(cz, -sz, none, sz, cz, none, none, none, one)
    return around_z @ around_y @ around_x
