"""The fused per-pixel network as an op: layouts, registration, compilation, what is composed or refused."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from ops.backends import Backend
from ops.inr_networks import TOLERANCE, Inputs, Setting, both, loss, run, sample_inputs
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import ModulatedWeight, kernels
from cips3d.ops.library import OPS
from cips3d.ops.modulated_inr import modulated_inr


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
    ("settings", "reason"),
    [
        ({"features": 520, "width": 16}, "room for widths up to 512, not for 520"),
        ({"width": 528, "blocks": 1, "rgb_from": 0}, "room for widths up to 512, not for 528"),
    ],
)
def test_what_is_composed(kernel_backend: Backend, settings: dict[str, int], reason: str) -> None:
    s = replace(Setting(pixels=2), **settings)
    ours, exact = both(sample_inputs(s), kernel_backend)
    kernels._warned.clear()
    with pytest.warns(RuntimeWarning, match=f"layer by layer: .*{reason}") as warned:
        found = run(ours, s)
        run(ours, s)
    assert len(warned) == 1
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
            kernels._warned.clear()
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
    stacked = ours.stacked()
    others = stacked._replace(demodulation=stacked.demodulation.double())
    with pytest.raises(TypeError, match=r"demodulation must be torch.float32, got torch.float64"):
        OPS["modulated_inr"](ours.features, *others, s.skip_from, 0.2, False, False)
