"""Isosurfaces of formulas."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from meshing.analytic import Balls, one_face

from cips3d.errors import UserError
from cips3d.meshing.density import DensityField, density_grid
from cips3d.meshing.surface import Mesh, isosurface, kept_components, with_normals
from cips3d.meshing.writing import to_trimesh

pytest.importorskip("skimage")
pytest.importorskip("trimesh")

SIDE = 0.24
Ball = tuple[tuple[float, float, float], float]


def mesh_of(balls: list[Ball], resolution: int = 48, level: float = 1.0, sharpness: float = 1e4) -> Mesh:
    field = DensityField(Balls(balls, sharpness=sharpness), one_face())
    return isosurface(density_grid(field, SIDE, resolution), level, SIDE)


def signed_volume(mesh: Mesh) -> float:
    a, b, c = mesh.vertices.astype(np.float64)[mesh.faces].transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


class TestIsosurface:
    @pytest.mark.parametrize("resolution", [32, 48, 64])
    def test_radius(self, resolution: int) -> None:
        """Below 1%: linear interpolation of a cone of slope 1 is off by at most (Δx)²/8r·√3, 0.2% at 32³."""
        mesh = mesh_of([((0.01, -0.02, 0.005), 0.08)], resolution)
        radius = np.linalg.norm(mesh.vertices - [0.01, -0.02, 0.005], axis=1)
        level_depth = 1.0 / 1e4
        assert np.abs(radius / (0.08 - level_depth) - 1).max() < 0.003
        assert mesh.extent == pytest.approx([0.16] * 3, rel=0.01)

    def test_faces_outward(self) -> None:
        mesh = mesh_of([((0.0, 0.0, 0.0), 0.08)])
        assert signed_volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.08**3, rel=0.02)
        assert mesh.is_watertight

    def test_threshold_moves_it(self) -> None:
        mesh = mesh_of([((0.0, 0.0, 0.0), 0.08)], level=200.0)
        assert np.linalg.norm(mesh.vertices, axis=1).mean() == pytest.approx(0.06, rel=0.01)

    def test_cut_by_the_box_is_flat_and_closed(self) -> None:
        mesh = mesh_of([((0.0, -0.12, 0.0), 0.08)])
        assert mesh.is_watertight
        assert signed_volume(mesh) == pytest.approx(2 / 3 * math.pi * 0.08**3, rel=0.03)
        bottom = mesh.vertices[:, 1].min()
        assert bottom == pytest.approx(-SIDE / 2, abs=1e-4 * SIDE)
        on_cut = np.isclose(mesh.vertices[:, 1], bottom, atol=1e-4 * SIDE)
        area_points = on_cut.sum() * (SIDE / 47) ** 2
        assert area_points == pytest.approx(math.pi * 0.08**2, rel=0.1)

    @pytest.mark.parametrize("sharpness", [math.nan, math.inf])
    def test_diverged(self, sharpness: float) -> None:
        with pytest.raises(UserError, match="diverged"):
            mesh_of([((0.0, 0.0, 0.0), 0.08)], sharpness=sharpness)

    def test_nothing_there(self) -> None:
        with pytest.raises(UserError, match="reach 80; give a lower --threshold"):
            mesh_of([((0.0, 0.0, 0.0), 0.08)], resolution=49, level=1e6, sharpness=1e3)

    def test_wrong_shape(self) -> None:
        with pytest.raises(ValueError, match="grid"):
            isosurface(np.zeros((4, 4, 5), dtype=np.float32), 1.0, SIDE)


class TestWatertight:
    @pytest.fixture
    def ball(self) -> Mesh:
        return mesh_of([((0.0, 0.0, 0.0), 0.08)], 16)

    def test_agrees_with_trimesh(self, ball: Mesh) -> None:
        assert ball.is_watertight
        assert to_trimesh(ball).is_watertight

    def test_hole(self, ball: Mesh) -> None:
        holed = dataclasses.replace(ball, faces=ball.faces[1:])
        assert not holed.is_watertight
        assert not to_trimesh(holed).is_watertight

    def test_faces_that_are_there_twice(self, ball: Mesh) -> None:
        assert not dataclasses.replace(ball, faces=np.concatenate([ball.faces, ball.faces])).is_watertight

    def test_flipped_face(self, ball: Mesh) -> None:
        faces = ball.faces.copy()
        faces[5] = faces[5, ::-1]
        flipped = dataclasses.replace(ball, faces=faces)
        assert not flipped.is_watertight
        assert not to_trimesh(flipped).is_winding_consistent


class TestComponents:
    HEAD: Ball = ((0.0, 0.0, 0.0), 0.06)
    EAR: Ball = ((0.09, 0.0, 0.0), 0.02)  # 11% of the area
    SPECK: Ball = ((-0.09, 0.0, 0.0), 0.005)  # 0.7%

    def test_a_cavity_is_no_measure_for_floaters(self) -> None:
        cavity, speck = (mesh_of([ball], 96) for ball in (self.HEAD, self.SPECK))
        faces = np.concatenate([cavity.faces[:, ::-1], speck.faces + len(cavity.vertices)])
        both = Mesh(np.concatenate([cavity.vertices, speck.vertices]), faces)
        assert len(kept_components(both).faces) == len(speck.faces)

    def test_main_drops_floaters(self) -> None:
        everything = mesh_of([self.HEAD, self.EAR, self.SPECK], 96)
        kept = kept_components(everything)
        assert everything.vertices[:, 0].min() == pytest.approx(-0.095, abs=1e-3)
        assert kept.vertices[:, 0].min() == pytest.approx(-0.06, abs=1e-3)
        assert kept.vertices[:, 0].max() == pytest.approx(0.11, abs=1e-3)
        assert kept.is_watertight
        assert kept.faces.max() == len(kept.vertices) - 1

    def test_largest(self) -> None:
        kept = kept_components(mesh_of([self.EAR, self.HEAD, self.SPECK], 64), "largest")
        assert np.abs(kept.vertices).max() == pytest.approx(0.06, abs=1e-3)

    def test_all(self) -> None:
        everything = mesh_of([self.HEAD, self.EAR, self.SPECK], 64)
        assert kept_components(everything, "all") is everything

    def test_other_choices_are_refused(self) -> None:
        with pytest.raises(UserError, match="keep 'Largest' is unknown; choose one of main, largest, all"):
            kept_components(mesh_of([self.HEAD], 16), "Largest")  # type: ignore[arg-type]

    @pytest.mark.parametrize("keep", ["main", "largest"])
    def test_cavities_are_left_out(self, keep: str) -> None:
        """A shell between two radii: only its outside can be seen, though the hole is nearly as large."""
        axis = np.linspace(-SIDE / 2, SIDE / 2, 64)
        radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
        shell = isosurface((0.01 - np.abs(radius - 0.08)).astype(np.float32), 0.0, SIDE)
        assert np.linalg.norm(shell.vertices, axis=1).min() == pytest.approx(0.07, rel=0.01)
        kept = kept_components(shell, keep)  # type: ignore[arg-type]
        assert np.linalg.norm(kept.vertices, axis=1).min() == pytest.approx(0.09, rel=0.01)
        assert signed_volume(kept) == pytest.approx(4 / 3 * math.pi * 0.09**3, rel=0.02)

    def test_keeps_what_belongs_to_vertices(self) -> None:
        mesh = mesh_of([self.HEAD, self.SPECK], 64)
        marked = dataclasses.replace(
            mesh, normals=mesh.vertices * 2, colors=np.round(mesh.vertices * 1000 + 128).astype(np.uint8)
        )
        kept = kept_components(marked)
        assert kept.normals is not None
        assert kept.colors is not None
        np.testing.assert_array_equal(kept.normals, kept.vertices * 2)
        np.testing.assert_array_equal(kept.colors, np.round(kept.vertices * 1000 + 128).astype(np.uint8))


class TestNormals:
    def test_point_outward(self) -> None:
        field = DensityField(Balls([((0.0, 0.0, 0.0), 0.08)]), one_face())
        mesh = with_normals(mesh_of([((0.0, 0.0, 0.0), 0.08)]), field, SIDE)
        assert mesh.normals is not None
        outward = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
        np.testing.assert_allclose(mesh.normals, outward, atol=1e-4)  # float32 gradient of a norm

    def test_of_a_cut_are_the_boxs(self) -> None:
        """There the density has nothing to say: its gradient points to the ball's centre, along the cut."""
        balls = [((0.0, -0.12, 0.0), 0.08)]
        mesh = with_normals(mesh_of(balls), DensityField(Balls(balls), one_face()), SIDE)
        assert mesh.normals is not None
        inner = (mesh.vertices[:, 1] < -0.1199) & (np.linalg.norm(mesh.vertices[:, [0, 2]], axis=1) < 0.07)
        assert inner.sum() > 100
        np.testing.assert_allclose(mesh.normals[inner], np.tile([0.0, -1.0, 0.0], (inner.sum(), 1)), atol=0.02)

    def test_without_a_gradient_are_the_faces(self) -> None:
        class Plateau(Balls):
            def density(self, styles, points):  # type: ignore[no-untyped-def]
                return 0 * super().density(styles, points)

        mesh = with_normals(mesh_of([((0.0, 0.0, 0.0), 0.08)]), DensityField(Plateau(), one_face()), SIDE)
        assert mesh.normals is not None
        outward = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
        assert ((mesh.normals * outward).sum(1) > 0.98).all()
