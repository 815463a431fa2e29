"""Modulated fully connected layer: weights scaled per image, then renormalised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.autocast import is_autocasting
from cips3d.ops.autocast import product as matrix_product
from cips3d.ops.checks import check_alike, check_device, check_shape, check_tensor
from cips3d.ops.modulated_epilogue import ModulatedEpilogue, apply_epilogue, modulated_epilogue
from cips3d.ops.split_matmul import pays_for, split_matmul

DEMODULATION_EPS = 1e-8  # keeps the norm of an all-zero column finite, as in StyleGAN2


def demodulation(weight: Tensor, modulation: Tensor) -> Tensor:
    """What brings the columns of a modulated weight to unit norm.

    d = (Σ_in (W ⊙ m)² + 1e-8)^(-½) = (m² · W² + 1e-8)^(-½): one product of small matrices, in place of two passes over
    [B, in, out].

    Args:
        weight: [in, out], shared by the batch.
        modulation: [B, in].

    Returns:
        [B, out], at least float32, whatever autocast is set.

    Raises:
        ValueError: a shape or device does not fit; the argument is named.

    Source: StyleGAN2 (arXiv 1912.04958), section 2.2, eq. 3.
    """
    _check_modulation(weight, modulation)
    wide = torch.promote_types(weight.dtype, torch.float32)
    norm_squared = matrix_product(modulation.to(wide).square(), weight.to(wide).square())
    return torch.rsqrt(norm_squared + DEMODULATION_EPS)


def modulate_weight(weight: Tensor, modulation: Tensor, *, demodulate: bool = True) -> Tensor:
    """Weights of a modulated layer, one matrix an image.

    W' = W ⊙ m along `in`; demodulation: W'' = W' ⊙ d along `out`, with d of `demodulation`.

    Args:
        weight: [in, out], shared by the batch.
        modulation: [B, in] scale of every input channel of an image (the published networks pass 1 + Linear(style)).
        demodulate: renormalise every output column to unit norm.

    Returns:
        [B, in, out] in the dtype of the weight.

    Raises:
        ValueError: a shape or device does not fit; the argument is named.

    Source: StyleGAN2 (arXiv 1912.04958), section 2.2, eq. 1 to 3.
    """
    _check_modulation(weight, modulation)
    folded = weight * modulation[:, :, None]  # [B, in, out]
    if demodulate:
        folded = folded * demodulation(weight, modulation)[:, None].to(folded.dtype)
    return folded.to(weight.dtype)


def _check_modulation(weight: Tensor, modulation: Tensor) -> None:
    """Raise, naming the argument, unless weights can be modulated so."""
    width_in, _ = check_shape("weight", weight, (None, None))
    check_shape("modulation", modulation, (None, width_in))
    check_device("weight", weight, modulation=modulation)


@dataclass(frozen=True, eq=False)
class ModulatedWeight:
    """The weight of a modulated layer for B images, in one of two forms of the same map; `of` takes the quicker one.

    Folded, x W'' with a matrix an image: no pass over the pixels besides the product. Shared, ((x ⊙ m) W) ⊙ d with one
    matrix for all: one large product, and scalings that are free where `modulated_epilogue` has a kernel, since the
    layer before applies m in the pass that it makes anyway.

    Attributes:
        weight: [B, in, out], or [in, out] with what follows.
        modulation: [B, in] m.
        demodulation: [B, out] d.
    """

    weight: Tensor
    modulation: Tensor | None = None
    demodulation: Tensor | None = None

    @staticmethod
    def of(weight: Tensor, modulation: Tensor, *, demodulate: bool = True) -> ModulatedWeight:
        """The form that is quicker where the tensors are; arguments as in `modulate_weight`."""
        if not kernels.take(weight):
            return ModulatedWeight(modulate_weight(weight, modulation, demodulate=demodulate))
        _check_modulation(weight, modulation)
        scales = demodulation(weight, modulation) if demodulate else None
        return ModulatedWeight(weight, modulation.to(torch.promote_types(weight.dtype, torch.float32)), scales)

    def __getitem__(self, images: slice) -> ModulatedWeight:
        """The same for some of the images."""
        if self.modulation is None:
            return ModulatedWeight(self.weight[images])
        scales = None if self.demodulation is None else self.demodulation[images]
        return ModulatedWeight(self.weight, self.modulation[images], scales)

    def modulate(self, x: Tensor) -> Tensor:
        """What the product takes in place of x [B, N, in]: x ⊙ m in the shared form, x itself in the folded one."""
        if self.modulation is None:
            check_shape("x", x, (self.weight.shape[0], None, self.weight.shape[1]))
            return x
        scaled = modulated_epilogue(x, negative_slope=None, next_modulation=self.modulation, return_output=False)
        assert scaled.modulated is not None
        return scaled.modulated


def check_layers(**layers: ModulatedWeight | None) -> None:
    """Raise TypeError, naming the argument, for a layer that is none."""
    for name, layer in layers.items():
        if layer is not None and not isinstance(layer, ModulatedWeight):
            raise TypeError(f"{name} must be a ModulatedWeight, got {type(layer).__name__}")


def _check_dtype(name: str, weight: Tensor, x: Tensor) -> None:
    """Raise ValueError, naming the argument, unless a product of these is defined."""
    if is_autocasting(x.device):
        check_device("x", x, **{name: weight})
    else:
        check_alike("x", x, {name: weight})


def modulated_layer(
    x: Tensor,
    layer: ModulatedWeight,
    *,
    following: ModulatedWeight | None = None,
    negative_slope: float | None = 0.2,
    skip: Tensor | None = None,
    rgb_weight: Tensor | None = None,
    rgb: Tensor | None = None,
    return_output: bool = True,
) -> ModulatedEpilogue:
    """A link in a chain of modulated layers: the product, and its `modulated_epilogue`.

    Args:
        x: [B, N, in] what the product takes: `layer.modulate` of the input, or `modulated` of the link before.
        layer: the weight of this layer.
        following: the weight of the layer that follows, or None.
        negative_slope, skip, rgb_weight, rgb, return_output: see `modulated_epilogue`. The skip may have another dtype
            than the product (mixed precision).

    Returns:
        `ModulatedEpilogue`; `modulated` is what the product of the following layer takes.

    Raises:
        ValueError: an argument does not fit; it is named.

    Source: StyleGAN2 (arXiv 1912.04958), section 2.2; CIPS-3D (arXiv 2110.09788), section 3.2.

    Example:
        >>> x, style = torch.rand(2, 5, 8), torch.rand(2, 8)
        >>> first, second = (ModulatedWeight.of(torch.randn(8, 8), style) for _ in range(2))
        >>> link = modulated_layer(first.modulate(x), first, following=second, return_output=False)
        >>> modulated_layer(link.modulated, second, rgb_weight=torch.rand(3, 8)).rgb.shape
        torch.Size([2, 5, 3])
    """
    batch, _, width_in = check_shape("x", x, (None, None, None))
    if layer is None:
        raise TypeError("layer must be a ModulatedWeight, got None")
    check_layers(layer=layer, following=following)
    shared = layer.modulation is not None
    *_, width_out = check_shape("layer.weight", layer.weight, (*(() if shared else (batch,)), width_in, None))
    _check_dtype("layer.weight", layer.weight, x)
    if layer.modulation is not None:
        check_shape("layer.modulation", layer.modulation, (batch, width_in))
    if following is not None:
        check_shape("following.weight", following.weight, (*following.weight.shape[:-2], None, None))
        width = following.weight.shape[-2]
        if width != width_out:
            raise ValueError(f"following.weight must take the {width_out} channels of the layer, got {width}")
    if skip is not None:
        check_tensor("skip", skip)
    product = (split_matmul if shared and pays_for(x) else torch.matmul)(x, layer.weight)
    skip = None if skip is None else skip.to(product.dtype)
    next_modulation = None if following is None else following.modulation
    passes_y_on = following is not None and next_modulation is None
    inputs = (product, layer.demodulation, negative_slope, skip, next_modulation, rgb_weight, rgb)
    made = apply_epilogue(*inputs, return_output or passes_y_on, overwrite=True)
    if passes_y_on:
        made = ModulatedEpilogue(made.output if return_output else None, made.output, made.rgb)
    return made


def modulated_fc(
    x: Tensor,
    weight: Tensor,
    modulation: Tensor,
    *,
    demodulate: bool = True,
    negative_slope: float | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    """A fully connected layer with per-image modulated and demodulated weights, activation and skip.

    y = lrelu(x W'') + skip, with W'' of `modulate_weight`.

    Args:
        x: [B, N, in], N pixels of each of B images.
        weight: [in, out] of the dtype of x (under autocast of any); modulation: [B, in]; demodulate: see
            `modulate_weight`.
        negative_slope: slope of the leaky ReLU, not negative; None for a linear layer.
        skip: [B, N, out] added to the result, or None.

    Returns:
        [B, N, out].

    Raises:
        ValueError: a shape, dtype or device does not fit or the slope is negative; the argument is named.

    Source: StyleGAN2 (arXiv 1912.04958), section 2.2; CIPS-3D (arXiv 2110.09788), section 3.2.

    Example:
        >>> x, weight, style = torch.rand(2, 5, 8), torch.randn(8, 4), torch.randn(2, 8)
        >>> modulated_fc(x, weight, 1 + style, negative_slope=0.2).shape
        torch.Size([2, 5, 4])
    """
    _check_modulation(weight, modulation)
    check_shape("x", x, (len(modulation), None, len(weight)))
    _check_dtype("weight", weight, x)
    layer = ModulatedWeight.of(weight, modulation, demodulate=demodulate)
    y = modulated_layer(layer.modulate(x), layer, negative_slope=negative_slope, skip=skip).output
    assert y is not None
    return y
