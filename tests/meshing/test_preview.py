"""The rasteriser and the picture of a mesh."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from meshing.analytic import Balls, one_face
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.meshing import preview as preview_module
from cips3d.meshing.density import DensityField, density_grid
from cips3d.meshing.preview import PICTURE_SIDE, SIDES, preview, rasterize
from cips3d.meshing.surface import Mesh, isosurface

FRONT = torch.tensor([math.pi / 2])


def traced(vertices: Tensor, faces: Tensor, attributes: Tensor, camera: Cameras, resolution: int) -> Tensor:
    """What rays through the pixels meet first (Möller and Trumbore), float64."""
    rays = camera.rays(resolution)
    origin, direction = rays.origins[0, 0], rays.directions[0]  # [3], [R, 3]
    a, b, c = vertices[faces].unbind(1)  # [F, 3]
    edge_b, edge_c = b - a, c - a
    p = torch.cross(direction[:, None].expand(-1, len(faces), -1), edge_c.expand(len(direction), -1, -1), dim=-1)
    determinant = (p * edge_b).sum(-1)  # [R, F]
    s = origin - a
    u = (p * s).sum(-1) / determinant
    q = torch.cross(s, edge_b, dim=-1)
    v = (direction @ q.T) / determinant
    t = (q * edge_c).sum(-1) / determinant
    t = torch.where((u >= 0) & (v >= 0) & (u + v <= 1), t, torch.inf)
    nearest, face = t.min(dim=1)
    row = torch.arange(len(direction))
    weight = torch.stack([1 - u - v, u, v], dim=-1)[row, face]  # [R, 3]
    shown = (weight[..., None] * attributes[faces[face]]).sum(1)
    return torch.where(torch.isfinite(nearest)[:, None], shown, -9.0).T.reshape(-1, resolution, resolution)


@pytest.mark.parametrize("candidates", [2**21, 300])
def test_agrees_with_ray_tracing(monkeypatch: pytest.MonkeyPatch, candidates: int) -> None:
    """Triangles of all sizes, some of them partly outside, with strong perspective; in batches too."""
    monkeypatch.setattr(preview_module, "CANDIDATES", candidates)
    random = torch.Generator().manual_seed(0)
    centers = torch.rand(60, 1, 3, generator=random, dtype=torch.float64) - 0.5
    size = torch.rand(60, 1, 1, generator=random, dtype=torch.float64) * 0.4
    corners = centers + size * (torch.rand(60, 3, 3, generator=random, dtype=torch.float64) - 0.5)
    vertices, faces = corners.view(-1, 3), torch.arange(180).view(-1, 3)
    attributes = torch.rand(180, 2, generator=random, dtype=torch.float64)
    camera = Cameras.from_angles(torch.tensor([1.2]).double(), torch.tensor([2.0]).double(), 40.0)
    picture = rasterize(vertices, faces, attributes, camera, 48, -9.0)
    expected = traced(vertices, faces, attributes, camera, 48)
    covered = (expected > -9).float().mean()
    assert 0.15 < covered < 0.95
    torch.testing.assert_close(picture, expected, atol=1e-9, rtol=0)


def test_no_pixel_falls_between_two_triangles() -> None:
    """Of a square, whose diagonal goes through the centres of pixels."""
    corners = torch.tensor([[-0.6, -0.6, 0.0], [0.6, -0.6, 0.0], [0.6, 0.6, 0.0], [-0.6, 0.6, 0.0]])
    camera = Cameras.look_at(torch.tensor([[0.0, 0.0, 1.0]]), fov_degrees=90.0)
    picture = rasterize(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]), torch.ones(4, 1), camera, 5, -9.0)
    expected = torch.full((1, 5, 5), -9.0)
    expected[:, 1:4, 1:4] = 1.0
    torch.testing.assert_close(picture, expected)


def test_nothing_in_view() -> None:
    vertices = torch.tensor([[0.9, 0.0, 0.0], [0.9, 0.1, 0.0], [0.9, 0.0, 0.1]])
    picture = rasterize(
        vertices, torch.tensor([[0, 1, 2]]), torch.ones(3, 1), Cameras.from_angles(FRONT, FRONT), 8, 0.5
    )
    assert (picture == 0.5).all()


def test_triangles_without_area_are_no_trouble() -> None:
    vertices = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.05, 0.0], [0.0, 0.02, 0.0]])
    picture = rasterize(
        vertices, torch.tensor([[0, 1, 2]]), torch.ones(3, 1), Cameras.from_angles(FRONT, FRONT), 9, 0.5
    )
    assert (picture == 0.5).all()


class TestPreview:
    @pytest.fixture
    def ball(self) -> Mesh:
        field = DensityField(Balls([((0.03, 0.0, 0.0), 0.05)]), one_face())
        return isosurface(density_grid(field, 0.24, 32), 1.0, 0.24)

    def cell(self, pixels: np.ndarray, row: int, column: int, rows: int) -> np.ndarray:
        step = PICTURE_SIDE + 2
        top = pixels.shape[0] - rows * step + 2 + row * step
        return pixels[top : top + PICTURE_SIDE, column * step : column * step + PICTURE_SIDE].astype(int)

    def test_shows_all_of_it_from_all_sides(self) -> None:
        """A large ball and a small one on the front camera's right."""
        field = DensityField(Balls([((0.0, 0.0, 0.0), 0.05), ((0.08, 0.0, 0.0), 0.02)]), one_face())
        pixels = np.asarray(preview(isosurface(density_grid(field, 0.24, 48), 1.0, 0.24)))
        assert pixels.shape[1] == len(SIDES) * (PICTURE_SIDE + 2) - 2
        widths, lean = [], []
        for column in range(len(SIDES)):
            covered = (self.cell(pixels, 0, column, rows=1) < 250).all(-1)
            assert not covered[[0, -1]].any()
            assert not covered[:, [0, -1]].any()
            columns = np.flatnonzero(covered.any(0))
            widths.append(columns.max() - columns.min() + 1)
            lean.append(np.argwhere(covered)[:, 1].mean() - (columns.min() + columns.max()) / 2)
        # Together they are 0.15 wide, and no point is farther than half of that from the middle.
        full = PICTURE_SIDE / 1.05
        assert widths[0] == pytest.approx(full, rel=0.05)
        assert widths[3] == pytest.approx(full, rel=0.05)
        assert widths[2] == pytest.approx(full * 0.1 / 0.15, rel=0.05)
        # The large ball is on the left from the front, and on the right from the back.
        assert lean[0] < -10
        assert lean[3] > 10
        assert abs(lean[2]) < 2

    def test_light_falls_from_above(self, ball: Mesh) -> None:
        cell = self.cell(np.asarray(preview(ball)), 0, 2, rows=1)
        column = cell[:, PICTURE_SIDE // 2, 0]
        rows = np.flatnonzero(column < 250)
        assert column[rows[len(rows) // 5]] > column[rows[-len(rows) // 5]] + 40

    def test_colors_have_a_row_of_their_own(self, ball: Mesh) -> None:
        red = np.tile(np.array([255, 0, 0], dtype=np.uint8), (len(ball.vertices), 1))
        pixels = np.asarray(preview(dataclasses.replace(ball, colors=red)))
        colored, clay = (self.cell(pixels, row, 0, rows=2) for row in (0, 1))
        middle = np.argwhere((clay < 250).all(-1)).mean(0).astype(int)
        assert tuple(colored[tuple(middle)]) == (255, 0, 0)
        assert np.ptp(clay[tuple(middle)]) == 0
