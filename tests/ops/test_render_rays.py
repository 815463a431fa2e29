"""The fused NeRF branch against the composed ops in float64: outputs, gradients, derivatives, schedules."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from ops.backends import Backend
from ops.fused_rays import check_not_a_number_stays, require_kernel
from ops.shallow_rays import (
    GRADIENT_TOLERANCE,
    SETTINGS,
    TOLERANCE,
    Inputs,
    Setting,
    both_kinds,
    cosine,
    loss,
    run,
    sample_inputs,
)
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.film_siren import FoldedLayer
from cips3d.ops.library import OPS
from cips3d.ops.march import RayDraws
from cips3d.ops.precision import Precision
from cips3d.ops.siren_field import is_wide, tensors_of


@pytest.mark.parametrize("precision", ["highest", "fast"])
@pytest.mark.parametrize("name", SETTINGS)
def test_outputs_and_gradients(backend: Backend, name: str, precision: Precision) -> None:
    s = SETTINGS[name]
    inputs = sample_inputs(s)
    ours, exact = inputs.to(backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)
    found, expected = run(ours, s, precision), run(exact, s, "highest")
    for field in ("colors", "opacity", "depth", "weights", "depths"):
        error = relative_l2(getattr(found, field), getattr(expected, field))
        # Single weights are not averaged over samples as the others are.
        assert error < TOLERANCE[precision] * (2 if field == "weights" else 1), f"{field}: {error:.1e}"
    limit = GRADIENT_TOLERANCE[precision]
    gradients = torch.autograd.grad(loss(found, with_weights=precision != "fast"), ours.leaves())
    references = torch.autograd.grad(loss(expected, with_weights=precision != "fast"), exact.leaves())
    for k, (gradient, reference) in enumerate(zip(gradients, references, strict=True)):
        assert gradient.shape == reference.shape
        error = relative_l2(gradient, reference)
        if gradient.numel() == 1:  # the density's bias: one sum that cancels for the most part
            assert (gradient.cpu() - reference).abs() < limit * references[6].norm()
            continue
        assert error < limit, f"gradient {k}: {error:.1e}"
        assert cosine(gradient, reference) > 1 - (limit**2 if precision == "fast" else 1e-8)


@pytest.mark.parametrize("name", [name for name, s in SETTINGS.items() if not is_wide(s.width, s.color)])
def test_the_kernel_of_every_architecture(kernel_backend: Backend, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With float16 operands, where 9.0 has another one."""
    monkeypatch.setenv("CIPS3D_WGMMA", "0")
    s = SETTINGS[name]
    ours, exact = both_kinds(kernel_backend, sample_inputs(s))
    found, expected = run(ours, s, "fast"), run(exact, s, "highest")
    for field in ("colors", "opacity", "depth"):
        error = relative_l2(getattr(found, field), getattr(expected, field))
        assert error < TOLERANCE["fast"], f"{field}: {error:.1e}"
    for _ in kernel_backend.schedules():
        again = run(ours, s, "fast")
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_one_sample_is_anywhere_in_the_range(kernel_backend: Backend) -> None:
    s = Setting(width=32, color=16, rays=9, coarse=1, fine=0, noise=False)
    ours, exact = both_kinds(kernel_backend, sample_inputs(s))
    found, expected = run(ours, s, "highest"), run(exact, s, "highest")
    torch.testing.assert_close(found.depths.cpu().double(), expected.depths, rtol=0, atol=3e-7)
    assert relative_l2(found.colors, expected.colors) < TOLERANCE["highest"]


def test_weights_are_not_rounded_beside_float16_colors(kernel_backend: Backend) -> None:
    """Colours of 1 add up to the opacity."""
    s = Setting(width=32, color=16, rays=9)
    inputs = sample_inputs(s)
    white = FoldedLayer(
        torch.zeros_like(inputs.field.color.weight), torch.full_like(inputs.field.color.bias, math.pi / 2)
    )
    ours = replace(inputs, field=inputs.field._replace(color=white)).to(kernel_backend.device, torch.float32)
    seen = run(ours, s, "fast")
    torch.testing.assert_close(seen.colors, seen.opacity[..., None].expand_as(seen.colors), rtol=0, atol=2e-6)


@pytest.mark.parametrize("precision", ["highest", "fast"])
def test_every_schedule_gives_the_same(kernel_backend: Backend, precision: Precision) -> None:
    s = Setting(width=64, color=32, rays=9, coarse=6, fine=6)
    ours = sample_inputs(s).to(kernel_backend.device, torch.float32)
    found = []
    for _ in kernel_backend.schedules():
        seen = run(ours, s, precision)
        found.append((*seen, *torch.autograd.grad(loss(seen), ours.leaves())))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


UNUSUAL_DRAWS = {
    "equal fine ones": lambda draws: draws._replace(importance=torch.full_like(draws.importance, 0.5)),
    "pairs of equal fine ones": lambda draws: draws._replace(
        importance=draws.importance[..., : draws.importance.shape[-1] // 2].repeat(1, 1, 2)
    ),
    # A bin's last depth is the next one's first.
    "equal coarse ones": lambda draws: draws._replace(
        stratified=1.0 - torch.arange(draws.stratified.shape[-1]) % 2 + torch.zeros_like(draws.stratified)
    ),
    "coarse ones out of order": lambda draws: draws._replace(stratified=5 * draws.stratified - 2),
}


@pytest.mark.parametrize("samples", [(12, 12), (20, 7)], ids=["two rays a warp", "one ray a warp"])
@pytest.mark.parametrize("name", UNUSUAL_DRAWS)
def test_unusual_draws(kernel_backend: Backend, name: str, samples: tuple[int, int]) -> None:
    """Of equal depths the coarse ones come first, and depths out of order are put in order."""
    s = Setting(width=32, color=16, rays=5, coarse=samples[0], fine=samples[1] // 2 * 2)
    inputs = sample_inputs(s)
    inputs = replace(inputs, draws=UNUSUAL_DRAWS[name](inputs.draws))
    ours, exact = both_kinds(kernel_backend, inputs)
    found, expected = run(ours, s, "highest"), run(exact, s, "highest")
    torch.testing.assert_close(found.depths.cpu().double(), expected.depths, rtol=0, atol=2e-6)
    assert relative_l2(found.colors, expected.colors) < TOLERANCE["highest"]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_not_a_number_stays_in_its_ray(kernel_backend: Backend, precision: Precision) -> None:
    """A network that has diverged gives NaN, and samples still have places of their own."""
    s = Setting(width=16, color=8, rays=4, coarse=5, fine=6)
    inputs = sample_inputs(s)
    inputs.draws.stratified[0, 1] = math.nan
    ours = inputs.to(kernel_backend.device, torch.float32)
    clean = sample_inputs(s).to(kernel_backend.device, torch.float32)
    found, expected = run(ours, s, precision), run(clean, s, precision)
    check_not_a_number_stays(kernel_backend, ours, found, expected, precision)
    torch.autograd.grad(loss(found), ours.leaves())


def test_second_derivative(kernel_backend: Backend) -> None:
    """Through the composed ops: a penalty on the gradient of the layers."""
    s = Setting(width=16, color=8, rays=3, coarse=4, fine=0, noise=False)
    inputs = sample_inputs(s)
    results = []
    for device, dtype in ((kernel_backend.device, torch.float32), (torch.device("cpu"), torch.float64)):
        at = inputs.to(device, dtype)
        first = torch.autograd.grad(
            run(at, s, "highest").colors.square().sum(), at.field.second.weight, create_graph=True
        )
        results.append(torch.autograd.grad(first[0].square().sum(), at.field.first.bias)[0])
    assert relative_l2(*results) < 1e-4  # float32, two derivatives of phases of tens of radians


def test_registration(backend: Backend) -> None:
    s = Setting(width=16, color=8, rays=3, coarse=4, fine=3)
    at = sample_inputs(s).to(backend.device, torch.float32)
    f = at.field
    layers: tuple[Any, ...] = (*f.first, *f.second, f.density_weight, f.density_bias, *f.color, 1.0, 0.1)
    arguments = (at.origins, at.directions, *at.draws, *layers, 0.88, 1.12, "relu", False, False, False)
    require_kernel(backend, at, call=lambda: OPS["render_rays"](*arguments))
    # The gradients are those of the forward's schedule-free part only: outputs 3 to 5 carry none.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OPS["render_rays"].overload, arguments, test_utils=tests)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_no_rays(backend: Backend, shape: tuple[int, int]) -> None:
    s = Setting(width=16, color=8, rays=4, coarse=4, fine=4)
    inputs = sample_inputs(s)
    images, rays = shape
    f = inputs.field
    fewer = Inputs(
        inputs.origins[:images, :rays],
        inputs.directions[:images, :rays],
        f._replace(**{n: FoldedLayer(*(x[:images] for x in getattr(f, n))) for n in ("first", "second", "color")}),
        RayDraws(*(None if x is None else x[:images, :rays] for x in inputs.draws)),
    ).to(backend.device, torch.float32)
    seen = run(fewer, s, "highest")
    assert seen.colors.shape == (images, rays, 8)
    for gradient in torch.autograd.grad(seen.colors.sum(), fewer.leaves()):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_what_has_no_kernel_is_composed(backend: Backend) -> None:
    """Wider layers, and more samples than the kernel has room for, give the composed ops' results."""
    for s in (Setting(width=272, color=16, rays=2, coarse=4, fine=0), Setting(16, 8, rays=2, coarse=60, fine=60)):
        inputs = sample_inputs(s)
        ours, exact = inputs.to(backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)
        kernels._warned.clear()
        with pytest.warns(RuntimeWarning, match="room for") if backend.uses_kernels else nullcontext():
            found = run(ours, s, "highest")
        assert relative_l2(found.colors, run(exact, s, "highest").colors) < TOLERANCE["highest"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"origins": torch.zeros(2, 3, 2)}, "origins must have shape"),
        ({"directions": torch.zeros(2, 4, 3)}, "directions must have shape"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Tensor], named: str) -> None:
    s = Setting(width=16, color=8, rays=3, coarse=4, fine=4)
    with pytest.raises(ValueError, match=named):
        run(replace(sample_inputs(s), **change), s, "highest")


def test_importance_samples_are_some_or_none() -> None:
    """The backward would take another noise than the forward."""
    at = sample_inputs(Setting(width=16, color=8, rays=3, coarse=4, fine=4))
    none = at.draws._replace(importance=at.draws.stratified[..., :0], merged_noise=None)
    with pytest.raises(ValueError, match=r"draws\.importance must hold at least one sample a ray, or be None"):
        run(replace(at, draws=none), Setting(), "highest")


def test_fields_without_colors_are_refused() -> None:
    at = sample_inputs(Setting(width=16, color=8, rays=3, coarse=4, fine=4))
    color = type(at.field.color)(at.field.color.weight[:, :0], at.field.color.bias[:, :0])
    with pytest.raises(ValueError, match=r"field\.color\.weight must have at least one output channel"):
        run(replace(at, field=at.field._replace(color=color)), Setting(), "highest")


@pytest.mark.parametrize("name", ["directions", "draws.stratified", "field.color.bias"])
def test_kernels_read_float32_alone(kernel_backend: Backend, name: str) -> None:
    """Also where the registered op is called, which has no plain PyTorch to fall back on."""
    at = sample_inputs(Setting(width=16, color=8, rays=3, coarse=4, fine=4)).to(kernel_backend.device, torch.float32)
    if name == "directions":
        at = replace(at, directions=at.directions.double())
    elif name == "draws.stratified":
        at = replace(at, draws=at.draws._replace(stratified=at.draws.stratified.double()))
    else:
        at = replace(at, field=at.field._replace(color=at.field.color._replace(bias=at.field.color.bias.double())))
    tensors = (at.origins, at.directions, *at.draws, *tensors_of(at.field))
    with pytest.raises(TypeError, match=rf"{name.removeprefix('draws.').removeprefix('field.')} must be torch.float32"):
        OPS["render_rays"](*tensors, 0.0, 0.0, 0.88, 1.12, "relu", False, False, False)


def test_too_few_coarse_samples() -> None:
    s = Setting(width=16, color=8, rays=3, coarse=2, fine=4)
    with pytest.raises(ValueError, match="at least 3 samples"):
        run(sample_inputs(s), s, "highest")
