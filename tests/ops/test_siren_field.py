"""A field of sine layers in blocks against the published order, layer by layer, in float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops.film_siren import FoldedLayer, fold_film, sine_field
from cips3d.ops.siren_field import SirenField, evaluate_siren_field

FOLDING = 1e-13  # float64 rounding of phases of a few radians, computed in two orders


class Layer(NamedTuple):
    weight: Tensor
    bias: Tensor
    gain: Tensor
    shift: Tensor


def sample_layer(batch: int, width_in: int, width_out: int, seed: int) -> Layer:
    """Gains that finite differences can follow."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight = normal(width_out, width_in) / width_in**0.5
    return Layer(weight, normal(width_out), 1.5 + 0.25 * normal(batch, width_out), normal(batch, width_out))


def sample_points(batch: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(batch, count, 3, generator=generator, dtype=torch.float64)


def unfused(x: Tensor, layer: Layer) -> Tensor:
    """Linear layer, then frequency and phase, then the sine; image by image."""
    images = [torch.sin(layer.gain[b] * (x[b] @ layer.weight.T + layer.bias) + layer.shift[b]) for b in range(len(x))]
    return torch.stack(images)


class Field(NamedTuple):
    points: Tensor
    density_weight: Tensor
    density_bias: Tensor
    trunk: list[Layer]
    color: Layer


def sample_field(batch: int, count: int, widths: tuple[int, ...] = (6, 5), color_width: int = 4) -> Field:
    sizes = (3, *widths)
    trunk = [sample_layer(batch, i, o, seed=k) for k, (i, o) in enumerate(zip(sizes, widths, strict=False))]
    generator = torch.Generator().manual_seed(7)
    density = torch.randn(widths[-1] + 1, generator=generator, dtype=torch.float64)
    color = sample_layer(batch, widths[-1], color_width, seed=8)
    return Field(sample_points(batch, count), density[1:], density[:1], trunk, color)


def published(field: Field) -> tuple[Tensor, Tensor]:
    x = field.points
    for layer in field.trunk:
        x = unfused(x, layer)
    return (x * field.density_weight).sum(-1) + field.density_bias, unfused(x, field.color)


def evaluate(field: Field) -> tuple[Tensor, Tensor]:
    trunk = [fold_film(*layer) for layer in field.trunk]
    return sine_field(field.points, trunk, fold_film(*field.color), field.density_weight, field.density_bias)


BLOCK_SIZES = [1 << 18, 12, 1]  # elements: everything at once, two rows of six, single rows


@pytest.fixture(params=BLOCK_SIZES)
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    # the package exports a function of the module's name
    monkeypatch.setattr(importlib.import_module("cips3d.ops.film_siren"), "BLOCK_ELEMENTS", request.param)
    return request.param


@pytest.mark.parametrize(("batch", "count"), [(2, 7), (1, 1), (2, 0)])
@pytest.mark.parametrize("widths", [(6, 5), (4,), (3, 6, 2)])
def test_field(block_size: int, batch: int, count: int, widths: tuple[int, ...]) -> None:
    field = sample_field(batch, count, widths)
    for actual, expected in zip(evaluate(field), published(field), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=FOLDING)


def field_gradients(field: Field, run: Callable[[Field], tuple[Tensor, Tensor]]) -> list[Tensor]:
    tensors = [field.points, field.density_weight, field.density_bias]
    tensors += [tensor for layer in (*field.trunk, field.color) for tensor in layer]
    for tensor in tensors:
        tensor.requires_grad_()
    density, color = run(field)
    loss = (density * torch.linspace(1, 2, density.numel()).view_as(density)).sum() + color.pow(2).sum()
    return list(torch.autograd.grad(loss, tensors))


def test_field_gradients_equal_autograds_on_the_published_order(block_size: int) -> None:
    field = sample_field(2, 7)
    gradients = zip(field_gradients(field, evaluate), field_gradients(field, published), strict=True)
    assert max(relative_l2(actual, expected) for actual, expected in gradients) < 1e-12


def test_field_gradients_in_float32() -> None:
    """Full width: rounding of phases of about 2 is amplified by slopes of about 1."""
    field = sample_field(2, 300, widths=(128, 128), color_width=64)
    single = Field(
        *(t.float() for t in field[:3]),
        [Layer(*(t.float() for t in layer)) for layer in field.trunk],
        Layer(*(t.float() for t in field.color)),
    )
    gradients = zip(field_gradients(single, evaluate), field_gradients(field, published), strict=True)
    assert max(relative_l2(actual, expected) for actual, expected in gradients) < 1e-5


def test_field_can_be_differentiated_twice(block_size: int) -> None:
    field = sample_field(2, 3, widths=(3, 2), color_width=2)
    folded = [tensor for layer in (*field.trunk, field.color) for tensor in fold_film(*layer)]
    arguments = tuple(t.detach().requires_grad_() for t in (*field[:3], *folded))

    def run(points: Tensor, weight: Tensor, bias: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
        layers = [FoldedLayer(w, b) for w, b in zip(flat[::2], flat[1::2], strict=True)]
        return sine_field(points, layers[:-1], layers[-1], weight, bias)

    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


def test_field_gradient_without_points_or_with_points_alone() -> None:
    field = sample_field(2, 7)
    layers = [fold_film(*layer) for layer in (*field.trunk, field.color)]
    folded_weight = layers[0].weight.requires_grad_()
    density, _ = sine_field(field.points, layers[:-1], layers[-1], field.density_weight, field.density_bias)
    density.sum().backward()
    assert folded_weight.grad is not None and field.points.grad is None
    points = field.points.requires_grad_()
    density, _ = sine_field(points, layers[:-1], layers[-1], field.density_weight, field.density_bias)
    (normals,) = torch.autograd.grad(density.sum(), points)
    reference, _ = published(field)
    torch.testing.assert_close(normals, *torch.autograd.grad(reference.sum(), points), rtol=1e-11, atol=1e-12)


def test_the_ball_has_no_slope_and_no_curvature_at_its_centre() -> None:
    field = sample_field(1, 2)
    first, second, color = (fold_film(*layer) for layer in (*field.trunk, field.color))
    points = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.3, 0.4]]], dtype=torch.float64, requires_grad=True)
    found = []
    for ball in ((0.0, 0.0), (7.0, 0.2)):
        whole = SirenField(first, second, color, field.density_weight, field.density_bias, *ball)
        density, _ = evaluate_siren_field(whole, points)
        (slope,) = torch.autograd.grad(density.sum(), points, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.square().sum(), points)
        found.append((density.detach(), slope.detach(), curvature))
    (density, slope, curvature), (of_both, slope_of_both, curvature_of_both) = found
    torch.testing.assert_close(of_both - density, torch.tensor([[7.0, 7 * (1 - 0.5 / 0.2)]], dtype=torch.float64))
    fall = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.6, 0.8]]], dtype=torch.float64) * -7 / 0.2
    torch.testing.assert_close(slope_of_both - slope, fall)
    torch.testing.assert_close(curvature_of_both[:, 0], curvature[:, 0])


def test_field_in_mixed_precision_is_left_to_autocast() -> None:
    field = sample_field(1, 7)
    single = [FoldedLayer(*(t.float() for t in fold_film(*layer))) for layer in (*field.trunk, field.color)]
    arguments = (
        field.points.float(),
        single[:-1],
        single[-1],
        field.density_weight.float(),
        field.density_bias.float(),
    )
    exact = sine_field(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = sine_field(*arguments)
    for low, high in zip(rounded, exact, strict=True):
        assert 0 < relative_l2(low, high) < 0.1  # 8 bits of phases of a few radians


@pytest.mark.parametrize("wrong", ["points", "trunk[1].weight", "color.weight", "density_weight", "density_bias"])
def test_wrong_shapes_of_a_field_are_named(wrong: str) -> None:
    field = sample_field(2, 7)
    trunk, color = [fold_film(*layer) for layer in field.trunk], fold_film(*field.color)
    points, weight, bias = field[:3]
    if wrong == "points":
        points = points[0]
    elif wrong == "trunk[1].weight":
        trunk[1] = trunk[1]._replace(weight=trunk[1].weight[..., 1:])
    elif wrong == "color.weight":
        color = color._replace(weight=color.weight[:1])
    elif wrong == "density_weight":
        weight = weight[1:]
    else:
        bias = bias.repeat(2)
    with pytest.raises(ValueError) as raised:
        sine_field(points, trunk, color, weight, bias)
    assert str(raised.value).startswith(f"{wrong} must have shape")


def test_an_empty_trunk_is_refused() -> None:
    field = sample_field(1, 2)
    with pytest.raises(ValueError, match="trunk must hold at least one layer"):
        sine_field(field.points, [], fold_film(*field.color), field.density_weight, field.density_bias)
