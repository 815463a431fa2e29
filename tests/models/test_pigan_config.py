"""What a configuration of pi-GAN makes: sizes, first weights, and what it cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cips3d.errors import UserError
from cips3d.models.pigan import PiGAN, PiGANConfig


def uniform_bound(weight: Tensor) -> tuple[float, float]:
    """The largest value, and the bound that the deviation of a uniform distribution tells."""
    return weight.abs().max().item(), weight.std().item() * math.sqrt(3)


@pytest.mark.parametrize("grid_resolution", [None, 4])
def test_initial_weights(grid_resolution: int | None) -> None:
    torch.manual_seed(0)
    model = PiGAN(PiGANConfig(width=128, grid_resolution=grid_resolution))
    nerf = model.nerf
    bounds = [(nerf.layers[0].weight, 1 / 3), (nerf.color.weight, math.sqrt(6 / 131) / 25)]
    bounds += [(layer.weight, math.sqrt(6 / 128) / 25) for layer in nerf.layers[1:]]
    bounds += [(nerf.output.weight, math.sqrt(6 / 128) / 25), (nerf.density.weight, math.sqrt(6 / 128) / 25)]
    bounds += [(nerf.layers[1].bias, 1 / math.sqrt(128))]
    for weight, bound in bounds:
        largest, told = uniform_bound(weight)
        assert 0.9 * bound < largest <= bound
        assert told == pytest.approx(bound, rel=0.2 if weight.numel() < 1000 else 0.03)
    for k, linear in enumerate(model.style_mapping.linears):
        expected = math.sqrt(2 / (1.04 * 256)) * (0.25 if k == 3 else 1)
        assert linear.weight.std().item() == pytest.approx(expected, rel=0.03)  # of 65 536 draws or more
    if nerf.grid is not None:
        assert nerf.layers[0].weight.shape == (128, 35)
        assert nerf.grid.embeddings.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("config", "grid", "first", "frequencies"),
    [
        (PiGANConfig(), None, (256, 3), 9 * 256),
        (PiGANConfig.tall_siren(), None, (256, 3), 9 * 256),
        (PiGANConfig.embedding_128(), (1, 32, 96, 96, 96), (128, 35), 9 * 128),
        (PiGANConfig.embedding_256(), (1, 32, 64, 64, 64), (256, 35), 9 * 256),
    ],
)
def test_published_sizes(
    config: PiGANConfig, grid: tuple[int, ...] | None, first: tuple[int, int], frequencies: int
) -> None:
    with torch.device("meta"):
        model = PiGAN(config)
    assert (None if model.nerf.grid is None else tuple(model.nerf.grid.embeddings.shape)) == grid
    assert tuple(model.nerf.layers[0].weight.shape) == first and len(model.nerf.layers) == 8
    assert [tuple(linear.weight.shape) for linear in model.style_mapping.linears] == [
        *[(256, 256)] * 3,
        (2 * frequencies, 256),
    ]
    assert model.nerf.point_scale == pytest.approx(1 if config == PiGANConfig.tall_siren() else 2 / 0.24)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"box_side": 0.0}, "box_side must be a positive length"),
        ({"grid_resolution": 1}, "grid_resolution must be at least 2"),
        ({"grid_resolution": 8, "box_warp": False}, "box_warp=True"),
    ],
)
def test_wrong_configurations_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PiGANConfig(**change)
