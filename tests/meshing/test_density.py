"""Densities at points and on grids."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from meshing.analytic import Balls, BallStyles, one_face
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.meshing.density import DensityField, default_chunk_points, density_grid, visible_side
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.volume import VolumeSettings


class Slope(Balls):
    """Density rises differently along every axis."""

    def density(self, styles: BallStyles, points: Tensor) -> Tensor:
        self.asked.append(points.shape[1])
        return points @ torch.tensor([1.0, 10.0, 100.0])


class TestField:
    @pytest.mark.parametrize("activation", ["relu", "softplus"])
    @pytest.mark.parametrize("density", [1e-3, 0.5, 30.0, 1e4])
    def test_raw_level_is_the_inverse(self, activation: str, density: float) -> None:
        field = DensityField(Balls(), one_face(), activation)  # type: ignore[arg-type]
        raw = torch.tensor(field.raw_level(density), dtype=torch.float64)
        assert field.activated(raw).item() == pytest.approx(density, rel=1e-12)  # float64

    @pytest.mark.parametrize("density", [0.0, -1.0, math.inf, math.nan])
    def test_no_surface_has_such_a_density(self, density: float) -> None:
        with pytest.raises(ValueError, match="density"):
            DensityField(Balls(), one_face()).raw_level(density)

    @pytest.mark.parametrize("styles", [one_face(), tuple(one_face())])
    def test_gradient(self, styles: tuple[Tensor, ...]) -> None:
        with torch.no_grad():  # which must not matter
            gradient = DensityField(Slope(), styles).gradient(torch.zeros(4, 3))
        torch.testing.assert_close(gradient, torch.tensor([1.0, 10.0, 100.0]).expand(4, 3))

    def test_gradient_in_inference_mode(self) -> None:
        config = CIPS3DConfig(nerf_width=8, nerf_color_width=4, inr_width=8, inr_blocks=1, inr_rgb_from=0)
        generator, points = CIPS3D(config), torch.rand(4, 3) / 100
        z = generator.sample_z(1)
        expected = DensityField(generator, generator.mapping(*z)).gradient(points)
        with torch.inference_mode():
            gradient = DensityField(generator, generator.mapping(*z)).gradient(points + 0)
        assert expected.abs().min() > 0
        assert torch.equal(gradient, expected)

    def test_activations(self) -> None:
        with pytest.raises(UserError, match="activation 'Relu' is unknown; choose one of relu, softplus"):
            DensityField(Balls(), one_face(), "Relu")  # type: ignore[arg-type]

    def test_one_face_at_a_time(self) -> None:
        with pytest.raises(ValueError, match="one face"):
            DensityField(Balls(), BallStyles(torch.zeros(2, 1)))


class TestVisibleSide:
    def test_cips3d(self) -> None:
        assert visible_side(VolumeSettings(), 12.0) == pytest.approx(0.24)

    @pytest.mark.parametrize(
        ("fov", "t_near", "t_far"), [(12.0, 0.88, 1.12), (30.0, 0.7, 1.3), (12.0, 0.95, 1.02), (12.0, 0.7, 1.1)]
    )
    def test_holds_what_the_middle_rows_of_a_frontal_camera_see(self, fov: float, t_near: float, t_far: float) -> None:
        """And nothing smaller does; rays of the corners reach a little nearer to the camera."""
        front = torch.tensor([math.pi / 2], dtype=torch.float64)
        rays = Cameras.from_angles(front, front, fov).rays(65)
        t = torch.linspace(t_near, t_far, 2, dtype=torch.float64)[:, None, None]
        points = (rays.origins + t * rays.directions).view(2, 65, 65, 3)
        middle = torch.cat([points[:, 32, :, :2], points[:, :, 32, :2], points[:, 32:33, 32, 1:]], dim=1)
        reach = 2 * middle.abs().max()
        assert reach.item() == pytest.approx(visible_side(VolumeSettings(t_near=t_near, t_far=t_far), fov), rel=1e-6)


class TestGrid:
    @pytest.mark.parametrize("chunk_points", [None, 7, 100])
    def test_x_comes_first(self, chunk_points: int | None) -> None:
        grid = density_grid(DensityField(Slope(), one_face()), 2.0, 5, chunk_points=chunk_points)
        axis = np.linspace(-1, 1, 5)
        expected = axis[:, None, None] + 10 * axis[:, None] + 100 * axis
        assert grid.dtype == np.float32
        np.testing.assert_allclose(grid, expected, atol=1e-5)  # float32 of values up to 111

    def test_memory_is_the_grid_and_a_chunk(self) -> None:
        """192³: 28 MB; a list of all points would be 85 MB."""
        generator = Slope()
        tracemalloc.start()
        grid = density_grid(DensityField(generator, one_face()), 0.24, 192, chunk_points=2**18)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert max(generator.asked) <= 2**18
        assert sum(generator.asked) == grid.size
        assert peak < grid.nbytes + 2**20  # numpy's memory; torch's is in proportion to the points of a call

    def test_default_chunks_are_bounded(self) -> None:
        generator = Slope()
        density_grid(DensityField(generator, one_face()), 0.24, 64)
        assert max(generator.asked) <= 2**15

    def test_gradients_take_fewer_points_of_a_gpu(self) -> None:
        """They keep the activations of all layers: of pi-GAN's nine of 256 less than 2 GB."""
        cpu, gpu = torch.device("cpu"), torch.device("cuda")
        assert default_chunk_points(cpu, gradients=True) == default_chunk_points(cpu)
        assert default_chunk_points(gpu, gradients=True) * 9 * 256 * 4 < 2e9 < default_chunk_points(gpu) * 9 * 256 * 4

    @pytest.mark.parametrize(("side", "resolution", "chunk"), [(0.0, 8, 8), (1.0, 1, 8), (1.0, 8, 0)])
    def test_wrong_arguments(self, side: float, resolution: int, chunk: int) -> None:
        with pytest.raises(ValueError, match=r"side|resolution|chunk_points"):
            density_grid(DensityField(Balls(), one_face()), side, resolution, chunk_points=chunk)
