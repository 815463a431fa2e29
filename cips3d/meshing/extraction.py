"""From a generator to a mesh."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.meshing.coloring import coloring_views, vertex_colors
from cips3d.meshing.density import DensityField, density_grid, visible_side
from cips3d.meshing.surface import Components, Mesh, isosurface, kept_components, with_normals
from cips3d.meshing.threshold import surface_threshold
from cips3d.rendering import LoadedGenerator, check_is_3d

LIBRARIES = {"skimage": "scikit-image", "scipy": "scipy", "trimesh": "trimesh"}  # of the extra: import, package


@dataclass(frozen=True)
class MeshSettings:
    """How a mesh is made."""

    resolution: int = 256
    """points along an edge of the density grid"""
    threshold: float | None = None
    """density per scene unit on the surface; None: `surface_threshold`"""
    side: float | None = None
    """of the box, scene units; None: `visible_side`"""
    components: Components = "main"
    """see `kept_components`"""
    picture_resolution: int | None = None
    """side of the pictures that colours are taken from; None: as the grid's"""


class ExtractedMesh(NamedTuple):
    """A mesh and how it came about."""

    mesh: Mesh
    threshold: float
    """density per scene unit on the surface"""
    side: float
    """of the box, scene units"""
    seen_share: float
    """of vertices whose colour comes from a picture; others have that of their neighbours"""


def extract_mesh(
    loaded: LoadedGenerator, styles: tuple[Tensor, ...], settings: MeshSettings | None = None, *, progress: bool = False
) -> ExtractedMesh:
    """The surface of one face's volume, with normals of the density and colours of rendered pictures.

    Args:
        loaded: a 3-D generator.
        styles: of one face.
        settings: how.
        progress: show progress bars on stderr.

    Raises:
        UserError: a library of the extra `mesh` is missing, the generator is 2-D, or there is no surface.
        ValueError: a setting makes no sense; it is named.
    """
    check_installed()
    check_is_3d(loaded, "a mesh")
    settings = settings or MeshSettings()
    _check(settings)
    field = DensityField(loaded.generator, styles, loaded.settings.density_activation)
    pitch, yaw = coloring_views(loaded.poses)
    threshold = settings.threshold
    if threshold is None:
        cameras = Cameras.from_angles(pitch, yaw, loaded.fov_degrees).to(loaded.device)
        threshold = surface_threshold(field, cameras, loaded.settings)
    side = visible_side(loaded.settings, loaded.fov_degrees) if settings.side is None else settings.side
    grid = density_grid(field, side, settings.resolution, progress=progress)
    mesh = isosurface(grid, field.raw_level(threshold), side)
    del grid
    mesh = with_normals(kept_components(mesh, settings.components), field, side)
    pictured = settings.picture_resolution or loaded.generator.fixed_resolution or settings.resolution
    colors, seen = vertex_colors(loaded, styles, mesh, pitch, yaw, pictured, progress=progress)
    return ExtractedMesh(replace(mesh, colors=colors), threshold, side, float(seen.mean()))


def _check(settings: MeshSettings) -> None:
    if settings.resolution < 3:
        raise ValueError(f"resolution must be at least 3, got {settings.resolution}")
    for name in ("threshold", "side"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value}")
    if settings.picture_resolution is not None and settings.picture_resolution < 1:
        raise ValueError(f"picture_resolution must be at least 1, got {settings.picture_resolution}")


def check_installed(find: Callable[[str], object | None] = importlib.util.find_spec) -> None:
    """Raise `UserError` where a library that meshes need is missing."""
    missing = [package for module, package in LIBRARIES.items() if find(module) is None]
    if missing:
        raise UserError(f"meshes need {' and '.join(missing)}; install the extra with: pip install 'cips3d[mesh]'")
