"""The NeRF branch with layers too wide for shared memory, whose weights stream past the samples."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, get_args

import pytest
import torch
from ops.backends import Backend, shared_limit
from ops.fused_rays import check_not_a_number_stays, require_kernel
from ops.shallow_rays import GRADIENT_TOLERANCE, TOLERANCE, Inputs, Setting, run, sample_inputs
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import kernels, layer_by_layer
from cips3d.ops.film_siren import FoldedLayer
from cips3d.ops.library import OPS
from cips3d.ops.march import RayDraws
from cips3d.ops.precision import Precision
from cips3d.ops.siren_field import tensors_of

WIDE = Setting(width=144, color=80, rays=7, coarse=5, fine=6, last_back=True)


def arguments(inputs: Inputs, fast: bool = False) -> tuple[Any, ...]:
    """Of the registered op."""
    tensors = (inputs.origins, inputs.directions, *inputs.draws, *tensors_of(inputs.field))
    return (*tensors, 0.0, 0.0, 0.88, 1.12, "relu", True, fast, fast)


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize(("coarse", "fine"), [(4, 0), (12, 12), (48, 48)])
@pytest.mark.parametrize("color", [16, 256])
@pytest.mark.parametrize("width", [16, 144, 256])
def test_every_size_has_a_kernel(
    kernel_backend: Backend, width: int, color: int, coarse: int, fine: int, precision: Precision
) -> None:
    """Where devices have the most shared memory; on others it is the only reason for none."""
    ours = sample_inputs(Setting(width, color, 1, coarse, fine)).to(kernel_backend.device, torch.float32)
    require_kernel(kernel_backend, ours, precision)


@pytest.mark.parametrize("precision", ["highest", "fast"])
def test_most_samples_of_the_widest_layers(kernel_backend: Backend, precision: Precision) -> None:
    """Their colours leave little shared memory: the smallest blocks."""
    s = Setting(width=256, color=256, rays=2, coarse=48, fine=48)
    inputs = sample_inputs(s, images=1)
    ours, exact = inputs.to(kernel_backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)
    with torch.no_grad():
        found, expected = run(ours, s, precision), run(exact, s, "highest")
    assert relative_l2(found.colors, expected.colors) < TOLERANCE[precision]
    assert relative_l2(found.depth, expected.depth) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["highest", "fast"])
def test_every_schedule_gives_the_same(kernel_backend: Backend, precision: Precision) -> None:
    ours = sample_inputs(WIDE).to(kernel_backend.device, torch.float32)
    found = [run(ours, WIDE, precision) for _ in kernel_backend.schedules()]
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def test_images_have_their_own_layers(kernel_backend: Backend) -> None:
    """To the last bit what each gives alone."""
    ours = sample_inputs(WIDE, images=3).to(kernel_backend.device, torch.float32)
    together = run(ours, WIDE, "fast")
    for k in range(3):
        f = ours.field
        layers = {n: FoldedLayer(*(x[k : k + 1] for x in getattr(f, n))) for n in ("first", "second", "color")}
        draws = RayDraws(*(None if x is None else x[k : k + 1] for x in ours.draws))
        alone = Inputs(ours.origins[k : k + 1], ours.directions[k : k + 1], f._replace(**layers), draws)
        assert torch.equal(run(alone, WIDE, "fast").colors[0], together.colors[k])


@pytest.mark.parametrize("fast", [False, True])
def test_gradients_ray_by_ray(backend: Backend, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many samples the backward takes at a time changes nothing but the order of sums."""
    ours = sample_inputs(WIDE).to(backend.device, torch.float32)

    def gradients() -> tuple[Tensor, ...]:
        colors, *_ = OPS["render_rays"](*arguments(ours, fast))
        return torch.autograd.grad(colors.square().sum(), ours.leaves())

    require_kernel(backend, ours, "fast" if fast else "highest", gradients)
    together = gradients()
    monkeypatch.setattr(layer_by_layer, "SAMPLES", 0)
    for a, b in zip(together, gradients(), strict=True):
        assert relative_l2(b, a) < 1e-5


def test_gradients_of_weights_alone(backend: Backend) -> None:
    """Outputs without a gradient: no colour, no depth."""
    inputs = sample_inputs(WIDE)
    ours, exact = inputs.to(backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)
    found = torch.autograd.grad(run(ours, WIDE, "highest").weights.square().sum(), ours.field.second.weight)
    expected = torch.autograd.grad(run(exact, WIDE, "highest").weights.square().sum(), exact.field.second.weight)
    assert relative_l2(found[0], expected[0]) < GRADIENT_TOLERANCE["highest"]


def test_not_a_number_stays_in_its_ray(kernel_backend: Backend) -> None:
    inputs = sample_inputs(WIDE)
    inputs.draws.stratified[0, 1] = math.nan
    ours = inputs.to(kernel_backend.device, torch.float32)
    expected = run(sample_inputs(WIDE).to(kernel_backend.device, torch.float32), WIDE, "highest")
    check_not_a_number_stays(kernel_backend, ours, run(ours, WIDE, "highest"), expected)


def test_registration(backend: Backend) -> None:
    at = sample_inputs(WIDE).to(backend.device, torch.float32)
    require_kernel(backend, at, call=lambda: OPS["render_rays"](*arguments(at)))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OPS["render_rays"].overload, arguments(at), test_utils=tests)


def test_compiled(kernel_backend: Backend) -> None:
    """In one graph, forward and backward, with the same results."""
    ours = sample_inputs(WIDE).to(kernel_backend.device, torch.float32)

    def colors(origins: Tensor, directions: Tensor) -> Tensor:
        return run(Inputs(origins, directions, ours.field, ours.draws), WIDE, "fast").colors

    compiled = torch.compile(colors, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(ours.origins, ours.directions).sum(), ours.leaves())
    expected = torch.autograd.grad(colors(ours.origins, ours.directions).sum(), ours.leaves())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("precision", "limit", "width", "color"),
    [
        *(("highest", 163, 144, 32), ("fast", 163, 144, 32), ("fast", 99, 144, 32), ("highest", 99, 144, 32)),
        ("highest", 99, 112, 32),  # accurate weights of so few channels stream where they have to
        ("highest", 99, 144, 256),  # 12 samples' colours have no room beside them
    ],
)
def test_shared_memory_of_smaller_devices(
    kernel_backend: Backend, precision: Precision, limit: int, width: int, color: int
) -> None:
    """KB of other devices, and the composed ops."""
    s, fused = Setting(width=width, color=color, rays=7, coarse=12, fine=12), color < 256
    inputs = sample_inputs(s)
    ours, exact = inputs.to(kernel_backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)
    kernels._warned.clear()
    refused = nullcontext() if fused else pytest.warns(RuntimeWarning, match="the shared memory of (cpu|cuda)")
    with shared_limit(kernel_backend, limit), refused:
        found = run(ours, s, precision)
    assert bool(kernels._warned) != fused
    assert relative_l2(found.colors, run(exact, s, "highest").colors) < TOLERANCE[precision]


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_no_rays(backend: Backend, shape: tuple[int, int]) -> None:
    inputs = sample_inputs(WIDE)
    images, rays = shape
    f = inputs.field
    fewer = Inputs(
        inputs.origins[:images, :rays],
        inputs.directions[:images, :rays],
        f._replace(**{n: FoldedLayer(*(x[:images] for x in getattr(f, n))) for n in ("first", "second", "color")}),
        RayDraws(*(None if x is None else x[:images, :rays] for x in inputs.draws)),
    ).to(backend.device, torch.float32)
    seen = run(fewer, WIDE, "highest")
    assert seen.colors.shape == (images, rays, WIDE.color)
    for gradient in torch.autograd.grad(seen.colors.sum(), fewer.leaves()):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_compiled_for_one_width_after_the_other(kernel_backend: Backend) -> None:
    """What was compiled for one width is compiled again for another."""

    def colors(inputs: Inputs, s: Setting) -> Tensor:
        return run(inputs, s, "fast").colors

    torch.compiler.reset()
    compiled = torch.compile(colors, backend="aot_eager", fullgraph=True)
    for width in (16, 32):
        s = Setting(width=width, color=16, rays=2, coarse=4, fine=0)
        ours = sample_inputs(s).to(kernel_backend.device, torch.float32)
        assert torch.equal(compiled(ours, s), colors(ours, s))
    torch.compiler.reset()
