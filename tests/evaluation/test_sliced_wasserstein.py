"""Sliced Wasserstein distances where the answer is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cips3d.evaluation.sliced_wasserstein import DIRECTIONS, patch_sliced_wasserstein


def test_identical_sets() -> None:
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert patch_sliced_wasserstein(images, images) == 0


def test_constant_shift() -> None:
    """Patches that differ by c in every value differ by c·|Σ d| along d; the mean over the same directions is known."""
    images = torch.zeros(8, 3, 28, 28)
    generator, expected = torch.Generator().manual_seed(0), []
    for places in (22 * 22, 8 * 8, 1):
        torch.randint(places, (8, min(32, places)), generator=generator)
        directions = F.normalize(torch.randn(147, DIRECTIONS, generator=generator), dim=0)
        expected.append(0.5 * directions.sum(0).abs().mean())
    found = patch_sliced_wasserstein(images, images + 0.5)
    assert found == pytest.approx(100 * float(torch.stack(expected).mean()), rel=1e-5)


def test_order_of_images_hardly_matters() -> None:
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    same = patch_sliced_wasserstein(images, images.flip(0))
    other = patch_sliced_wasserstein(images, images * 0.5)
    assert same < 0.2 * other


def test_pictures_in_double_precision() -> None:
    a, b = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    expected = patch_sliced_wasserstein(a.float(), b.float())
    for images in ((a, b), (a, b.float())):
        assert patch_sliced_wasserstein(*images) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 3, 8), (2, 3, 1, 1)])
def test_nothing_to_compare(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must hold images of 4 pixels or more"):
        patch_sliced_wasserstein(torch.zeros(shape), torch.zeros(shape))


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="one size"):
        patch_sliced_wasserstein(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 9, 9))
