"""The fused march through a deep field against the composed ops in float64: outputs, gradients, schedules, limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, get_args

import pytest
import torch
from ops.backends import Backend, shared_limit
from ops.fused_rays import check_not_a_number_stays
from reference_records import relative_l2
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.ops import DeepSirenField, RayDraws, RenderedRays, kernels, layer_by_layer, render_rays
from cips3d.ops.library import OPS
from cips3d.ops.precision import Precision
from cips3d.ops.render_rays import why_not_fused

# Accurate products keep about 22 bits of both operands: what is left is float32's own rounding, which plain float32
# shows as well (1e-6 in colours, ten times that in single weights), and on a GPU its fast sine's 5e-7 a layer. Fast
# ones round every layer's operands to 11 bits, and each of eight layers hands on 1.2 times its input's error: 7e-4
# measured in colours, twice that is the limit.
TOLERANCE: dict[Precision, float] = {"highest": 1e-5, "high": 1.5e-3, "fast": 1.5e-3}
# 5e-6 a layer of the backward with "highest", and 3e-3 with "fast", which is bfloat16. With "high" fine samples lie a
# little elsewhere, where the rounding of the forward has put them: 2e-3 measured.
GRADIENT_TOLERANCE: dict[Precision, float] = {"highest": 5e-5, "high": 5e-3, "fast": 2e-2}


@dataclass(frozen=True)
class Setting:
    """One way to render."""

    layers: int = 3
    width: int = 32
    color: int = 32
    rays: int = 5
    coarse: int = 6
    fine: int = 6
    images: int = 2
    noise: bool = False
    last_back: bool = False
    activation: str = "relu"


SETTINGS = {
    "pi-GAN": Setting(8, 256, 256, rays=4, coarse=12, fine=12, images=1, last_back=True),
    "two layers, odd widths": Setting(2, 33, 17, rays=3, coarse=5, fine=4, noise=True),
    "many blocks": Setting(3, 64, 48, rays=61, coarse=9, fine=9, noise=True),
    "wide colours": Setting(3, 48, 200, activation="softplus"),
    "coarse only": Setting(4, 160, 64, coarse=7, fine=0, noise=True),
    "many samples": Setting(2, 32, 32, rays=2, coarse=48, fine=48, images=1),
}


@dataclass(frozen=True)
class Inputs:
    origins: Tensor
    directions: Tensor
    field: DeepSirenField
    draws: RayDraws

    def leaves(self) -> list[Tensor]:
        return [*self.field, self.origins, self.directions]

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Copies whose layers and rays require gradients."""

        def copy(x: Tensor) -> Tensor:
            return x.detach().to(device, dtype).requires_grad_()

        draws = RayDraws(*(None if x is None else x.to(device, dtype) for x in self.draws))
        return Inputs(copy(self.origins), copy(self.directions), DeepSirenField(*map(copy, self.field)), draws)


def sample_inputs(s: Setting) -> Inputs:
    """Layers of a freshly initialised pi-GAN: weights U(±√(6/in)/25), gains of about 30."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1

    def weight(width_in: int, width_out: int) -> Tensor:
        return math.sqrt(6 / width_in) / 25 * uniform(width_out, width_in)

    images = s.images
    rays = Cameras.from_angles(1.55 + 0.15 * uniform(images).float(), 1.55 + 0.15 * uniform(images).float()).rays(8)
    index = torch.arange(s.rays) * 64 // s.rays
    field = DeepSirenField(
        first_weight=uniform(s.width, 3) / 3,
        hidden_weight=torch.stack([weight(s.width, s.width) for _ in range(s.layers - 1)]),
        trunk_bias=uniform(s.layers, s.width) / 16,
        trunk_gain=30 + 3 * uniform(images, s.layers, s.width),
        trunk_shift=3 * uniform(images, s.layers, s.width),
        density_weight=20 * uniform(s.width) / math.sqrt(s.width),
        density_bias=8 + uniform(1),  # empty bins would make the inverse distribution so steep that any rounding shows
        color_weight=weight(3 + s.width, s.color),
        color_bias=uniform(s.color) / 16,
        color_gain=30 + 3 * uniform(images, s.color),
        color_shift=3 * uniform(images, s.color),
        head_weight=25 * weight(s.color, 3),
        head_bias=uniform(3) / 2,
    )
    noise = [0.5 * torch.randn(images, s.rays, n, generator=generator) for n in (s.coarse, s.coarse + s.fine)]
    draws = RayDraws(
        (uniform(images, s.rays, s.coarse) + 1) / 2,
        (uniform(images, s.rays, s.fine) + 1) / 2 if s.fine else None,
        noise[0] if s.noise else None,
        noise[1] if s.noise and s.fine else None,
    )
    return Inputs(rays.origins[:, index], rays.directions[:, index], field, draws)


def run(inputs: Inputs, s: Setting, precision: Precision) -> RenderedRays:
    return render_rays(
        *(inputs.origins, inputs.directions, inputs.field, inputs.draws, 0.88, 1.12),
        activation=s.activation,  # type: ignore[arg-type]
        last_back=s.last_back,
        precision=precision,
    )


def loss(seen: RenderedRays) -> Tensor:
    """A weighted sum of what is averaged over samples."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=seen.colors.dtype, device=seen.colors.device)
    for x in (seen.colors, seen.opacity, seen.depth):
        total = total + (x * torch.randn(x.shape, generator=generator).to(x)).sum()
    return total


def compare(found: RenderedRays, expected: RenderedRays, precision: Precision) -> None:
    for name, factor in (("colors", 1), ("opacity", 1), ("depth", 1), ("weights", 10), ("depths", 1)):
        error = relative_l2(getattr(found, name), getattr(expected, name))
        assert error < factor * TOLERANCE[precision], f"{name}: {error:.1e}"


@pytest.fixture(autouse=True)
def kernels_of_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of 9.0 alone have tests of their own (test_streamed_field_warpgroups.py)."""
    monkeypatch.setenv("CIPS3D_WGMMA", "0")


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("name", SETTINGS)
def test_outputs_and_gradients(backend: Backend, name: str, precision: Precision) -> None:
    s = SETTINGS[name]
    inputs = sample_inputs(s)
    ours, exact = inputs.to(backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)
    found, expected = run(ours, s, precision), run(exact, s, "highest")
    compare(found, expected, precision)
    gradients = torch.autograd.grad(loss(found), ours.leaves())
    references = torch.autograd.grad(loss(expected), exact.leaves())
    for k, (gradient, reference) in enumerate(zip(gradients, references, strict=True)):
        assert gradient.shape == reference.shape
        error = (gradient.cpu() - reference).norm()
        # The density's bias is one sum that cancels for the most part: measured by its weight's gradient.
        size = references[5].norm() if gradient.numel() == 1 else reference.norm()
        assert error < GRADIENT_TOLERANCE[precision] * size, f"gradient {k}: {error / size:.1e}"


@pytest.mark.parametrize("precision", get_args(Precision))
def test_no_warning_at_full_width(kernel_backend: Backend, precision: Precision) -> None:
    """The kernel takes pi-GAN's field, or the test above compares something else."""
    ours = sample_inputs(SETTINGS["pi-GAN"]).to(kernel_backend.device, torch.float32)
    assert why_not_fused(ours.field, ours.draws, precision=precision) is None


@pytest.mark.parametrize("precision", ["highest", "fast"])
def test_every_schedule_gives_the_same(kernel_backend: Backend, precision: Precision) -> None:
    s = Setting(layers=3, width=96, color=64, rays=17, coarse=9, fine=9)
    ours = sample_inputs(s).to(kernel_backend.device, torch.float32)
    found = [run(ours, s, precision) for _ in kernel_backend.schedules()]
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("fast", [False, True])
def test_gradients_ray_by_ray(backend: Backend, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many samples the backward takes at a time changes nothing but the order of sums."""
    s = Setting(rays=7, noise=True, last_back=True)
    ours = sample_inputs(s).to(backend.device, torch.float32)
    tensors = (ours.origins, ours.directions, *ours.draws, *ours.field, 0.88, 1.12, "relu", True, fast, fast)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(RenderedRays(*OPS["render_deep_rays"](*tensors))), ours.leaves())

    together = gradients()
    monkeypatch.setattr(layer_by_layer, "SAMPLES", 0)
    for a, b in zip(together, gradients(), strict=True):
        assert relative_l2(b, a) < 1e-5


def test_gradients_of_weights_alone(backend: Backend) -> None:
    """Outputs without a gradient: no colour, no depth."""
    s = Setting(rays=3)
    inputs = sample_inputs(s)
    ours, exact = inputs.to(backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)
    found = torch.autograd.grad(run(ours, s, "highest").weights.square().sum(), ours.field.hidden_weight)
    expected = torch.autograd.grad(run(exact, s, "highest").weights.square().sum(), exact.field.hidden_weight)
    assert relative_l2(found[0], expected[0]) < GRADIENT_TOLERANCE["highest"]


def test_not_a_number_stays_in_its_ray(kernel_backend: Backend) -> None:
    s = Setting(rays=4, noise=True)
    inputs = sample_inputs(s)
    inputs.draws.stratified[0, 1] = math.nan
    ours = inputs.to(kernel_backend.device, torch.float32)
    expected = run(sample_inputs(s).to(kernel_backend.device, torch.float32), s, "highest")
    check_not_a_number_stays(kernel_backend, ours, run(ours, s, "highest"), expected)


def test_second_derivative(kernel_backend: Backend) -> None:
    """Through the composed ops: a penalty on the gradient of the gains."""
    s = Setting(layers=2, width=16, color=8, rays=3, coarse=4, fine=0)
    inputs = sample_inputs(s)
    results = []
    for device, dtype in ((kernel_backend.device, torch.float32), (torch.device("cpu"), torch.float64)):
        at = inputs.to(device, dtype)
        first = torch.autograd.grad(run(at, s, "highest").colors.square().sum(), at.field.trunk_gain, create_graph=True)
        results.append(torch.autograd.grad(first[0].square().sum(), at.field.hidden_weight)[0])
    assert relative_l2(*results) < 1e-4  # float32, two derivatives of phases of tens of radians


def test_registration(backend: Backend) -> None:
    s = Setting(layers=2, width=16, color=8, rays=3, coarse=4, fine=3)
    at = sample_inputs(s).to(backend.device, torch.float32)
    arguments: tuple[Any, ...] = (
        at.origins,
        at.directions,
        *at.draws,
        *at.field,
        0.88,
        1.12,
        "relu",
        False,
        False,
        False,
    )
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OPS["render_deep_rays"].overload, arguments, test_utils=tests)


def test_compiled(kernel_backend: Backend) -> None:
    """In one graph, forward and backward, with the same results, but for sums whose order a busy CPU decides."""
    s = Setting(layers=2, width=16, color=8, rays=3, coarse=4, fine=3)
    ours = sample_inputs(s).to(kernel_backend.device, torch.float32)

    def rendered(origins: Tensor, directions: Tensor, *field: Tensor) -> RenderedRays:
        return run(Inputs(origins, directions, DeepSirenField(*field), ours.draws), s, "highest")

    compiled = torch.compile(rendered, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(loss(compiled(ours.origins, ours.directions, *ours.field)), ours.leaves())
    expected = torch.autograd.grad(loss(run(ours, s, "highest")), ours.leaves())
    for a, b in zip(found, expected, strict=True):
        assert relative_l2(a, b) < 1e-6


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_no_rays(backend: Backend, shape: tuple[int, int]) -> None:
    inputs = sample_inputs(Setting(rays=4))
    images, rays = shape
    of_images = ("trunk_gain", "trunk_shift", "color_gain", "color_shift")
    fewer = Inputs(
        inputs.origins[:images, :rays],
        inputs.directions[:images, :rays],
        inputs.field._replace(**{name: getattr(inputs.field, name)[:images] for name in of_images}),
        RayDraws(*(None if x is None else x[:images, :rays] for x in inputs.draws)),
    ).to(backend.device, torch.float32)
    seen = run(fewer, Setting(), "highest")
    assert seen.colors.shape == (images, rays, 3)
    for gradient in torch.autograd.grad(seen.colors.sum(), fewer.leaves()):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("limit", [163, 99])
@pytest.mark.parametrize("precision", ["highest", "fast"])
def test_shared_memory_of_smaller_devices(kernel_backend: Backend, precision: Precision, limit: int) -> None:
    """KB of other devices: fewer samples at a time."""
    s = Setting(layers=4, width=96, color=64, rays=11, coarse=12, fine=12)
    inputs = sample_inputs(s)
    ours, exact = inputs.to(kernel_backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)
    kernels._warned.clear()
    with shared_limit(kernel_backend, limit):
        found = run(ours, s, precision)
    assert not kernels._warned
    expected = run(exact, s, "highest")
    assert relative_l2(found.colors, expected.colors) < TOLERANCE[precision]


def test_wider_layers_are_composed(kernel_backend: Backend) -> None:
    s = Setting(layers=2, width=272, color=16, rays=2, coarse=4, fine=0)
    inputs = sample_inputs(s)
    kernels._warned.clear()
    with pytest.warns(RuntimeWarning, match="room for widths up to 256"):
        found = run(inputs.to(kernel_backend.device, torch.float32), s, "highest")
    compare(found, run(inputs.to(torch.device("cpu"), torch.float64), s, "highest"), "highest")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("first_weight", (0, 3)),
        ("color_weight", (0, 35)),
        ("hidden_weight", (0, 32, 32)),
        ("hidden_weight", (2, 32, 31)),
        ("trunk_gain", (1, 3, 32)),
        ("color_weight", (32, 32)),
        ("head_weight", (4, 32)),
    ],
)
def test_wrong_arguments_are_named(name: str, shape: tuple[int, ...]) -> None:
    inputs = sample_inputs(Setting())
    wrong = replace(inputs, field=inputs.field._replace(**{name: torch.zeros(shape)}))
    with pytest.raises(ValueError, match=f"field.{name} must"):
        run(wrong, Setting(), "highest")
