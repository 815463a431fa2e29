"""The isosurface of a grid of densities, its parts and its normals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from cips3d.errors import UserError, require_choice
from cips3d.meshing.density import DensityField, FloatArray, default_chunk_points

IntArray = npt.NDArray[np.int32]
Components = Literal["main", "largest", "all"]

FLOATER_AREA = 0.01  # parts with a smaller share of the largest one's area are floaters
CAP_DEPTH = 1e-3  # how far below the level the rim of a grid is set, as a share of the level (at least of 1)


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles, counter-clockwise as seen from outside.

    Attributes:
        vertices: [V, 3] scene units.
        faces: [F, 3].
        normals: [V, 3] unit length, outward.
        colors: [V, 3] sRGB.
    """

    vertices: FloatArray
    faces: IntArray
    normals: FloatArray | None = None
    colors: npt.NDArray[np.uint8] | None = None

    @property
    def extent(self) -> FloatArray:
        """[3] size along x, y and z in scene units."""
        return np.ptp(self.vertices, axis=0)

    @property
    def is_watertight(self) -> bool:
        """True where every edge is shared by exactly two faces, which run along it in opposite directions."""
        start, end = (self.faces[:, columns].reshape(-1).astype(np.int64) for columns in ([0, 1, 2], [1, 2, 0]))
        count = len(self.vertices)
        forth = np.sort(start * count + end)
        return len(forth) > 0 and bool(
            (forth[1:] != forth[:-1]).all() and (forth == np.sort(end * count + start)).all()
        )


def isosurface(grid: FloatArray, level: float, side: float) -> Mesh:
    """The surface on which a grid around the origin has the value `level`, by marching cubes (Lewiner's).

    The rim of the grid counts as outside, so that what reaches it is closed by a flat cut.

    Args:
        grid: [N, N, N], x first; its rim is changed.
        level: inside is above.
        side: of the cube, scene units.

    Raises:
        UserError: the surface is empty, or the grid does not hold numbers.

    Source: T. Lewiner et al., Efficient implementation of marching cubes' cases with topological guarantees (2003).
    """
    from skimage.measure import marching_cubes

    resolution = grid.shape[0]
    if grid.shape != (resolution,) * 3 or resolution < 3:
        raise ValueError(f"grid must have shape [N, N, N] with N > 2, got {list(grid.shape)}")
    lowest, highest = float(grid.min()), float(grid.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise UserError("the model's densities are not numbers: its training diverged; give an earlier checkpoint")
    if not float(grid[1:-1, 1:-1, 1:-1].max()) > level:
        raise UserError(
            f"there is no surface: densities in the box reach {max(highest, 0.0):g}; give a lower --threshold "
            "or another --box-side"
        )
    outside = level - CAP_DEPTH * max(abs(level), 1.0)
    for axis in range(3):
        for end in (0, -1):
            rim = np.moveaxis(grid, axis, 0)[end]
            np.minimum(rim, outside, out=rim)
    spacing = side / (resolution - 1)
    # "ascent" only orders corners: scikit-image's default has them clockwise from outside where inside is above.
    vertices, faces, _, _ = marching_cubes(grid, level, spacing=(spacing,) * 3, gradient_direction="ascent")
    return Mesh((vertices - side / 2).astype(np.float32), faces.astype(np.int32))


def kept_components(mesh: Mesh, keep: Components = "main") -> Mesh:
    """Leave out parts that hang together with nothing.

    main: without floaters, parts with less than 1% of the area of the largest one, and without cavities, closed parts
    that face inward and that nobody sees; largest: only the part with the largest area; all: everything.

    Raises:
        UserError: nothing is left, since every part is a cavity; or `keep` is unknown.
    """
    require_choice("keep", keep, get_args(Components))
    if keep == "all":
        return mesh
    part = _parts_of_faces(mesh)
    corners = mesh.vertices[mesh.faces].astype(np.float64)  # [F, 3, 3]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.bincount(part, np.linalg.norm(cross, axis=1) / 2)
    volume = np.bincount(part, (corners[:, 0] * cross).sum(1) / 6)  # of closed parts; below 0 where they face inward
    outward = volume > 0
    if not outward.any():
        raise UserError("the surface only encloses cavities; give another --threshold")
    largest = area[outward].max()
    kept = outward & (area == largest if keep == "largest" else area >= FLOATER_AREA * largest)
    faces = mesh.faces[kept[part]]
    used, renumbered = np.unique(faces, return_inverse=True)
    return replace(
        mesh,
        vertices=mesh.vertices[used],
        faces=renumbered.reshape(faces.shape).astype(np.int32),
        normals=None if mesh.normals is None else mesh.normals[used],
        colors=None if mesh.colors is None else mesh.colors[used],
    )


def _parts_of_faces(mesh: Mesh) -> npt.NDArray[np.int32]:
    """[F] number of the part that a face belongs to."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    start, end = mesh.faces[:, [0, 1]].reshape(-1), mesh.faces[:, [1, 2]].reshape(-1)
    shape = (len(mesh.vertices), len(mesh.vertices))
    edges = coo_array((np.ones(len(start), dtype=bool), (start, end)), shape=shape)
    labels = connected_components(edges, directed=False)[1]
    return labels[mesh.faces[:, 0]]


def with_normals(mesh: Mesh, field: DensityField, side: float) -> Mesh:
    """The mesh with normals n = -∇σ / |∇σ| of the density: outward, to where it falls.

    On the flat cuts at the box, and where the gradient and the faces around a vertex disagree about what is outward,
    a vertex takes the area-weighted mean of its faces' normals.

    Args:
        side: of the box that the mesh was cut from, scene units.
    """
    of_faces = face_normals(mesh)
    points = torch.from_numpy(mesh.vertices)
    chunks = points.split(default_chunk_points(field.device, gradients=True))
    gradient = torch.cat([field.gradient(chunk.to(field.device)).cpu() for chunk in chunks]).numpy()
    length = np.linalg.norm(gradient, axis=1, keepdims=True)
    normals = -gradient / np.maximum(length, np.finfo(np.float32).tiny)
    cut = np.abs(mesh.vertices).max(1) > side / 2 * (1 - 1e-4)
    doubtful = cut | ~((normals * of_faces).sum(1) > 0)
    return replace(mesh, normals=np.where(doubtful[:, None], of_faces, normals).astype(np.float32))


def face_normals(mesh: Mesh) -> FloatArray:
    """[V, 3] unit normals of vertices, the area-weighted means of their faces' (Gouraud)."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    count = len(mesh.vertices)
    summed = np.stack([np.bincount(mesh.faces.reshape(-1), np.repeat(cross[:, k], 3), count) for k in range(3)], axis=1)
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    return (summed / np.maximum(length, np.finfo(np.float64).tiny)).astype(np.float32)
