"""Mapping networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from convert.small_networks import CIPS3D_CONFIG, CIPS_CONFIG, PIGAN_CONFIG, STYLEGAN2_CONFIG

from cips3d.models.family import AnyGeneratorConfig, make_generator
from cips3d.models.mapping import MappingNetwork, pixel_norm

CONFIGS: dict[str, AnyGeneratorConfig] = {
    "cips3d": CIPS3D_CONFIG,
    "pigan": PIGAN_CONFIG,
    "cips": CIPS_CONFIG,
    "stylegan2": STYLEGAN2_CONFIG,
}


def test_pixel_norm_gives_unit_mean_square() -> None:
    z = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-3], [1], [10], [100], [1e3]])
    assert torch.allclose(pixel_norm(z).square().mean(-1), torch.ones(5), atol=0.02)  # 1e-8 against 1e-6


@pytest.mark.parametrize("layer_norm", [False, True])
def test_layers_in_the_published_order(layer_norm: bool) -> None:
    """Linear, LayerNorm where there is one, leaky ReLU between layers and none at the end."""
    network = MappingNetwork(6, 4, 3, layer_norm)
    z = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for k in range(3):
        x = F.linear(x, network.linears[k].weight, network.linears[k].bias)
        if network.norms is not None:
            x = F.layer_norm(x, (4,), network.norms[k].weight, network.norms[k].bias)
        x = F.leaky_relu(x, 0.2) if k < 2 else x
    assert torch.allclose(network(z), x, atol=1e-6)


def test_initial_weights_are_kaiming() -> None:
    weight = MappingNetwork(256, 256, 1, False).linears[0].weight
    # √(2 / ((1 + 0.2²) · 256)); 65 536 draws have a standard error of 0.3 %
    assert weight.std().item() == pytest.approx((2 / (1.04 * 256)) ** 0.5, rel=0.02)


def test_wrong_z_is_named() -> None:
    with pytest.raises(ValueError, match=r"z must have shape \[any, 6\]"):
        MappingNetwork(6, 4, 2, False)(torch.zeros(2, 5))
    with pytest.raises(TypeError, match="z must be a tensor, got ndarray"):
        MappingNetwork(6, 4, 2, False)(np.zeros((2, 6)))
    with pytest.raises(ValueError, match=r"z must be torch\.float32 on cpu like the weights, got torch\.float64"):
        MappingNetwork(6, 4, 2, False)(torch.zeros(2, 6).double())


@pytest.mark.parametrize("name", list(CONFIGS))
def test_layers_without_parameters(name: str) -> None:
    """Replicas of `nn.DataParallel` have weights that are no parameters."""
    torch.manual_seed(0)
    generator = make_generator(CONFIGS[name])
    z = generator.sample_z(2)
    expected = generator.mapping(*z)
    for module in generator.modules():
        for key, weight in list(module._parameters.items()):
            del module._parameters[key]
            setattr(module, key, None if weight is None else weight.detach())
    assert not list(generator.parameters())
    for found, style in zip(generator.mapping(*z), expected, strict=True):
        torch.testing.assert_close(found, style)
