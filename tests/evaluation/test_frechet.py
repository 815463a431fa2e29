"""Fréchet distances where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cips3d.evaluation.frechet import frechet_distance, random_conv_features


def normals(count: int, width: int, seed: int) -> torch.Tensor:
    """Samples whose mean is exactly 0 and whose covariance is exactly 1."""
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def test_closed_form_of_gaussians() -> None:
    a, b = normals(500, 3, 0), normals(400, 3, 1)
    scale, shift = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64), torch.tensor([1.0, 0.0, -2.0])
    # diagonal covariances: Σ (μ_a - μ_b)² + (s_a - s_b)²
    expected = 1 + 4 + (2 - 1) ** 2 + (0.5 - 1) ** 2
    assert frechet_distance(a, b * scale + shift) == pytest.approx(expected, rel=1e-6)


def test_same_set_is_at_distance_zero() -> None:
    a = normals(200, 8, 2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_one_feature() -> None:
    """(0 - 2)² + (√2 - √8)²"""
    a, b = (math.sqrt(s / 2) * torch.tensor([[-1.0], [1.0]]) + m for s, m in ((2, 0), (8, 2)))
    assert frechet_distance(a, b) == pytest.approx(6, rel=1e-6)


def test_features_that_are_no_numbers() -> None:
    a = torch.randn(5, 3)
    assert math.isnan(frechet_distance(a, torch.full((5, 3), torch.nan)))


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="a and b"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="two vectors"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))


@pytest.mark.parametrize(("count", "side"), [(5, 16), (3, 33), (64, 64)])
def test_features_are_those_that_recorded_distances_compare(count: int, side: int) -> None:
    """The first 32 channels of a last layer of 64, whose weights are drawn channel by channel."""
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    generator, x = torch.Generator().manual_seed(5), images
    for width_in, width_out in ((3, 32), (32, 48), (48, 64)):
        weight = torch.randn(width_out, width_in, 3, 3, generator=generator) * math.sqrt(2 / (9 * width_in))
        x = F.relu(F.conv2d(x, weight, stride=2, padding=1))
    places = F.adaptive_avg_pool2d(x, 2)
    # Alike to the bit where it was tried; other processors may add the products up otherwise.
    torch.testing.assert_close(random_conv_features(images), places[:, :32].flatten(1), rtol=1e-6, atol=1e-6)


def test_features_are_fixed_and_tell_images_apart() -> None:
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = random_conv_features(images)
    torch.manual_seed(99)
    assert torch.equal(first, random_conv_features(images))
    assert first.shape == (64, 128)
    dark = frechet_distance(random_conv_features(images * 0.2 - 0.5), first)
    same = frechet_distance(random_conv_features(images.flip(0)), first)
    assert dark > 10 * abs(same) + 0.1
