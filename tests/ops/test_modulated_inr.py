"""The fused per-pixel network against the composed one in float64: colours, gradients, ranges."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch
from ops.backends import Backend
from ops.inr_networks import (
    GRADIENT_TOLERANCE,
    SETTINGS,
    TOLERANCE,
    Setting,
    both,
    loss,
    run,
    sample_inputs,
)
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import ModulatedWeight, Precision, modulated_inr, modulated_inr_backward
from cips3d.ops.library import OPS


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", SETTINGS)
def test_colours_and_gradients(backend: Backend, name: str, precision: Precision) -> None:
    s = SETTINGS[name]
    ours, exact = both(sample_inputs(s), backend)
    found, expected = run(ours, s, precision), run(exact, s)
    assert relative_l2(found, expected) < TOLERANCE[precision]
    gradients = torch.autograd.grad(loss(found), ours.leaves())
    for k, (a, b) in enumerate(zip(gradients, torch.autograd.grad(loss(expected), exact.leaves()), strict=True)):
        assert a.dtype == torch.float32
        # Demodulation takes away what a single row of weights changes: gradients that are zero but for rounding.
        error = (a.cpu() - b).norm() / max(b.norm(), 1e-3 * exact.features.norm())
        assert error < GRADIENT_TOLERANCE[precision], f"{k}: {error:.1e}"


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_kernel_computes(kernel_backend: Backend, monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    """Or the test above compares something else."""
    module = importlib.import_module("cips3d.ops.modulated_inr")
    monkeypatch.setattr(module, "composed_inr", None)
    for name in ("two chunks, no skips", "odd widths"):
        ours, _ = both(sample_inputs(SETTINGS[name]), kernel_backend)
        assert run(ours, SETTINGS[name], precision).grad_fn is not None


def test_high_rounds_products_and_not_gradients(kernel_backend: Backend) -> None:
    """To float16, which is as good as TF32; in the backward nothing is rounded to less than PyTorch itself would."""
    s = Setting(16, 64, 3, 1, 0, pixels=12)
    ours, _ = both(sample_inputs(s), kernel_backend)
    found = {precision: run(ours, s, precision) for precision in ("highest", "high", "fast")}
    assert torch.equal(found["high"], found["fast"])
    assert not torch.equal(found["high"], found["highest"])
    gradients = {name: torch.autograd.grad(loss(rgb), ours.leaves()) for name, rgb in found.items()}
    assert all(torch.equal(a, b) for a, b in zip(gradients["high"], gradients["highest"], strict=True))
    assert not torch.equal(gradients["fast"][0], gradients["highest"][0])


def test_features_without_channels(kernel_backend: Backend) -> None:
    """Several tiles a block, so that what none of the first layer's slabs starts is not waited for; and gradients."""
    s = Setting(0, 256, 2, 2, 0, pixels=700, images=1)
    ours, _ = both(sample_inputs(s), kernel_backend)
    for precision in TOLERANCE:
        found = run(ours, s, precision)
        assert torch.equal(found, torch.zeros(1, 700, 3, device=kernel_backend.device))
        gradients = torch.autograd.grad(found.sum(), ours.leaves(), allow_unused=True)
        assert not any(gradient.any() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_layers_without_channels(backend: Backend, precision: Precision) -> None:
    device = backend.device
    features, weight = torch.ones(2, 9, 5, device=device), torch.ones(5, 0, device=device).requires_grad_()
    layers = [ModulatedWeight.of(w, w.new_ones(2, len(w))) for w in (weight, weight[:0])]
    rgb = modulated_inr(features.requires_grad_(), layers, [features.new_ones(3, 0)], skip_from=1, precision=precision)
    assert torch.equal(rgb, torch.zeros(2, 9, 3, device=device))
    (gradient,) = torch.autograd.grad(rgb.sum(), features, allow_unused=True)
    assert gradient is None or torch.equal(gradient, torch.zeros_like(features))


@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_pixels_scale_is_its_colours_scale(kernel_backend: Backend, precision: Precision) -> None:
    """To the last bit, for powers of two far beyond float16's range; modulations have no scale at all."""
    s = Setting(16, 64, 3, 1, 0, pixels=12)
    ours, _ = both(sample_inputs(s), kernel_backend)
    expected = run(ours, s, precision)
    scale = torch.linspace(-60, 50, s.pixels).round().exp2().to(kernel_backend.device)[:, None]
    scaled = replace(ours, features=ours.features * scale)
    assert torch.equal(run(scaled, s, precision), expected * scale)
    # Up to the 1e-8 beside the columns' norms.
    styled = replace(ours, modulations=[m * factor for m, factor in zip(ours.modulations, (64, 1024) * 3, strict=True)])
    assert relative_l2(run(styled, s, precision), expected) < 1e-6


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("exponent", [-40, 40])
def test_gradients_of_any_scale(kernel_backend: Backend, precision: Precision, exponent: int) -> None:
    """Those of 16 bits are of bfloat16: of float16 they would be 0 or infinite."""
    s = Setting(16, 64, 3, 1, 0, pixels=12)
    ours, _ = both(sample_inputs(s), kernel_backend)
    rgb = run(ours, s, precision)
    expected = torch.autograd.grad(loss(rgb), ours.leaves(), retain_graph=True)
    found = torch.autograd.grad(loss(rgb) * 2.0**exponent, ours.leaves())
    for a, b in zip(found, expected, strict=True):
        assert relative_l2(a * 2.0**-exponent, b) < 1e-6


@pytest.mark.parametrize("precision", TOLERANCE)
def test_steepest_growth(kernel_backend: Backend, precision: Precision) -> None:
    """Every layer makes its activations √W times larger, the most that is possible: 3e10 in all."""
    s = Setting(128, 128, 5, 1, 0, pixels=3, images=1)
    inputs = sample_inputs(s)
    alike = replace(
        inputs,
        features=torch.ones_like(inputs.features),
        weights=[w.abs().mean() * torch.ones_like(w) for w in inputs.weights],
        modulations=[torch.ones_like(m) for m in inputs.modulations],
    )
    ours, exact = both(alike, kernel_backend)
    expected = run(exact, s)
    assert expected.abs().max() > 1e9
    assert relative_l2(run(ours, s, precision), expected) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_a_number_stays_in_its_pixel(kernel_backend: Backend, value: float, precision: Precision) -> None:
    s = Setting(pixels=5)
    ours, _ = both(sample_inputs(s), kernel_backend)
    expected = run(ours, s, precision)
    with torch.no_grad():
        ours.features[1, 2, 3] = value
    found = run(ours, s, precision)
    hit = torch.zeros(2, 5, dtype=torch.bool, device=found.device)
    hit[1, 2] = True
    assert not found[hit].isfinite().any()
    assert torch.equal(found[~hit], expected[~hit])


def test_a_black_pixel(kernel_backend: Backend) -> None:
    s = Setting(pixels=5)
    ours, _ = both(sample_inputs(s), kernel_backend)
    with torch.no_grad():
        ours.features[:, 2] = 0
    found = run(ours, s)
    assert (found[:, 2] == 0).all() and (found[:, 1] != 0).all()


def test_images_have_their_own_styles(kernel_backend: Backend) -> None:
    s = Setting(16, 272, 2, 1, 0, pixels=40, images=3)
    ours, _ = both(sample_inputs(s), kernel_backend)
    together = run(ours, s)
    for image in range(s.images):
        one = slice(image, image + 1)
        alone = replace(ours, features=ours.features[one], modulations=[m[one] for m in ours.modulations])
        assert relative_l2(run(alone, s), together[one]) < 1e-6  # demodulations are rounded otherwise


def test_gradients_of_a_few_pixels_at_a_time(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many the backward takes at a time changes nothing but the order of sums."""
    s = Setting(pixels=11)
    ours, _ = both(sample_inputs(s), backend)

    def gradients() -> tuple[Tensor, ...]:
        rgb = OPS["modulated_inr"](ours.features, *ours.stacked(), s.skip_from, 0.2, False, False)
        return torch.autograd.grad(loss(rgb), ours.leaves())

    together = gradients()
    monkeypatch.setattr(modulated_inr_backward, "GRADIENT_PIXELS", 8)
    for a, b in zip(gradients(), together, strict=True):
        assert relative_l2(a, b) < 1e-5


def test_weights_that_are_frozen(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their gradients, a third of the backward's products, are left out; all others are the same."""
    s = Setting(pixels=11)
    ours, _ = both(sample_inputs(s), backend)
    others = [ours.features, *ours.modulations, *ours.rgb_weights]

    def gradients() -> tuple[Tensor, ...]:
        rgb = OPS["modulated_inr"](ours.features, *ours.stacked(), s.skip_from, 0.2, False, False)
        return torch.autograd.grad(loss(rgb), others)

    expected = gradients()
    for weight in ours.weights:
        weight.requires_grad_(False)
    monkeypatch.setattr(modulated_inr_backward, "multiply_over_rows", None)
    for a, b in zip(gradients(), expected, strict=True):
        assert torch.equal(a, b)


def test_second_derivative(kernel_backend: Backend) -> None:
    """Layer by layer: a penalty on the gradient of the modulations, as path length regularisation has it."""
    s = Setting(pixels=4)
    results = []
    for at in both(sample_inputs(s), kernel_backend):
        slopes = torch.autograd.grad(run(at, s).square().sum(), at.modulations, create_graph=True)
        penalty = sum((slope.square().sum() for slope in slopes), torch.zeros((), device=at.features.device))
        results.append(torch.autograd.grad(penalty, [*at.weights, *at.modulations]))
    for a, b in zip(*results, strict=True):
        assert relative_l2(a, b) < 1e-4  # small differences of sums, derived twice in float32


def test_words_for_precision(kernel_backend: Backend) -> None:
    s = Setting(pixels=4)
    ours, _ = both(sample_inputs(s), kernel_backend)
    highest, fast = run(ours, s, "highest"), run(ours, s, "fast")
    assert not torch.equal(fast, highest)
    assert torch.equal(run(ours, s, "high"), fast)  # but not their gradients
    assert torch.equal(run(ours, s, None), highest)
    with torch.autocast(kernel_backend.device.type, dtype=torch.bfloat16):
        assert torch.equal(run(ours, s, None), fast)
    with pytest.raises(ValueError, match="precision must be"):
        run(ours, s, "medium")  # type: ignore[arg-type]
