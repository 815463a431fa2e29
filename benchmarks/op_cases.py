"""The ops that are timed: inputs, our call, the baseline, and the least that any implementation has to move and do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import op_baselines
import torch
from torch import Tensor

from cips3d.ops import (
    Precision,
    composite,
    demodulation,
    film_siren,
    importance_depths,
    modulated_epilogue,
    modulated_inr,
    stratified_points,
)
from cips3d.ops.bias_leaky_relu import bias_leaky_relu
from cips3d.ops.modulated_inr import StackedLayers
from cips3d.ops.upfirdn2d import binomial_kernel, upfirdn2d

Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One op on one size."""

    name: str
    ours: Function
    baseline: Function
    inputs: Sequence[Tensor]
    """those that require gradients are differentiated in the backward"""
    forward_bytes: float
    """every input read once, every output written once"""
    backward_bytes: float | None
    """the same of the gradients; None: there is no backward"""
    forward_flops: float = 0.0
    backward_flops: float = 0.0
    dtype: str = "float32"
    """of the products (`Ceilings.flops_per_second`)"""


def size_of(*tensors: Tensor) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


def discriminator_cases(device: torch.device, *, small: bool) -> list[Case]:
    """Activation and resampling of a block of 128 channels at 256², 16 images."""
    images, channels, side = (2, 4, 32) if small else (16, 128, 256)
    x = torch.randn(images, channels, side, side, device=device, requires_grad=True)
    bias = torch.randn(channels, device=device, requires_grad=True)
    taps = binomial_kernel().to(device)
    plane = size_of(x)
    cases = [
        Case("fused_leaky_relu", bias_leaky_relu, op_baselines.bias_leaky_relu, (x, bias), 2 * plane, 3 * plane),
        Case(
            "upfirdn2d",
            lambda x: upfirdn2d(x, taps, padding=(2, 1)),
            lambda x: op_baselines.blur(x, taps),
            (x,),
            2 * plane,
            2 * plane,
        ),
        Case(
            "upfirdn2d_down",
            lambda x: upfirdn2d(x, taps, down=2, padding=1),
            lambda x: op_baselines.downsample(x, taps),
            (x,),
            1.25 * plane,
            1.25 * plane,
        ),
    ]
    halves = torch.randn(images, channels, side // 2, side // 2, device=device, requires_grad=True)
    doubled = 5 * size_of(halves)  # one part read, four written
    cases.append(
        Case(
            "upfirdn2d_up",
            lambda x: upfirdn2d(x, taps, up=2, padding=(2, 1)),
            lambda x: op_baselines.upsample(x, taps),
            (halves,),
            doubled,
            doubled,
        )
    )
    half_x, half_bias = (t.detach().half().requires_grad_() for t in (x, bias))
    cases.append(
        Case(
            "fused_leaky_relu_fp16",
            bias_leaky_relu,
            op_baselines.bias_leaky_relu,
            (half_x, half_bias),
            plane,
            1.5 * plane,
        )
    )
    return cases


def ray_cases(device: torch.device, *, small: bool) -> list[Case]:
    """Sampling and compositing of four 256² images, 12 + 12 samples."""
    shape = (2, 64) if small else (4, 65536)
    samples, merged, channels = 12, 24, 64
    origins = torch.randn(*shape, 3, device=device, requires_grad=True)
    directions = torch.randn(*shape, 3, device=device, requires_grad=True)
    u = torch.rand(*shape, samples, device=device)
    depths = torch.linspace(0.88, 1.12, samples, device=device) + 0.02 * (u - 0.5)
    weights = torch.rand(*shape, samples, device=device) / samples
    points = 12 * u.numel()  # bytes of [B, R, S, 3] float32
    rays = size_of(origins, directions)
    cases = [
        Case(
            "sample_stratified",
            lambda o, d, u: stratified_points(o, d, u, 0.88, 1.12),
            op_baselines.stratified,
            (origins, directions, u),
            rays + 2 * size_of(u) + points,
            rays + size_of(u) + points,
        ),
        Case(
            "sample_importance",
            lambda t, w, u: importance_depths(t, w, u)[1:],
            op_baselines.importance,
            (depths, weights, u),
            size_of(depths, weights, u) + (4 + 4 + 2 * 8) * u.numel() + 4 * u.numel(),
            None,
        ),
    ]
    many = torch.rand(*shape, merged, device=device)
    sorted_depths = torch.linspace(0.88, 1.12, merged, device=device) + 0.005 * (many - 0.5)
    density = torch.randn(*shape, merged, device=device).mul_(50).requires_grad_()
    features = torch.randn(*shape, merged, channels, device=device, requires_grad=True)
    summed = 4 * math.prod(shape) * (channels + 2)
    scalars = size_of(density)
    cases.append(
        Case(
            "composite",
            lambda s, f, t: composite(s, f, t)[:3],
            op_baselines.composite,
            (density, features, sorted_depths),
            size_of(features) + 3 * scalars + summed,
            2 * size_of(features) + 4 * scalars + summed,
        )
    )
    return cases


def network_cases(device: torch.device, *, small: bool) -> list[Case]:
    """A FiLM-SIREN layer on the samples of one picture, and a modulated layer's epilogue on four."""
    images, points, width = (2, 96, 32) if small else (4, 393_216, 128)
    x = (2 * torch.rand(images, points, width, device=device) - 1).requires_grad_()
    bound = math.sqrt(6 / width) / 25
    weight = ((2 * torch.rand(width, width, device=device) - 1) * bound).requires_grad_()
    bias = torch.zeros(width, device=device, requires_grad=True)
    gain = (30 + 5 * torch.randn(images, width, device=device)).requires_grad_()
    shift = torch.randn(images, width, device=device, requires_grad=True)
    flops = 2.0 * images * points * width * width
    film = (x, weight, bias, gain, shift)
    cases = [
        Case(
            "film_siren",
            film_siren,
            op_baselines.film_siren,
            film,
            2 * size_of(x),
            3 * size_of(x),
            3 * flops,  # three float16 products stand for one float32 product
            9 * flops,
            "float16",
        ),
        Case(
            "film_siren_fast",
            lambda *inputs: film_siren(*inputs, precision="fast"),
            op_baselines.film_siren,
            film,
            2 * size_of(x),
            3 * size_of(x),
            flops,
            3 * flops,
            "float16",
        ),
    ]
    pixels, channels = (64, 32) if small else (65536, 512)
    product, skip = (torch.randn(images, pixels, channels, device=device).bfloat16().requires_grad_() for _ in range(2))
    scale, modulation = (torch.rand(images, channels, device=device).requires_grad_() for _ in range(2))
    rgb_weight = torch.randn(3, channels, device=device, requires_grad=True)
    rgb = torch.zeros(images, pixels, 3, device=device, requires_grad=True)
    cases.append(
        Case(
            "modulated_epilogue",
            lambda p, d, s, m, w, c: modulated_epilogue(
                p, d, skip=s, next_modulation=m, rgb_weight=w, rgb=c, negative_slope=0.2
            ),
            op_baselines.modulated_epilogue,
            (product, scale, skip, modulation, rgb_weight, rgb),
            4 * size_of(product) + 2 * size_of(rgb),
            6 * size_of(product) + 2 * size_of(rgb),
            dtype="float16",
        )
    )
    return cases


def inr_cases(device: torch.device, *, small: bool) -> list[Case]:
    """CIPS-3D's INR on one picture: in one kernel, and layer by layer through cuBLAS and fused epilogues."""
    pixels, channels, width, blocks, skip_from, rgb_from = (40, 8, 16, 3, 1, 1) if small else (65536, 32, 512, 9, 4, 3)
    layers = 2 * blocks
    weights = [torch.randn(i, width, device=device) * math.sqrt(2 / width) for i in (channels, *[width] * (layers - 1))]
    modulations = [1 + 0.5 * torch.randn(1, len(weight), device=device) for weight in weights]
    stacked = StackedLayers(
        *(weights[0], torch.stack(weights[1:]), modulations[0], torch.stack(modulations[1:], 1)),
        torch.stack([demodulation(*of) for of in zip(weights, modulations, strict=True)], 1),
        torch.randn(blocks - rgb_from, 3, width, device=device) / math.sqrt(width),
    )
    features = torch.randn(1, pixels, channels, device=device)
    inputs = [x.requires_grad_() for x in (features, *stacked)]
    moved = size_of(*inputs) + 12 * pixels
    flops = 2.0 * pixels * width * (channels + (layers - 1) * width)
    half = torch.bfloat16 if device.type == "cuda" else torch.float32  # plain PyTorch on a CPU knows no "fast" here

    def ours(precision: Precision, keep_activations: bool) -> Function:
        def run(features: Tensor, *tensors: Tensor) -> Tensor:
            of = StackedLayers(*tensors)
            with torch.autocast(device.type, dtype=half, enabled=precision == "fast" and half != torch.float32):
                return modulated_inr(
                    *(features, of.unstacked(), list(of.rgb_weight)),
                    skip_from=skip_from,
                    precision=precision,
                    keep_activations=keep_activations,
                )

        return run

    def baseline(operands: torch.dtype) -> Function:
        return partial(op_baselines.modulated_inr, skip_from=skip_from, operands=operands)

    def case(name: str, precision: Precision, keep_activations: bool) -> Case:
        fast = precision == "fast"
        factor = 1 if fast else 3  # three float16 products stand for one float32 product
        return Case(
            name,
            ours(precision, keep_activations),
            baseline(half if fast else torch.float32),
            inputs,
            moved,
            2 * moved,
            factor * flops,
            factor * 2 * flops,
            "float16",
        )

    return [
        case("modulated_inr", "highest", False),
        case("modulated_inr_fast", "fast", False),
        case("modulated_inr_layer_by_layer", "highest", True),
        case("modulated_inr_layer_by_layer_fast", "fast", True),
    ]


GROUPS: dict[str, Callable[..., list[Case]]] = {
    "discriminator": discriminator_cases,
    "rays": ray_cases,
    "networks": network_cases,
    "inr": inr_cases,
}
