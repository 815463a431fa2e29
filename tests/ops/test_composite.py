"""Alpha compositing against loops over samples, and identities that hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cips3d.ops import accumulate, composite, composite_weights


def sample_inputs(batch: int = 2, rays: int = 3, samples: int = 5, channels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    density = 20 * torch.randn(batch, rays, samples, generator=random, dtype=torch.float64)
    features = torch.randn(batch, rays, samples, channels, generator=random, dtype=torch.float64)
    depths = torch.rand(batch, rays, samples, generator=random, dtype=torch.float64).sort(-1).values * 0.2 + 0.9
    return density, features, depths


def published_weights(density: Tensor, depths: Tensor, activation: str = "relu", last_back: bool = False) -> Tensor:
    """One sample after the other."""
    weights = torch.empty_like(density)
    for place in [(b, r) for b in range(density.shape[0]) for r in range(density.shape[1])]:
        light = 1.0
        count = density.shape[-1]
        for i in range(count):
            sigma = float(density[(*place, i)])
            sigma = max(sigma, 0.0) if activation == "relu" else math.log1p(math.exp(sigma))
            delta = float(depths[(*place, i + 1)] - depths[(*place, i)]) if i + 1 < count else 1e10
            alpha = 1 - math.exp(-delta * sigma)
            weights[(*place, i)] = alpha * light
            light *= 1 - alpha + 1e-10
        if last_back:
            weights[(*place, count - 1)] += 1 - weights[place].sum()
    return weights


@pytest.mark.parametrize("last_back", [False, True])
@pytest.mark.parametrize("activation", ["relu", "softplus"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 1, 1), (1, 2, 24, 32), (2, 0, 4, 3)])
def test_values(shape: Any, activation: Any, last_back: bool) -> None:
    density, features, depths = sample_inputs(*shape)
    out = composite(density, features, depths, activation=activation, last_back=last_back)
    weights = published_weights(density, depths, activation, last_back)
    assert torch.allclose(out.weights, weights, atol=1e-12)
    assert torch.allclose(out.features, (weights[..., None] * features).sum(2), atol=1e-12)
    assert torch.allclose(out.depth, (weights * depths).sum(2), atol=1e-12)


def test_noise_is_added_before_the_activation() -> None:
    density, _, depths = sample_inputs()
    noise = torch.randn(density.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 30
    found, _ = composite_weights(density, depths, noise=noise)
    assert torch.allclose(found, composite_weights(density + noise, depths)[0])


def test_transmittance_is_what_is_left() -> None:
    density, features, depths = sample_inputs()
    out = composite(density, features, depths)
    # each step keeps 1e-10 too much light
    assert torch.allclose(out.weights.sum(-1) + out.transmittance, torch.ones(2, 3, dtype=torch.float64), atol=1e-8)


def test_backgrounds() -> None:
    density, features, depths = sample_inputs()
    plain = composite(density, features, depths)
    white = composite(density, features, depths, white_back=True)
    left = (1 - plain.weights.sum(-1, keepdim=True)).expand_as(plain.features)
    assert torch.allclose(white.features - plain.features, left)
    assert torch.equal(white.weights, plain.weights)
    back = composite(density, features, depths, last_back=True)
    assert torch.allclose(back.weights.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    ones = composite(density, torch.ones_like(features), depths, white_back=True)
    assert torch.allclose(ones.features, torch.ones_like(ones.features))


def test_barely_positive_density_in_the_endless_interval() -> None:
    """σ just above 0 with δ = 1e10 is opaque, σ = 0 is empty; both are finite and so are gradients."""
    density = torch.tensor([[[0.0, 1e-6], [0.0, 0.0], [-1.0, 1e-38]]], requires_grad=True)
    depths = torch.tensor([[[0.9, 1.0]] * 3])
    weights, _ = composite_weights(density, depths)
    assert weights[0, 0].tolist() == [0.0, 1.0]
    assert weights[0, 1].tolist() == [0.0, 0.0]
    assert weights[0, 2, 1].item() < 1e-20
    weights.sum().backward()
    assert density.grad is not None and torch.isfinite(density.grad).all()


def test_opaque_front_keeps_gradients_finite() -> None:
    density = torch.full((1, 1, 6), 1e6, requires_grad=True)
    depths = torch.linspace(0.9, 1.1, 6).expand(1, 1, -1)
    weights, _ = composite_weights(density, depths)
    (weights * torch.arange(6.0)).sum().backward()
    assert density.grad is not None and torch.isfinite(density.grad).all()
    assert weights.flatten().tolist() == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"activation": "softplus"}, {"last_back": True, "white_back": True}])
def test_gradients(settings: Any) -> None:
    density, features, depths = sample_inputs(1, 2, 4, 2)
    density = density / 4  # transparent enough for finite differences
    inputs = [x.requires_grad_() for x in (density, features, depths)]

    def run(*arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # the endless last interval is a step function of the last density: leave its sample out of the derivative
        density, features, depths = arguments
        last = torch.full_like(density[..., -1:], 5.0)
        out = composite(torch.cat([density[..., :-1], last], dim=-1), features, depths, **settings)
        return out.features, out.depth, out.weights

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def autograd_weights(density: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """The formula in plain differentiable steps."""
    delta = torch.cat([depths[..., 1:] - depths[..., :-1], torch.full_like(depths[..., :1], 1e10)], dim=-1)
    alpha = 1 - torch.exp(-delta * density.clamp_min(0))
    light = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha + 1e-10], dim=-1), dim=-1)
    return alpha * light[..., :-1], light[..., -1]


@pytest.mark.parametrize("samples", [1, 2, 24])
def test_gradients_equal_autograds(samples: int) -> None:
    """Of weights and of the transmittance; empty, translucent and opaque samples; with respect to both arguments."""
    density, _, depths = sample_inputs(2, 40, samples)
    density = density * torch.tensor([0.1, 10.0], dtype=torch.float64).view(2, 1, 1)
    random = torch.Generator().manual_seed(5)
    factor = torch.randn(2, 40, samples, generator=random, dtype=torch.float64)
    gradients = []
    for run in (composite_weights, autograd_weights):
        inputs = [x.clone().requires_grad_() for x in (density, depths)]
        weights, transmittance = run(*inputs)
        loss = (weights * factor).sum() + 3 * transmittance.sum()
        gradients.append(torch.autograd.grad(loss, inputs))
    for found, expected in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("front", [0.0, 1e3, 1e6])
def test_float32_gradients_behind_opaque_samples(front: float) -> None:
    """Sums over what lies behind are divided by 1e-10 where a sample is opaque: they must not cancel."""
    density, _, depths = sample_inputs(2, 40, 24)
    density[..., 4] = front
    factor = torch.randn(2, 40, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x = density.to(dtype).requires_grad_()
        (composite_weights(x, depths.float().to(dtype))[0] * factor.to(dtype)).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad[..., :-1].double())  # the last one's is a step
    found, expected = gradients
    assert ((found - expected).norm() / expected.norm()).item() < 1e-4  # differences of depths lose 4 digits of 7


def test_accumulate() -> None:
    random = torch.Generator().manual_seed(3)
    weights = torch.rand(2, 3, 5, generator=random, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 3, 5, 4, generator=random, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(accumulate(weights, values), torch.einsum("brs,brsc->brc", weights, values))
    assert torch.autograd.gradcheck(accumulate, (weights, values))
    assert torch.autograd.gradgradcheck(accumulate, (weights, values))


def test_wrong_arguments_are_named() -> None:
    density, features, depths = sample_inputs()
    with pytest.raises(ValueError, match="depths"):
        composite(density, features, depths[:1])
    with pytest.raises(ValueError, match="noise"):
        composite(density, features, depths, noise=depths[:1])
    with pytest.raises(ValueError, match="values"):
        composite(density, features[..., :2, :], depths)
    with pytest.raises(ValueError, match="activation"):
        composite(density, features, depths, activation="elu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one sample"):
        composite_weights(density[..., :0], depths[..., :0])
