"""Alpha compositing against its formula in float64, loops over samples, and identities that hold; every backend."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.backends import Backend
from ops.compositing import SETTINGS, formula, on, sample_inputs, upstream
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import Composited, composite, composite_weights
from cips3d.ops.composite_reference import light_in_front

# B, R, S, C: one to 32 lanes a ray, vectors and none, more samples (33, 40) and more channels (264) than lanes take.
SHAPES = [(2, 3, 5, 4), (1, 1, 1, 1), (1, 37, 2, 1), (1, 2, 24, 32), (1, 3, 12, 64), (2, 1, 40, 5), (1, 2, 6, 264)]
SHAPES += [(1, 2, 33, 1)]


def draw_noise(density: Tensor) -> Tensor:
    return 10 * torch.randn(density.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


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


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.detach().double().flatten(), b.detach().double().flatten(), dim=0))


@pytest.mark.parametrize("last_back", [False, True])
@pytest.mark.parametrize("activation", ["relu", "softplus"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 1, 1), (1, 2, 24, 32)])
def test_float64_values(shape: Any, activation: Any, last_back: bool) -> None:
    density, features, depths = sample_inputs(*shape)
    out = composite(density, features, depths, activation=activation, last_back=last_back)
    weights = published_weights(density, depths, activation, last_back)
    assert torch.allclose(out.weights, weights, atol=1e-12)
    assert torch.allclose(out.features, (weights[..., None] * features).sum(2), atol=1e-12)
    assert torch.allclose(out.depth, (weights * depths).sum(2), atol=1e-12)
    for found, expected in zip(out, formula(density, features, depths, None, activation, last_back), strict=True):
        assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(backend: Backend, shape: Any, settings: dict[str, Any]) -> None:
    inputs = [x.to(backend.device) for x in sample_inputs(*shape, dtype=torch.float32)]
    noise = draw_noise(inputs[0]).float().to(backend.device)
    out = composite(*inputs, noise=noise, **settings)
    weights, transmittance = composite_weights(
        inputs[0], inputs[2], noise=noise, **{k: v for k, v in settings.items() if k != "white_back"}
    )
    expected = formula(*(x.double() for x in inputs), noise.double(), **settings)
    for found, value in zip([*out, weights, transmittance], [*expected, expected[2], expected[3]], strict=True):
        # Rounding of 1 - exp(-δσ): 6e-8 beside weights of order 1.
        assert float((found - value).norm()) < 1e-6 * max(float(value.norm()), 1.0)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(backend: Backend, shape: Any, settings: dict[str, Any]) -> None:
    """Of all outputs, with respect to all inputs."""
    density, features, depths = sample_inputs(*shape, dtype=torch.float32)
    # Away from the step that the endless last interval makes of the last density; rays that end, and rays that do not.
    density[..., -1] = 5.0
    density[:, 1::2, -1] = -50.0
    noise = draw_noise(density).float()
    noise[..., -1] = 0.0
    inputs = on(backend, density, features, depths, noise)
    exact = on(backend, *(x.double() for x in inputs))
    outputs = composite(*inputs[:3], noise=inputs[3], **settings)
    grads = upstream(outputs)
    found = torch.autograd.grad(outputs, inputs, grads)
    expected = torch.autograd.grad(formula(*exact, **settings), exact, [g.double() for g in grads])
    for gradient, value in zip(found, expected, strict=True):
        # α near 1 has lost digits that the division by 1 - α + 1e-10 brings to light.
        assert relative_l2(gradient, value) < 1e-5
        assert cosine(gradient, value) > 1 - 1e-9 or not value.any()


@pytest.mark.parametrize("unused", ["features", "weights", "all but weights"])
def test_gradients_of_some_outputs(backend: Backend, unused: str) -> None:
    """Where outputs are not used, or inputs need no gradient, the others' gradients are the same."""
    inputs = on(backend, *sample_inputs(dtype=torch.float32))
    exact = on(backend, *(x.double() for x in inputs))

    def loss(y: Composited) -> Tensor:
        if unused == "features":
            return (y.depth * y.opacity).sum() + y.transmittance.sum()
        return y.weights.square().sum() if unused == "all but weights" else y.features.square().sum()

    wanted = slice(0, 1) if unused == "weights" else slice(0, 3, 2)
    for x in inputs[1 if unused == "weights" else 3 :]:
        x.requires_grad_(False)
    found = torch.autograd.grad(loss(composite(*inputs)), inputs[wanted])
    expected = torch.autograd.grad(loss(formula(*exact)), exact[wanted])
    for gradient, value in zip(found, expected, strict=True):
        assert relative_l2(gradient, value) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 12, 64), (2, 3, 5, 3)])
def test_features_of_16_bits(backend: Backend, shape: Any, dtype: torch.dtype) -> None:
    """Beside float32 densities and depths: only the features and their gradient are rounded."""
    density, features, depths = on(backend, *sample_inputs(*shape, dtype=torch.float32))
    rounded = features.detach().to(dtype).requires_grad_()
    out = composite(density, rounded, depths, white_back=True)
    exact = on(backend, *(x.double() for x in (density, rounded, depths)))
    expected = formula(*exact, white_back=True)
    assert [y.dtype for y in out] == [dtype] + 4 * [torch.float32]
    for found, value, eps in zip(out, expected, [torch.finfo(dtype).eps] + 4 * [1e-6], strict=True):
        assert relative_l2(found, value) < eps
    grads = upstream(out)
    found = torch.autograd.grad(out, (density, rounded, depths), grads)
    values = torch.autograd.grad(expected, exact, [g.double() for g in grads])
    for gradient, value, x in zip(found, values, (density, rounded, depths), strict=True):
        assert gradient.dtype == x.dtype
        assert relative_l2(gradient, value) < (torch.finfo(dtype).eps if x is rounded else 1e-5)


def test_density_of_16_bits(backend: Backend) -> None:
    density, features, depths = (x.to(backend.device) for x in sample_inputs(dtype=torch.float32))
    density = density.bfloat16().requires_grad_()
    out = composite(density, features, depths)
    assert out.weights.dtype == torch.float32
    assert torch.equal(out.features, composite(density.float(), features, depths).features)
    (of_density,) = torch.autograd.grad(out.features.sum(), density)
    assert of_density.dtype == torch.bfloat16


def test_other_dtypes_beside_float32_depths(backend: Backend) -> None:
    """Densities and noise become float32; features that no kernel knows stay as they are."""
    density, features, depths = (x.to(backend.device) for x in sample_inputs(dtype=torch.float32))
    noise = draw_noise(density).to(backend.device)
    expected = composite(density, features, depths, noise=noise.float())
    found = composite(density.double(), features.double(), depths, noise=noise)
    assert [y.dtype for y in found] == [torch.float64] + 4 * [torch.float32]
    weights, transmittance = composite_weights(density.double(), depths, noise=noise)
    assert weights.dtype == transmittance.dtype == torch.float32
    for y, value in zip([*found, weights, transmittance], [*expected, *expected[2:4]], strict=True):
        assert float((y - value).norm()) < 1e-6 * max(float(value.norm()), 1.0)


def test_noise_is_added_before_the_activation(backend: Backend) -> None:
    density, _, depths = (x.to(backend.device) for x in sample_inputs(dtype=torch.float32))
    noise = draw_noise(density).float().to(backend.device)
    found, _ = composite_weights(density, depths, noise=noise)
    assert torch.equal(found, composite_weights(density + noise, depths)[0])


def test_transmittance_is_what_is_left(backend: Backend) -> None:
    density, features, depths = (x.to(backend.device) for x in sample_inputs(dtype=torch.float32))
    out = composite(density, features, depths)
    # Each step keeps 1e-10 too much light, and float32 rounds.
    assert torch.allclose(out.opacity + out.transmittance, torch.ones_like(out.depth), atol=1e-6)


def test_backgrounds(backend: Backend) -> None:
    density, features, depths = (x.to(backend.device) for x in sample_inputs(dtype=torch.float32))
    density[..., -1] = -1.0  # the rays do not end
    plain = composite(density, features, depths)
    white = composite(density, features, depths, white_back=True)
    left = (1 - plain.weights.sum(-1, keepdim=True)).expand_as(plain.features)
    assert torch.allclose(white.features - plain.features, left, atol=1e-6)
    assert torch.equal(white.weights, plain.weights)
    back = composite(density, features, depths, last_back=True)
    assert torch.allclose(back.weights.sum(-1), torch.ones_like(back.opacity))
    assert torch.equal(back.opacity, plain.opacity)
    both = composite(density, features, depths, last_back=True, white_back=True)
    assert torch.allclose(both.features - back.features, left, atol=1e-6)  # as published: what is left counts twice
    ones = composite(density, torch.ones_like(features), depths, white_back=True)
    assert torch.allclose(ones.features, torch.ones_like(ones.features))


def test_barely_positive_density_in_the_endless_interval(backend: Backend) -> None:
    """σ just above 0 with δ = 1e10 is opaque, σ = 0 is empty; both are finite and so are gradients."""
    density = torch.tensor([[[0.0, 1e-6], [0.0, 0.0], [-1.0, 1e-38]]], device=backend.device, requires_grad=True)
    depths = torch.tensor([[[0.9, 1.0]] * 3], device=backend.device)
    weights, _ = composite_weights(density, depths)
    assert weights[0, 0].tolist() == [0.0, 1.0]
    assert weights[0, 1].tolist() == [0.0, 0.0]
    assert weights[0, 2, 1].item() < 1e-20
    weights.sum().backward()
    assert density.grad is not None and torch.isfinite(density.grad).all()


@pytest.mark.parametrize("samples", [6, 40])
def test_opaque_front_keeps_gradients_finite(backend: Backend, samples: int) -> None:
    density = torch.full((1, 1, samples), 1e6, device=backend.device, requires_grad=True)
    depths = torch.linspace(0.9, 1.1, samples, device=backend.device).expand(1, 1, -1)
    weights, _ = composite_weights(density, depths)
    (weights * torch.arange(float(samples), device=backend.device)).sum().backward()
    assert density.grad is not None and torch.isfinite(density.grad).all()
    assert weights.flatten().tolist() == pytest.approx([1] + (samples - 1) * [0], abs=1e-6)


def test_nan_stays_nan(backend: Backend) -> None:
    density, features, depths = (x.to(backend.device) for x in sample_inputs(dtype=torch.float32))
    density[0, 0, 1] = torch.nan
    for activation in ("relu", "softplus"):
        out = composite(density, features, depths, activation=activation)
        assert out.features[0, 0].isnan().all() and not out.features[0, 1:].isnan().any()


@pytest.mark.parametrize("front", [0.0, 1e3, 1e6])
def test_gradients_behind_opaque_samples(backend: Backend, front: float) -> None:
    """Sums over what lies behind are divided by 1e-10 where a sample is opaque: they must not cancel."""
    density, _, depths = sample_inputs(2, 40, 24, dtype=torch.float32)
    density[..., 4] = front
    factor = torch.randn(2, 40, 24, generator=torch.Generator().manual_seed(5)).to(backend.device)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        (x,) = on(backend, density.to(dtype))
        weights, _ = composite_weights(x, depths.to(backend.device, dtype))
        (of_density,) = torch.autograd.grad((weights * factor.to(dtype)).sum(), x)
        gradients.append(of_density[..., :-1])  # the last one's is a step
    assert relative_l2(*gradients) < 1e-4  # 1 - α has lost up to 4 digits of 7 where light remains


@pytest.mark.parametrize("settings", [{}, {"activation": "softplus"}, {"last_back": True, "white_back": True}])
def test_gradients_of_any_order(settings: Any) -> None:
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


def test_second_derivative(backend: Backend) -> None:
    def derivative(function: Any, density: Tensor, features: Tensor, depths: Tensor) -> list[Tensor]:
        inputs = density, features, depths
        first = torch.autograd.grad(function(*inputs).features.square().sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum((g * g.detach()).sum() for g in first), inputs))

    inputs = sample_inputs(dtype=torch.float32)
    inputs[0][..., -1] = 5.0
    found = derivative(composite, *on(backend, *inputs))
    expected = derivative(formula, *on(backend, *(x.double() for x in inputs)))
    for gradient, value in zip(found, expected, strict=True):
        assert relative_l2(gradient, value) < 1e-4  # differences of near products, divided by 1 - α twice


@pytest.mark.parametrize("activation", ["relu", "softplus"])
@pytest.mark.parametrize("noisy", [False, True])
def test_light_in_front_of_every_sample(activation: str, noisy: bool) -> None:
    density, _, depths = sample_inputs()
    noise = draw_noise(density) if noisy else None
    raw = density if noise is None else density + noise
    sigma = raw.clamp_min(0) if activation == "relu" else F.softplus(raw)
    passed = torch.exp(-depths.diff(dim=-1) * sigma[..., :-1]).cumprod(-1)
    found = light_in_front(density, depths, noise, activation)
    torch.testing.assert_close(found, F.pad(passed, (1, 0), value=1.0), rtol=1e-8, atol=1e-8)  # the floor of T
