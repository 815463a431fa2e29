"""The INR branch: blocks, residual sums, colours, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.models import inr as module
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
    inr.precision = "fast"
    rounded = inr(features, folded)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < 0.03  # 8 bits of mantissa through six layers


@pytest.mark.parametrize("kept_pixels", [0, 1000])
def test_kept_or_computed_anew(kernel_backend: Backend, monkeypatch: pytest.MonkeyPatch, kept_pixels: int) -> None:
    """Gradients of few pixels keep activations, those of more are computed through the fused network: the same."""
    monkeypatch.setattr(module, "KEPT_PIXELS", kept_pixels)
    features = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def everything(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        inr = make().to(device, dtype)
        given, style = features.to(device, dtype).requires_grad_(), torch.ones(2, 5, device=device, dtype=dtype)
        rgb = inr(given, inr.fold(style))
        assert ("inr" in repr(_names(rgb))) == (kept_pixels == 0 and dtype == torch.float32)
        return [rgb, *torch.autograd.grad(rgb.square().sum(), [given, *inr.parameters()])]

    found, exact = (everything(*where) for where in ((kernel_backend.device, torch.float32), ("cpu", torch.float64)))
    for a, b in zip(found, exact, strict=True):
        assert relative_l2(a, b) < 1e-5  # float32 in six layers; no value lies within rounding of the kink


def _names(x: Tensor) -> list[str]:
    """Of the functions behind a tensor, three deep."""
    nodes, names = [x.grad_fn], []
    for _ in range(3):
        nodes = [following for node in nodes if node is not None for following, _ in node.next_functions]
        names += [type(node).__name__ for node in nodes]
    return names


@pytest.mark.parametrize("precision", ["highest", "fast"])
def test_pictures_without_gradients(kernel_backend: Backend, precision: str) -> None:
    inr = make(width=24)
    features = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    style = torch.ones(2, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = inr(features, inr.fold(style))
        inr = inr.to(kernel_backend.device, torch.float32)
        inr.precision = precision
        features, style = (x.to(kernel_backend.device, torch.float32) for x in (features, style))
        found = inr(features, inr.fold(style))
    # Float32; or weights, activations and skips of float16's 11 bits in six layers, where bfloat16's 8 give 1e-2.
    assert relative_l2(found, expected) < (1e-6 if precision == "highest" else 1e-3)
