"""The fused NeRF branch against the composed ops in float64: outputs, gradients, derivatives, schedules."""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from ops.backends import Backend, shared_limit
from ops.fused_rays import check_not_a_number_stays, require_kernel
from reference_records import relative_l2
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.ops import kernels
from cips3d.ops.film_siren import FoldedLayer
from cips3d.ops.library import OPS
from cips3d.ops.march import RayDraws, RenderedRays, _warned
from cips3d.ops.precision import Precision
from cips3d.ops.render_rays import render_rays
from cips3d.ops.render_rays_backward import _blocks as blocks_an_image
from cips3d.ops.siren_field import SirenField, is_wide

# Accurate products keep about 22 bits of both operands, so what is left is float32's own rounding, amplified by phases
# of tens of radians: as for plain float32. Fast ones round operands to 11 bits: 2⁻¹² each on average over a layer's
# inputs, times a phase's sensitivity, three layers: 5e-4 measured at these weights, four times that as a limit.
TOLERANCE: dict[Precision, float] = {"highest": 1e-5, "fast": 2e-3}
GRADIENT_TOLERANCE: dict[Precision, float] = {"highest": 5e-5, "fast": 5e-3}  # the same roundings forward and backward
# Wide layers have theirs from the kernels of sine layers, whose fast products are bfloat16's: 2⁻⁹ each on average.
WIDE_GRADIENT_TOLERANCE: dict[Precision, float] = {"highest": 5e-5, "fast": 1.5e-2}


@dataclass(frozen=True)
class Setting:
    """One way to render."""

    width: int = 128
    color: int = 64
    rays: int = 13
    coarse: int = 12
    fine: int = 12
    noise: bool = True
    last_back: bool = False
    activation: str = "relu"
    ball: float = 0.0


SETTINGS = {
    "published": Setting(),
    "last back": Setting(last_back=True, rays=7),
    "softplus, no noise": Setting(activation="softplus", noise=False, rays=5),
    "coarse only": Setting(fine=0, coarse=5, rays=37),
    "narrow, odd": Setting(width=33, color=7, coarse=5, fine=4, rays=3, last_back=True),
    "many samples": Setting(width=64, color=32, coarse=48, fine=48, rays=2),
    "wide": Setting(width=256, color=64, rays=5, last_back=True),
    "wide colours": Setting(width=48, color=256, rays=3, coarse=5, fine=6, activation="softplus"),
    "wide, odd": Setting(width=200, color=70, rays=11, coarse=12, fine=0, noise=False, ball=0.08),
    "ball": Setting(width=32, color=32, coarse=8, fine=8, rays=9, ball=0.08, last_back=True),
}


@dataclass(frozen=True)
class Inputs:
    origins: Tensor
    directions: Tensor
    field: SirenField
    draws: RayDraws

    def leaves(self) -> list[Tensor]:
        f = self.field
        return [*f.first, *f.second, *f.color, f.density_weight, f.density_bias, self.origins, self.directions]

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Copies whose layers and rays require gradients."""

        def copy(x: Tensor) -> Tensor:
            return x.detach().to(device, dtype).requires_grad_()

        f = self.field
        field = f._replace(
            **{name: FoldedLayer(*map(copy, getattr(f, name))) for name in ("first", "second", "color")},
            density_weight=copy(f.density_weight),
            density_bias=copy(f.density_bias),
        )
        draws = RayDraws(*(None if x is None else x.to(device, dtype) for x in self.draws))
        return Inputs(copy(self.origins), copy(self.directions), field, draws)


def sample_inputs(s: Setting, images: int = 2) -> Inputs:
    """Layers of a freshly initialised network: weights U(±√(6/in)/25) times gains of about 30."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def layer(width_in: int, width_out: int) -> FoldedLayer:
        bound = 30 * math.sqrt(6 / width_in) / 25
        return FoldedLayer(bound * (2 * uniform(images, width_out, width_in) - 1), 6 * uniform(images, width_out) - 3)

    rays = Cameras.from_angles(1.4 + 0.3 * uniform(images), 1.4 + 0.3 * uniform(images)).rays(8)
    index = torch.arange(s.rays) * 64 // s.rays
    first = layer(3, s.width)
    field = SirenField(
        FoldedLayer(first.weight / 0.12, first.bias),
        layer(s.width, s.width),
        layer(s.width, s.color),
        20 * (2 * uniform(s.width) - 1) / math.sqrt(s.width),
        8 + uniform(1),  # in empty bins the inverse distribution is so steep that any rounding moves a sample visibly
        30.0,
        s.ball,
    )
    noise = [0.5 * torch.randn(images, s.rays, n, generator=generator) for n in (s.coarse, s.coarse + s.fine)]
    draws = RayDraws(
        uniform(images, s.rays, s.coarse),
        uniform(images, s.rays, s.fine) if s.fine else None,
        noise[0] if s.noise else None,
        noise[1] if s.noise and s.fine else None,
    )
    return Inputs(rays.origins[:, index], rays.directions[:, index], field, draws)


def both_kinds(backend: Backend, inputs: Inputs) -> tuple[Inputs, Inputs]:
    """For the kernels, and for their reference in float64."""
    return inputs.to(backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)


def run(inputs: Inputs, s: Setting, precision: Precision) -> RenderedRays:
    return render_rays(
        *(inputs.origins, inputs.directions, inputs.field, inputs.draws, 0.88, 1.12),
        activation=s.activation,  # type: ignore[arg-type]
        last_back=s.last_back,
        precision=precision,
    )


def loss(seen: RenderedRays, *, with_weights: bool = True) -> Tensor:
    """A weighted sum of everything that can be differentiated; small, as gradients of a mean are.

    Weighing every sample's weight at random gives the least smooth function of the densities that there is: rounded
    operands are compared without.
    """
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=seen.colors.dtype, device=seen.colors.device)
    for x in (seen.colors, seen.opacity, seen.depth, *([seen.weights] if with_weights else [])):
        total = total + 1e-3 * (x * torch.randn(x.shape, generator=generator).to(x)).sum()
    return total


def cosine(a: Tensor, b: Tensor) -> float:
    return float(
        torch.cosine_similarity(a.detach().double().flatten().cpu(), b.detach().double().flatten().cpu(), dim=0)
    )


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
    limit = (WIDE_GRADIENT_TOLERANCE if is_wide(s.width, s.color) else GRADIENT_TOLERANCE)[precision]
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


@pytest.mark.parametrize(
    ("precision", "limit", "fits"),
    [("highest", 163, False), ("fast", 163, True), ("fast", 99, True), ("fast", 90, False)],
)
def test_gradients_with_little_shared_memory(
    kernel_backend: Backend, precision: Precision, limit: int, fits: bool
) -> None:
    """The forward as ever. With 163 KB (8.0) and 99 KB (8.6) warps share the samples; without room, op by op."""
    s = Setting(width=64, color=32, rays=37, coarse=6, fine=5)
    inputs = sample_inputs(s)
    ours, exact = inputs.to(kernel_backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)
    _warned.clear()
    with shared_limit(kernel_backend, limit), warnings.catch_warnings():
        warnings.filterwarnings("error", "cips3d")
        module, index = kernels.module_for(kernel_backend.device), kernel_backend.device.index or 0
        assert module.render_rays_backward_fits(index, precision == "highest") == fits
        found = torch.autograd.grad(loss(run(ours, s, precision)), ours.leaves())
    expected = torch.autograd.grad(loss(run(exact, s, "highest")), exact.leaves())
    for gradient, reference in zip(found, expected, strict=True):
        assert relative_l2(gradient, reference) < GRADIENT_TOLERANCE[precision] or gradient.numel() == 1


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_gradients_of_any_size(kernel_backend: Backend, scale: float) -> None:
    """float16 operands must neither overflow nor vanish: the kernel scales by a power of two, so nothing changes."""
    s = Setting(width=32, color=16, rays=5, coarse=4, fine=4)
    ours = sample_inputs(s).to(kernel_backend.device, torch.float32)
    plain = torch.autograd.grad(run(ours, s, "fast").colors.sum(), ours.leaves())
    scaled = torch.autograd.grad(run(ours, s, "fast").colors.sum() * scale, ours.leaves())
    for a, b in zip(plain, scaled, strict=True):
        assert relative_l2(b / scale, a) < 2e-3  # another power of two rounds small halves elsewhere


@pytest.mark.parametrize("size", [1e-8, 1e6])
@pytest.mark.parametrize("output", ["weights", "depth"])
def test_gradients_without_colors(kernel_backend: Backend, output: str, size: float) -> None:
    """The scale of float16 operands goes by every gradient that there is, not by those of colours alone."""
    s = Setting(width=32, color=16, rays=9, coarse=4, fine=4, noise=False)

    def total(seen: RenderedRays) -> Tensor:
        x = getattr(seen, output)
        return size * (x * torch.linspace(0.5, 1.5, x.shape[-1]).to(x)).sum()

    found, expected = (
        torch.autograd.grad(total(run(at, s, "highest")), at.leaves(), materialize_grads=True)
        for at in both_kinds(kernel_backend, sample_inputs(s))
    )
    for gradient, reference in zip(found, expected, strict=True):
        error = (gradient.cpu() - reference).norm()
        assert error <= GRADIENT_TOLERANCE["highest"] * reference.norm() or gradient.numel() == 1


@pytest.mark.parametrize(("of_colors", "of_depth"), [(1e-6, 1.0), (1e6, 1.0)])
def test_gradients_of_unequal_size(kernel_backend: Backend, of_colors: float, of_depth: float) -> None:
    """Colours keep their own scale beside a depth's gradient that is larger or smaller by powers of ten."""
    s = Setting(width=32, color=16, rays=9, coarse=4, fine=4)
    found, expected = (
        torch.autograd.grad(of_colors * seen.colors.sum() + of_depth * seen.depth.sum(), at.leaves())
        for at in both_kinds(kernel_backend, sample_inputs(s))
        for seen in [run(at, s, "highest")]
    )
    for gradient, reference in zip(found, expected, strict=True):
        assert relative_l2(gradient, reference) < GRADIENT_TOLERANCE["highest"] or gradient.numel() == 1


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_seen(kernel_backend: Backend, bad: float) -> None:
    """Gradient scaling has to find them in the layers, so nothing may be cut off to a finite number."""
    s = Setting(width=32, color=16, rays=5, coarse=4, fine=4)
    ours = sample_inputs(s).to(kernel_backend.device, torch.float32)
    colors = run(ours, s, "fast").colors
    upstream = torch.ones_like(colors)
    upstream[0, 3, 5] = bad
    for gradient in torch.autograd.grad(colors, ours.leaves(), upstream):
        assert not gradient.isfinite().all()


def test_long_sums_keep_their_size(kernel_backend: Backend) -> None:
    """Tensor cores cut off what an accumulator cannot hold: sums over many samples must not be left to them."""
    s = Setting(width=32, color=16, rays=700, coarse=12, fine=0, noise=False, activation="softplus")
    found, expected = (
        torch.autograd.grad(run(at, s, "highest").colors.sum(), at.leaves()[:6])
        for at in both_kinds(kernel_backend, sample_inputs(s))  # two images: in the emulation a block has all rays
    )
    for gradient, reference in zip(found, expected, strict=True):
        assert relative_l2(gradient, reference) < 1e-5  # up to 2e-6; 2e-5 to 5e-5 where nothing is moved on the way


def test_blocks_of_the_gradients() -> None:
    """Whole rounds of all multiprocessors where several images allow it, and never more blocks than work."""
    assert blocks_an_image(132, 1, 65536) == 132
    assert blocks_an_image(132, 16, 65536) == 8
    assert blocks_an_image(132, 48, 65536) == 8  # three rounds of 384; one of two blocks an image has 96
    assert blocks_an_image(132, 200, 65536) == 1  # two would fill four rounds as badly as one fills two
    assert blocks_an_image(132, 1, 100) == 2
    assert blocks_an_image(2, 5, 10) == 1


def test_sample_at_the_centre_of_the_ball(kernel_backend: Backend) -> None:
    """Its distance has no slope there, which is 0 and not NaN; wide fields have their gradients op by op."""
    for width in (32, 144):
        s = Setting(width=width, color=16, rays=1, coarse=5, fine=0, noise=False, ball=0.1)
        inputs = sample_inputs(s, images=1)
        ahead = torch.tensor([[[0.0, 0.0, 1.0]]])
        inputs = replace(inputs, origins=ahead, directions=-ahead)
        inputs.draws.stratified.fill_(0.5)  # the third sample is at depth 1
        ours = inputs.to(kernel_backend.device, torch.float32)
        for gradient in torch.autograd.grad(run(ours, s, "highest").colors.sum(), ours.leaves()):
            assert gradient.isfinite().all()


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


def test_zero_gradients(kernel_backend: Backend) -> None:
    s = Setting(width=32, color=16, rays=5, coarse=4, fine=4)
    ours = sample_inputs(s).to(kernel_backend.device, torch.float32)
    for gradient in torch.autograd.grad(run(ours, s, "fast").colors.sum() * 0, ours.leaves()):
        assert torch.equal(gradient, torch.zeros_like(gradient))


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
    arguments = (at.origins, at.directions, *at.draws, *layers, 0.88, 1.12, "relu", False, False)
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
        _warned.clear()
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


def test_too_few_coarse_samples() -> None:
    s = Setting(width=16, color=8, rays=3, coarse=2, fine=4)
    with pytest.raises(ValueError, match="at least 3 samples"):
        run(sample_inputs(s), s, "highest")
