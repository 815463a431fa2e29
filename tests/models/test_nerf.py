"""The NeRF branch against the published network, sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from ops.backends import Backend
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.models.nerf import FilmSiren, NeRF
from cips3d.models.volume import VolumeSettings, draw_random
from cips3d.ops import kernels
from cips3d.ops.siren_field import evaluate_siren_field


@pytest.fixture
def nerf() -> NeRF:
    torch.manual_seed(0)
    network = NeRF(width=16, color_width=8, features=5, style_dim=6, point_scale=2 / 0.24, density_scale=150.0)
    torch.nn.init.uniform_(network.output.bias)
    torch.nn.init.constant_(network.density.bias, 0.05)
    return network.double()


def published_film(layer: FilmSiren, x: Tensor, style: Tensor) -> Tensor:
    gain = 15 * layer.gain(style) + 30
    return torch.sin(gain[:, None] * layer.linear(x) + layer.shift(style)[:, None])


def published(nerf: NeRF, points: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """Density [B, N] and features [B, N, 5] of every sample."""
    x = published_film(nerf.layers[0], points * (2 / 0.24), style)
    x = published_film(nerf.layers[1], x, style)
    density = 150 * nerf.density(x)[..., 0]
    return density, nerf.output(published_film(nerf.color, x, style))


@pytest.mark.parametrize(("fine_samples", "white_back"), [(0, False), (6, False), (6, True)])
def test_features_are_those_of_composited_samples(nerf: NeRF, fine_samples: int, white_back: bool) -> None:
    """The last linear layer once a ray equals the last linear layer once a sample."""
    random = torch.Generator().manual_seed(1)
    style = torch.randn(2, 6, generator=random, dtype=torch.float64)
    angles = torch.full((2,), math.pi / 2 + 0.1, dtype=torch.float64)
    rays = Cameras.from_angles(angles, angles).rays(3)
    settings = VolumeSettings(samples=6, fine_samples=fine_samples, white_back=white_back)
    draws = draw_random(2, 9, settings, generator=random, dtype=torch.float64)
    features, ray = nerf(rays, style, settings, draws)

    points = rays.origins[:, :, None] + ray.depths[..., None] * rays.directions[:, :, None]
    density, values = published(nerf, points.flatten(1, 2), style)
    density, values = density.view_as(ray.depths), values.view(*ray.depths.shape, -1)
    delta = F.pad(ray.depths.diff(dim=-1), (0, 1), value=1e10)
    alpha = 1 - torch.exp(-delta * F.relu(density))
    light = torch.cumprod(F.pad(1 - alpha + 1e-10, (1, 0), value=1.0), dim=-1)[..., :-1]
    weights = alpha * light
    expected = (weights[..., None] * values).sum(2)
    if white_back:
        expected = expected + 1 - weights.sum(-1, keepdim=True)
    assert torch.allclose(ray.weights, weights, atol=1e-9)
    assert torch.allclose(features, expected, atol=1e-9)
    assert 0.02 < weights.sum(-1).mean() < 1  # something is seen


def test_initial_weights() -> None:
    network = NeRF(width=128, color_width=64, features=32, style_dim=128, point_scale=1.0, density_scale=1.0)
    film = network.layers[1]
    bound = math.sqrt(6 / 128) / 25
    assert film.linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    for affine in (film.gain, film.shift):
        assert affine.weight.abs().max().item() == pytest.approx(0.25 / math.sqrt(128), rel=0.01)
    assert network.output.weight.std().item() == pytest.approx((2 / (1.04 * 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("middle", [None, 300.0])
def test_volume_that_starts_as_a_ball(middle: float | None) -> None:
    """Without a trained network, density crosses zero at the initial radius."""
    network = NeRF(
        width=8,
        color_width=8,
        features=4,
        style_dim=4,
        point_scale=8.0,
        density_scale=100.0,
        initial_radius=0.08,
        initial_density=middle,
    )
    torch.nn.init.zeros_(network.density.weight)
    points = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.04, 0.0], [0.08, 0.0, 0.0], [0.0, 0.0, -0.16]]])
    density = network.raw_density(points, torch.zeros(1, 4))[0] / (middle or 100)
    assert density.tolist() == pytest.approx([1.0, 0.5, 0.0, -1.0], abs=1e-5)


@pytest.mark.parametrize("ball", [None, 0.08])
def test_densities_alone(backend: Backend, monkeypatch: pytest.MonkeyPatch, ball: float | None) -> None:
    """They are those beside colours, bit for bit, and no colour is computed for them."""
    torch.manual_seed(0)
    network = NeRF(
        width=16, color_width=8, features=5, style_dim=6, point_scale=8.0, density_scale=9.0, initial_radius=ball
    )
    network = network.requires_grad_(False).to(backend.device)
    style, points = (torch.rand(shape).to(backend.device) for shape in ((2, 6), (2, 70, 3)))
    points.requires_grad_()
    expected, _ = evaluate_siren_field(network.fold(style), points)
    launched: list[str] = []
    launch = kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda name, *of: launched.append(name) or launch(name, *of))
    found = network.raw_density(points, style)
    assert len(launched) == (2 if backend.uses_kernels else 0)
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(density.sum(), points)[0] for density in (found, expected)]
    assert torch.equal(*gradients)
