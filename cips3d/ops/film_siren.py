"""FiLM-SIREN: sine layers whose phase is scaled and shifted per image, alone and as a whole radiance field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.autocast import gradients_without_autocast, is_autocasting, product
from cips3d.ops.checks import check_device, check_shape
from cips3d.ops.film_siren_op import Parameters, sine
from cips3d.ops.precision import Precision, is_fast
from cips3d.ops.second_order import differentiate_reference

BLOCK_ELEMENTS = 1 << 18  # activations of a layer that a CPU computes at a time: 1 MB, half of a core's L2


class FoldedLayer(NamedTuple):
    """A sine layer of every image, with gain and shift folded in: y = sin(x Wᵀ + b).

    Attributes:
        weight: [B, out, in] gain ⊙ W.
        bias: [B, out] gain ⊙ b + shift.
    """

    weight: Tensor
    bias: Tensor


def fold_film(weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> FoldedLayer:
    """Fold the modulation into the layer: gain ⊙ (x Wᵀ + b) + shift = x (gain ⊙ W)ᵀ + (gain ⊙ b + shift).

    That leaves one product and one sine a sample: no pass over the samples for the modulation, and nothing kept for
    its backward.

    Args:
        weight: [out, in].
        bias: [out].
        gain: [B, out] frequency of every channel of an image.
        shift: [B, out] phase, in radians.

    Returns:
        `FoldedLayer`.

    Raises:
        ValueError: a shape or device does not fit; the argument is named.
    """
    width_out, _ = check_shape("weight", weight, (None, None))
    check_shape("bias", bias, (width_out,))
    batch, _ = check_shape("gain", gain, (None, width_out))
    check_shape("shift", shift, (batch, width_out))
    check_device("weight", weight, bias=bias, gain=gain, shift=shift)
    return FoldedLayer(gain[:, :, None] * weight, torch.addcmul(shift, gain, bias))


def film_siren(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, *, precision: Precision | None = None
) -> Tensor:
    """A fully connected sine layer with feature-wise linear modulation.

    y = sin(gain ⊙ (x Wᵀ + b) + shift), with gain and shift constant within an image. Nothing but the arguments is kept
    for the backward where kernels compute it. Differentiable any number of times.

    Args:
        x: [B, N, in] points or features; N samples of each of B images. Of 16 bits too; the parameters may be float32
            then; float64 goes with float64 only.
        weight: [out, in].
        bias: [out].
        gain: [B, out] frequency of every channel of an image.
        shift: [B, out] phase, in radians.
        precision: `Precision` of the kernels' products, or None for PyTorch's setting. "highest" and "high" are as
            accurate as float32 (gradients to 5e-6), for about three times the arithmetic; "fast" has relative L2 errors
            of 3e-4 with SIREN's initial weights (in gradients, whose operands are bfloat16, of 3e-3), and is faster
            where arithmetic and not memory is the limit. Layers of at most 8 inputs are always computed in float32.

    Returns:
        [B, N, out] in [-1, 1], of the dtype of x; under autocast of autocast's.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the precision is unknown; the argument is named.

    Source: pi-GAN (arXiv 2012.00926), section 3.1; SIREN (arXiv 2006.09661).

    Example:
        >>> x = torch.rand(2, 5, 3)
        >>> film_siren(x, torch.rand(8, 3), torch.zeros(8), torch.full((2, 8), 30.0), torch.zeros(2, 8)).shape
        torch.Size([2, 5, 8])
    """
    batch, _, width_in = check_shape("x", x, (None, None, None))
    if width_in < 1:
        raise ValueError(f"x must have at least one channel, got {list(x.shape)}")
    width_out, _ = check_shape("weight", weight, (None, width_in))
    check_shape("bias", bias, (width_out,))
    check_shape("gain", gain, (batch, width_out))
    check_shape("shift", shift, (batch, width_out))
    for name, value in (("weight", weight), ("bias", bias), ("gain", gain), ("shift", shift)):
        if (value.dtype == torch.float64) != (x.dtype == torch.float64) or value.device != x.device:
            raise ValueError(f"{name} must go with x ({x.dtype} on {x.device}), got {value.dtype} on {value.device}")
    fast = is_fast(precision)
    if _through_op(x, weight, bias, gain, shift):
        return sine(x, Parameters(weight, bias, gain, shift), _output_dtype(x), fast=fast)
    return sine_layer(x, fold_film(weight, bias, gain, shift), precision=precision)


def sine_layer(x: Tensor, layer: FoldedLayer, *, precision: Precision | None = None) -> Tensor:
    """sin(x Wᵀ + b) for x [B, N, in] and a folded layer of B images; precision as in `film_siren`."""
    fast = is_fast(precision)
    if _through_op(x, *layer):
        return sine(x, Parameters(layer.weight, layer.bias, None, None), _output_dtype(x), fast=fast)
    if torch.compiler.is_compiling():
        return torch.sin(product(x, layer.weight.mT) + layer.bias[:, None])
    phase = torch.baddbmm(layer.bias[:, None], x, layer.weight.mT)
    return torch.sin(phase) if phase.requires_grad else phase.sin_()


def _through_op(x: Tensor, *parameters: Tensor) -> bool:
    """Whether the registered op computes: on kernels, or where plain PyTorch would not mix 16 with 32 bits.

    Nor would it keep phases in float32 under autocast.
    """
    is_plain = all(tensor.dtype in (torch.float32, torch.float64) for tensor in (x, *parameters))
    return kernels.take(x) or not is_plain or is_autocasting(x.device)


def _output_dtype(x: Tensor) -> torch.dtype:
    casts = is_autocasting(x.device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if casts else x.dtype


def sine_field(
    points: Tensor,
    trunk: Sequence[FoldedLayer],
    color: FoldedLayer,
    density_weight: Tensor,
    density_bias: Tensor,
    *,
    precision: Precision | None = None,
) -> tuple[Tensor, Tensor]:
    """A radiance field of sine layers: a trunk, a linear density on top of it, and a colour layer beside the density.

    h = trunk(x), σ = h · v + c, colour = sin(h Wᵀ + b).

    On a CPU the samples go through all layers in blocks that fit its cache, forward and backward, and the backward
    computes the activations anew instead of keeping them. Kernels take layer by layer; between them the activations are
    kept, nothing else. In plain PyTorch elsewhere, in mixed precision and under torch.compile, autograd keeps what it
    needs.

    Args:
        points: [B, N, 3], or any other input of the first layer.
        trunk: sine layers of B images, one after the other; at least one.
        color: the sine layer [B, C, width] on the trunk's output.
        density_weight: [width], shared by the images.
        density_bias: [1].
        precision: of the sine layers' products, see `film_siren`.

    Returns:
        raw density [B, N], colour activations [B, N, C].

    Raises:
        ValueError: a shape does not fit, or the trunk is empty; the argument is named.

    Source: pi-GAN (arXiv 2012.00926), section 3.1; CIPS-3D (arXiv 2110.09788), section 3.1.
    """
    if not trunk:
        raise ValueError("trunk must hold at least one layer")
    batch, _, width = check_shape("points", points, (None, None, None))
    for k, layer in enumerate((*trunk, color)):
        name = f"trunk[{k}]" if k < len(trunk) else "color"
        _, width_out, _ = check_shape(f"{name}.weight", layer.weight, (batch, None, width))
        check_shape(f"{name}.bias", layer.bias, (batch, width_out))
        width = width_out if k < len(trunk) else width
    check_shape("density_weight", density_weight, (width,))
    check_shape("density_bias", density_bias, (1,))
    is_fast(precision)  # raises where it is unknown, whatever computes
    flat = [tensor for layer in (*trunk, color) for tensor in layer]
    in_blocks = points.device.type == "cpu" and not is_autocasting(points.device) and not kernels.take(points)
    if in_blocks and not torch.compiler.is_compiling():
        return _BlockwiseField.apply(points, density_weight, density_bias, *flat)
    return _reference_field(points, density_weight, density_bias, *flat, precision=precision)


def _reference_field(
    points: Tensor, density_weight: Tensor, density_bias: Tensor, *flat: Tensor, precision: Precision | None = None
) -> tuple[Tensor, Tensor]:
    """`sine_field` layer by layer; `flat` holds weight and bias of the trunk's layers, then of the colour's."""
    *trunk, color = _layers(flat)
    x = points
    for layer in trunk:
        x = sine_layer(x, layer, precision=precision)
    # Under autocast activations have 16 bits; a density keeps those of its weights.
    density = product(x.to(density_weight.dtype), density_weight[:, None])[..., 0] + density_bias
    return density, sine_layer(x, color, precision=precision)


def _layers(flat: Sequence[Tensor]) -> list[FoldedLayer]:
    return [FoldedLayer(w, b) for w, b in zip(flat[::2], flat[1::2], strict=True)]


def _blocks(points: Tensor, layers: Sequence[FoldedLayer]) -> Iterator[tuple[int, slice]]:
    """Images and row ranges whose widest activations have at most `BLOCK_ELEMENTS` elements."""
    rows = max(BLOCK_ELEMENTS // max(layer.weight.shape[1] for layer in layers), 1)
    for image in range(points.shape[0]):
        for start in range(0, points.shape[1], rows):
            yield image, slice(start, start + rows)


def _phase(x: Tensor, layer: FoldedLayer, image: int) -> Tensor:
    return torch.addmm(layer.bias[image], x, layer.weight[image].t())  # [rows, out]


class _BlockwiseField(torch.autograd.Function):
    """`_reference_field` in blocks of samples that stay in a CPU's cache."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, density_weight: Tensor, density_bias: Tensor, *flat: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(points, density_weight, density_bias, *flat)
        *trunk, color_layer = layers = _layers(flat)
        density = points.new_empty(points.shape[:2])
        color = points.new_empty(*points.shape[:2], color_layer.weight.shape[1])
        for image, rows in _blocks(points, layers):
            x = points[image, rows]
            for layer in trunk:
                x = _phase(x, layer, image).sin_()
            torch.addmv(density_bias, x, density_weight, out=density[image, rows])
            torch.sin(_phase(x, color_layer, image), out=color[image, rows])
        return density, color

    @staticmethod
    @gradients_without_autocast
    def backward(ctx: Any, grad_density: Tensor, grad_color: Tensor) -> tuple[Tensor | None, ...]:
        points, density_weight, density_bias, *flat = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate_reference(
                _reference_field,
                (points, density_weight, density_bias, *flat),
                ctx.needs_input_grad,
                (grad_density, grad_color),
            )
        *trunk, color_layer = layers = _layers(flat)
        grads = [FoldedLayer(torch.zeros_like(w), torch.zeros_like(b)) for w, b in layers]
        grad_weight = torch.zeros_like(density_weight)
        grad_points = torch.empty_like(points) if ctx.needs_input_grad[0] else None
        for image, rows in _blocks(points, layers):
            inputs, phases = [points[image, rows]], []
            for layer in trunk:
                phases.append(_phase(inputs[-1], layer, image))
                inputs.append(torch.sin(phases[-1]))
            phases.append(_phase(inputs[-1], color_layer, image))
            grad = grad_color[image, rows]  # of the layer's output
            for k in reversed(range(len(layers))):
                slope = phases[k].cos_().mul_(grad)  # [rows, out] gradient of the phase
                grads[k].weight[image].addmm_(slope.t(), inputs[k])
                grads[k].bias[image].add_(slope.sum(0))
                if k > 0:
                    grad = slope @ layers[k].weight[image]
                elif grad_points is not None:
                    torch.mm(slope, layers[0].weight[image], out=grad_points[image, rows])
                if k == len(trunk):
                    grad.addr_(grad_density[image, rows], density_weight)
                    grad_weight.addmv_(inputs[k].t(), grad_density[image, rows])
        grad_bias = grad_density.sum().view_as(density_bias)
        return grad_points, grad_weight, grad_bias, *(tensor for layer in grads for tensor in layer)
