"""Everything between the products of two modulated layers in one pass over memory: scaling, activation, skip, RGB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.autocast import product as matrix_product
from cips3d.ops.checks import check_number, check_shape
from cips3d.ops.library import define
from cips3d.ops.second_order import differentiate_reference

SUMS = 5  # a channel in the backward's workspace: demodulation, next_modulation, three rows of rgb_weight


class ModulatedEpilogue(NamedTuple):
    """What becomes of a product; None where it was not asked for.

    Attributes:
        output: [B, N, C] y, with the dtype of the product.
        modulated: [B, N, C] y ⊙ m, what the product of the next layer takes.
        rgb: [B, N, 3] colours so far, at least float32.
    """

    output: Tensor | None
    modulated: Tensor | None
    rgb: Tensor | None


def check_modulated_epilogue(
    product: Tensor,
    demodulation: Tensor | None,
    negative_slope: float | None,
    skip: Tensor | None,
    next_modulation: Tensor | None,
    rgb_weight: Tensor | None,
    rgb: Tensor | None,
) -> None:
    """Raise ValueError, naming the argument, unless `modulated_epilogue` is defined for these."""
    batch, pixels, channels = check_shape("product", product, (None, None, None))
    if negative_slope is not None:
        check_number("negative_slope", negative_slope)
        if negative_slope < 0:
            raise ValueError(f"negative_slope must not be negative, got {negative_slope}")
    if rgb is not None and rgb_weight is None:
        raise ValueError("rgb_weight must be given where rgb is: nothing would be added to it")
    wide = _wide(product)
    for name, tensor, shape, dtype in (
        ("demodulation", demodulation, (batch, channels), wide),
        ("skip", skip, (batch, pixels, channels), product.dtype),
        ("next_modulation", next_modulation, (batch, channels), wide),
        ("rgb_weight", rgb_weight, (3, channels), wide),
        ("rgb", rgb, (batch, pixels, 3), wide),
    ):
        if tensor is None:
            continue
        check_shape(name, tensor, shape)
        if tensor.dtype != dtype or tensor.device != product.device:
            raise ValueError(
                f"{name} must be {dtype} on {product.device} for a product of {product.dtype}, "
                f"got {tensor.dtype} on {tensor.device}"
            )


def modulated_epilogue(
    product: Tensor,
    demodulation: Tensor | None = None,
    *,
    negative_slope: float | None = 0.2,
    skip: Tensor | None = None,
    next_modulation: Tensor | None = None,
    rgb_weight: Tensor | None = None,
    rgb: Tensor | None = None,
    return_output: bool = True,
) -> ModulatedEpilogue:
    """The way from the product of one modulated layer to the product of the next.

    y = lrelu(product ⊙ d) + skip, modulated = y ⊙ m, rgb' = rgb + y · rgb_weightᵀ.

    A modulated layer is x (W ⊙ m ⊙ d) = ((x ⊙ m) W) ⊙ d, with m along `in` and d along `out`: scaled on the pixels,
    the weight is one for all images, and both scalings cost nothing here, where every activation is read and written
    once. Arithmetic and colours are float32 also where activations have 16 bits (sums of rounded colours would show as
    banding); y is rounded once for every output. Differentiable any number of times; the backward keeps the product
    and the skip, and computes y anew.

    Args:
        product: [B, N, C], N pixels of each of B images; float32, float16, bfloat16 or float64.
        demodulation: [B, C] d of `demodulation`, or None for ones. This and everything below but the skip is float32
            (float64 where the product is).
        negative_slope: of the leaky ReLU, not negative; 0 counts as negative; None for a linear layer.
        skip: [B, N, C] with the dtype of the product, or None.
        next_modulation: [B, C] m of the layer that follows; None: no `modulated`.
        rgb_weight: [3, C] of a linear layer to colours; None: no `rgb`.
        rgb: [B, N, 3] colours so far, or None for zeros.
        return_output: whether y itself is wanted.

    Returns:
        `ModulatedEpilogue`.

    Raises:
        ValueError: an argument does not fit; it is named.

    Source: StyleGAN2 (arXiv 1912.04958), section 2.2; CIPS-3D (arXiv 2110.09788), section 3.2.

    Example:
        >>> x, weight, m = torch.rand(2, 5, 8), torch.rand(8, 4), torch.rand(2, 8)
        >>> y = modulated_epilogue((x * m[:, None]) @ weight, demodulation(weight, m)).output
        >>> torch.allclose(y, modulated_fc(x, weight, m, negative_slope=0.2))
        True
    """
    inputs = (product, demodulation, negative_slope, skip, next_modulation, rgb_weight, rgb)
    return apply_epilogue(*inputs, return_output, overwrite=False)


def apply_epilogue(
    product: Tensor,
    demodulation: Tensor | None,
    negative_slope: float | None,
    skip: Tensor | None,
    next_modulation: Tensor | None,
    rgb_weight: Tensor | None,
    rgb: Tensor | None,
    return_output: bool,
    *,
    overwrite: bool,
) -> ModulatedEpilogue:
    """`modulated_epilogue`, for callers whose product may be overwritten: one pass less on a CPU."""
    check_modulated_epilogue(product, demodulation, negative_slope, skip, next_modulation, rgb_weight, rgb)
    slope = 1.0 if negative_slope is None else negative_slope
    inputs = (product, demodulation, slope, skip, next_modulation, rgb_weight, rgb, return_output)
    if not kernels.take(product):
        return _formula(*inputs, overwrite=overwrite)
    output, modulated, colors = _FORWARD(*inputs)
    return ModulatedEpilogue(
        output if return_output else None,
        None if next_modulation is None else modulated,
        None if rgb_weight is None else colors,
    )


def _wide(product: Tensor) -> torch.dtype:
    """The dtype of sums and of factors of channels."""
    return torch.promote_types(product.dtype, torch.float32)


# The forward.


def _formula(
    product: Tensor,
    demodulation: Tensor | None,
    negative_slope: float,
    skip: Tensor | None,
    next_modulation: Tensor | None,
    rgb_weight: Tensor | None,
    rgb: Tensor | None,
    return_output: bool,
    *,
    overwrite: bool = False,
) -> ModulatedEpilogue:
    y = product.to(_wide(product))
    own = overwrite or product.dtype != y.dtype
    if demodulation is not None:
        y, own = y * demodulation[:, None], True
    # In place also under autograd: the sign of the output tells the slope, so the product need not be kept.
    y = F.leaky_relu(y, negative_slope, inplace=own)
    if skip is not None:
        y = y + skip if y.requires_grad else y.add_(skip)
    colors = None
    if rgb_weight is not None:
        # Channel by channel, [3, B·N]: a product with three rows is several times quicker than one with three columns.
        pixels = y.flatten(0, 1).t()  # [C, B·N]
        summed = matrix_product(rgb_weight, pixels).t().view(*y.shape[:2], 3)
        colors = summed if rgb is None else summed + rgb
    return ModulatedEpilogue(
        y.to(product.dtype) if return_output else None,
        None if next_modulation is None else (y * next_modulation[:, None]).to(product.dtype),
        colors,
    )


def _reference(product: Tensor, *others: Any) -> tuple[Tensor, ...]:
    made = _formula(product, *others)
    absent = _fake(product, None, 1.0, None, None, None, None, False)
    return tuple(a if m is None else m.contiguous() for m, a in zip(made, absent, strict=True))


def epilogue_kernel(
    product: Tensor,
    demodulation: Tensor | None,
    negative_slope: float,
    skip: Tensor | None,
    next_modulation: Tensor | None,
    rgb_weight: Tensor | None,
    rgb: Tensor | None,
    return_output: bool,
    *,
    largest: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The registered op where kernels compute; `largest` [] is raised to the largest magnitude in `modulated`.

    That is for float32, and saves `split_matmul` a pass over memory.
    """
    inputs = (product, demodulation, negative_slope, skip, next_modulation, rgb_weight, rgb, return_output)
    if product.numel() == 0:
        return _reference(*inputs)
    made = _fake(*inputs)
    kernels.launch(
        "modulated_epilogue",
        product.dtype,
        *map(_contiguous, (product, demodulation, skip, next_modulation, rgb_weight, rgb)),
        *(tensor if tensor.numel() else None for tensor in made),
        largest,
        *product.shape,
        negative_slope,
    )
    return made


def _fake(
    product: Tensor,
    demodulation: Tensor | None,
    negative_slope: float,
    skip: Tensor | None,
    next_modulation: Tensor | None,
    rgb_weight: Tensor | None,
    rgb: Tensor | None,
    return_output: bool,
) -> tuple[Tensor, ...]:
    """Output, modulated, colours; those that nobody wants have no elements."""
    colors = (*product.shape[:2], 3) if rgb_weight is not None else (0,)
    return (
        product.new_empty(product.shape if return_output else (0,)),
        product.new_empty(product.shape if next_modulation is not None else (0,)),
        product.new_empty(colors, dtype=_wide(product)),
    )


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    product, demodulation, ctx.negative_slope, skip, next_modulation, rgb_weight, _, ctx.return_output = inputs
    ctx.set_materialize_grads(False)  # zeros in place of a missing gradient would be read
    ctx.save_for_backward(product, demodulation, skip, next_modulation, rgb_weight)


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    saved = product, demodulation, skip, next_modulation, rgb_weight = ctx.saved_tensors
    asked_for = (ctx.return_output, next_modulation is not None, rgb_weight is not None)
    grads = tuple(grad if asked else None for grad, asked in zip(grads, asked_for, strict=True))
    grad_output, grad_modulated, grad_rgb = grads
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 3, 4, 5)]
    found: Sequence[Tensor | None]
    if all(grad is None for grad in grads):
        found = [None] * len(saved)
    elif torch.is_grad_enabled():

        def reference(
            product: Tensor, demodulation: Any, skip: Any, modulation: Any, weight: Any
        ) -> tuple[Tensor, ...]:
            made = _formula(product, demodulation, ctx.negative_slope, skip, modulation, weight, None, True)
            return tuple(m for m, grad in zip(made, grads, strict=True) if m is not None and grad is not None)

        given = [grad for grad in grads if grad is not None]
        found = differentiate_reference(reference, saved, needs, given)
    else:
        passed_on = grad_output if needs[2] and grad_modulated is None and grad_rgb is None else None
        wanted = [
            needs[0],
            needs[1],
            needs[2] and passed_on is None,
            needs[3] and grad_modulated is not None,
            needs[4] and grad_rgb is not None,
        ]
        found = _BACKWARD(product, demodulation, ctx.negative_slope, skip, next_modulation, rgb_weight, *grads, wanted)
        found = [gradient if want else None for gradient, want in zip(found, wanted, strict=True)]
        found[2] = found[2] if passed_on is None else passed_on
    grad_product, grad_demodulation, grad_skip, grad_next_modulation, grad_rgb_weight = found
    colors_so_far = grad_rgb if ctx.needs_input_grad[6] else None
    return grad_product, grad_demodulation, None, grad_skip, grad_next_modulation, grad_rgb_weight, colors_so_far, None


# Its gradients: dy = grad_output + grad_modulated ⊙ m + grad_rgb · rgb_weight reaches the skip as it is and the product
# behind the leaky ReLU; gradients of what belongs to a channel are sums over the pixels.


def _backward_reference(
    product: Tensor,
    demodulation: Tensor | None,
    negative_slope: float,
    skip: Tensor | None,
    next_modulation: Tensor | None,
    rgb_weight: Tensor | None,
    grad_output: Tensor | None,
    grad_modulated: Tensor | None,
    grad_rgb: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    wide = product.to(_wide(product))
    scale = torch.ones_like(wide[:, 0]) if demodulation is None else demodulation
    h = wide * scale[:, None]
    slopes = torch.where(h > 0, 1.0, negative_slope).to(h.dtype)
    y = h * slopes if skip is None else h * slopes + skip
    dy = torch.zeros_like(wide)
    absent = product.new_empty(0, dtype=wide.dtype)
    grad_next_modulation = grad_rgb_weight = absent
    if grad_output is not None:
        dy = dy + grad_output
    if grad_modulated is not None and next_modulation is not None:
        dy = dy + grad_modulated * next_modulation[:, None]
        grad_next_modulation = (grad_modulated * y).sum(1)
    if grad_rgb is not None and rgb_weight is not None:
        dy = dy + grad_rgb @ rgb_weight
        grad_rgb_weight = grad_rgb.flatten(0, 1).t() @ y.flatten(0, 1)
    dh = dy * slopes
    gradients = (
        (dh * scale[:, None]).to(product.dtype),
        (dh * wide).sum(1),
        dy.to(product.dtype),
        grad_next_modulation,
        grad_rgb_weight,
    )
    return tuple(g.contiguous() if want else g.new_empty(0) for g, want in zip(gradients, wanted, strict=True))


def epilogue_backward_kernel(
    product: Tensor,
    demodulation: Tensor | None,
    negative_slope: float,
    skip: Tensor | None,
    next_modulation: Tensor | None,
    rgb_weight: Tensor | None,
    grad_output: Tensor | None,
    grad_modulated: Tensor | None,
    grad_rgb: Tensor | None,
    wanted: Sequence[bool],
    *,
    largest: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The registered op where kernels compute; `largest` [] is raised to the largest magnitude in grad_product."""
    grads = (grad_output, grad_modulated, grad_rgb)
    found = _backward_fake(product, demodulation, negative_slope, skip, next_modulation, rgb_weight, *grads, wanted)
    if product.numel() == 0:
        return tuple(gradient.zero_() for gradient in found)
    parts = kernels.module_for(product.device).modulated_epilogue_parts(*product.shape)
    sums = (product.shape[0], parts, SUMS, product.shape[2])
    partial = product.new_empty(sums, dtype=torch.float32) if wanted[1] or wanted[3] or wanted[4] else None
    if not (wanted[3] or wanted[4]):
        skip = None  # y is not needed
    kernels.launch(
        "modulated_epilogue_backward",
        product.dtype,
        *map(_contiguous, (product, demodulation, skip, next_modulation, rgb_weight, *grads)),
        *(gradient if want else None for gradient, want in zip(found, wanted, strict=True)),
        partial,
        largest,
        *product.shape,
        parts,
        negative_slope,
    )
    return found


def _backward_fake(
    product: Tensor,
    demodulation: Tensor | None,
    negative_slope: float,
    skip: Tensor | None,
    next_modulation: Tensor | None,
    rgb_weight: Tensor | None,
    grad_output: Tensor | None,
    grad_modulated: Tensor | None,
    grad_rgb: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of product, demodulation, skip, next_modulation, rgb_weight; unwanted ones have no elements."""
    batch, _, channels = product.shape
    shapes = (product.shape, (batch, channels), product.shape, (batch, channels), (3, channels))
    dtypes = (product.dtype, _wide(product), product.dtype, _wide(product), _wide(product))
    return tuple(
        product.new_empty(shape if want else (0,), dtype=dtype)
        for shape, dtype, want in zip(shapes, dtypes, wanted, strict=True)
    )


_FORWARD = define(
    "modulated_epilogue(Tensor product, Tensor? demodulation, float negative_slope, Tensor? skip,"
    " Tensor? next_modulation, Tensor? rgb_weight, Tensor? rgb, bool return_output) -> (Tensor, Tensor, Tensor)",
    kernel=epilogue_kernel,
    reference=_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_gradients,
)
_BACKWARD = define(
    "modulated_epilogue_backward(Tensor product, Tensor? demodulation, float negative_slope, Tensor? skip,"
    " Tensor? next_modulation, Tensor? rgb_weight, Tensor? grad_output, Tensor? grad_modulated, Tensor? grad_rgb,"
    " bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=epilogue_backward_kernel,
    reference=_backward_reference,
    fake=_backward_fake,
)
