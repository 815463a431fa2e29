"""The INR branch: blocks, residual sums, colours, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cips3d.models.inr import INR


def make(**settings: int) -> INR:
    torch.manual_seed(0)
    sizes = {"features": 4, "width": 6, "blocks": 3, "style_dim": 5, "skip_from": 1, "rgb_from": 1, **settings}
    return INR(rgb_init=1.0, **sizes).double()


def test_blocks_in_the_published_order() -> None:
    inr = make()
    random = torch.Generator().manual_seed(1)
    features = torch.randn(2, 7, 4, generator=random, dtype=torch.float64)
    style = torch.randn(2, 5, generator=random, dtype=torch.float64)
    x, rgb = features, torch.zeros(2, 7, 3, dtype=torch.float64)
    for block in range(3):
        before = x
        for layer in inr.layers[2 * block : 2 * block + 2]:
            weight = layer.weight * (1 + layer.modulation(style))[:, :, None]
            weight = weight * torch.rsqrt(weight.square().sum(1, keepdim=True) + 1e-8)
            x = F.leaky_relu(x @ weight, 0.2)
        x = x + before if block >= 1 else x
        rgb = rgb + inr.to_rgb[block - 1](x) if block >= 1 else rgb
    assert torch.allclose(inr(features, inr.fold(style)), torch.tanh(rgb), atol=1e-12)


def test_pixels_are_independent() -> None:
    inr = make()
    features = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    folded = inr.fold(torch.ones(1, 5, dtype=torch.float64))
    changed = features.clone()
    changed[:, 4] += 1
    difference = (inr(features, folded) - inr(changed, folded)).abs().sum(-1)[0]
    assert difference[4] > 0 and (difference[[0, 1, 2, 3, 5, 6, 7, 8]] == 0).all()


def test_at_least_one_block_gives_colour() -> None:
    with pytest.raises(ValueError, match="rgb_from"):
        make(rgb_from=3)


def test_mixed_precision_keeps_colours_in_float32() -> None:
    inr = make().float()
    features = torch.randn(1, 50, 4, generator=torch.Generator().manual_seed(3))
    folded = inr.fold(torch.ones(1, 5))
    exact = inr(features, folded)
    inr.autocast_dtype = torch.bfloat16
    rounded = inr(features, folded)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < 0.03  # 8 bits of mantissa through six layers
