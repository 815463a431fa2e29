"""Meshes of the volumes of 3-D generators: density, isosurface, colours, preview and files."""

from cips3d.meshing.coloring import VertexColors, vertex_colors
from cips3d.meshing.density import DensityField, density_grid, visible_side
from cips3d.meshing.extraction import ExtractedMesh, MeshSettings, extract_mesh
from cips3d.meshing.surface import Components, Mesh, isosurface, kept_components
from cips3d.meshing.threshold import surface_threshold
from cips3d.meshing.writing import MESH_ENDINGS, write_mesh

__all__ = [
    "MESH_ENDINGS",
    "Components",
    "DensityField",
    "ExtractedMesh",
    "Mesh",
    "MeshSettings",
    "VertexColors",
    "density_grid",
    "extract_mesh",
    "isosurface",
    "kept_components",
    "surface_threshold",
    "vertex_colors",
    "visible_side",
    "write_mesh",
]
