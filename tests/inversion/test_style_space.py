"""Coordinates of styles."""

from __future__ import annotations

import pytest
import torch
from inversion.small_models import small

from cips3d.inversion.style_space import LEAST_SPREAD, StyleSpace, principal_axes


@pytest.mark.parametrize("system", ["cips3d", "pigan", "cips"])
def test_typical_faces_have_coordinates_of_size_one(system: str) -> None:
    """Over the samples that the space is made of, coordinates are uncorrelated, with mean 0 and variance at most 1."""
    generator = small(system).generator
    space = StyleSpace.of(generator, samples=500)
    styles = generator.mapping(*generator.sample_z(500, generator=torch.Generator().manual_seed(0)))
    for u in space.coordinates(styles):
        torch.testing.assert_close(u.mean(0), torch.zeros(u.shape[1]), atol=1e-4, rtol=0)
        covariance = (u.T @ u / len(u)).double()
        torch.testing.assert_close(
            covariance - covariance.diag().diag(), torch.zeros_like(covariance), atol=1e-3, rtol=0
        )
        assert float(covariance.diag().max()) == pytest.approx(1, abs=1e-3)
        assert float(covariance.diag().min()) >= 0


@pytest.mark.parametrize("system", ["cips3d", "pigan", "stylegan2"])
def test_there_and_back(system: str) -> None:
    """Styles of z, which are narrow tensors here, have coordinates that give them back."""
    generator = small(system).generator
    space = StyleSpace.of(generator)
    styles = generator.mapping(*generator.sample_z(3, generator=torch.Generator().manual_seed(1)))
    back = space.styles(space.coordinates(styles))
    assert type(back) is type(styles)
    for a, b in zip(back, styles, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_zero_is_the_mean() -> None:
    generator = small("cips3d").generator
    space = StyleSpace.of(generator, samples=100, seed=3)
    styles = generator.mapping(*generator.sample_z(100, generator=torch.Generator().manual_seed(3)))
    zero = space.styles(tuple(torch.zeros(1, len(basis)) for basis in space.bases))
    for style, found in zip(styles, zero, strict=True):
        torch.testing.assert_close(found[0], style.mean(0))


def test_wide_tensors_have_the_same_axes() -> None:
    """By the Gram matrix as by the covariance, up to sign."""
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(12.0, 0, -1))
    x = x - x.mean(0)
    narrow = principal_axes(x)
    wide = principal_axes(torch.cat([x, torch.zeros(40, 60)], dim=1))
    torch.testing.assert_close(wide[:12, 12:], torch.zeros(12, 60), atol=1e-5, rtol=0)
    torch.testing.assert_close(wide[:12, :12].abs(), narrow.abs(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [5, 20])
def test_few_samples_have_one_axis_less_than_there_are(width: int) -> None:
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    axes = torch.nn.functional.normalize(principal_axes(x - x.mean(0)), dim=1)
    torch.testing.assert_close(axes @ axes.T, torch.eye(4), atol=1e-5, rtol=0)


def test_no_axis_is_too_narrow() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([10.0, 1.0, 1e-4])
    lengths = principal_axes(x - x.mean(0)).norm(dim=1)
    assert float(lengths[2]) == pytest.approx(LEAST_SPREAD * float(lengths[0]))
