"""Vertex colours from generators whose pictures are formulas."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from meshing.analytic import Balls, loaded_balls, one_face

from cips3d.cameras import PoseDistribution
from cips3d.errors import UserError
from cips3d.meshing.coloring import _fill_unseen, coloring_views, vertex_colors
from cips3d.meshing.density import DensityField, density_grid
from cips3d.meshing.surface import Mesh, isosurface, with_normals

pytest.importorskip("skimage")
pytest.importorskip("scipy")

SIDE = 0.24
FRONT = math.pi / 2


def mesh_of(generator: Balls) -> Mesh:
    field = DensityField(generator, one_face())
    return with_normals(isosurface(density_grid(field, SIDE, 64), 1.0, SIDE), field, SIDE)


class TestViews:
    def test_cover_a_gaussian_to_two_deviations(self) -> None:
        pitch, yaw = coloring_views(PoseDistribution())
        assert len(pitch) == len(yaw) == 7
        # quantiles of 4096 samples: a standard error of 0.05 deviations
        assert yaw.min().item() == pytest.approx(FRONT - 0.6, abs=0.05)
        assert yaw.max().item() == pytest.approx(FRONT + 0.6, abs=0.05)
        assert pitch.min().item() == pytest.approx(FRONT - 0.31, abs=0.03)

    def test_sides_are_seen_from_the_front_pitch(self) -> None:
        for poses in (PoseDistribution(pitch_mean=1.2), PoseDistribution("spherical_uniform", pitch_mean=0.7)):
            pitch, _ = coloring_views(poses)
            assert pitch[:5].tolist() == pytest.approx([poses.front_pitch] * 5, abs=0.02)

    def test_all_around_and_fixed(self) -> None:
        _, yaw = coloring_views(PoseDistribution("spherical_uniform", yaw_std=math.pi))
        assert (yaw.max() - yaw.min()).item() > 1.8 * math.pi
        pitch, yaw = coloring_views(PoseDistribution("fixed"))
        assert yaw.unique().tolist() == pitch.unique().tolist() == [pytest.approx(FRONT)]


class TestColors:
    def test_of_a_ball_that_shows_its_directions(self) -> None:
        generator = Balls()
        mesh = mesh_of(generator)
        pitch, yaw = coloring_views(PoseDistribution())
        colors, seen = vertex_colors(loaded_balls(generator), one_face(), mesh, pitch, yaw, 128)
        direction = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
        shown = colors / 127.5 - 1
        # Half a grey level is 0.004; pixels are 1/38 of the radius wide, and near silhouettes colours bend within one.
        assert np.abs(shown - direction)[seen].max() < 0.03
        assert np.abs(shown - direction)[seen].mean() < 0.004
        assert seen[direction[:, 2] > 0.5].all()  # within 60 degrees of the front
        assert not seen[direction[:, 2] < -0.7].any()
        rim = ~seen & (direction[:, 2] > -0.1)
        assert rim.any()
        assert np.abs(shown - direction)[rim].mean() < 0.2

    def test_what_nobody_sees_is_painted_like_what_lies_near(self) -> None:
        """The far side of a ball has the colours of the rim that it begins at."""
        generator = Balls()
        mesh = mesh_of(generator)
        colors, seen = vertex_colors(
            loaded_balls(generator), one_face(), mesh, *coloring_views(PoseDistribution("fixed")), 64
        )
        direction = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
        shown = colors / 127.5 - 1
        behind = ~seen & (direction[:, 2] < -0.3)
        for axis in (0, 1):
            aside = behind & (np.abs(direction[:, axis]) > 0.6)
            assert (shown * np.sign(direction))[aside, axis].min() > 0.3

    def test_an_unseen_vertex_where_a_seen_one_lies_has_its_colour(self) -> None:
        vertices = np.array([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.1, 0.0, 0.0]], dtype=np.float32)
        colors = np.array([[1.0, 0.5, -1.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]], dtype=np.float32)
        _fill_unseen(colors, np.array([True, True, False]), vertices)
        np.testing.assert_allclose(colors[2], colors[0], atol=1e-6)

    def test_light_entering_a_soft_volume_does_not_hide_it(self) -> None:
        """Depths that are all deeper by 4% of the range than the surface are still the surface's."""

        class Deeper(Balls):
            def render(self, styles, view):  # type: ignore[no-untyped-def]
                picture = super().render(styles, view)
                return picture._replace(depth=picture.depth + 0.04 * 0.24)

        pitch, yaw = coloring_views(PoseDistribution())
        mesh = mesh_of(Balls())
        exact = vertex_colors(loaded_balls(Balls()), one_face(), mesh, pitch, yaw, 64)
        deeper = vertex_colors(loaded_balls(Deeper()), one_face(), mesh, pitch, yaw, 64)
        assert deeper.seen.mean() == pytest.approx(exact.seen.mean(), rel=0.02)

    def test_what_hides_another_does_not_paint_it(self) -> None:
        """A small red ball before a large blue one."""
        balls = [((0.0, 0.0, -0.04), 0.06), ((0.0, 0.0, 0.08), 0.02)]
        generator = Balls(balls, colors=[(-1.0, -1.0, 1.0), (1.0, -1.0, -1.0)])
        mesh = mesh_of(generator)
        pitch, yaw = coloring_views(PoseDistribution())
        colors, seen = vertex_colors(loaded_balls(generator), one_face(), mesh, pitch, yaw, 256)
        large = mesh.vertices[:, 2] < 0.04
        assert seen[large].any()
        assert seen[~large].any()
        wrong_red = (colors[large & seen, 0] > 50).mean()
        assert wrong_red < 0.01  # a pixel's width along the edge of the shadow
        assert (colors[large & seen, 2] > 200).all()
        assert (colors[~large & seen, 0] > 200).mean() > 0.99

    def test_more_facing_views_count_more(self) -> None:
        """Red from the front, blue from the side: a vertex that faces the front is rather red."""

        class Disagreeing(Balls):
            def render(self, styles, view):  # type: ignore[no-untyped-def]
                picture = super().render(styles, view)
                from_front = (view.cameras.yaw - FRONT).abs() < 0.1
                red, blue = torch.tensor([1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.0, 1.0])
                color = torch.where(from_front[:, None], red, blue)[..., None, None]
                return picture._replace(image=color.expand_as(picture.image))

        generator = Disagreeing()
        mesh = mesh_of(generator)
        yaw = torch.tensor([FRONT, FRONT + math.pi / 3])
        colors, seen = vertex_colors(loaded_balls(generator), one_face(), mesh, torch.full((2,), FRONT), yaw, 64)
        angle = np.arctan2(mesh.vertices[:, 2], mesh.vertices[:, 0]) - FRONT  # from the front, to the camera's side
        level = seen & (np.abs(mesh.vertices[:, 1]) < 0.01)
        for low, high, red in ((-0.1, 0.1, 0.835), (0.42, 0.62, 0.5), (0.95, 1.15, 0.165)):
            some = level & (angle > low) & (angle < high)
            # cos² weights: at the front 1 : 0.198, since the other camera, 1 - 0.07 away, is 64 degrees aslant
            assert colors[some, 0].mean() / 255 == pytest.approx(red, abs=0.015)

    def test_mesh_that_no_picture_shows(self) -> None:
        elsewhere = dataclasses.replace(mesh_of(Balls()), vertices=mesh_of(Balls()).vertices + np.float32(0.5))
        pitch, yaw = coloring_views(PoseDistribution())
        with pytest.raises(UserError, match="no picture shows"):
            vertex_colors(loaded_balls(Balls()), one_face(), elsewhere, pitch, yaw, 32)

    def test_needs_normals(self) -> None:
        bare = dataclasses.replace(mesh_of(Balls()), normals=None)
        with pytest.raises(ValueError, match="normals"):
            vertex_colors(loaded_balls(Balls()), one_face(), bare, *coloring_views(PoseDistribution()), 32)
