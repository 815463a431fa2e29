"""CIPS-3D's per-pixel network in one kernel: features of pixels in, colours out, no layer in device memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.autocast import is_autocasting
from cips3d.ops.checks import check_alike, check_integer, check_number, check_shape
from cips3d.ops.library import define
from cips3d.ops.modulated_fc import ModulatedWeight, check_layers, modulated_layer
from cips3d.ops.modulated_inr_backward import BACKWARD
from cips3d.ops.precision import Precision, is_fast, takes_float16
from cips3d.ops.ray_tensors import require_float32
from cips3d.ops.second_order import gradients_of_op
from cips3d.ops.stacked_layers import INPUTS, LAYERS, SCHEMA, StackedLayers

WIDTH_MAX = 512  # of any layer and of the features: what the kernel has room for


def modulated_inr(
    features: Tensor,
    layers: Sequence[ModulatedWeight],
    rgb_weights: Sequence[Tensor],
    *,
    skip_from: int,
    negative_slope: float = 0.2,
    precision: Precision | None = None,
    keep_activations: bool = False,
) -> Tensor:
    """Features of pixels through blocks of two modulated layers to sums of linear colours.

    y = lrelu(lrelu(x W₁'') W₂'') + (x from block skip_from on), rgb = Σ y · rgb_weightᵀ over the last blocks, with
    W'' of `modulate_weight`. Where kernels compute, one takes pixels through all layers and keeps nothing for the
    backward, which computes the activations of a few pixels at a time anew: the memory it takes does not grow with the
    picture. Second derivatives go through `composed_inr`, and so does what the kernel does not apply to (with one
    warning).

    Args:
        features: [B, N, F], N pixels of each of B images.
        layers: two a block, demodulated: [F, W], then [W, W] each.
        rgb_weights: [3, W] of each of the last blocks, at least of one.
        skip_from: blocks from this index on add their input to their output. Not 0 where F is not W.
        negative_slope: of the leaky ReLU, not negative.
        precision: of the kernel's products, see `Precision`; under autocast it is "fast". Unless it is "highest", its
            operands are float16, which cannot overflow, since every pixel has a scale of its own. Plain PyTorch goes by
            autocast and its own settings. Colours are always added up in float32. Compute capability
            9.0 has kernels of its own, for widths of 193 to 256 and of 449 to 512; the environment variable
            CIPS3D_WGMMA=0 refuses them.
        keep_activations: compute through `composed_inr`, for a backward that is quicker by a forward.

    Returns:
        [B, N, 3], at least float32.

    Raises:
        ValueError: an argument does not fit; it is named.

    Source: CIPS-3D (arXiv 2110.09788), section 3.2; StyleGAN2 (arXiv 1912.04958), section 2.2.

    Example:
        >>> shared, modulations = (torch.randn(8, 16), torch.randn(16, 16)), (torch.rand(2, 8), torch.rand(2, 16))
        >>> block = [ModulatedWeight.of(weight, m) for weight, m in zip(shared, modulations, strict=True)]
        >>> modulated_inr(torch.rand(2, 5, 8), block, [torch.randn(3, 16)], skip_from=1).shape
        torch.Size([2, 5, 3])
    """
    check_modulated_inr(features, layers, rgb_weights, skip_from, negative_slope)
    fast = is_fast(precision) or is_autocasting(features.device)
    rounds = fast or takes_float16(precision)
    if not keep_activations and _takes(features, layers, rgb_weights):
        reason = why_not_fused(layers, negative_slope)
        if reason is None:
            stacked = StackedLayers(
                layers[0].weight,
                torch.stack([layer.weight for layer in layers[1:]]),
                _given(layers[0].modulation),
                torch.stack([_given(layer.modulation) for layer in layers[1:]], 1),
                torch.stack([_given(layer.demodulation) for layer in layers], 1),
                torch.stack(list(rgb_weights)),
            )
            rgb: Tensor = _OP(features, *stacked, skip_from, negative_slope, rounds, fast)
            return rgb
        kernels.warn_composed(reason, "computes pixels layer by layer")
    return composed_inr(features, layers, rgb_weights, skip_from=skip_from, negative_slope=negative_slope)


def composed_inr(
    features: Tensor,
    layers: Sequence[ModulatedWeight],
    rgb_weights: Sequence[Tensor],
    *,
    skip_from: int,
    negative_slope: float = 0.2,
) -> Tensor:
    """`modulated_inr` layer by layer, which keeps the activations of all layers for the backward."""
    rgb: Tensor | None = None
    block_input: Tensor | None = features
    x: Tensor | None = layers[0].modulate(features)  # what the next product takes
    blocks = len(layers) // 2
    for block, (first, second) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        assert x is not None
        is_last, color = block + 1 == blocks, block + len(rgb_weights) - blocks
        inner = modulated_layer(x, first, following=second, negative_slope=negative_slope, return_output=False)
        assert inner.modulated is not None
        made = modulated_layer(
            inner.modulated,
            second,
            following=None if is_last else layers[2 * block + 2],
            negative_slope=negative_slope,
            skip=block_input if block >= skip_from else None,
            rgb_weight=rgb_weights[color] if color >= 0 else None,
            rgb=rgb,
            return_output=not is_last and block + 1 >= skip_from,
        )
        x, block_input, rgb = made.modulated, made.output, made.rgb
    assert rgb is not None  # the last block gives colours
    return rgb


def check_modulated_inr(
    features: Tensor,
    layers: Sequence[ModulatedWeight],
    rgb_weights: Sequence[Tensor],
    skip_from: int,
    negative_slope: float,
) -> None:
    """Raise, naming the argument, unless `modulated_inr` is defined for these."""
    batch, _, width_in = check_shape("features", features, (None, None, None))
    if not layers or len(layers) % 2:
        raise ValueError(f"layers must be two a block, got {len(layers)}")
    check_layers(**{f"layers[{k}]": layer for k, layer in enumerate(layers)})
    width = layers[0].weight.shape[-1]
    for k, layer in enumerate(layers):
        shape = (width if k else width_in, width)
        check_shape(f"layers[{k}].weight", layer.weight, shape if layer.modulation is not None else (batch, *shape))
        if not is_autocasting(features.device):
            check_alike("features", features, {f"layers[{k}].weight": layer.weight})
        if layer.modulation is not None:
            check_shape(f"layers[{k}].modulation", layer.modulation, (batch, shape[0]))
        if layer.demodulation is not None:
            check_shape(f"layers[{k}].demodulation", layer.demodulation, (batch, width))
    if not 1 <= len(rgb_weights) <= len(layers) // 2:
        raise ValueError(f"rgb_weights must be those of 1 to {len(layers) // 2} blocks, got {len(rgb_weights)}")
    wide = torch.promote_types(features.dtype, torch.float32)
    for k, weight in enumerate(rgb_weights):
        check_shape(f"rgb_weights[{k}]", weight, (3, width))
        if weight.dtype != wide or weight.device != features.device:
            got = f"{weight.dtype} on {weight.device}"
            raise ValueError(f"rgb_weights[{k}] must be {wide} on {features.device}, got {got}")
    check_integer("skip_from", skip_from, int(width_in != width))
    check_number("negative_slope", negative_slope)
    if negative_slope < 0:
        raise ValueError(f"negative_slope must not be negative, got {negative_slope}")


def _takes(features: Tensor, layers: Sequence[ModulatedWeight], rgb_weights: Sequence[Tensor]) -> bool:
    """Whether kernels compute on tensors of this device and these dtypes."""
    if not kernels.take(features) or any(layer.modulation is None for layer in layers):
        return False
    tensors = (features, *(layer.weight for layer in layers), *rgb_weights)
    return all(x.dtype == torch.float32 and x.device == features.device for x in tensors)


def why_not_fused(layers: Sequence[ModulatedWeight], negative_slope: float) -> str | None:
    """Why the kernel does not compute this network, in a phrase; None if it does."""
    widest = max(layers[0].weight.shape)
    if widest > WIDTH_MAX:
        return f"the kernel has room for widths up to {WIDTH_MAX}, not for {widest}"
    if any(layer.demodulation is None for layer in layers):
        return "the kernel is for demodulated layers"
    if negative_slope > 1:
        return f"the kernel is for slopes up to 1, not for {negative_slope}"
    return None


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


# The registered op.


def _reference(features: Tensor, *arguments: Any) -> Tensor:
    layers = StackedLayers(*arguments[:LAYERS])
    skip_from, slope, _, _ = arguments[LAYERS:]
    colors = list(layers.rgb_weight)
    rgb = composed_inr(features, layers.unstacked(), colors, skip_from=skip_from, negative_slope=slope)
    return rgb.contiguous()


def _fake(features: Tensor, *arguments: Any) -> Tensor:
    layers = StackedLayers(*arguments[:LAYERS])
    skip_from, slope, _, _ = arguments[LAYERS:]
    check_modulated_inr(features, layers.unstacked(), list(layers.rgb_weight), skip_from, slope)
    wide = torch.promote_types(features.dtype, torch.float32)
    return features.new_empty(*features.shape[:2], 3, dtype=wide)


def _kernel(features: Tensor, *arguments: Any) -> Tensor:
    rgb = _fake(features, *arguments)
    layers = StackedLayers(*arguments[:LAYERS])
    skip_from, slope, rounds, _ = arguments[LAYERS:]
    require_float32(features=features, **layers._asdict())
    if rgb.numel() == 0 or layers.first_weight.shape[1] == 0:
        return rgb.zero_()
    count, colors = layers.demodulation.shape[1], layers.rgb_weight.shape[0]
    sizes = (*features.shape, layers.first_weight.shape[1], count)
    device = features.device
    size = kernels.module_for(device).modulated_inr_workspace(device.index or 0, *sizes, colors, not rounds)
    workspace = features.new_empty(size, dtype=torch.uint8)
    kernels.launch(
        "modulated_inr",
        *(x.contiguous() for x in (features, *layers)),
        workspace,
        rgb,
        *sizes,
        skip_from,
        count // 2 - colors,
        slope,
        not rounds,
    )
    return rgb


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.settings = inputs[INPUTS:]
    ctx.save_for_backward(*inputs[:INPUTS])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors

    def reference(*arguments: Any) -> tuple[Tensor]:
        return (_reference(*arguments),)

    def written() -> tuple[Tensor, ...]:
        with_weights = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        found: tuple[Tensor, ...] = BACKWARD(grad, *inputs, *ctx.settings, with_weights)
        return found

    return gradients_of_op(ctx, reference, inputs, [grad], written)


_OP = define(
    f"modulated_inr({SCHEMA}) -> Tensor",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_gradients,
)
