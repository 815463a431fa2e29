"""Modulated convolutions against weights made image by image, in float64; their derivatives; how they begin."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor, nn

from cips3d.models.styled_conv import ModulatedConv2d, StyledConv, ToRGB, draw_noise, noise_maps

BATCH, WIDTH_IN, WIDTH_OUT, STYLE, SIDE = 3, 5, 4, 6, 4
EXACT = 1e-12  # float64 in another order of summation


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs() -> tuple[Tensor, Tensor]:
    return normal(BATCH, WIDTH_IN, SIDE, SIDE, seed=1).requires_grad_(), normal(BATCH, STYLE, seed=2).requires_grad_()


def randomised(module: nn.Module) -> Any:
    """The module in float64, its strengths and biases not zero."""
    module = module.double()
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=10 + k))
    return module


def doubled(image: Tensor, taps: Tensor, pads: tuple[int, int]) -> Tensor:
    """Zeros between pixels, pads, and a filter with `taps` on both axes, as one plain convolution."""
    channels, height, width = image.shape
    spread = image.new_zeros(channels, 2 * height, 2 * width)
    spread[:, ::2, ::2] = image
    spread = F.pad(spread, (*pads, *pads))
    return F.conv2d(spread[:, None], torch.outer(taps, taps)[None, None])[:, 0]


def expected_convolution(layer: ModulatedConv2d, x: Tensor, style: Tensor) -> Tensor:
    """The definition: a weight for each image, one convolution each."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    size, images = layer.weight.shape[-1], []
    for image, w in zip(x, style, strict=True):
        modulation = layer.modulation.weight @ w / math.sqrt(len(w)) + layer.modulation.bias
        weight = layer.weight / math.sqrt(layer.weight[0].numel()) * modulation[:, None, None]
        if layer.demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if layer.upsample:
            # A transposed convolution is one with the flipped kernel among zeros.
            spread = image.new_zeros(len(image), 2 * SIDE - 1, 2 * SIDE - 1)
            spread[:, ::2, ::2] = image
            y = F.conv2d(spread[None], weight.flip((2, 3)), padding=size - 1)[0]
            pad = (2 * SIDE + 3 - y.shape[-1]) // 2
            y = F.conv2d(F.pad(y, (pad,) * 4)[:, None], torch.outer(taps, taps)[None, None] / 16)[:, 0]
        else:
            y = F.conv2d(image[None], weight, padding=size // 2)[0]
        images.append(y)
    return torch.stack(images)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_modulation_is_a_weight_for_each_image(kernel_size: int, upsample: bool, demodulate: bool) -> None:
    """The values, all gradients, and gradients of a gradient (as path lengths need)."""
    layer = randomised(
        ModulatedConv2d(WIDTH_IN, WIDTH_OUT, kernel_size, STYLE, demodulate=demodulate, upsample=upsample)
    )
    x, style = inputs()
    parameters = [x, style, *layer.parameters()]
    side = 2 * SIDE if upsample else SIDE
    upstream = normal(BATCH, WIDTH_OUT, side, side, seed=3)

    def derivatives(y: Tensor) -> list[Tensor]:
        first = torch.autograd.grad((y * upstream).sum(), parameters, create_graph=True)
        length = first[1].square().sum()
        second = torch.autograd.grad(length, parameters, allow_unused=True, materialize_grads=True)
        return [y, *first, *second]

    found = derivatives(layer(x, style))
    expected = derivatives(expected_convolution(layer, x, style))
    assert found[0].shape == (BATCH, WIDTH_OUT, side, side)
    for a, b in zip(found, expected, strict=True):
        assert relative_l2(a, b) < EXACT


def test_one_input_for_all_images() -> None:
    layer = randomised(StyledConv(WIDTH_IN, WIDTH_OUT, 3, STYLE))
    x, style = inputs()
    shared = layer(x[:1], style, normal(1, 1, SIDE, SIDE))
    assert torch.allclose(shared, layer(x[:1].expand(BATCH, -1, -1, -1), style, normal(1, 1, SIDE, SIDE)))


@pytest.mark.parametrize("demodulate", [False, True])
def test_autocast_gives_16_bits(demodulate: bool) -> None:
    layer = ModulatedConv2d(WIDTH_IN, WIDTH_OUT, 3, STYLE, demodulate=demodulate)
    x, style = (tensor.detach().float() for tensor in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x, style)
    assert found.dtype == torch.bfloat16
    assert relative_l2(found.float(), layer(x, style)) < 0.02


@pytest.mark.parametrize("noise_batch", [1, BATCH])
def test_noise_comes_before_bias_and_activation(noise_batch: int) -> None:
    layer = randomised(StyledConv(WIDTH_IN, WIDTH_OUT, 3, STYLE, upsample=True))
    x, style = inputs()
    noise = normal(noise_batch, 1, 2 * SIDE, 2 * SIDE, seed=4)
    before = expected_convolution(layer.conv, x, style) + layer.noise_strength * noise + layer.bias[:, None, None]
    expected = math.sqrt(2) * torch.where(before > 0, before, 0.2 * before)
    assert relative_l2(layer(x, style, noise), expected) < EXACT
    silent = before - layer.noise_strength * noise
    expected = math.sqrt(2) * torch.where(silent > 0, silent, 0.2 * silent)
    assert relative_l2(layer(x, style), expected) < EXACT


@pytest.mark.parametrize("upsample", [False, True])
def test_colours_are_added_to_those_so_far(upsample: bool) -> None:
    layer = randomised(ToRGB(WIDTH_IN, STYLE, upsample=upsample))
    x, style = inputs()
    own = expected_convolution(layer.conv, x, style) + layer.bias[:, None, None]
    assert relative_l2(layer(x, style), own) < EXACT
    before = normal(BATCH, 3, *([SIDE // 2 if upsample else SIDE] * 2), seed=5)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 4
    added = torch.stack([doubled(image, taps, (2, 1)) for image in before]) if upsample else before
    assert relative_l2(layer(x, style, before), own + added) < EXACT


def test_a_doubled_constant_stays_constant() -> None:
    """Away from borders, the blur neither brightens nor makes a chessboard."""
    layer = ToRGB(WIDTH_IN, STYLE, upsample=True)
    rgb = layer(torch.zeros(1, WIDTH_IN, 16, 16), torch.zeros(1, STYLE), torch.ones(1, 3, 8, 8))
    assert torch.allclose(rgb[:, :, 2:-2, 2:-2], torch.ones(1, 3, 12, 12))


@pytest.mark.parametrize("kernel_size", [0, 2, -1])
def test_even_kernels_are_refused(kernel_size: int) -> None:
    with pytest.raises(ValueError, match=f"kernel_size must be odd, got {kernel_size}"):
        ModulatedConv2d(2, 2, kernel_size, 2)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    layer = StyledConv(64, 96, 3, 128)
    # 55 thousand draws of N(0, 1), and 8 thousand: four standard errors.
    for weight in (layer.conv.weight, layer.conv.modulation.weight):
        error = 4 / math.sqrt(weight.numel())
        assert abs(weight.mean().item()) < error and abs(weight.std().item() - 1) < error
    assert torch.equal(layer.conv.modulation.bias, torch.ones(64))
    assert not layer.bias.any() and layer.noise_strength.tolist() == [0]
    assert not ToRGB(4, 4).bias.any()
    # What comes in with unit variance goes out with about that, before and behind the activation.
    x, w = torch.randn(8, 64, 16, 16), torch.randn(8, 128)
    assert layer.conv(x, w).std().item() == pytest.approx(1, rel=0.1)
    assert layer(x, w).square().mean().sqrt().item() == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("count", [0, BATCH - 1, BATCH + 1])
def test_noise_is_one_for_all_images_or_one_for_each(count: int) -> None:
    given, like = [normal(count, 1, SIDE, SIDE)], normal(1)
    with pytest.raises(ValueError, match=r"noise\[0\] must have shape \[3, 1, 4, 4\], or 1 for all images"):
        noise_maps(given, [(SIDE, SIDE)], kinds=("random",), batch=BATCH, like=like)


def test_noise_is_drawn_from_the_generator() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    first, again, other = (
        draw_noise(2, 3, 4, like=like, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (2, 1, 3, 4) and first.dtype == torch.float64
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("upsample", [False, True])
def test_kernels_give_the_same(kernel_backend: Backend, upsample: bool) -> None:
    """float32 with kernels against float64 without: values and gradients, to rounding."""
    exact = randomised(StyledConv(WIDTH_IN, WIDTH_OUT, 3, STYLE, upsample=upsample))
    ours = copy.deepcopy(exact).to(kernel_backend.device, torch.float32)

    def run(layer: StyledConv, device: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
        x, style = (v.detach().to(device, dtype) for v in inputs())
        noise = normal(1, 1, *([2 * SIDE if upsample else SIDE] * 2), seed=4).to(device, dtype)
        y = layer(x, style, noise)
        return [y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]

    found = run(ours, kernel_backend.device, torch.float32)
    for a, b in zip(found, run(exact, "cpu", torch.float64), strict=True):
        assert relative_l2(a, b) < 1e-5
