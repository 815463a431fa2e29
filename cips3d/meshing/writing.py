"""Mesh files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cips3d.files import atomic_file
from cips3d.meshing.surface import Mesh

if TYPE_CHECKING:
    import trimesh

MESH_ENDINGS = (".glb", ".ply", ".obj")

# What trimesh calls the colours: glTF wants a leading underscore of names that are not its own.
GLB_COLOR = "_COLOR"


def write_mesh(path: str | Path, mesh: Mesh) -> None:
    """Write a mesh with its normals and colours, whole or not at all; the ending of `path` chooses the format.

    .ply: binary, colours as 8-bit sRGB; .obj: text, sRGB colours in [0, 1] behind the coordinates, as MeshLab, Blender
    and others read them; .glb: glTF 2.0, linear colours in float32 as the standard asks (section 3.7.2.1) and a matt
    material, +y up and the face toward +z.

    Raises:
        ValueError: the ending is none of these.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in MESH_ENDINGS:
        raise ValueError(f"path must end in {', '.join(MESH_ENDINGS)}, got {path}")
    content = encoded(mesh, ending)
    with atomic_file(path) as file:
        file.write(content)


def encoded(mesh: Mesh, ending: str) -> bytes:
    """The bytes of a file with this ending."""
    exported = to_trimesh(replace(mesh, colors=None) if ending == ".glb" else mesh)
    normals = mesh.normals is not None
    if ending == ".glb":
        if mesh.colors is not None:
            exported.vertex_attributes[GLB_COLOR] = linear(mesh.colors)
        content = exported.export(file_type="glb", include_normals=normals, tree_postprocessor=_finish_gltf)
    elif ending == ".ply":
        content = exported.export(file_type="ply", encoding="binary", vertex_normal=normals)
    else:
        content = exported.export(file_type="obj", include_normals=normals, header="cips3d")
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    raise TypeError(f"trimesh gave a {type(content).__name__} for {ending}")


def to_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    """The same mesh in trimesh's terms, vertices and faces in the same order."""
    import trimesh

    return trimesh.Trimesh(
        mesh.vertices, mesh.faces, vertex_normals=mesh.normals, vertex_colors=mesh.colors, process=False
    )


def linear(colors: np.ndarray) -> np.ndarray:
    """Linear light [V, 3] float32 in [0, 1] of 8-bit sRGB colours (IEC 61966-2-1)."""
    encoded_light = colors.astype(np.float32) / 255
    return np.where(encoded_light <= 0.04045, encoded_light / 12.92, ((encoded_light + 0.055) / 1.055) ** 2.4)


def _finish_gltf(tree: dict[str, Any]) -> None:
    """Name the colours as glTF does, and make the material matt: by default glTF's is metal and looks dark."""
    tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}]
    for shape in tree["meshes"]:
        for primitive in shape["primitives"]:
            primitive["material"] = 0
            if GLB_COLOR in primitive["attributes"]:
                primitive["attributes"]["COLOR_0"] = primitive["attributes"].pop(GLB_COLOR)
