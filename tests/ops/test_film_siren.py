"""FiLM-SIREN against the published order of operations, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cips3d.ops import film_siren


def sample_inputs(batch: int = 2, samples: int = 7, width_in: int = 3, width_out: int = 5) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    gain = 30 + 5 * draw(batch, width_out)
    x, shift = 0.1 * draw(batch, samples, width_in), draw(batch, width_out)
    return [x, draw(width_out, width_in), draw(width_out), gain, shift]


def published(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    phase = torch.nn.functional.linear(x, weight, bias)
    return torch.sin(gain[:, None] * phase + shift[:, None])


@pytest.mark.parametrize("shape", [(2, 7, 3, 5), (1, 1, 1, 1), (3, 4, 16, 8), (2, 0, 3, 5), (1, 70_000, 3, 4)])
def test_values(shape: tuple[int, int, int, int]) -> None:
    inputs = sample_inputs(*shape)
    assert torch.allclose(film_siren(*inputs), published(*inputs), atol=1e-11)


def test_float32_is_accurate() -> None:
    inputs = sample_inputs(2, 100, 32, 16)
    exact = published(*inputs)
    found = film_siren(*(x.float() for x in inputs)).double()
    # phases reach about 60, of which float32 knows 2^-24: 60 · 6e-8 · a few roundings
    assert (found - exact).norm() / exact.norm() < 1e-5


def test_gradients_to_any_order() -> None:
    inputs = [x.requires_grad_() for x in sample_inputs(2, 4, 3, 4)]
    assert torch.autograd.gradcheck(film_siren, inputs)
    assert torch.autograd.gradgradcheck(film_siren, inputs)


def test_gradients_of_many_samples() -> None:
    """Work done in blocks adds up to the whole."""
    inputs = [x.requires_grad_() for x in sample_inputs(2, 70_000, 3, 4)]
    weight = torch.randn(2, 70_000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad((film_siren(*inputs) * weight).sum(), inputs)
    expected = torch.autograd.grad((published(*inputs) * weight).sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() / b.norm() < 1e-10


def test_input_without_gradient_is_not_written_to() -> None:
    inputs = sample_inputs()
    copies = [x.clone() for x in inputs]
    film_siren(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, copies, strict=True))


def test_strided_inputs() -> None:
    x, *rest = sample_inputs()
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    assert torch.allclose(film_siren(strided, *rest), film_siren(x, *rest))


@pytest.mark.parametrize(("index", "name"), list(enumerate(["x", "weight", "bias", "gain", "shift"])))
def test_wrong_shapes_are_named(index: int, name: str) -> None:
    inputs = sample_inputs()
    inputs[index] = torch.zeros((*inputs[index].shape[:-1], 9), dtype=torch.float64)
    with pytest.raises(ValueError, match=name if index != 0 else "x|weight"):
        film_siren(*inputs)
