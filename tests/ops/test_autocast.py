"""Gradients are those of the ops' dtypes wherever `backward()` is called: autocast would round what is float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops.test_alignment import CASES, Draw
from torch import Tensor

from cips3d.ops import RayDraws, accumulate, composite, render_rays
from cips3d.ops.library import OPS
from cips3d.ops.siren_field import field_of

WIDTH, COLORS = 8, 6


def _rays(of: Draw) -> tuple[Tensor | None, ...]:
    """Origins, directions and draws of 3 rays of 2 images, 4 coarse samples and 4 fine ones."""
    return of(2, 3, 3), of(2, 3, 3), of(2, 3, 4).sigmoid(), of(2, 3, 4).sigmoid(), None, None


def _layers(of: Draw) -> list[Tensor]:
    shapes = ((2, WIDTH, 3), (2, WIDTH), (2, WIDTH, WIDTH), (2, WIDTH), (WIDTH,), (1,), (2, COLORS, WIDTH), (2, COLORS))
    return [of(*shape) for shape in shapes]


def _deep_field(of: Draw) -> list[Tensor]:
    trunk = [of(WIDTH, 3), of(1, WIDTH, WIDTH), of(2, WIDTH), of(2, 2, WIDTH), of(2, 2, WIDTH), of(WIDTH), of(1)]
    color = (of(COLORS, 3 + WIDTH), of(COLORS), of(2, COLORS), of(2, COLORS), of(3, COLORS), of(3))
    return [*trunk, *color]


DIFFERENTIABLE: dict[str, Callable[[Draw], tuple[Any, ...]]] = {
    **{name: case for name, case in CASES.items() if name in ("accumulate", "composite", "film_siren", "ray_points")},
    **{name: case for name, case in CASES.items() if name.startswith(("bias_", "split_matmul", "upfirdn2d"))},
    "film_siren_backward": CASES["film_siren_backward"],
    "modulated_epilogue": CASES["modulated_epilogue"],
    "stratified_depths": lambda of: (of(2, 3, 4), 0.5, 1.5),
    "stratified_points": lambda of: (of(2, 3, 4), of(2, 3, 3), of(2, 3, 3), 0.5, 1.5),
    "modulated_inr": lambda of: (
        *(of(2, 5, 4), of(4, WIDTH), of(1, WIDTH, WIDTH), of(2, 4), of(2, 1, WIDTH), of(2, 2, WIDTH), of(1, 3, WIDTH)),
        *(1, 0.2, False, False),
    ),
    "render_rays": lambda of: (*_rays(of), *_layers(of), 1.0, 0.5, 0.5, 1.5, "relu", False, False, False),
    "render_deep_rays": lambda of: (*_rays(of), *_deep_field(of), 0.5, 1.5, "softplus", True, False, False),
}


def _normal() -> Draw:
    random = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=random)


def _autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def test_every_op_with_gradients_is_here() -> None:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert {name for name in OPS if has_kernel(f"cips3d::{name}", "Autograd")} == set(DIFFERENTIABLE)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_registered_ops(name: str, forward: bool, create_graph: bool) -> None:
    given = DIFFERENTIABLE[name](_normal())
    given = tuple(x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)
    with _autocast(forward):
        found = OPS[name](*given)
    outputs = [y for y in ([found] if isinstance(found, Tensor) else found) if y.requires_grad]
    upstream = [torch.randn_like(y) for y in outputs]
    inputs = [x for x in given if isinstance(x, Tensor) and x.requires_grad]

    def gradients() -> tuple[Tensor | None, ...]:
        settings = {"retain_graph": True, "create_graph": create_graph, "allow_unused": True}
        return torch.autograd.grad(outputs, inputs, upstream, **settings)

    expected = gradients()
    with _autocast(True):
        inside = gradients()
    assert any(gradient is not None for gradient in expected)
    for a, b in zip(inside, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _accumulated(of: Draw) -> tuple[Tensor, list[Tensor]]:
    weights, values = (x.requires_grad_() for x in (of(2, 3, 4), of(2, 3, 4, 16)))
    return accumulate(weights, values), [weights, values]


def _composited(of: Draw) -> tuple[Tensor, list[Tensor]]:
    density, features = (x.requires_grad_() for x in (of(2, 3, 4), of(2, 3, 4, 16)))
    return composite(density, features, of(2, 3, 4).sort(-1).values).features, [density, features]


def _rendered(of: Draw) -> tuple[Tensor, list[Tensor]]:
    origins, directions, u, *_ = _rays(of)
    assert origins is not None and directions is not None and u is not None
    layers = [x.requires_grad_() for x in _layers(of)]
    field = field_of(tuple(layers), ball_density=1.0, ball_radius=0.5)
    return render_rays(origins, directions, field, RayDraws(u), 0.5, 1.5).colors, layers


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("case", [_accumulated, _composited, _rendered])
def test_plain_formulations(case: Callable[[Draw], tuple[Tensor, list[Tensor]]], forward: bool) -> None:
    """Those with a backward of their own, which is no registered op's."""
    with _autocast(forward):
        output, inputs = case(_normal())
    upstream = torch.randn_like(output)
    expected = torch.autograd.grad(output, inputs, upstream, retain_graph=True)
    with _autocast(True):
        found = torch.autograd.grad(output, inputs, upstream)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
