"""Pictures of heads by sphere tracing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.cameras import Cameras, Rays
from cips3d.data.heads.anatomy import HeadShape, Material
from cips3d.data.heads.paint import paint
from cips3d.data.heads.parameters import HeadParameters, to_display
from cips3d.data.heads.shapes import Points, select

HEAD_UNITS = 9.3  # head units per scene unit
NEAR, FAR = 0.88 * HEAD_UNITS, 1.12 * HEAD_UNITS  # the scene lies between these distances along a ray

TILE = 4  # side of the square of rays that is first traced as one cone
CONE_STEPS = 9
ROUNDS = (3, 2, 2, 3, 4, 6)  # steps between two looks at which rays have arrived
CAUTION = 0.93  # share of a distance that is stepped: smooth unions of ellipsoids overestimate it slightly
SLANT, STEEP = 0.45, 4.0  # least and greatest rate, per step length, at which the distance is taken to shrink
ARRIVED = 0.004  # head units
HIT = 0.03  # rays that end this close are hits: what has not arrived by then creeps along a surface
NORMAL_STEP = 0.008
RAYS_AT_ONCE = 2**17  # rays of a batch of images: few calls, and tensors that still fit the processor's caches


class HeadImages(NamedTuple):
    """Pictures with their ground truth.

    Attributes:
        images: [N, 3, H, W] uint8.
        depth: [N, H, W] float32: distance along the ray, scene units, 0 where background.
        mask: [N, H, W] float32: share of the pixel that the head covers.
    """

    images: Tensor
    depth: Tensor
    mask: Tensor


@torch.no_grad()
def render_heads(parameters: HeadParameters, cameras: Cameras, resolution: int, supersampling: int = 2) -> HeadImages:
    """Render heads, one camera each.

    Args:
        parameters: of N heads.
        cameras: N cameras around the origin at distance 1.
        resolution: side of the pictures in pixels, at least 2.
        supersampling: rays per pixel and direction; colours, coverage and depth are averaged over a pixel's rays.

    Raises:
        ValueError: the numbers of heads and cameras differ, or a size is too small.
    """
    if len(parameters) != len(cameras):
        raise ValueError(f"parameters has {len(parameters)} heads but cameras has {len(cameras)}")
    if resolution < 2 or supersampling < 1:
        raise ValueError(f"resolution must be >= 2 and supersampling >= 1, got {resolution} and {supersampling}")
    batch = max(1, RAYS_AT_ONCE // (resolution * supersampling) ** 2)
    parts = [
        _render_batch(parameters[start : start + batch], cameras[start : start + batch], resolution, supersampling)
        for start in range(0, len(parameters), batch)
    ]
    return HeadImages(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _render_batch(parameters: HeadParameters, cameras: Cameras, resolution: int, supersampling: int) -> HeadImages:
    shape = HeadShape(parameters)
    side = resolution * supersampling
    rays = supersampled_rays(cameras, resolution, supersampling)
    t = trace(shape.distance, rays, side)
    index = first_rows(t < FAR)  # [N, R']
    points = along(rays, index, t.gather(1, index))
    color = _shade(shape, parameters, points)
    hit = t < FAR
    frame = _background(parameters, side)
    seen = hit.gather(1, index)[:, None]
    old = frame.gather(2, index[:, None].expand(-1, 3, -1))
    frame.scatter_(2, index[:, None].expand(-1, 3, -1), torch.where(seen, color, old))

    def pool(values: Tensor) -> Tensor:  # [N, C, side²] -> [N, C, H, W]
        return F.avg_pool2d(values.view(len(values), -1, side, side), supersampling)

    images = (to_display(pool(frame)) * 255).round().to(torch.uint8)
    mask = pool(hit.float()[:, None])[:, 0]
    depth = pool(torch.where(hit, t / HEAD_UNITS, 0)[:, None])[:, 0] / mask.clamp_min(1e-6)
    return HeadImages(images, depth, mask)


def supersampled_rays(cameras: Cameras, resolution: int, supersampling: int) -> Rays:
    """Rays [N, (resolution·supersampling)²] spread evenly over the pixels of `Cameras.rays(resolution)`.

    Pixel centres lie on an inclusive grid with the spacing 2 / (resolution - 1), so that the outer pixels reach half a
    spacing beyond ± 1; a slightly wider angle of view makes the finer inclusive grid cover just that.
    """
    side = resolution * supersampling
    widening = (side - 1) / ((resolution - 1) * supersampling)
    half = torch.tan(cameras.fov_degrees * (math.pi / 360)) * widening
    wider = Cameras(cameras.rotation, cameras.position, torch.atan(half) * (360 / math.pi))
    return wider.rays(side)


def trace(distance: Callable[[Points], Tensor], rays: Rays, side: int) -> Tensor:
    """Find where rays meet a surface.

    First one cone per tile of rays is followed up to where it could touch the surface; then its rays go on one by one,
    and those that have arrived or have left the scene are dropped.

    Args:
        distance: signed distance [N, R] of points, in head units.
        rays: [N, side²] in scene units, in row-major order.
        side: rays per row.

    Returns:
        [N, side²] distances from the camera in head units; infinite where nothing was met.
    """
    t = _trace_cones(distance, rays, side)
    free = torch.full_like(t, math.nan)  # the distance at the last point examined (none yet) ...
    step = torch.ones_like(t)  # ... and the step taken from there
    active = t < FAR
    for steps in ROUNDS:
        index = first_rows(active)
        if index.shape[1] == 0:
            break
        origins, directions = _gather(rays, index)
        at, before, step_at = (values.gather(1, index) for values in (t, free, step))
        for _ in range(steps):
            now = distance(_points(origins, directions, at))
            # Where a surface is met at a slant, the distance shrinks by less than the step: step as far as it tells.
            closing = ((before - now) / step_at).nan_to_num_(1 / CAUTION)
            step_at = now / closing.clamp_(SLANT, STEEP)
            at, before = at + step_at, now
        for values, reached in ((t, at), (free, before), (step, step_at)):
            values.scatter_(1, index, reached)
        active = (t < FAR) & (free.abs() > ARRIVED)
    return torch.where((t < FAR) & (free < HIT), t, math.inf)


def _trace_cones(distance: Callable[[Points], Tensor], rays: Rays, side: int) -> Tensor:
    """Distances [N, side²] up to which the tiles' cones are free; infinite for tiles that meet nothing."""
    images = len(rays.directions)
    grid = rays.directions.transpose(1, 2).view(images, 3, side, side)
    middle = F.avg_pool2d(grid, TILE, ceil_mode=True, count_include_pad=False)
    tiles = middle.shape[-1]
    middle = F.normalize(middle.flatten(2).transpose(1, 2), dim=-1)  # [N, tiles², 3]
    spacing = (grid[:, :, 0, 0] - grid[:, :, -1, -1]).norm(dim=1).max() / max(side - 1, 1)  # of the diagonal
    half = side // 2  # wide lenses spread rays most in the middle, where half a tile's diagonal has to be covered too
    widest = (grid[:, :, half, half] - grid[:, :, half - 1, half - 1]).norm(dim=1).max()
    radius = torch.maximum(FAR * 0.5 * TILE * spacing, FAR * 0.5 * (TILE - 1) * widest)
    cone = Rays(rays.origins[:, : tiles * tiles], middle)
    t = torch.full(middle.shape[:2], NEAR, dtype=middle.dtype, device=middle.device)
    origins, directions = _gather(cone, None)
    for _ in range(CONE_STEPS):
        free = distance(_points(origins, directions, t)) - radius
        t = t + CAUTION * free.clamp_min(0)
    t = torch.where(t < FAR, t, math.inf).view(images, 1, tiles, tiles)
    fine = F.interpolate(t, scale_factor=TILE, mode="nearest")
    return fine[:, 0, :side, :side].flatten(1).contiguous()


def first_rows(chosen: Tensor) -> Tensor:
    """Positions [N, most] of the chosen entries of each row; shorter rows are filled up with others of theirs."""
    most = int(chosen.sum(1).max())
    return chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]


def along(rays: Rays, index: Tensor, t: Tensor) -> Points:
    """The points at distance `t` [N, R] (head units) on the rays `index` [N, R]."""
    return _points(*_gather(rays, index), t)


def _gather(rays: Rays, index: Tensor | None) -> tuple[Points, Points]:
    """Origins (head units) and directions of the rays at `index` [N, R]."""
    directions = rays.directions.transpose(1, 2).contiguous()  # [N, 3, R]
    if index is not None:
        directions = directions.gather(2, index[:, None].expand(-1, 3, -1))
    origin = HEAD_UNITS * rays.origins[:, :1]  # the pinhole is common to an image's rays
    return Points(*origin.unbind(2)), Points(*directions.unbind(1))


def _points(origins: Points, directions: Points, t: Tensor) -> Points:
    return Points(*(torch.addcmul(o, d, t) for o, d in zip(origins, directions, strict=True)))


def _shade(shape: HeadShape, parameters: HeadParameters, points: Points) -> Tensor:
    """Linear colours [N, 3, R] of surface points: soft key light, sky and ground light, darkened where enclosed."""
    p = parameters.columns()
    distances = shape.distances(points)
    nearest = functools.reduce(torch.minimum, distances)
    made_of = [distances[kind] == nearest for kind in Material]

    def slope(x: float = 0, y: float = 0, z: float = 0) -> Tensor:
        """The change of the distance to the point's own material."""
        step = shape.distances(points.moved(x * NORMAL_STEP, y * NORMAL_STEP, z * NORMAL_STEP))
        return select(made_of, step) - nearest

    normal = F.normalize(torch.stack([slope(x=1), slope(y=1), slope(z=1)]), dim=0)  # [3, N, R]
    light = p.light_direction.transpose(0, 1)  # [3, N, 1]

    def openness(direction: Tensor, reach: float) -> Tensor:
        probe = Points(*(at + reach * towards for at, towards in zip(points, direction, strict=True)))
        return (shape.distance(probe) / reach).clamp(0, 1)

    near = openness(normal, 0.06)
    lit = openness(F.normalize(normal + light, dim=0), 0.16)
    facing = (normal * light).sum(0)
    key = ((facing + 0.25) / 1.25).clamp_min(0) * (0.25 + 0.75 * lit)
    ambient = (0.32 + 0.13 * normal[1]) * (0.35 + 0.65 * near)
    brightness = ambient[:, None] + (0.8 * key)[:, None] * p.light_color
    half = F.normalize(light + light.new_tensor([0.0, 0.0, 1.0])[:, None, None], dim=0)
    gloss = (normal * half).sum(0).clamp_min(0).pow(24) * 0.05 * lit
    return paint(parameters, made_of, points) * brightness + gloss[:, None]


def _background(parameters: HeadParameters, side: int) -> Tensor:
    """A vertical gradient [N, 3, side²]."""
    down = torch.linspace(0, 1, side, device=parameters.width.device).repeat_interleave(side)
    return torch.lerp(parameters.background_top[:, :, None], parameters.background_bottom[:, :, None], down)
