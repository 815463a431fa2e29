"""The gradients of `modulated_inr`: activations are computed anew, a few pixels at a time, then differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cips3d.ops.library import OPS, define
from cips3d.ops.modulated_epilogue import epilogue_backward_kernel, epilogue_kernel
from cips3d.ops.modulated_fc import ModulatedWeight
from cips3d.ops.split_matmul import Rows, SharedWeight, multiply_over_rows, pays_for
from cips3d.ops.stacked_layers import INPUTS, LAYERS, SCHEMA, StackedLayers

# Pixels whose activations the backward keeps at a time in float32; in 16 bits twice as many. They take 1.4 GB for 18
# layers of 512. With fewer pixels, 16-bit products take less time than the host needs to launch the work of a layer.
GRADIENT_PIXELS = 1 << 14


class _Evaluation(NamedTuple):
    """What the gradients need of some pixels; every list has an entry a layer.

    Attributes:
        inputs: [B n, in] of the products, modulated.
        products: [B, n, W].
        skips: [B, n, W] what is added to a layer's output.
    """

    inputs: list[Rows]
    products: list[Tensor]
    skips: list[Tensor | None]


def _evaluate(
    features: Tensor, layers: Sequence[ModulatedWeight], weights: Sequence[SharedWeight], skip_from: int, slope: float
) -> _Evaluation:
    """Compute activations anew, of features and weights of one dtype."""
    x = Rows.of(layers[0].modulate(features).flatten(0, 1), split=weights[0].split)
    seen = _Evaluation([], [], [])
    magnitudes = _magnitudes(features, layers, weights)
    block_input: Tensor | None = features
    for k, layer in enumerate(layers):
        ends_block = k % 2 == 1
        seen.inputs.append(x)
        seen.products.append(weights[k].forward(x).view(*features.shape[:2], -1))
        seen.skips.append(block_input if ends_block and k // 2 >= skip_from else None)
        if k + 1 == len(layers):
            break
        becomes_skip = ends_block and k // 2 + 1 >= skip_from
        following = layers[k + 1].modulation
        epilogue = OPS["modulated_epilogue"] if magnitudes is None else partial(epilogue_kernel, largest=magnitudes[k])
        output, modulated, _ = epilogue(
            seen.products[k],
            layer.demodulation,
            slope,
            seen.skips[k],
            following,
            rgb_weight=None,
            rgb=None,
            return_output=becomes_skip,
        )
        x = Rows(modulated.flatten(0, 1), None if magnitudes is None else magnitudes[k])
        if ends_block:
            block_input = output if becomes_skip else None
    return seen


def _magnitudes(features: Tensor, layers: Sequence[ModulatedWeight], weights: Sequence[SharedWeight]) -> Tensor | None:
    """[L] zeros, which epilogues raise to the largest magnitude of what they hand on; None: products do not need it."""
    return features.new_zeros(len(layers)) if weights[0].split else None


def _differentiate(
    seen: _Evaluation,
    features: Tensor,
    layers: Sequence[ModulatedWeight],
    weights: Sequence[SharedWeight],
    rgb_weight: Tensor,
    grad: Tensor,
    slope: float,
    total: StackedLayers,
    with_weights: bool,
) -> Tensor:
    """Adds the gradients of the layers to `total`; returns that of the features."""
    of_modulated: Tensor | None = None  # what the product of the layer behind has taken
    of_block: Tensor | None = None  # output of the block in front, where the next one adds it
    magnitudes = _magnitudes(features, layers, weights)
    for k in reversed(range(len(layers))):
        ends_block, has_skip = k % 2 == 1, seen.skips[k] is not None
        following = layers[k + 1].modulation if k + 1 < len(layers) else None
        color = k // 2 + len(rgb_weight) - len(layers) // 2
        has_rgb = ends_block and color >= 0
        name, largest = "modulated_epilogue_backward", None if magnitudes is None else magnitudes[k]
        epilogue = OPS[name] if largest is None else partial(epilogue_backward_kernel, largest=largest)
        of_product, of_demodulation, of_skip, of_following, of_rgb = epilogue(
            seen.products[k],
            layers[k].demodulation,
            slope,
            seen.skips[k],
            following,
            rgb_weight=rgb_weight[color] if has_rgb else None,
            grad_output=of_block if ends_block else None,
            grad_modulated=of_modulated,
            grad_rgb=grad if has_rgb else None,
            wanted=[True, True, has_skip, following is not None, has_rgb],
        )
        total.demodulation[:, k] += of_demodulation
        if following is not None:
            total.hidden_modulation[:, k] += of_following
        if has_rgb:
            total.rgb_weight[color] += of_rgb
        if ends_block:
            of_block = of_skip if has_skip else None
        rows = Rows(of_product.flatten(0, 1), largest)
        if with_weights:
            of_weight = multiply_over_rows(seen.inputs[k], rows)
            (total.hidden_weight[k - 1] if k else total.first_weight).add_(of_weight)
        of_modulated = weights[k].backward(rows).view(*of_product.shape[:2], -1)
    found: tuple[Tensor, ...] = OPS["modulated_epilogue_backward"](
        features,
        demodulation=None,
        negative_slope=1.0,
        skip=None,
        next_modulation=layers[0].modulation,
        rgb_weight=None,
        grad_output=of_block,
        grad_modulated=of_modulated,
        grad_rgb=None,
        wanted=[True, False, False, True, False],
    )
    total.first_modulation.add_(found[3])
    return found[0]


def _backward(grad: Tensor, features: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    stacked = StackedLayers(*arguments[:LAYERS])
    skip_from, slope, _, fast, with_weights = arguments[LAYERS:]
    dtype = torch.bfloat16 if fast else features.dtype  # float16 might not hold the gradients
    layers = [ModulatedWeight(of.weight.to(dtype), of.modulation, of.demodulation) for of in stacked.unstacked()]
    weights = [SharedWeight(layer.weight, split=not fast and pays_for(features)) for layer in layers]
    of_features = features.new_zeros(features.shape)
    total = StackedLayers(*(x.zero_() for x in _empty(stacked, with_weights)))
    images, pixels, _ = features.shape
    step = max(1, GRADIENT_PIXELS * torch.float32.itemsize // dtype.itemsize // max(1, images))
    for start in range(0, pixels if images > 0 else 0, step):
        some = slice(start, start + step)
        given = features[:, some].to(dtype).contiguous()
        seen = _evaluate(given, layers, weights, skip_from, slope)
        of_colors = grad[:, some].contiguous()
        of_features[:, some] = _differentiate(
            seen, given, layers, weights, stacked.rgb_weight, of_colors, slope, total, with_weights
        )
    return of_features, *total


def _backward_fake(grad: Tensor, features: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return features.new_empty(features.shape), *_empty(StackedLayers(*arguments[:LAYERS]), arguments[-1])


def _empty(layers: StackedLayers, with_weights: bool) -> StackedLayers:
    """Room for the gradients of the layers; those of weights that nobody wants have no elements."""
    absent = () if with_weights else ("first_weight", "hidden_weight")
    return StackedLayers(*(x.new_empty(0 if name in absent else x.shape) for name, x in layers._asdict().items()))


BACKWARD = define(
    f"modulated_inr_backward(Tensor grad, {SCHEMA}, bool with_weights) -> ({', '.join(['Tensor'] * INPUTS)})",
    kernel=_backward,
    reference=_backward,
    fake=_backward_fake,
)
