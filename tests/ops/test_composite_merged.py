"""Compositing of coarse and fine samples where they were evaluated, against sorting them first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.backends import Backend
from ops.compositing import SETTINGS, formula, on, upstream
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import composite_merged
from cips3d.ops.library import OPS

# B, R, S, F, C: one pass over the samples and two, vectors and none, no fine samples.
SHAPES = [(2, 3, 5, 4, 4), (1, 5, 12, 12, 64), (1, 3, 20, 25, 3), (1, 2, 1, 1, 8), (1, 2, 4, 0, 5)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def sample_inputs(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor, Tensor]:
    """[coarse density, coarse features, fine density, fine features, depths], order, noise."""
    batch, rays, samples, fine, channels = shape
    random = torch.Generator().manual_seed(0)
    count = samples + fine
    density = 20 * torch.randn(batch, rays, count, generator=random)
    features = torch.randn(batch, rays, count, channels, generator=random).to(dtype)
    depths = torch.rand(batch, rays, count, generator=random).sort(-1).values * 0.2 + 0.9
    order = torch.rand(batch, rays, count, generator=random).argsort(dim=-1)
    # Away from the step that the endless last interval makes of the last density; rays that end, and rays that do not.
    last = torch.full((batch, rays, 1), 5.0)
    last[:, 1::2] = -50.0
    density.scatter_(-1, order[..., -1:], last)
    noise = 10 * torch.randn(batch, rays, count, generator=random)
    noise[..., -1] = 0.0
    parts = density[..., :samples], features[:, :, :samples], density[..., samples:], features[:, :, samples:]
    return [*parts, depths], order, noise


def merged(tensors: list[Tensor], order: Tensor, noise: Tensor, **settings: Any) -> Any:
    density, features, fine_density, fine_features, depths = tensors
    fine = fine_density, fine_features
    return composite_merged((density, features), fine, depths, order, noise=noise, **settings)


def sorted_first(tensors: list[Tensor], order: Tensor, noise: Tensor, **settings: Any) -> Any:
    density, features, fine_density, fine_features, depths = tensors
    in_order = torch.cat([density, fine_density], dim=-1).gather(-1, order)
    together = torch.cat([features, fine_features], dim=2)
    gathered = together.gather(2, order[..., None].expand(-1, -1, -1, features.shape[-1]))
    return formula(in_order, gathered, depths, noise, **settings)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_sorting_first(backend: Backend, shape: Any, settings: dict[str, Any]) -> None:
    tensors, order, noise = sample_inputs(shape)
    order = order.to(backend.device)
    *inputs, noise = on(backend, *tensors, noise)
    *exact, exact_noise = on(backend, *(x.double() for x in (*inputs, noise)))
    found = merged(inputs, order, noise, **settings)
    expected = sorted_first(exact, order, exact_noise, **settings)
    for y, value in zip(found, expected, strict=True):
        error = float((y - value).detach().norm())
        assert error < 1e-6 * max(float(value.detach().norm()), 1.0)  # rounding of 1 - exp(-δσ)
    grads = upstream(found)
    gradients = torch.autograd.grad(found, [*inputs, noise], grads)
    values = torch.autograd.grad(expected, [*exact, exact_noise], [g.double() for g in grads])
    for gradient, value in zip(gradients, values, strict=True):
        assert relative_l2(gradient, value) < 1e-5  # as of `composite`


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_features_of_16_bits(backend: Backend, dtype: torch.dtype) -> None:
    tensors, order, noise = sample_inputs((1, 5, 12, 12, 64), dtype)
    order, noise = order.to(backend.device), noise.to(backend.device)
    inputs = on(backend, *tensors)
    exact = on(backend, *(x.double() for x in inputs))
    found, expected = merged(inputs, order, noise), sorted_first(exact, order, noise.double())
    assert found.features.dtype == dtype
    assert relative_l2(found.features, expected.features) < torch.finfo(dtype).eps
    grads = upstream(found)
    gradients = torch.autograd.grad(found, inputs, grads)
    values = torch.autograd.grad(expected, exact, [g.double() for g in grads])
    for gradient, value, x in zip(gradients, values, inputs, strict=True):
        assert gradient.dtype == x.dtype
        assert relative_l2(gradient, value) < (1e-5 if x.dtype == torch.float32 else torch.finfo(dtype).eps)


def test_gradients_of_some_inputs(backend: Backend) -> None:
    """Each alone is what it is among all."""
    tensors, order, noise = sample_inputs((2, 3, 5, 4, 4))
    order = order.to(backend.device)

    def gradients(wanted: list[int]) -> list[Tensor]:
        inputs = [x.to(backend.device).requires_grad_(k in wanted) for k, x in enumerate((*tensors, noise))]
        out = merged(inputs[:5], order, inputs[5])
        loss = torch.stack([(y * g).sum() for y, g in zip(out, upstream(out), strict=True)]).sum()
        return list(torch.autograd.grad(loss, [inputs[k] for k in wanted]))

    for k, expected in enumerate(gradients(list(range(6)))):
        # In the plain path, outputs that do not depend on an input do not take part.
        torch.testing.assert_close(gradients([k])[0], expected)


def test_gradients_of_any_order() -> None:
    tensors, order, noise = sample_inputs((1, 2, 2, 2, 2))
    last = torch.zeros(order.shape, dtype=torch.bool).scatter(-1, order[..., -1:], True)
    inputs = [(x / (4 if x.dim() == 3 and x is not tensors[4] else 1)).double() for x in tensors]

    def run(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        density, features, fine_density, fine_features, depths = arguments
        # Constant where the endless interval makes a step of it.
        density = torch.where(last[..., :2], 5.0, density)
        fine_density = torch.where(last[..., 2:], 5.0, fine_density)
        out = merged([density, features, fine_density, fine_features, depths], order, noise.double() / 10)
        return out.features, out.depth

    for x in inputs:
        x.requires_grad_()
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_second_derivative(backend: Backend) -> None:
    def derivative(function: Any, inputs: list[Tensor], order: Tensor, noise: Tensor) -> list[Tensor]:
        loss = function(inputs, order, noise).features.square().sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        return list(torch.autograd.grad(sum((g * g.detach()).sum() for g in first), inputs))

    tensors, order, noise = sample_inputs((2, 3, 5, 4, 4))
    order, noise = order.to(backend.device), noise.to(backend.device)
    found = derivative(merged, on(backend, *tensors), order, noise)
    expected = derivative(sorted_first, on(backend, *(x.double() for x in tensors)), order, noise.double())
    for gradient, value in zip(found, expected, strict=True):
        assert relative_l2(gradient, value) < 1e-4  # differences of near products, divided by 1 - α twice


@pytest.mark.parametrize("shape", [(2, 0, 4, 2, 3), (2, 3, 4, 2, 0)])
def test_empty(backend: Backend, shape: Any) -> None:
    tensors, order, noise = sample_inputs(shape)
    inputs = on(backend, *tensors)
    out = merged(inputs, order.to(backend.device), noise.to(backend.device))
    gradients = torch.autograd.grad(out.features.sum() + out.depth.sum(), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]


def test_every_schedule_gives_the_same(kernel_backend: Backend) -> None:
    tensors, order, noise = sample_inputs((1, 3, 20, 25, 3))
    order, noise = order.to(kernel_backend.device), noise.to(kernel_backend.device)
    inputs = on(kernel_backend, *tensors)
    found = []
    for _ in kernel_backend.schedules():
        out = merged(inputs, order, noise)
        found.append((*out, *torch.autograd.grad(out, inputs, upstream(out))))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def test_registration(backend: Backend) -> None:
    tensors, order, noise = sample_inputs((2, 3, 3, 2, 4))
    density, features, fine_density, fine_features, depths = on(backend, *tensors)
    noise = noise.to(backend.device).requires_grad_()
    inputs = density, features, depths, fine_density, fine_features, order.to(backend.device), noise
    torch.library.opcheck(OPS["composite"].overload, (*inputs, "relu", False, False))
    grads = [torch.randn(2, 3, 4, device=backend.device), None, torch.randn_like(depths), None, None]
    torch.library.opcheck(
        OPS["composite_backward"].overload,
        (*(x.detach() for x in inputs), *grads, "softplus", True, False, True, True, True),
    )


def test_registered_op_is_differentiable_in_float64() -> None:
    """Where the public function takes the shorter way through plain PyTorch."""
    tensors, order, noise = sample_inputs((1, 3, 4, 3, 2))
    doubles = [x.double() for x in (*tensors, noise)]
    gradients = []
    for registered in (True, False):
        *inputs, exact_noise = [x.clone().requires_grad_() for x in doubles]
        density, features, fine_density, fine_features, depths = inputs
        if registered:
            arguments = density, features, depths, fine_density, fine_features, order, exact_noise
            outputs = OPS["composite"](*arguments, "relu", True, False)
        else:
            outputs = sorted_first(inputs, order, exact_noise, last_back=True)
        grads = [g.double() for g in upstream(outputs)]
        gradients.append(torch.autograd.grad(outputs, [*inputs, exact_noise], grads))
    for found, expected in zip(*gradients, strict=True):
        assert relative_l2(found, expected) < 1e-12


def test_compiles(backend: Backend) -> None:
    tensors, order, noise = sample_inputs((2, 3, 5, 4, 4))
    order, noise = order.to(backend.device), noise.to(backend.device)

    def loss(*inputs: Tensor) -> Tensor:
        return merged(list(inputs), order, noise).features.square().mean()

    inputs = on(backend, *tensors)
    eager = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_order_outside_of_the_samples_is_an_error(backend: Backend) -> None:
    if backend.name == "cuda":
        pytest.skip("ends the process's use of the device")
    tensors, order, noise = sample_inputs((2, 3, 5, 4, 4))
    order[1, 2, 3] = 9
    with pytest.raises(RuntimeError, match=r"__trap|out of bounds"):
        merged(tensors, order, noise)


def test_wrong_arguments_are_named() -> None:
    (density, features, fine_density, fine_features, depths), order, noise = sample_inputs((2, 3, 5, 4, 4))
    coarse, fine = (density, features), (fine_density, fine_features)
    with pytest.raises(ValueError, match="coarse features must have shape"):
        composite_merged((density, features[:, :, :2]), fine, depths, order)
    with pytest.raises(ValueError, match="fine features must have shape"):
        composite_merged(coarse, (fine_density, fine_features[..., :2]), depths, order)
    with pytest.raises(ValueError, match=r"depths must have shape \[2, 3, 9\]"):
        composite_merged(coarse, fine, depths[..., :5], order)
    with pytest.raises(ValueError, match=r"order must have shape \[2, 3, 9\]"):
        composite_merged(coarse, fine, depths, order[..., :5])
    with pytest.raises(ValueError, match="order must be on cpu like coarse density"):
        composite_merged(coarse, fine, depths, order.to("meta"))
    with pytest.raises(ValueError, match="noise must have shape"):
        composite_merged(coarse, fine, depths, order, noise=noise[..., :5])
    with pytest.raises(ValueError, match="at least one sample"):
        composite_merged((density[..., :0], features[:, :, :0]), fine, depths[..., :4], order[..., :4])
    with pytest.raises(TypeError, match=r"order must be torch\.int64"):
        composite_merged(coarse, fine, depths, order.int())
    with pytest.raises(TypeError, match=r"fine features must be torch\.float32"):
        composite_merged(coarse, (fine_density, fine_features.half()), depths, order)
