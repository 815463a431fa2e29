"""What all ops have in common: which mistakes they name, which gradients they have, and which they refuse."""

from __future__ import annotations

import doctest
import math
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ops.backends import Backend, open_backend
from torch import Tensor
from torch.autograd import forward_ad

from cips3d import ops
from cips3d.ops import FoldedLayer, RayDraws, RenderedRays, SirenField, kernels
from cips3d.ops.siren_field import field_of

WIDTH, COLORS = 8, 4


class Case:
    """Arguments of every op, small, on a backend's device."""

    def __init__(self, backend: Backend) -> None:
        self.device = backend.device
        self.random = torch.Generator().manual_seed(0)

    def of(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.random).to(self.device)

    def layers(self) -> list[Tensor]:
        """Of a field: first, second, colour, density."""
        shapes = [(1, WIDTH, 3), (1, WIDTH), (1, WIDTH, WIDTH), (1, WIDTH), (1, COLORS, WIDTH), (1, COLORS)]
        return [*(self.of(*shape) for shape in shapes), self.of(WIDTH), self.of(1)]

    def draws(self, samples: int = 4, fine: int = 4) -> RayDraws:
        return RayDraws(self.uniform(1, 3, samples), self.uniform(1, 3, fine) if fine else None)

    def rendered(self, layers: list[Tensor], draws: RayDraws | None = None, **settings: Any) -> RenderedRays:
        field = SirenField(
            FoldedLayer(*layers[:2]), FoldedLayer(*layers[2:4]), FoldedLayer(*layers[4:6]), *layers[6:], **settings
        )
        rays = torch.zeros(1, 3, 3, device=self.device), torch.ones(1, 3, 3, device=self.device)
        return ops.render_rays(*rays, field, draws or self.draws(), 0.5, 1.5)

    def samples(self) -> tuple[Tensor, Tensor, Tensor]:
        """Densities, features and depths of rays."""
        return self.uniform(1, 3, 4), self.of(1, 3, 4, 2), self.uniform(1, 3, 4).sort(-1).values


class Fog(NamedTuple):
    """A field that is a tuple."""

    thickness: Tensor

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.thickness.to(points) * points.new_ones(points.shape[:2]), points


@pytest.fixture
def case(backend: Backend) -> Case:
    return Case(backend)


# One tensor argument of every op, and the rest.
ONE_TENSOR: dict[str, Callable[[Case], tuple[Tensor, Callable[[Tensor], Any]]]] = {
    "bias_leaky_relu": lambda c: (c.of(2, 3), ops.bias_leaky_relu),
    "upfirdn2d": lambda c: (c.of(1, 2, 5, 5), lambda x: ops.upfirdn2d(x, ops.binomial_kernel(device=c.device), 2)),
    "modulated_epilogue": lambda c: (c.of(1, 3, 4), lambda x: ops.modulated_epilogue(x).output),
    "film_siren": lambda c: (
        c.of(1, 3, 9),
        lambda x: ops.film_siren(x, *(t.to(c.device) for t in (torch.ones(4, 9), torch.ones(4))), *[c.of(1, 4)] * 2),
    ),
    "composite": lambda c: (c.samples()[1], lambda x: ops.composite(c.samples()[0], x, c.samples()[2]).features),
    "accumulate": lambda c: (c.of(1, 3, 4, 2), lambda x: ops.accumulate(c.uniform(1, 3, 4), x)),
    "stratified_depths": lambda c: (c.uniform(1, 3, 4), lambda x: ops.stratified_depths(x, 0.5, 1.5)),
    "ray_points": lambda c: (c.of(1, 3, 3), lambda x: ops.ray_points(x, x, c.uniform(1, 3, 4))),
    "split_matmul": lambda c: (c.of(3, 4), lambda x: ops.split_matmul(x, torch.eye(4, device=c.device))),
    "render_rays": lambda c: (
        c.of(1, COLORS),
        lambda x: c.rendered([*(layers := c.layers())[:5], x, *layers[6:]]).colors,
    ),
}


@pytest.mark.parametrize("name", ONE_TENSOR)
def test_what_is_no_tensor_of_floats_is_refused(case: Case, name: str) -> None:
    x, run = ONE_TENSOR[name](case)
    with pytest.raises(ValueError, match=r"must be of a floating-point dtype, got torch\.int64"):
        run(x.long())
    with pytest.raises(TypeError, match="must be a tensor, got list"):
        run([1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ONE_TENSOR)
def test_forward_mode_is_right_or_refused(case: Case, backend: Backend, name: str) -> None:
    """Never half a derivative: the dispatcher would drop tangents silently."""
    x, run = ONE_TENSOR[name](case)
    tangent, step = case.of(*x.shape), 1e-3
    state = case.random.get_state()  # what else it takes is drawn anew in every call
    try:
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(run(forward_ad.make_dual(x, tangent))).tangent
    except (NotImplementedError, RuntimeError) as error:
        # Of the op itself where kernels compute; of an autograd.Function of the plain formulation elsewhere.
        words = ("has no forward-mode derivative",) if backend.uses_kernels else ("forward", "jvp")
        assert any(word in str(error) for word in words)
        return
    assert not backend.uses_kernels
    ends = []
    for sign in (1, -1):
        case.random.set_state(state)
        ends.append(run(x + sign * step * tangent))
    assert found is not None
    assert (found - (ends[0] - ends[1]) / (2 * step)).norm() <= 0.02 * found.norm()


class TestSecondDerivatives:
    """Where some outputs depend on nothing that needs a gradient."""

    @pytest.mark.parametrize("index", range(8))
    def test_one_layer_of_a_field(self, case: Case, index: int) -> None:
        layers = case.layers()
        layers[index].requires_grad_()
        seen = case.rendered(layers)
        loss = seen.colors.square().sum() + seen.opacity.sum() + seen.depth.sum()
        (first,) = torch.autograd.grad(loss, layers[index], retain_graph=True)
        (again,) = torch.autograd.grad(loss, layers[index], create_graph=True)
        torch.testing.assert_close(again, first, rtol=2e-3, atol=2e-3)
        assert again.requires_grad

    def test_a_sample_at_the_centre_of_the_ball(self, case: Case) -> None:
        """The distance from there has no slope; the rest of the field has."""
        layers = [layer.requires_grad_() for layer in case.layers()]
        field = field_of((*layers[:4], *layers[6:], *layers[4:6]), ball_density=3.0, ball_radius=0.5)
        ray = torch.tensor([[[0.0, 0.0, 1.0]]], device=case.device)
        origins, directions = ray.clone().requires_grad_(), (-ray).requires_grad_()
        draws = RayDraws(torch.full((1, 1, 3), 0.5, device=case.device))  # depths 0.5, 1 and 1.5
        seen = ops.render_rays(origins, directions, field, draws, 0.5, 1.5)
        inputs = [origins, directions, *layers]
        first = torch.autograd.grad(seen.colors.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs)
        assert all(gradient.isfinite().all() for gradient in (*first, *second))

    def test_features_alone(self, case: Case) -> None:
        density, features, depths = case.samples()
        features.requires_grad_()
        seen = ops.composite(density, features, depths)
        loss = seen.features.square().sum() + seen.depth.sum() + seen.opacity.sum()
        (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
        torch.testing.assert_close(gradient, 2 * seen.weights[..., None] * seen.features[:, :, None])

    @pytest.mark.parametrize("which", ["rgb_weight", "next_modulation", "rgb"])
    def test_one_input_of_an_epilogue(self, case: Case, which: str) -> None:
        product = case.of(2, 5, 4)
        given = {"rgb_weight": case.of(3, 4), "next_modulation": case.of(2, 4), "rgb": case.of(2, 5, 3)}
        given[which].requires_grad_()
        made = ops.modulated_epilogue(product, **given)
        assert made.output is not None and made.modulated is not None and made.rgb is not None
        loss = made.output.square().sum() + made.modulated.square().sum() + made.rgb.square().sum()
        (first,) = torch.autograd.grad(loss, given[which], retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(loss, given[which], create_graph=True)[0], first)


class TestRays:
    @pytest.mark.parametrize("fine", [0, 4])
    def test_draws_and_depths_have_no_gradient(self, case: Case, fine: int) -> None:
        draws = case.draws(fine=fine)
        draws = draws._replace(coarse_noise=case.of(1, 3, 4), merged_noise=case.of(1, 3, 4 + fine))
        for draw in draws:
            if draw is not None:
                draw.requires_grad_()
        assert not case.rendered(case.layers(), draws).depths.requires_grad
        layers = case.layers()
        layers[0].requires_grad_()
        case.rendered(layers, draws).colors.sum().backward()
        assert layers[0].grad is not None
        assert all(draw is None or draw.grad is None for draw in draws)

    @pytest.mark.parametrize(("near", "far"), [(2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), (0.5, math.inf)])
    def test_ranges_that_are_none(self, case: Case, near: float, far: float) -> None:
        rays, layers = torch.zeros(1, 3, 3, device=case.device), case.layers()
        field = SirenField(FoldedLayer(*layers[:2]), FoldedLayer(*layers[2:4]), FoldedLayer(*layers[4:6]), *layers[6:])
        for run in (
            lambda: ops.render_rays(rays, rays, field, case.draws(), near, far),
            lambda: ops.stratified_depths(case.uniform(1, 3, 4), near, far),
            lambda: ops.stratified_points(rays, rays, case.uniform(1, 3, 4), near, far),
        ):
            with pytest.raises(ValueError, match=r"t_near|t_far"):
                run()

    def test_numbers_that_are_tensors(self, case: Case) -> None:
        """They would lose their gradients."""
        with pytest.raises(TypeError, match=r"field\.ball_density must be a number, got a tensor"):
            case.rendered(case.layers(), ball_density=torch.ones(()), ball_radius=1.0)
        with pytest.raises(TypeError, match="t_far must be a number, got a tensor"):
            ops.stratified_depths(case.uniform(1, 3, 4), 0.5, torch.ones(3))  # type: ignore[arg-type]

    def test_other_dtypes_and_kinds_are_named(self, case: Case) -> None:
        layers = case.layers()
        with pytest.raises(ValueError, match=r"field\.second\.weight must be torch\.float32 on .* like origins"):
            case.rendered([*layers[:2], layers[2].double(), *layers[3:]])
        with pytest.raises(ValueError, match=r"draws\.importance must be torch\.float32"):
            case.rendered(layers, case.draws()._replace(importance=case.uniform(1, 3, 4).double()))
        with pytest.raises(TypeError, match="draws must be RayDraws, got tuple"):
            case.rendered(layers, tuple(case.draws()))  # type: ignore[arg-type]
        rays = torch.zeros(1, 3, 3, device=case.device)
        with pytest.raises(TypeError, match="field must be SirenField or DeepSirenField, got tuple"):
            ops.render_rays(rays, rays, tuple(layers), case.draws(), 0.5, 1.5)  # type: ignore[arg-type]

    @pytest.mark.parametrize(("density", "values"), [((12, 1), (1, 12, 2)), ((1, 12), (12, 1, 2)), ((1, 3), (1, 3, 2))])
    def test_fields_of_other_shapes(self, case: Case, density: tuple[int, ...], values: tuple[int, ...]) -> None:
        rays = torch.zeros(1, 3, 3, device=case.device)
        with pytest.raises(ValueError, match=r"the field's (density|values) must have shape \[1, 12"):
            ops.march_rays(lambda _: (case.of(*density), case.of(*values)), rays, rays, case.draws(fine=0), 0.5, 1.5)

    def test_draws_of_other_devices_and_dtypes(self, case: Case) -> None:
        rays, draws = torch.zeros(1, 3, 3, device=case.device), case.draws()
        noise = {"coarse_noise": case.of(1, 3, 4), "merged_noise": case.of(1, 3, 8)}
        for name, draw in {**draws._asdict(), **noise}.items():
            if draw is not None:
                with pytest.raises(ValueError, match=rf"^draws\.{name} must be on .* like origins, got meta"):
                    ops.march_rays(
                        lambda points: (points.sum(-1), points),
                        *(rays, rays, draws._replace(**{name: draw.to("meta")}), 0.5, 1.5),
                    )
        with pytest.raises(TypeError, match=r"^draws\.stratified must be torch\.float32 or torch\.float64"):
            half = draws._replace(stratified=draws.stratified.half())
            ops.march_rays(lambda points: (points.sum(-1), points), rays, rays, half, 0.5, 1.5)

    def test_a_ball_has_a_radius(self, case: Case) -> None:
        with pytest.raises(ValueError, match=r"^field\.ball_radius must not be negative, got -1"):
            case.rendered(case.layers(), ball_density=1.0, ball_radius=-1.0)

    def test_fields_and_draws_of_other_kinds(self, case: Case) -> None:
        rays = torch.zeros(1, 3, 3, device=case.device)
        with pytest.raises(TypeError, match="field must return a tuple of density and values, got Tensor"):
            ops.march_rays(lambda points: points, rays, rays, case.draws(), 0.5, 1.5)  # type: ignore[arg-type,return-value]
        pair = (case.uniform(1, 3, 4), case.of(1, 3, 4, 2))
        order = torch.arange(8, device=case.device).expand(1, 3, 8)
        for name in ("coarse", "fine"):
            given = {"coarse": pair, "fine": pair, name: (*pair, pair[0])}
            with pytest.raises(TypeError, match=f"{name} must be a pair of densities and features, got tuple"):
                ops.composite_merged(**given, depths=case.uniform(1, 3, 8).sort(-1).values, order=order)
        layers = case.layers()
        for name in ("first", "second", "color"):
            field = field_of(tuple(layers), ball_density=0.0, ball_radius=0.0)._replace(**{name: tuple(layers[:2])})
            with pytest.raises(TypeError, match=f"field.{name} must be a FoldedLayer, got tuple"):
                ops.render_rays(rays, rays, field, case.draws(), 0.5, 1.5)
        with pytest.raises(TypeError, match="layer must be a ModulatedWeight, got None"):
            ops.modulated_layer(case.of(1, 3, 4), None)  # type: ignore[arg-type]
        layer = ops.ModulatedWeight.of(case.of(4, 4), case.of(1, 4))
        for skip_from in (0.5, None, torch.ones(())):
            with pytest.raises(TypeError, match="skip_from must be an integer, got"):
                ops.modulated_inr(case.of(1, 3, 4), [layer, layer], [case.of(3, 4)], skip_from=skip_from)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="field must be a function of points, got SirenField; render_rays takes"):
            siren = field_of(tuple(case.layers()), ball_density=0.0, ball_radius=0.0)
            ops.march_rays(siren, rays, rays, case.draws(), 0.5, 1.5)  # type: ignore[arg-type]
        seen = ops.march_rays(Fog(torch.ones(())), rays, rays, case.draws(), 0.5, 1.5)  # type: ignore[arg-type]
        assert seen.colors.shape == (1, 3, 3)
        mixed = case.draws()._replace(stratified=case.draws().stratified.double())
        with pytest.raises(ValueError, match=r"^draws\.stratified must be torch\.float\d\d on .* like origins"):
            ops.march_rays(lambda points: (points.sum(-1), points), rays, rays, mixed, 0.5, 1.5)
        with pytest.raises(TypeError, match="draws must be RayDraws, got Tensor"):
            ops.march_rays(lambda points: points, rays, rays, case.uniform(1, 3, 4), 0.5, 1.5)  # type: ignore[arg-type,return-value]

    def test_any_number_of_samples_in_one_compiled_graph(self, case: Case) -> None:
        layers = case.layers()
        compiled = torch.compile(lambda draws: case.rendered(layers, draws).colors, fullgraph=True, backend="aot_eager")
        for samples, fine in ((4, 4), (6, 4), (7, 5)):
            draws = case.draws(samples, fine)
            torch.testing.assert_close(compiled(draws), case.rendered(layers, draws).colors)


@pytest.mark.parametrize("name", ops.__all__)
def test_examples(name: str) -> None:
    """Those of docstrings, with the names that `from cips3d.ops import *` gives."""
    module = sys.modules[getattr(ops, name).__module__]
    found = doctest.DocTestFinder(recurse=False).find(getattr(ops, name), name, module=module)
    for example in found:
        example.globs = {**vars(ops), "torch": torch}
        assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("inf"), np.float16("nan")])
def test_settings_that_are_no_numbers(case: Case, value: float) -> None:
    x, weight, m = case.of(1, 3, 4), case.of(4, 2), case.of(1, 4)
    layer = ops.ModulatedWeight.of(case.of(4, 4), m)
    for run in (
        lambda: ops.bias_leaky_relu(x, gain=value),
        lambda: ops.bias_leaky_relu(x, negative_slope=value),
        lambda: ops.modulated_fc(x, weight, m, negative_slope=value),
        lambda: ops.modulated_epilogue(x, negative_slope=value),
        lambda: ops.modulated_inr(x, [layer, layer], [case.of(3, 4)], skip_from=0, negative_slope=value),
        lambda: ops.binomial_kernel(value),
    ):
        with pytest.raises(ValueError, match=r"(negative_slope|gain) must be finite, got (nan|-?inf)"):
            run()
    others = {"'high'": "high", "array": np.array([0.5, 0.6]), "1j": 1j, "{}": {}, "Fraction": Fraction(1, 2)}
    for shown, wrong in {**others, "a tensor": x}.items():
        with pytest.raises(TypeError, match=f"gain must be a number, got {shown}"):
            ops.bias_leaky_relu(x, gain=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gain must be finite, got 1000"):
        ops.bias_leaky_relu(x, gain=10**400)
    expected = ops.bias_leaky_relu(x, gain=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in (np.float16(0.5), np.float32(0.5), np.float64(0.5)):
            torch.testing.assert_close(ops.bias_leaky_relu(x, gain=number), expected)


class TestIntegers:
    @pytest.mark.parametrize("value", [1.5, "2", None, (1, 2.0)])
    @pytest.mark.parametrize("name", ["up", "down", "padding"])
    def test_others_are_refused(self, case: Case, name: str, value: Any) -> None:
        with pytest.raises(TypeError, match=f"{name} must be an integer or a tuple of integers"):
            ops.upfirdn2d(case.of(1, 1, 8, 8), ops.binomial_kernel(device=case.device), **{name: value})

    def test_those_of_numpy(self, case: Case) -> None:
        x, kernel = case.of(1, 1, 8, 8), ops.binomial_kernel(device=case.device)
        expected = ops.upfirdn2d(x, kernel, 2, padding=(2, 1))
        torch.testing.assert_close(ops.upfirdn2d(x, kernel, np.int64(2), padding=tuple(np.array([2, 1]))), expected)


def test_dtypes_of_a_modulated_layer(case: Case) -> None:
    """One dtype of pixels and weight; the modulation may have another."""
    x, weight, m = case.of(1, 3, 4), case.of(4, 2), case.of(1, 4)
    exact = ops.modulated_fc(x.double(), weight.double(), m.double())
    half = ops.modulated_fc(x.half(), weight.half(), m)
    assert half.dtype == torch.float16
    assert (half.double() - exact).norm() <= 5e-3 * exact.norm()
    for pixels, matrix in ((x, weight.half()), (x.half(), weight), (x.double(), weight)):
        with pytest.raises(ValueError, match=rf"weight must be {pixels.dtype} on"):
            ops.modulated_fc(pixels, matrix, m)
    with pytest.raises(ValueError, match=r"following\.weight must take the 2 channels of the layer, got 3"):
        layer, following = ops.ModulatedWeight.of(weight, m), ops.ModulatedWeight.of(case.of(3, 2), case.of(1, 3))
        ops.modulated_layer(x, layer, following=following)
    with pytest.raises(TypeError, match=r"^layer must be a ModulatedWeight, got Tensor"):
        ops.modulated_layer(x, weight)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^layers\[1\] must be a ModulatedWeight, got Tensor"):
        ops.modulated_inr(x, [layer, weight], [case.of(3, 2)], skip_from=1)  # type: ignore[list-item]


def test_what_is_on_another_device_or_no_tensor_is_named(case: Case) -> None:
    x, weight, m, meta = case.of(1, 3, 4), case.of(4, 2), case.of(1, 4), torch.device("meta")
    for name, run in {
        "modulation": lambda: ops.modulated_fc(x, weight, m.to(meta)),
        "(modulation|weight)": lambda: ops.demodulation(weight.to(meta), m),
        "gain": lambda: ops.fold_film(case.of(2, 4), case.of(2), case.of(1, 2).to(meta), case.of(1, 2)),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be on"):
            run()
    with pytest.raises(ValueError, match=r"^modulation must be on"):
        ops.modulate_weight(weight, m.to(meta), demodulate=False)
    density, features, depths = case.samples()
    with pytest.raises(TypeError, match=r"^noise must be a tensor, got list"):
        ops.composite(density, features, depths, noise=[0.0])  # type: ignore[arg-type]
    for skip in ([0.0], torch.zeros(1, 3, 2, dtype=torch.int64)):
        with pytest.raises((TypeError, ValueError), match=r"^skip must be"):
            ops.modulated_fc(x, weight, m, skip=skip)  # type: ignore[arg-type]
    layer = ops.ModulatedWeight.of(case.of(4, 4), m)
    with pytest.raises(ValueError, match=r"^rgb_weights\[0\] must be torch\.float32 on"):
        ops.modulated_inr(x, [layer, layer], [case.of(3, 4).half()], skip_from=0)


def test_what_a_kernel_forgets_to_write_shows() -> None:
    """In the emulation too, where new memory would often be zeros."""
    with contextmanager(open_backend)("emulated", "any"):
        weights, values, sums = torch.ones(2, 3), torch.ones(2, 3, 4), torch.empty(2, 4)
        kernels.launch("accumulate", torch.float32, weights, values, sums, 1, 3, 4)  # one ray of two
        assert sums[0].eq(3).all()
        assert sums[1].isnan().all()
