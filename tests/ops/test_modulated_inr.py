"""The fused per-pixel network against the composed one in float64: colours, gradients, ranges, schedules, limits."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from ops.backends import Backend, shared_limit
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import ModulatedWeight, Precision, demodulation, kernels
from cips3d.ops.library import OPS
from cips3d.ops.march import _warned
from cips3d.ops.modulated_inr import StackedLayers, modulated_inr

# Accurate products keep about 22 bits of both operands; what is left is float32's own rounding in sums of 512 terms,
# plain float32 shows the same 4e-7 after 18 layers. Fast ones round weights, activations and skips to 11 bits, three
# errors of 2e-4 a layer: 1.3e-3 after 18 layers.
TOLERANCE: dict[Precision, float] = {"highest": 2e-6, "fast": 3e-3}
# Gradients are plain float32 products, and bfloat16 ones: a share of about eps = 2^-7 of the activations ends up beyond
# the kink, where the slope is off by 0.8, layer after layer: twice √eps, as of `composed_inr` under autocast.
GRADIENT_TOLERANCE: dict[Precision, float] = {"highest": 1e-5, "fast": 2 * 2**-3.5}


@dataclass(frozen=True)
class Setting:
    """One network and its pixels."""

    features: int = 16
    width: int = 32
    blocks: int = 3
    skip_from: int = 1
    rgb_from: int = 1
    pixels: int = 7
    images: int = 2


SETTINGS = {
    "CIPS-3D": Setting(32, 512, 9, 4, 3, pixels=8),
    "odd widths": Setting(21, 70, 2, 1, 0, pixels=9, images=3),
    "skips from the first block": Setting(48, 48, 2, 0, 1, pixels=70),
    "two chunks, no skips": Setting(16, 320, 2, 2, 1),
    "one block, one pixel": Setting(5, 3, 1, 1, 0, pixels=1, images=1),
    "wide features": Setting(512, 16, 1, 1, 0, images=3),
}


@dataclass(frozen=True)
class Inputs:
    features: Tensor
    weights: list[Tensor]
    modulations: list[Tensor]
    rgb_weights: list[Tensor]

    def leaves(self) -> list[Tensor]:
        return [self.features, *self.weights, *self.modulations, *self.rgb_weights]

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Copies that require gradients."""

        def copy(tensors: list[Tensor]) -> list[Tensor]:
            return [x.detach().to(device, dtype, copy=True).requires_grad_() for x in tensors]

        return Inputs(copy([self.features])[0], copy(self.weights), copy(self.modulations), copy(self.rgb_weights))

    def stacked(self) -> StackedLayers:
        """What the registered op takes."""
        scales = [demodulation(w, m) for w, m in zip(self.weights, self.modulations, strict=True)]
        return StackedLayers(
            *(self.weights[0], torch.stack(self.weights[1:])),
            *(self.modulations[0], torch.stack(self.modulations[1:], 1)),
            *(torch.stack(scales, 1), torch.stack(self.rgb_weights)),
        )


def sample_inputs(s: Setting) -> Inputs:
    """A freshly initialised network."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    widths = [s.features] + [s.width] * (2 * s.blocks)
    return Inputs(
        normal(s.images, s.pixels, s.features),
        [math.sqrt(2 / o) * normal(i, o) for i, o in zip(widths, widths[1:], strict=False)],
        [1 + 0.5 * normal(s.images, i) for i in widths[:-1]],
        [math.sqrt(2 / s.width) * normal(3, s.width) for _ in range(s.rgb_from, s.blocks)],
    )


def run(inputs: Inputs, s: Setting, precision: Precision | None = "highest") -> Tensor:
    layers = [ModulatedWeight.of(*of) for of in zip(inputs.weights, inputs.modulations, strict=True)]
    return modulated_inr(inputs.features, layers, inputs.rgb_weights, skip_from=s.skip_from, precision=precision)


def both(inputs: Inputs, backend: Backend) -> tuple[Inputs, Inputs]:
    """In float32 where the test computes, and in float64."""
    return inputs.to(backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)


def loss(rgb: Tensor) -> Tensor:
    return (rgb * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(1)).to(rgb)).sum()


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


def test_the_kernel_computes(kernel_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above compares something else."""
    module = importlib.import_module("cips3d.ops.modulated_inr")
    monkeypatch.setattr(module, "composed_inr", None)
    for name in ("two chunks, no skips", "odd widths"):
        ours, _ = both(sample_inputs(SETTINGS[name]), kernel_backend)
        assert run(ours, SETTINGS[name]).grad_fn is not None


# Shared memory in KB, pixels of an image, and how many a block then takes at a time: other devices have less memory,
# and a picture that would leave multiprocessors idle (the emulation has two of them) is cut finer.
PASSES = [
    ("fast", 227, 150, 128),
    ("fast", 163, 150, 128),
    ("fast", 99, 150, 64),
    ("fast", 227, 65, 64),
    ("highest", 227, 90, 64),
    ("highest", 163, 70, 32),
]


@pytest.mark.parametrize("width", [512, 200])
@pytest.mark.parametrize(("precision", "limit", "pixels", "rows"), PASSES)
def test_every_kernel(
    kernel_backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    limit: int,
    pixels: int,
    rows: int,
    width: int,
) -> None:
    monkeypatch.setenv("CIPS3D_WGMMA", "0")  # those of every architecture
    s = Setting(32, width, 2, 1, 0, pixels=pixels, images=1)
    ours, exact = both(sample_inputs(s), kernel_backend)
    expected = run(exact, s)
    if kernel_backend.module is None:  # a device's limit is what it is
        assert relative_l2(run(ours, s, precision), expected) < TOLERANCE[precision]
        return
    with shared_limit(kernel_backend, limit):
        assert kernel_backend.module.modulated_inr_rows(0, s.images, s.pixels, width, precision != "fast") == rows
        found = run(ours, s, precision)
    assert relative_l2(found, expected) < TOLERANCE[precision]


@pytest.fixture
def warpgroups(monkeypatch: pytest.MonkeyPatch, kernel_backend: Backend) -> Callable[[Setting], None]:
    """A check that a setting gets the kernel that only compute capability 9.0 has."""
    monkeypatch.delenv("CIPS3D_WGMMA", raising=False)

    def check(s: Setting) -> None:
        sizes = (s.images, s.pixels, s.width)
        if not kernels.module_for(kernel_backend.device).modulated_inr_warpgroups(0, *sizes, False):
            assert kernel_backend.module is None
            pytest.skip("for compute capability 9.0")

    return check


WARPGROUPS = {
    "two chunks, skips": Setting(32, 512, 3, 1, 1, pixels=300, images=1),
    "no skips, odd widths": Setting(37, 460, 1, 1, 0, pixels=130, images=2),
    "one chunk, skips of features": Setting(256, 256, 2, 0, 0, pixels=90, images=6),
    "one chunk, late colours": Setting(5, 200, 3, 2, 2, pixels=260, images=2),
}


@pytest.mark.parametrize("name", WARPGROUPS)
def test_warpgroups(kernel_backend: Backend, warpgroups: Callable[[Setting], None], name: str) -> None:
    s = WARPGROUPS[name]
    warpgroups(s)
    ours, exact = both(sample_inputs(s), kernel_backend)
    found = run(ours, s, "fast")
    assert relative_l2(found, run(exact, s)) < TOLERANCE["fast"]
    for _ in kernel_backend.schedules():
        assert torch.equal(run(ours, s, "fast"), found)


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
    """Several tiles a block, so that what none of the first layer's slabs starts is not waited for."""
    s = Setting(0, 256, 2, 2, 0, pixels=700, images=1)
    ours, _ = both(sample_inputs(s), kernel_backend)
    for precision in TOLERANCE:
        assert torch.equal(run(ours, s, precision), torch.zeros(1, 700, 3, device=kernel_backend.device))


def test_warpgroups_can_be_refused(
    kernel_backend: Backend, warpgroups: Callable[[Setting], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are only for float16 operands and widths that fill whole chunks."""
    s = WARPGROUPS["two chunks, skips"]
    warpgroups(s)
    chosen = kernels.module_for(kernel_backend.device).modulated_inr_warpgroups
    assert not chosen(0, s.images, s.pixels, s.width, True)
    assert not chosen(0, s.images, s.pixels, 300, False)
    monkeypatch.setenv("CIPS3D_WGMMA", "0")
    assert not chosen(0, s.images, s.pixels, s.width, False)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_every_schedule_gives_the_same(kernel_backend: Backend, precision: Precision) -> None:
    s = Setting(20, 272, 2, 1, 0, pixels=40)
    ours, _ = both(sample_inputs(s), kernel_backend)
    found = [run(ours, s, precision) for _ in kernel_backend.schedules()]
    assert all(torch.equal(found[0], again) for again in found[1:])


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_a_number_stays_in_its_pixel(kernel_backend: Backend, value: float) -> None:
    s = Setting(pixels=5)
    ours, _ = both(sample_inputs(s), kernel_backend)
    expected = run(ours, s)
    with torch.no_grad():
        ours.features[1, 2, 3] = value
    found = run(ours, s)
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
    monkeypatch.setattr(importlib.import_module("cips3d.ops.modulated_inr"), "GRADIENT_PIXELS", 8)
    for a, b in zip(gradients(), together, strict=True):
        assert relative_l2(a, b) < 1e-5


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


def test_tensors_that_are_not_contiguous(kernel_backend: Backend) -> None:
    s = Setting(pixels=6)
    ours, _ = both(sample_inputs(s), kernel_backend)
    spread = Inputs(
        *(ours.features.mT.contiguous().mT, [w.mT.contiguous().mT for w in ours.weights]),
        *([m.mT.contiguous().mT for m in ours.modulations], ours.rgb_weights),
    )
    assert relative_l2(run(spread, s), run(ours, s)) < 1e-6  # demodulations are rounded otherwise


def test_registration(backend: Backend) -> None:
    s = Setting(pixels=3)
    ours, _ = both(sample_inputs(s), backend)
    layers = (x.detach().requires_grad_() for x in ours.stacked())
    arguments: tuple[Any, ...] = (ours.features, *layers, s.skip_from, 0.2, False, False)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OPS["modulated_inr"].overload, arguments, test_utils=tests)


def test_compiled(kernel_backend: Backend) -> None:
    """In one graph, forward and backward, with the same results."""
    s = Setting(pixels=3, blocks=1, rgb_from=0)
    ours, _ = both(sample_inputs(s), kernel_backend)

    def colours(features: Tensor, weights: list[Tensor], modulations: list[Tensor], rgb: list[Tensor]) -> Tensor:
        return run(Inputs(features, weights, modulations, rgb), s)

    compiled = torch.compile(colours, backend="aot_eager", fullgraph=True)
    given = (ours.features, ours.weights, ours.modulations, ours.rgb_weights)
    found, expected = (torch.autograd.grad(loss(f(*given)), ours.leaves()) for f in (compiled, colours))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("images", "pixels"), [(0, 4), (2, 0)])
def test_no_pixels(backend: Backend, images: int, pixels: int) -> None:
    s = Setting(images=images, pixels=pixels)
    ours, _ = both(sample_inputs(s), backend)
    rgb = run(ours, s)
    assert rgb.shape == (images, pixels, 3)
    for gradient in torch.autograd.grad(rgb.sum(), ours.leaves()):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(
    ("settings", "limit", "reason"),
    [
        ({"features": 520, "width": 16}, 227, "room for widths up to 512, not for 520"),
        ({"width": 528, "blocks": 1, "rgb_from": 0}, 227, "room for widths up to 512, not for 528"),
        ({}, 99, "shared memory of cpu"),
    ],
)
def test_what_is_composed(kernel_backend: Backend, settings: dict[str, int], limit: int, reason: str) -> None:
    if kernel_backend.module is None and limit < 227:
        return  # a device's limit is what it is
    s = replace(Setting(pixels=2), **settings)
    ours, exact = both(sample_inputs(s), kernel_backend)
    _warned.clear()
    smaller = nullcontext() if kernel_backend.module is None else shared_limit(kernel_backend, limit)
    with pytest.warns(RuntimeWarning, match=f"layer by layer: .*{reason}"), smaller:
        found = run(ours, s)
    assert relative_l2(found, run(exact, s)) < TOLERANCE["highest"]


def test_other_layers_are_composed(kernel_backend: Backend) -> None:
    """Without demodulation, and with an activation that no maximum gives."""
    s = Setting(pixels=2)
    ours, exact = both(sample_inputs(s), kernel_backend)
    for slope, demodulate in ((1.5, True), (0.2, False)):
        results: list[Tensor] = []
        for at in (ours, exact):
            pairs = zip(at.weights, at.modulations, strict=True)
            layers = [ModulatedWeight.of(w, m, demodulate=demodulate) for w, m in pairs]
            _warned.clear()
            asked: Any = pytest.warns(RuntimeWarning) if at is ours else nullcontext()
            with asked:
                results.append(modulated_inr(at.features, layers, at.rgb_weights, skip_from=1, negative_slope=slope))
        assert relative_l2(*results) < TOLERANCE["highest"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"features": (2, 7)}, "features"),
        ({"features": (3, 7, 16)}, "modulation"),
        ({"weights": (16, 33)}, r"layers\[1\].weight"),
        ({"modulations": (2, 15)}, "modulation"),
        ({"rgb_weights": (4, 32)}, r"rgb_weights\[0\]"),
    ],
)
def test_wrong_shapes_are_named(kernel_backend: Backend, change: dict[str, tuple[int, ...]], name: str) -> None:
    s = Setting()
    ours, _ = both(sample_inputs(s), kernel_backend)
    for field, shape in change.items():
        wrong, value = torch.zeros(shape, device=kernel_backend.device), getattr(ours, field)
        changed: Any = {field: wrong if isinstance(value, Tensor) else [wrong, *value[1:]]}
        ours = replace(ours, **changed)
    with pytest.raises(ValueError, match=f"{name} must"):
        run(ours, s)


def test_wrong_settings_are_named(backend: Backend) -> None:
    s = Setting()
    ours, _ = both(sample_inputs(s), backend)
    layers = [ModulatedWeight.of(*of) for of in zip(ours.weights, ours.modulations, strict=True)]
    colors = ours.rgb_weights
    cases: Any = (
        ((layers[:3], colors), {"skip_from": 1}, "layers must be two a block, got 3"),
        ((layers, []), {"skip_from": 1}, "rgb_weights must be those of 1 to 3 blocks, got 0"),
        ((layers, colors * 2), {"skip_from": 1}, "rgb_weights must be those of 1 to 3 blocks, got 4"),
        ((layers, colors), {"skip_from": 0}, "skip_from must be at least 1, got 0"),
        ((layers, colors), {"skip_from": 1, "negative_slope": -0.1}, "negative_slope must not be negative"),
    )
    for arguments, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            modulated_inr(ours.features, *arguments, **settings)


def test_a_direct_call_with_other_dtypes(kernel_backend: Backend) -> None:
    s = Setting(pixels=2)
    ours, _ = both(sample_inputs(s), kernel_backend)
    stacked = ours.stacked()._replace(rgb_weight=torch.stack(ours.rgb_weights).double())
    with pytest.raises(TypeError, match=r"rgb_weight must be torch.float32, got torch.float64"):
        OPS["modulated_inr"](ours.features, *stacked, s.skip_from, 0.2, False, False)
