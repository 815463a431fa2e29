"""Mesh files, read back with trimesh."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from cips3d.meshing.surface import Mesh
from cips3d.meshing.writing import MESH_ENDINGS, write_mesh

trimesh = pytest.importorskip("trimesh")


@pytest.fixture
def mesh() -> Mesh:
    """A tetrahedron."""
    vertices = np.array([[0.1, 0.1, 0.1], [0.1, -0.1, -0.1], [-0.1, 0.1, -0.1], [-0.1, -0.1, 0.1]], dtype=np.float32)
    faces = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]], dtype=np.int32)
    colors = np.array([[0, 10, 255], [20, 30, 40], [128, 64, 200], [250, 3, 90]], dtype=np.uint8)
    return Mesh(vertices, faces, vertices / np.float32(np.sqrt(0.03)), colors)


def to_srgb(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def gltf(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = struct.unpack("<I", content[12:16])[0]
    return json.loads(content[20 : 20 + length]), content[20 + length + 8 :]


@pytest.mark.parametrize("ending", MESH_ENDINGS)
def test_reads_back(tmp_path: Path, mesh: Mesh, ending: str) -> None:
    path = tmp_path / f"head{ending}"
    write_mesh(path, mesh)
    back = trimesh.load(path, process=False, force="mesh")
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=1e-7)
    np.testing.assert_array_equal(back.faces, mesh.faces)
    np.testing.assert_allclose(back.vertex_normals, mesh.normals, atol=1e-6)
    assert back.is_watertight
    assert back.volume > 0
    if ending != ".glb":
        np.testing.assert_array_equal(back.visual.vertex_colors[:, :3], mesh.colors)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_ply_is_binary(tmp_path: Path, mesh: Mesh) -> None:
    write_mesh(str(tmp_path / "head.ply"), mesh)
    header = (tmp_path / "head.ply").read_bytes().partition(b"end_header")[0].decode()
    assert "format binary_little_endian" in header
    assert "property uchar red" in header


def test_glb_has_linear_float_colors_and_a_matt_material(tmp_path: Path, mesh: Mesh) -> None:
    write_mesh(tmp_path / "head.glb", mesh)
    tree, binary = gltf(tmp_path / "head.glb")
    (primitive,) = tree["meshes"][0]["primitives"]
    accessor = tree["accessors"][primitive["attributes"]["COLOR_0"]]
    assert (accessor["componentType"], accessor["type"], accessor["count"]) == (5126, "VEC3", 4)
    start = tree["bufferViews"][accessor["bufferView"]].get("byteOffset", 0)
    light = np.frombuffer(binary, dtype="<f4", count=12, offset=start).reshape(4, 3)
    np.testing.assert_allclose(255 * to_srgb(light), mesh.colors, atol=1e-3)
    assert "NORMAL" in primitive["attributes"]
    assert len(tree["accessors"]) == 4  # no second set of colours
    assert not any(name.startswith("_") for name in primitive["attributes"])
    assert tree["materials"][primitive["material"]]["pbrMetallicRoughness"]["metallicFactor"] == 0


@pytest.mark.parametrize("ending", MESH_ENDINGS)
def test_bare_mesh(tmp_path: Path, mesh: Mesh, ending: str) -> None:
    write_mesh(tmp_path / f"a{ending}", Mesh(mesh.vertices, mesh.faces))
    back = trimesh.load(tmp_path / f"a{ending}", process=False, force="mesh")
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=1e-7)


def test_unknown_ending(tmp_path: Path, mesh: Mesh) -> None:
    with pytest.raises(ValueError, match=r"\.glb"):
        write_mesh(tmp_path / "head.stl", mesh)


def test_failure_leaves_the_old_file(tmp_path: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "head.ply"
    path.write_bytes(b"old")

    def fail(*arguments: object, **options: object) -> bytes:
        raise RuntimeError("no")

    monkeypatch.setattr(trimesh.Trimesh, "export", fail)
    with pytest.raises(RuntimeError):
        write_mesh(path, mesh)
    assert path.read_bytes() == b"old"
