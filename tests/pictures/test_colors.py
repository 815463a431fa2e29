"""Grey levels, depth colours, differences."""

from __future__ import annotations

import math

import pytest
import torch

from cips3d import pictures


def lightness(image: torch.Tensor) -> torch.Tensor:
    """CIE 1976 L* of sRGB colours [3, ...] in [-1, 1] (IEC 61966-2-1, D65)."""
    srgb = (image.double() + 1) / 2
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    y = torch.tensordot(torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64), linear, dims=1)
    return torch.where(y > (6 / 29) ** 3, 116 * y.clamp(min=1e-12) ** (1 / 3) - 16, y * (29 / 3) ** 3)


class TestToUint8:
    def test_every_grey_level_comes_back(self) -> None:
        levels = torch.arange(256, dtype=torch.uint8)
        assert torch.equal(pictures.to_uint8(levels / 127.5 - 1), levels)

    def test_outside_values_are_clipped(self) -> None:
        assert pictures.to_uint8(torch.tensor([-9.0, -1.001, 1.001, torch.inf])).tolist() == [0, 0, 255, 255]

    def test_half_precision_is_widened(self) -> None:
        assert pictures.to_uint8(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.bfloat16)).tolist() == [0, 128, 255]

    def test_nan_is_refused(self) -> None:
        with pytest.raises(ValueError, match="NaN"):
            pictures.to_uint8(torch.tensor([0.0, torch.nan]))


class TestDepthImage:
    def colors(self, depth: torch.Tensor) -> torch.Tensor:
        return pictures.depth_image(depth.view(1, 1, 1, -1), 0.88, 1.12)[0, :, 0]  # [3, N]

    def test_nearer_is_lighter_in_even_steps(self) -> None:
        light = lightness(self.colors(torch.linspace(1.12, 0.88, 200)))
        steps = light.diff()
        assert (steps > 0).all()
        assert light[0] < 1
        assert light[-1] > 97
        # Straight lines in sRGB between ten anchors of an even map: single steps bend, never by more than 3 to 1.
        assert steps.max() / steps[20:].min() < 3

    def test_range_is_clipped(self) -> None:
        near, far = self.colors(torch.tensor([0.88, 1.12])).T
        beyond = self.colors(torch.tensor([-3.0, 0.87, 1.13, 9.0])).T
        assert torch.equal(beyond, torch.stack([near, near, far, far]))

    def test_ends_are_the_published_ones(self) -> None:
        ends = pictures.to_uint8(self.colors(torch.tensor([0.88, 1.12])))
        assert ends.T.tolist() == [list(pictures.MAGMA[-1]), list(pictures.MAGMA[0])]

    def test_shape_and_place(self) -> None:
        depth = torch.full((2, 1, 3, 5), 1.12)
        depth[1, 0, 2, 4] = 0.88
        image = pictures.depth_image(depth, 0.88, 1.12)
        assert image.shape == (2, 3, 3, 5)
        bright = image.sum(1) > 0
        assert bright.nonzero().tolist() == [[1, 2, 4]]

    def test_range_of_each_picture(self) -> None:
        depth = torch.rand(2, 1, 4, 5) + 0.5
        near, far = torch.tensor([0.5, 0.7]), torch.tensor([1.0, 1.5])
        together = pictures.depth_image(depth, near, far)
        for k in range(2):
            alone = pictures.depth_image(depth[k : k + 1], float(near[k]), float(far[k]))
            assert torch.equal(together[k], alone[0])
        with pytest.raises(ValueError, match="t_near"):
            pictures.depth_image(depth, near, torch.tensor([1.0, 0.6]))

    def test_wrong_arguments_are_named(self) -> None:
        with pytest.raises(ValueError, match="depth"):
            pictures.depth_image(torch.zeros(1, 3, 4, 4), 0.88, 1.12)
        with pytest.raises(ValueError, match="t_near"):
            pictures.depth_image(torch.zeros(1, 1, 4, 4), 1.12, 0.88)


@pytest.mark.parametrize(("error", "decibels"), [(1.0, 0.0), (0.01, 20.0), (0.0, math.inf)])
def test_psnr(error: float, decibels: float) -> None:
    assert pictures.psnr_of(error) == pytest.approx(decibels)
    assert math.isnan(pictures.psnr_of(math.nan))
