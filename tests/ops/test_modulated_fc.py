"""Modulated fully connected layers against the published order of operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.ops import apply_modulated_weight, modulate_weight, modulated_fc


def sample_inputs(batch: int = 2, pixels: int = 7, width_in: int = 4, width_out: int = 5) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    return [draw(batch, pixels, width_in), draw(width_in, width_out), 1 + 0.3 * draw(batch, width_in)]


def published(x: Tensor, weight: Tensor, modulation: Tensor, demodulate: bool = True) -> Tensor:
    """With the shared weight and both scalings on the pixels: ((x m) W) d."""
    y = (x * modulation[:, None]) @ weight
    if demodulate:
        y = y * ((weight**2 * modulation[:, :, None] ** 2).sum(1) + 1e-8).rsqrt()[:, None]
    return y


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("shape", [(2, 7, 4, 5), (1, 1, 1, 1), (3, 0, 4, 2), (2, 33, 32, 64)])
def test_values(shape: Any, demodulate: bool) -> None:
    inputs = sample_inputs(*shape)
    found = modulated_fc(*inputs, demodulate=demodulate)
    assert torch.allclose(found, published(*inputs, demodulate), atol=1e-11)


def test_activation_and_skip() -> None:
    inputs = sample_inputs()
    skip = torch.ones(2, 7, 5, dtype=torch.float64)
    found = modulated_fc(*inputs, negative_slope=0.2, skip=skip)
    assert torch.allclose(found, F.leaky_relu(published(*inputs), 0.2) + skip)
    assert (skip == 1).all()  # not written to


def test_demodulated_columns_have_unit_norm() -> None:
    _, weight, modulation = sample_inputs()
    norms = modulate_weight(weight, modulation).norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-7)


def test_folded_weight_can_be_kept() -> None:
    x, weight, modulation = sample_inputs()
    folded = modulate_weight(weight, modulation)
    parts = [apply_modulated_weight(part, folded, negative_slope=0.2) for part in x.split(3, dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), modulated_fc(x, weight, modulation, negative_slope=0.2))


@pytest.mark.parametrize("settings", [{}, {"demodulate": False}, {"negative_slope": 0.2}])
def test_gradients_to_any_order(settings: Any) -> None:
    inputs = [x.requires_grad_() for x in sample_inputs(2, 3, 3, 2)]

    def run(*arguments: Tensor) -> Tensor:
        return modulated_fc(*arguments, **settings)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_gradient_of_the_skip() -> None:
    x, weight, modulation = sample_inputs()
    skip = torch.zeros(2, 7, 5, dtype=torch.float64, requires_grad=True)
    modulated_fc(x, weight, modulation, negative_slope=0.2, skip=skip).sum().backward()
    assert skip.grad is not None and (skip.grad == 1).all()


@pytest.mark.parametrize(("index", "name"), list(enumerate(["x", "weight", "modulation"])))
def test_wrong_shapes_are_named(index: int, name: str) -> None:
    inputs = sample_inputs()
    inputs[index] = torch.zeros(3, 9, 9, 9, dtype=torch.float64)
    with pytest.raises(ValueError, match=name):
        modulated_fc(*inputs)
    x, weight, modulation = sample_inputs()
    with pytest.raises(ValueError, match="skip"):
        modulated_fc(x, weight, modulation, skip=x)
