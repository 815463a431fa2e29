"""All ways to compute a picture compute the same picture."""

from __future__ import annotations

import best_formulation
import pytest
import torch
from picture_cases import Pictures, multiply_adds
from reference_records import relative_l2

from cips3d.models.cips3d import CIPS3DConfig
from cips3d.models.volume import draw_random

CONFIG = CIPS3DConfig(
    z_shape_dim=4,
    shape_style_dim=6,
    shape_mapping_layers=2,
    nerf_width=16,
    nerf_color_width=8,
    features=5,
    z_appearance_dim=4,
    appearance_style_dim=8,
    appearance_mapping_layers=2,
    inr_width=12,
    inr_blocks=4,
    inr_skip_from=2,
    inr_rgb_from=1,
    density_scale=100.0,
    rgb_init=1.0,
)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(torch.device("cpu"), 5, 6, samples=4, config=CONFIG)


@torch.no_grad()
def test_same_pictures(pictures: Pictures) -> None:
    plain = pictures.plain()
    assert plain.shape == (5, 36, 3) and plain.std() > 0.03
    # float32 through sines of tens of radians, in several orders.
    for found in (pictures.ours("highest"), pictures.published(), pictures.best()):
        assert relative_l2(found, plain) < 1e-4


@torch.no_grad()
def test_16_bits(pictures: Pictures) -> None:
    """Close enough that it is the same work: 8 bits, amplified by sines of tens of radians, give up to 5e-2."""
    plain = pictures.plain()
    assert 1e-4 < relative_l2(pictures.best(dtype=torch.bfloat16), plain) < 0.06
    assert 1e-4 < relative_l2(pictures.published(dtype=torch.bfloat16), plain) < 0.15
    assert 1e-4 < relative_l2(pictures.ours("fast"), plain) < 0.02


def test_best_formulation_in_float64(pictures: Pictures) -> None:
    """Its picture, the gradients of its weights, and the features of its rays alone."""
    generator = Pictures(torch.device("cpu"), 2, 4, samples=4, config=CONFIG).generator.double()
    styles = type(pictures.styles)(*(style.double()[:2] for style in pictures.styles))
    rays = pictures.cameras[:2].rays(4)
    rays = type(rays)(*(x.double() for x in rays))
    draws = draw_random(2, 16, pictures.settings, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features, _ = generator.nerf(rays, styles.shape, pictures.settings, draws)
    expected = generator.inr(features, generator.inr.fold(styles.appearance))
    alone = best_formulation.features_of_rays(
        *(generator.nerf, rays, styles.shape, pictures.settings, draws, torch.float64)
    )
    assert relative_l2(alone, features) < 1e-8
    found = best_formulation.render(generator, styles, rays, pictures.settings, draws)
    assert relative_l2(found, expected) < 1e-8  # float64 through sines of tens of radians
    trained = [*generator.nerf.parameters(), *generator.inr.parameters()]
    gradients = [torch.autograd.grad(x.square().sum(), trained, retain_graph=True) for x in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        assert relative_l2(a, b) < 1e-7


def test_multiply_adds_of_the_published_picture() -> None:
    """27.1 k a sample of 24, 4.48 M a pixel."""
    assert multiply_adds(CIPS3DConfig(), 1, 12) == pytest.approx(24 * 27.1e3 + 4.48e6, rel=0.01)
