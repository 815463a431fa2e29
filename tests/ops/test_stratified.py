"""Stratified depths and points on rays; every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import ray_points, stratified_depths, stratified_points
from cips3d.ops.library import OPS

# B, R, S: several blocks of rays, a ray of several blocks' samples, sizes that nothing divides.
SHAPES = [(2, 3, 5), (1, 1, 1), (2, 150, 12), (3, 300, 1), (1, 2, 1500), (1, 3, 64), (1, 7, 2), (1, 7, 3)]
RANGE = (0.88, 1.12)


def sample_inputs(
    batch: int, rays: int, samples: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """origins, directions, u."""
    random = torch.Generator().manual_seed(2)
    origins, directions = torch.randn(2, batch, rays, 3, generator=random, dtype=torch.float64).to(dtype)
    return origins, directions, torch.rand(batch, rays, samples, generator=random, dtype=torch.float64).to(dtype)


def formula(origins: Tensor, directions: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    near, far = RANGE
    samples = u.shape[-1]
    if samples == 1:
        depths = near + (far - near) * u
    else:
        spacing = (far - near) / (samples - 1)
        depths = near + spacing * torch.arange(samples, dtype=u.dtype, device=u.device) + (u - 0.5) * spacing
    return depths, origins[:, :, None] + depths[..., None] * directions[:, :, None]


def on(backend: Backend, *tensors: Tensor) -> list[Tensor]:
    """Copies that require gradients."""
    return [t.detach().to(backend.device, copy=True).requires_grad_() for t in tensors]


def test_middle_draws_are_evenly_spaced(backend: Backend) -> None:
    depths = stratified_depths(torch.full((1, 2, 5), 0.5, device=backend.device), 1.0, 2.0)
    assert depths[0, 1].tolist() == pytest.approx([1.0, 1.25, 1.5, 1.75, 2.0])


def test_float64_formula() -> None:
    inputs = sample_inputs(2, 3, 12, torch.float64)
    for found, expected in zip(stratified_points(*inputs, *RANGE), formula(*inputs), strict=True):
        assert torch.allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_depths_and_points(backend: Backend, shape: Any) -> None:
    origins, directions, u = (x.to(backend.device) for x in sample_inputs(*shape))
    depths, points = stratified_points(origins, directions, u, *RANGE)
    expected = formula(origins.double(), directions.double(), u.double())
    # Roundings of numbers up to 1.12: of the step, the centre and the sum.
    assert (depths - expected[0]).abs().max() < 3e-7
    assert relative_l2(points, expected[1]) < 2e-7
    assert torch.equal(stratified_depths(u, *RANGE), depths)
    assert torch.equal(ray_points(origins, directions, depths), points)


def test_centres_are_those_of_linspace(kernel_backend: Backend) -> None:
    for samples, (near, far) in ((2, RANGE), (3, RANGE), (12, RANGE), (95, RANGE), (28, (0.1, 0.9)), (63, (0.1, 0.9))):
        u = torch.full((1, 1, samples), 0.5, device=kernel_backend.device)
        centres = torch.linspace(near, far, samples, device=kernel_backend.device)
        depths = stratified_depths(u, near, far)[0, 0]
        # linspace multiplies and adds with one rounding or with two: one unit in the last place.
        assert (depths - centres).abs().max() <= 2**-23
        assert torch.equal(depths[[0, -1]], centres[[0, -1]])  # it counts from both ends


def test_depths_ascend_for_any_draws(backend: Backend) -> None:
    u = torch.rand(2, 50, 12, generator=torch.Generator().manual_seed(1)).to(backend.device)
    assert (stratified_depths(u, *RANGE).diff(dim=-1) >= 0).all()
    extreme = torch.tensor([1 - 2**-24, 0.0]).repeat(6)[None, None]  # as near to each other as draws can be
    assert (stratified_depths(extreme.to(backend.device), *RANGE).diff(dim=-1) >= -3e-7).all()


def test_single_sample_covers_the_range(backend: Backend) -> None:
    u = torch.tensor([[[0.0]], [[0.5]], [[0.75]]], device=backend.device)
    assert stratified_depths(u, 1.0, 3.0).flatten().tolist() == [1.0, 2.0, 2.5]


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(backend: Backend, shape: Any) -> None:
    inputs = on(backend, *sample_inputs(*shape))
    exact = on(backend, *(x.double() for x in inputs))
    found, expected = stratified_points(*inputs, *RANGE), formula(*exact)
    random = torch.Generator().manual_seed(3)
    grads = [torch.randn(y.shape, generator=random).to(backend.device) for y in found]
    gradients = torch.autograd.grad(found, inputs, grads)
    values = torch.autograd.grad(expected, exact, [g.double() for g in grads])
    # Sums of S terms of both signs in float32; the spacing is a difference of float32 numbers up to 1.12.
    spacing = (RANGE[1] - RANGE[0]) / max(shape[2] - 1, 1)
    for gradient, value, tolerance in zip(gradients, values, (1e-6, 1e-6, 1e-6 + 1e-7 / spacing), strict=True):
        assert relative_l2(gradient, value) < tolerance
    depths = found[0].detach().requires_grad_()
    (of_depths,) = torch.autograd.grad(ray_points(*inputs[:2], depths), depths, grads[1])
    assert relative_l2(of_depths, (grads[1].double() * exact[1][:, :, None]).sum(-1)) < 1e-6


def test_gradient_of_depths(backend: Backend) -> None:
    (u,) = on(backend, sample_inputs(2, 3, 5)[2])
    (of_u,) = torch.autograd.grad(stratified_depths(u, *RANGE).sum(), u)
    assert torch.allclose(of_u, torch.full_like(u, 0.06))


def test_gradients_of_any_order() -> None:
    inputs = [x.requires_grad_() for x in sample_inputs(1, 2, 3, torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: stratified_points(*x, *RANGE), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: stratified_points(*x, *RANGE), inputs)
    assert torch.autograd.gradcheck(ray_points, inputs)


def test_second_derivative(backend: Backend) -> None:
    def derivative(function: Any, inputs: list[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad((function(*inputs)[1] ** 3).sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))

    inputs = sample_inputs(2, 3, 5)
    found = derivative(lambda *x: stratified_points(*x, *RANGE), on(backend, *inputs))
    expected = derivative(formula, on(backend, *(x.double() for x in inputs)))
    for gradient, value in zip(found, expected, strict=True):
        assert relative_l2(gradient, value) < 1e-5  # a dozen float32 roundings, terms of both signs


def test_rays_of_one_origin(backend: Backend) -> None:
    """As a camera gives them: a tensor of stride 0."""
    origins, directions, u = (x.to(backend.device) for x in sample_inputs(3, 150, 5))
    shared = origins[:, :1].expand_as(origins)
    expected = stratified_points(shared.contiguous(), directions, u, *RANGE)
    for found, value in zip(stratified_points(shared, directions, u, *RANGE), expected, strict=True):
        assert torch.equal(found, value)
    (one,) = on(backend, origins[:, :1])
    points = ray_points(one.expand_as(origins), directions, u)
    (of_one,) = torch.autograd.grad(points.sum(), one)
    assert torch.allclose(of_one, torch.full_like(one, 750.0))


@pytest.mark.parametrize("shape", [(2, 0, 4), (0, 2, 4)])
def test_no_rays(backend: Backend, shape: Any) -> None:
    inputs = on(backend, *sample_inputs(*shape))
    depths, points = stratified_points(*inputs, *RANGE)
    assert depths.shape == shape and points.shape == (*shape, 3)
    gradients = torch.autograd.grad(points.sum() + depths.sum(), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]


def test_no_samples_on_rays(backend: Backend) -> None:
    origins, directions, depths = on(backend, *sample_inputs(2, 3, 0))
    points = ray_points(origins, directions, depths)
    assert points.shape == (2, 3, 0, 3)
    assert torch.equal(torch.autograd.grad(points.sum(), origins)[0], torch.zeros_like(origins))


def test_layout(backend: Backend) -> None:
    """Transposed and misaligned inputs give what contiguous ones give."""
    inputs = [x.to(backend.device) for x in sample_inputs(2, 3, 5)]
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in inputs]
    strided = [x.transpose(0, 2).contiguous().transpose(0, 2) for x in inputs]
    for same in (shifted, strided):
        for found, expected in zip(stratified_points(*same, *RANGE), stratified_points(*inputs, *RANGE), strict=True):
            assert torch.equal(found, expected)


def test_other_dtypes_are_computed_in_plain_pytorch(backend: Backend) -> None:
    origins, directions, u = (x.to(backend.device).half() for x in sample_inputs(2, 3, 5))
    depths, points = stratified_points(origins, directions, u, *RANGE)
    assert depths.dtype == points.dtype == torch.float16
    # Roundings to 11 bits: of the centre, the product and the sum.
    assert relative_l2(depths, formula(origins.double(), directions.double(), u.double())[0]) < 1.5e-3


def test_every_schedule_gives_the_same(kernel_backend: Backend) -> None:
    inputs = on(kernel_backend, *sample_inputs(2, 150, 12))
    found = []
    for _ in kernel_backend.schedules():
        outputs = stratified_points(*inputs, *RANGE)
        found.append((*outputs, *torch.autograd.grad(outputs[1].square().sum(), inputs)))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def test_registration(backend: Backend) -> None:
    origins, directions, u = on(backend, *sample_inputs(2, 3, 5))
    grad = torch.randn(2, 3, 5, 3, device=backend.device)
    for name, arguments in {
        "stratified_depths": (u, *RANGE),
        "stratified_points": (u, origins, directions, *RANGE),
        "ray_points": (u, origins, directions),
        "ray_points_backward": (grad, directions.detach(), u.detach(), True),
    }.items():
        torch.library.opcheck(OPS[name].overload, arguments)


def test_registered_op_is_differentiable_in_float64() -> None:
    """Where the public function takes the shorter way through plain PyTorch."""
    origins, directions, u = (x.requires_grad_() for x in sample_inputs(1, 2, 3, torch.float64))
    assert torch.autograd.gradcheck(lambda *x: OPS["stratified_points"](*x, *RANGE), (u, origins, directions))
    assert torch.autograd.gradcheck(OPS["ray_points"], (u, origins, directions))


def test_compiles(backend: Backend) -> None:
    def loss(*inputs: Tensor) -> Tensor:
        depths, points = stratified_points(*inputs, *RANGE)
        return points.square().mean() + depths.mean()

    inputs = on(backend, *sample_inputs(2, 3, 5))
    eager = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="u must have shape"):
        stratified_depths(torch.zeros(2, 3), 0.0, 1.0)
    with pytest.raises(ValueError, match="u must hold"):
        stratified_depths(torch.zeros(2, 3, 0), 0.0, 1.0)
    with pytest.raises(ValueError, match="t_near must be smaller"):
        stratified_depths(torch.zeros(1, 1, 1), 1.0, 1.0)
    origins, directions, u = sample_inputs(1, 2, 4)
    with pytest.raises(ValueError, match="directions must have shape"):
        ray_points(origins, torch.zeros(1, 3, 3), u)
    with pytest.raises(ValueError, match=r"origins must have shape \[1, 2, 3\]"):
        stratified_points(origins[..., :2], directions, u, *RANGE)
    with pytest.raises(ValueError, match="directions must be on cpu like u"):
        stratified_points(origins, directions.to("meta"), u, *RANGE)


def test_registered_op_refuses_what_a_kernel_cannot_read(kernel_backend: Backend) -> None:
    origins, directions, u = (x.to(kernel_backend.device) for x in sample_inputs(1, 2, 4))
    with pytest.raises(TypeError, match=r"origins must be torch\.float32"):
        OPS["ray_points"](u, origins.half(), directions)
