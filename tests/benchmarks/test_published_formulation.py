"""The published formulation gives our pictures and gradients, or the comparison of speeds is of two things."""

from __future__ import annotations

import math
from dataclasses import replace

import published_formulation
import pytest
import torch
from reference_records import relative_l2

from cips3d.cameras import Cameras
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig, CIPS3DStyles
from cips3d.models.generator import truncated
from cips3d.models.ray_parts import as_picture
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings, draw_random

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
    density_scale=100.0,
    rgb_init=1.0,
)


def setting(config: CIPS3DConfig = CONFIG) -> tuple[CIPS3D, CIPS3DStyles, Cameras]:
    torch.manual_seed(0)
    generator = CIPS3D(config).double()
    torch.nn.init.uniform_(generator.nerf.output.bias)
    random = torch.Generator().manual_seed(1)
    styles = generator.mapping(*(torch.randn(2, 4, generator=random, dtype=torch.float64) for _ in range(2)))
    angles = math.pi / 2 + torch.tensor([0.1, -0.2], dtype=torch.float64)
    return generator, styles, Cameras.from_angles(angles, angles)


@pytest.mark.parametrize(
    "settings",
    [
        VolumeSettings(samples=6),
        VolumeSettings(samples=5, fine_samples=0, white_back=True),
        VolumeSettings(samples=6, fine_samples=4, density_activation="softplus", last_back=True),
    ],
)
def test_same_pictures_and_gradients(settings: VolumeSettings) -> None:
    generator, styles, cameras = setting()
    generated = torch.Generator().manual_seed(2)
    draws = draw_random(2, 20, settings, generator=generated, dtype=torch.float64)
    ours = generator.synthesis(styles, View((4, 5), cameras, settings), draws=draws).image
    theirs = published_formulation.render(generator, styles, cameras.rays((4, 5)), settings, draws)
    theirs = as_picture(theirs, 4, 5)
    assert ours.std() > 0.05  # there is something to be seen
    # float64 through sines of tens of radians; the published order adds 1e-10 in another place.
    assert relative_l2(theirs, ours) < 1e-8
    trained = [*generator.nerf.parameters(), *generator.inr.parameters()]
    weights = torch.randn(ours.shape, generator=generated, dtype=torch.float64)
    found, expected = (torch.autograd.grad((x * weights).sum(), trained, retain_graph=True) for x in (theirs, ours))
    for a, b in zip(found, expected, strict=True):
        assert relative_l2(a, b) < 1e-7


def test_density_noise() -> None:
    generator, styles, cameras = setting()
    settings, rays = VolumeSettings(samples=6), cameras.rays(4)
    draws = draw_random(
        2, 16, settings, density_noise=20.0, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    features, _ = generator.nerf(rays, styles.shape, settings, draws)
    found = published_formulation.features_of_rays(generator.nerf, rays, styles.shape, settings, draws)
    assert relative_l2(found, features) < 1e-8


def test_truncation() -> None:
    """The mean of 10 000 random z is found in the call."""
    torch.manual_seed(0)
    generator = CIPS3D(CONFIG)
    styles = generator.mapping(*generator.sample_z(2, generator=torch.Generator().manual_seed(1)))
    rays = Cameras.from_angles(torch.full((2,), 1.5), torch.full((2,), 1.6)).rays(3)
    settings = VolumeSettings(samples=4)
    given = (rays, settings, draw_random(2, 9, settings, jitter=False))
    found = published_formulation.render(generator, styles, *given, truncation=0.5)
    expected = published_formulation.render(generator, truncated(styles, generator.mean_styles(), 0.5), *given)
    torch.testing.assert_close(found, expected)


def test_a_ball_is_not_of_the_published_formulation() -> None:
    generator, styles, cameras = setting(replace(CONFIG, initial_radius=0.1))
    settings = VolumeSettings(samples=4)
    draws = draw_random(2, 9, settings, jitter=False, dtype=torch.float64)
    with pytest.raises(ValueError, match="initial_radius"):
        published_formulation.render(generator, styles, cameras.rays(3), settings, draws)
