"""The ops that are timed: inputs, our call, plain PyTorch, and the least that any implementation has to move and do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import op_baselines
import torch
from timing import Work
from torch import Tensor

from cips3d.ops import (
    Precision,
    composite,
    demodulation,
    film_siren,
    importance_depths,
    modulated_epilogue,
    modulated_inr,
    split_matmul,
    stratified_points,
)
from cips3d.ops.bias_leaky_relu import bias_leaky_relu
from cips3d.ops.stacked_layers import StackedLayers
from cips3d.ops.upfirdn2d import binomial_kernel, upfirdn2d

Function = Callable[..., Any]


@dataclass(frozen=True)
class Formulation:
    """An op in plain PyTorch."""

    function: Function
    tf32: bool = False
    """float32 products on a GPU may round their operands to TF32"""
    for_compiler: bool = True
    """False: a compiler makes as good or better of the others"""


@dataclass(frozen=True)
class Case:
    """One op on one size."""

    name: str
    ours: Function
    plain: Sequence[Formulation]
    """what may suit eager PyTorch or a compiler best, at most two for the latter; the fastest counts"""
    inputs: Sequence[Tensor]
    """those that require gradients are differentiated in the backward"""
    forward: Work
    backward: Work | None
    """of the gradients; None: there is no backward"""


def formulations(best: Function, *eager: Function) -> list[Formulation]:
    """One for eager PyTorch and a compiler, and others that may be quicker in eager PyTorch."""
    return [Formulation(best), *(Formulation(function, for_compiler=False) for function in eager)]


def size_of(*tensors: Tensor) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


def discriminator_cases(device: torch.device, *, small: bool) -> list[Case]:
    """Activation and resampling of a block of 128 channels at 256², 16 images."""
    images, channels, side = (2, 4, 32) if small else (16, 128, 256)
    x = torch.randn(images, channels, side, side, device=device, requires_grad=True)
    bias = torch.randn(channels, device=device, requires_grad=True)
    half_x, half_bias = (t.detach().half().requires_grad_() for t in (x, bias))
    halves = torch.randn(images, channels, side // 2, side // 2, device=device, requires_grad=True)
    plane = size_of(x)
    doubled = Work(5 * size_of(halves))  # one part read, four written; backward the other way round
    taps = binomial_kernel().to(device)
    numbers = taps.tolist()

    def resampled(name: str, x: Tensor, work: Work, conv: Function, slices: Function, **how: Any) -> Case:
        return Case(
            name,
            lambda x: upfirdn2d(x, taps, **how),
            formulations(lambda x: slices(x, numbers), lambda x: conv(x, taps)),
            (x,),
            work,
            work,
        )

    activation = formulations(op_baselines.scaled_bias_leaky_relu, op_baselines.bias_leaky_relu)
    fused = (bias_leaky_relu, activation)
    plain = op_baselines
    return [
        Case("fused_leaky_relu", *fused, (x, bias), Work(2 * plane), Work(3 * plane)),
        resampled("upfirdn2d", x, Work(2 * plane), plain.blur, plain.blur_by_slices, padding=(2, 1)),
        resampled(
            "upfirdn2d_down", x, Work(1.25 * plane), plain.downsample, plain.downsample_by_slices, down=2, padding=1
        ),
        resampled("upfirdn2d_up", halves, doubled, plain.upsample, plain.upsample_by_slices, up=2, padding=(2, 1)),
        Case("fused_leaky_relu_fp16", *fused, (half_x, half_bias), Work(plane), Work(1.5 * plane)),
    ]


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
            formulations(op_baselines.stratified),
            (origins, directions, u),
            Work(rays + 2 * size_of(u) + points),
            Work(rays + size_of(u) + points),
        ),
        Case(
            "sample_importance",
            lambda t, w, u: importance_depths(t, w, u)[1:],
            formulations(op_baselines.importance),
            (depths, weights, u),
            Work(size_of(depths, weights, u) + (4 + 4 + 2 * 8) * u.numel() + 4 * u.numel()),
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
            formulations(op_baselines.composite, op_baselines.composite_by_products),
            (density, features, sorted_depths),
            Work(size_of(features) + 3 * scalars + summed),
            Work(2 * size_of(features) + 4 * scalars + summed),
        )
    )
    return cases


def network_cases(device: torch.device, *, small: bool) -> list[Case]:
    """A FiLM-SIREN layer on the samples of one picture, a modulated layer's epilogue and its product on four."""
    images, points, width = (2, 96, 32) if small else (4, 393_216, 128)
    x = (2 * torch.rand(images, points, width, device=device) - 1).requires_grad_()
    bound = math.sqrt(6 / width) / 25
    weight = ((2 * torch.rand(width, width, device=device) - 1) * bound).requires_grad_()
    bias = torch.zeros(width, device=device, requires_grad=True)
    gain = (30 + 5 * torch.randn(images, width, device=device)).requires_grad_()
    shift = torch.randn(images, width, device=device, requires_grad=True)
    flops = 2.0 * images * points * width * width
    film = (x, weight, bias, gain, shift)

    def film_case(name: str, ours: Function, plain: Sequence[Formulation], passes: int) -> Case:
        forward = Work(2 * size_of(x), flops, "float16", passes)
        return Case(name, ours, plain, film, forward, Work(3 * size_of(x), 2 * flops, "float16", passes))

    in_float32 = Formulation(op_baselines.film_siren)
    rounded = Formulation(partial(op_baselines.film_siren, operands=torch.float16))
    cases = [
        film_case("film_siren", film_siren, [in_float32], passes=3),
        film_case(
            "film_siren_fast",
            partial(film_siren, precision="fast"),
            [rounded, replace(in_float32, tf32=True)],
            passes=1,
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
            [Formulation(op_baselines.modulated_epilogue_16_bit), Formulation(op_baselines.modulated_epilogue)],
            (product, scale, skip, modulation, rgb_weight, rgb),
            Work(4 * size_of(product) + 2 * size_of(rgb)),
            Work(6 * size_of(product) + 2 * size_of(rgb)),
        )
    )
    rows = torch.randn(images * pixels, channels, device=device, requires_grad=True)
    matrix = (torch.randn(channels, channels, device=device) / math.sqrt(channels)).requires_grad_()
    products = 2.0 * images * pixels * channels**2
    cases.append(
        Case(
            "split_matmul",
            split_matmul,
            [Formulation(torch.matmul)],
            (rows, matrix),
            Work(2 * size_of(rows) + size_of(matrix), products, "float16", passes=3),
            Work(3 * size_of(rows) + 2 * size_of(matrix), 2 * products, "float16", passes=3),
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
        weights[0],
        torch.stack(weights[1:]),
        modulations[0],
        torch.stack(modulations[1:], 1),
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
                    features,
                    of.unstacked(),
                    list(of.rgb_weight),
                    skip_from=skip_from,
                    precision=precision,
                    keep_activations=keep_activations,
                )

        return run

    def case(name: str, precision: Precision, keep_activations: bool) -> Case:
        fast = precision == "fast"
        passes = 1 if fast else 3
        plain = partial(op_baselines.modulated_inr, skip_from=skip_from, operands=half if fast else torch.float32)
        return Case(
            name,
            ours(precision, keep_activations),
            [Formulation(partial(plain, folded=True)), Formulation(partial(plain, folded=False))],
            inputs,
            Work(moved, flops, "float16", passes),
            Work(2 * moved, 2 * flops, "float16", passes),
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
