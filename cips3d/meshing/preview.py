"""Pictures of a mesh by a small z-buffer rasteriser."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cips3d import pictures
from cips3d.cameras import FRONT, Cameras
from cips3d.meshing.surface import Mesh, face_normals

SIDES = {  # offset of yaw from the front, radians
    "front": 0.0,
    "yaw 0.79": math.pi / 4,
    "yaw 1.57": math.pi / 2,
    "back": math.pi,
    "yaw -1.57": -math.pi / 2,
    "yaw -0.79": -math.pi / 4,
}
PICTURE_SIDE = 256
SUPERSAMPLING = 2
MARGIN = 1.05
LARGEST_FOV = 120.0  # degrees: for meshes that nearly reach the camera

BACKGROUND = 1.0
CLAY = 0.9  # lightness of the uncoloured mesh, in [0, 1]
AMBIENT = 0.25
LIGHT = (0.35, 0.45, 0.82)  # direction to it in the camera's axes: right, up, backward

CANDIDATES = 2**21  # pairs of a triangle and a pixel that are looked at at a time: 150 MB


def preview(mesh: Mesh) -> Image.Image:
    """The mesh from six sides around it, a column each: in its colours (where it has any), and as lit clay."""
    vertices = torch.from_numpy(mesh.vertices)
    vertices = vertices - (vertices.amin(0) + vertices.amax(0)) / 2  # into the middle of the pictures
    faces = torch.from_numpy(mesh.faces).long()
    normals = torch.from_numpy(face_normals(mesh) if mesh.normals is None else mesh.normals)
    colors = (
        torch.empty(len(vertices), 0) if mesh.colors is None else pictures.from_uint8(torch.from_numpy(mesh.colors))
    )
    radius = vertices.norm(dim=1).max().item()
    fov = min(2 * math.degrees(math.asin(min(MARGIN * radius, 1.0))), LARGEST_FOV)
    yaw = FRONT + torch.tensor(list(SIDES.values()))
    cameras = Cameras.from_angles(torch.full_like(yaw, FRONT), yaw, fov)
    colored, clay = [], []
    for k in range(len(cameras)):
        camera = cameras[k : k + 1]
        attributes = torch.cat([colors, lit(normals, camera)], dim=1)
        picture = rasterize(vertices, faces, attributes, camera, PICTURE_SIDE * SUPERSAMPLING, BACKGROUND)
        small = F.avg_pool2d(picture, SUPERSAMPLING)
        colored.append(small[:-1])
        clay.append(small[-1:].expand(3, -1, -1))
    rows = [clay] if mesh.colors is None else [colored, clay]
    return pictures.image_grid(torch.stack([cell for row in rows for cell in row]), len(SIDES), column_labels=[*SIDES])


def lit(normals: Tensor, camera: Cameras) -> Tensor:
    """Grey [V, 1] in [-1, 1] of clay with normals [V, 3], lit from above the camera's shoulder (Lambert)."""
    light = F.normalize(torch.tensor(LIGHT), dim=0) @ camera.rotation[0].T
    lambert = (normals @ light).clamp_min(0)
    return (2 * CLAY * (AMBIENT + (1 - AMBIENT) * lambert) - 1)[:, None]


def rasterize(
    vertices: Tensor, faces: Tensor, attributes: Tensor, camera: Cameras, resolution: int, background: float
) -> Tensor:
    """A picture of triangles with attributes interpolated between their corners (perspective-correct).

    A pixel shows the nearest triangle that covers its centre.

    Args:
        vertices: [V, 3] scene units.
        faces: [F, 3] integers.
        attributes: [V, C].
        camera: one camera, all of the vertices before it.
        resolution: side of the picture, whose pixels lie where `Cameras.rays` has them.
        background: value where there is no triangle.

    Returns:
        [C, resolution, resolution].
    """
    place, depth = camera.project(vertices)
    corners = (place[0] + 1)[faces] * ((resolution - 1) / 2)  # [F, 3, 2] in pixels
    nearness = (1 / depth[0])[faces]  # [F, 3]: linear in the picture plane, as depth is not
    first = corners.amin(1).ceil().clamp(0, resolution).long()  # [F, 2] column and row of the bounding box
    size = (corners.amax(1).floor().clamp(-1, resolution - 1).long() - first + 1).clamp_min(0)
    pixels = size.prod(1)
    nearest = torch.full((resolution * resolution,), -1, dtype=torch.int64)
    for batch in _batches(pixels):
        face, pixel, weight = _covered(corners[batch], first[batch], size[batch], resolution)
        face = batch.start + face
        # The bits of positive floats are ordered as the floats are: nearness above, the face below.
        nearby = (weight * nearness[face]).sum(1).float()
        key = (nearby.view(torch.int32).long() << 32) | face
        nearest.scatter_reduce_(0, pixel, key, "amax")
    hit = (nearest >= 0).nonzero()[:, 0]
    face = nearest[hit] & (2**32 - 1)
    row, column = torch.div(hit, resolution, rounding_mode="floor"), hit % resolution
    weight = _barycentric(corners[face], torch.stack([column, row], dim=1).to(corners.dtype)) * nearness[face]
    shown = ((weight / weight.sum(1, keepdim=True))[..., None] * attributes[faces[face]]).sum(1)  # [hits, C]
    picture = attributes.new_full((resolution * resolution, attributes.shape[1]), background)
    picture[hit] = shown
    return picture.T.reshape(-1, resolution, resolution)


def _batches(pixels: Tensor) -> list[slice]:
    """Runs of triangles whose bounding boxes together have up to about `CANDIDATES` pixels."""
    turn = torch.div(pixels.cumsum(0), CANDIDATES, rounding_mode="floor")
    starts = [0, *(turn[1:] != turn[:-1]).nonzero()[:, 0].add(1).tolist(), len(pixels)]
    return [slice(start, stop) for start, stop in zip(starts, starts[1:], strict=False)]


def _covered(corners: Tensor, first: Tensor, size: Tensor, resolution: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every pixel whose centre a triangle covers: triangle [K], pixel [K] (row-major), barycentric weights [K, 3]."""
    pixels = size.prod(1)
    face = torch.arange(len(pixels)).repeat_interleave(pixels)
    within = torch.arange(len(face)) - (pixels.cumsum(0) - pixels)[face]
    column = first[face, 0] + within % size[face, 0]
    row = first[face, 1] + torch.div(within, size[face, 0], rounding_mode="floor")
    weight = _barycentric(corners[face], torch.stack([column, row], dim=1).to(corners.dtype))
    covered = (weight >= 0).all(1)
    return face[covered], (row * resolution + column)[covered], weight[covered]


def _barycentric(corners: Tensor, points: Tensor) -> Tensor:
    """Barycentric coordinates [K, 3] of points [K, 2] in triangles [K, 3, 2]; -1 in triangles without area."""
    origin = corners[:, 0]
    a, b, p = corners[:, 1] - origin, corners[:, 2] - origin, points - origin
    area = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    second = (p[:, 0] * b[:, 1] - p[:, 1] * b[:, 0]) / area
    third = (a[:, 0] * p[:, 1] - a[:, 1] * p[:, 0]) / area
    weight = torch.stack([1 - second - third, second, third], dim=1)
    return torch.where((area != 0)[:, None], weight, -1.0)
