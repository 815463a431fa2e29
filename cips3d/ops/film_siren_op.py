"""The op behind `film_siren` and `sine_layer`: its kernels, its plain reference on the same schema, its gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.autocast import without_autocast
from cips3d.ops.checks import check_shape
from cips3d.ops.library import define
from cips3d.ops.second_order import differentiate_reference

IMAGES_MAX = 65_535  # of one launch; there are more where every ray counts as an image with a modulation of its own
POINT_WIDTH = 8  # the widest inputs of the kernels that compute in plain float32


class Parameters(NamedTuple):
    """The parameters of a sine layer y = sin(gain ⊙ (x Wᵀ + b) + shift), for B images.

    Attributes:
        weight: [out, in], or [B, out, in].
        bias: [out], or [B, out].
        gain: [B, out]; None: 1.
        shift: [B, out]; None: 0.
    """

    weight: Tensor
    bias: Tensor
    gain: Tensor | None
    shift: Tensor | None


class Gradients(NamedTuple):
    """Gradients of x and of the parameters, each in the dtype of what it belongs to; empty where not wanted."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    gain: Tensor
    shift: Tensor


def sine(x: Tensor, parameters: Parameters, dtype: torch.dtype, *, fast: bool) -> Tensor:
    """sin(gain ⊙ (x Wᵀ + b) + shift) as the registered op.

    Args:
        x: [B, N, in].
        parameters: of any floating-point dtype; the kernels compute with them in float32.
        dtype: of the output. A layer of more than `POINT_WIDTH` inputs takes x in it too.
        fast: products of 16-bit numbers; the reference, which leaves precision to PyTorch, takes no notice.

    Raises:
        ValueError: a shape or device does not fit; the argument is named.
    """
    weight, bias, gain, shift = parameters
    batch, _, width_in = check_shape("x", x, (None, None, None))
    if width_in == 0:
        raise ValueError(f"x must have at least one channel, got {list(x.shape)}")
    if weight.dim() == 2:
        width_out, _ = check_shape("weight", weight, (None, width_in))
        check_shape("bias", bias, (width_out,))
    else:
        _, width_out, _ = check_shape("weight", weight, (batch, None, width_in))
        check_shape("bias", bias, (batch, width_out))
    for name, value in (("gain", gain), ("shift", shift)):
        if value is not None:
            check_shape(name, value, (batch, width_out))
    for name, value in (("weight", weight), ("bias", bias), ("gain", gain), ("shift", shift)):
        if value is not None and (value.device != x.device or not value.is_floating_point()):
            raise ValueError(
                f"{name} must be of a floating-point dtype on {x.device}, is {value.dtype}, {value.device}"
            )
    return _FORWARD(x, *parameters, dtype, fast)


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the reference computes in."""
    return torch.promote_types(dtype, torch.float32)


def _folded(parameters: Parameters, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight [B, out, in] and bias [B, out] with gain and shift in them."""
    weight, bias, gain, shift = (None if p is None else p.to(dtype) for p in parameters)
    assert weight is not None and bias is not None
    if gain is not None:
        weight, bias = gain[:, :, None] * weight, gain * bias
    if shift is not None:
        bias = bias + shift
    return weight.expand(batch, *weight.shape[-2:]), bias.expand(batch, bias.shape[-1])


# The forward.


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor | None, shift: Tensor | None, dtype: torch.dtype, fast: bool
) -> Tensor:
    with without_autocast(x.device):
        compute = _accumulated(dtype)
        folded, offset = _folded(Parameters(weight, bias, gain, shift), x.shape[0], compute)
        phase = torch.baddbmm(offset[:, None], x.to(compute), folded.transpose(1, 2))
        return torch.sin(phase).to(dtype)


def _launched(parameters: Parameters) -> list[Tensor | None]:
    return [None if p is None else p.float().contiguous() for p in parameters]


def _sizes(x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
    """Images, samples of an image, inputs, outputs."""
    return x.shape[0], x.shape[1], x.shape[2], weight.shape[-2]


def _kernel(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor | None, shift: Tensor | None, dtype: torch.dtype, fast: bool
) -> Tensor:
    y = _fake(x, weight, bias, gain, shift, dtype, fast)
    if y.numel() == 0:
        return y
    if x.shape[0] > IMAGES_MAX:
        return torch.cat([_kernel(p, *layer, dtype, fast) for (p,), layer in _parts((x,), weight, bias, gain, shift)])
    sizes, shared = _sizes(x, weight), weight.dim() == 2
    batch, _, width_in, width_out = sizes
    layer = _launched(Parameters(weight, bias, gain, shift))
    if width_in <= POINT_WIDTH:
        kernels.launch("film_siren_points", dtype, x.float().contiguous(), *layer, y, *sizes, shared)
        return y
    module = kernels.module_for(x.device)
    workspace = _workspace(x, module.film_siren_workspace(batch, width_in, width_out, shared))
    kernels.launch("film_siren", dtype, fast, x.to(dtype).contiguous(), *layer, workspace, y, *sizes, shared)
    return y


def _parts(
    tensors: Sequence[Tensor], weight: Tensor, bias: Tensor, gain: Tensor | None, shift: Tensor | None
) -> Iterator[tuple[Sequence[Tensor], Parameters]]:
    """As many images as a launch takes, and their layer."""
    for start in range(0, tensors[0].shape[0], IMAGES_MAX):
        some = slice(start, start + IMAGES_MAX)
        layer = (weight, bias) if weight.dim() == 2 else (weight[some], bias[some])
        modulation = (None if value is None else value[some] for value in (gain, shift))
        yield [tensor[some] for tensor in tensors], Parameters(*layer, *modulation)


def _workspace(x: Tensor, size: int) -> Tensor:
    return x.new_empty(size, dtype=torch.uint8)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor | None, shift: Tensor | None, dtype: torch.dtype, fast: bool
) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[-2], dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, ctx.fast = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needed = ctx.needs_input_grad[:5]
    found = _BACKWARD(grad, *ctx.saved_tensors, ctx.fast, needed[0], any(needed[1:]))
    return *(g if n else None for g, n in zip(found, needed, strict=True)), None, None


# Its gradients. Nothing is kept for them: slope = cos(phase) ⊙ dy with the phase computed anew, dx = (gain ⊙ slope) W,
# and for each image G = slopeᵀ x and s = Σ slope, from which the parameters' gradients follow.


def of_parameters(product: Tensor, total: Tensor, parameters: Parameters, like: Gradients) -> Gradients:
    """`like` with the gradients of the parameters.

    dshift = s, db = gain ⊙ s, dW = gain ⊙ G, dgain = rowsum(W ⊙ G) + b ⊙ s.

    Args:
        product: [B, out, in] G.
        total: [B, out] s.
    """
    weight, bias, gain, shift = parameters
    scaled, scaled_total = (product, total) if gain is None else (gain[:, :, None] * product, gain * total)
    if weight.dim() == 2:
        scaled, scaled_total = scaled.sum(0), scaled_total.sum(0)
    return like._replace(
        weight=scaled.to(weight.dtype).contiguous(),
        bias=scaled_total.to(bias.dtype).contiguous(),
        gain=like.gain if gain is None else ((weight * product).sum(-1) + bias * total).to(gain.dtype).contiguous(),
        shift=like.shift if shift is None else total.to(shift.dtype, copy=True),
    )


def _backward_reference(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor | None,
    shift: Tensor | None,
    fast: bool,
    with_x: bool,
    with_parameters: bool,
) -> Gradients:
    parameters = Parameters(weight, bias, gain, shift)
    found = _backward_fake(grad, x, weight, bias, gain, shift, fast, False, False)
    compute = _accumulated(grad.dtype)
    folded, offset = _folded(parameters, x.shape[0], compute)
    wide = x.to(compute)
    slope = torch.cos(torch.baddbmm(offset[:, None], wide, folded.transpose(1, 2))) * grad.to(compute)
    if with_x:
        found = found._replace(x=torch.bmm(slope, folded).to(x.dtype))
    if with_parameters:
        found = of_parameters(torch.bmm(slope.transpose(1, 2), wide), slope.sum(1), parameters, found)
    return found


def _backward_kernel(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor | None,
    shift: Tensor | None,
    fast: bool,
    with_x: bool,
    with_parameters: bool,
) -> Gradients:
    parameters = Parameters(weight, bias, gain, shift)
    found = _backward_fake(grad, x, weight, bias, gain, shift, fast, with_x, with_parameters)
    if grad.numel() == 0:
        return Gradients(*(g.zero_() for g in found))
    if x.shape[0] > IMAGES_MAX:
        parts = _parts((grad, x), weight, bias, gain, shift)
        each = [_backward_kernel(g, p, *layer, fast, with_x, with_parameters) for (g, p), layer in parts]
        return _joined(each, weight.dim() == 2)
    if x.shape[2] <= POINT_WIDTH:
        return _points_backward(grad.contiguous(), x, parameters, found, with_x, with_parameters)
    dtype, sizes, shared = grad.dtype, _sizes(x, weight), weight.dim() == 2
    batch, _, width_in, width_out = sizes
    module, layer = kernels.module_for(x.device), _launched(parameters)
    workspace = _workspace(x, module.film_siren_backward_workspace(batch, width_in, width_out, shared))
    inputs = x.to(dtype).contiguous()
    slope = torch.empty_like(
        grad,
        dtype=torch.bfloat16 if fast and dtype == torch.float32 else dtype,
        memory_format=torch.contiguous_format,
    )
    tensors = (inputs, grad.contiguous(), *layer, workspace, slope)
    kernels.launch("film_siren_slope", dtype, fast, *tensors, *sizes, shared)
    if with_x:
        dx = torch.empty_like(inputs, dtype=dtype)
        tensors = (slope, layer[0], layer[2], workspace, dx)
        kernels.launch("film_siren_input_gradient", dtype, fast, *tensors, *sizes, shared)
        found = found._replace(x=dx.to(x.dtype))
    if with_parameters:
        found = of_parameters(*sums_over_samples(slope, inputs), parameters, found)
    return found


def sums_over_samples(slope: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """G = slopeᵀ x [B, out, in] and s = Σ slope [B, out] of each image's N samples, in float32.

    Args:
        slope: [B, N, out], contiguous; N ≥ 1.
        x: [B, N, in], contiguous, of the same dtype, or of any where that of the slope is bfloat16.
    """
    images, rows, width_out = slope.shape
    if images > IMAGES_MAX:
        pairs = zip(slope.split(IMAGES_MAX), x.split(IMAGES_MAX), strict=True)
        products, totals = zip(*(sums_over_samples(*pair) for pair in pairs), strict=True)
        return torch.cat(products), torch.cat(totals)
    sizes = (images, rows, x.shape[2], width_out)
    parts = kernels.module_for(x.device).film_siren_weight_gradient_parts(x.device.index or 0, *sizes)
    product, total = _partial(x, parts, width_out)
    kernels.launch("film_siren_weight_gradient", slope.dtype, x.dtype, slope, x, product, total, *sizes, parts)
    return product.sum(0), total.sum(0)


def _joined(parts: Sequence[Gradients], shared: bool) -> Gradients:
    """The gradients of all images from those of parts of them, which may share the weights."""
    x, weight, bias, gain, shift = zip(*parts, strict=True)
    if shared:
        return Gradients(
            torch.cat(x), torch.stack(weight).sum(0), torch.stack(bias).sum(0), torch.cat(gain), torch.cat(shift)
        )
    return Gradients(torch.cat(x), torch.cat(weight), torch.cat(bias), torch.cat(gain), torch.cat(shift))


def _points_backward(
    grad: Tensor, x: Tensor, parameters: Parameters, found: Gradients, with_x: bool, with_parameters: bool
) -> Gradients:
    sizes = _sizes(x, parameters.weight)
    batch, rows, _, width_out = sizes
    module, points = kernels.module_for(x.device), x.float().contiguous()
    parts = module.film_siren_points_parts(x.device.index or 0, batch, rows, width_out)
    dx = points.new_empty(module.film_siren_points_tiles(width_out), *x.shape) if with_x else None
    product, total = _partial(x, parts, width_out) if with_parameters else (None, None)
    tensors = (points, grad, *_launched(parameters), dx, product, total)
    kernels.launch("film_siren_points_backward", grad.dtype, *tensors, *sizes, parts, parameters.weight.dim() == 2)
    if dx is not None:
        found = found._replace(x=(dx[0] if dx.shape[0] == 1 else dx.sum(0)).to(x.dtype))
    if product is not None and total is not None:
        found = of_parameters(product.sum(0), total.sum(0), parameters, found)
    return found


def _partial(x: Tensor, parts: int, width_out: int) -> tuple[Tensor, Tensor]:
    """Room for G and s of parts of an image's samples. They are added up in order, so that every run gives the same."""
    product = x.new_empty(parts, x.shape[0], width_out, x.shape[2], dtype=torch.float32)
    return product, product.new_empty(product.shape[:3])


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor | None,
    shift: Tensor | None,
    fast: bool,
    with_x: bool,
    with_parameters: bool,
) -> Gradients:
    def like(tensor: Tensor | None, wanted: bool) -> Tensor:
        return tensor.new_empty(tensor.shape) if wanted and tensor is not None else x.new_empty(0)

    of_x = x.new_empty(x.shape if with_x else 0)
    return Gradients(of_x, *(like(tensor, with_parameters) for tensor in (weight, bias, gain, shift)))


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
    *tensors, _, ctx.with_x, ctx.with_parameters = inputs
    ctx.save_for_backward(*tensors)


def _backward_gradients(ctx: Any, *output_gradients: Tensor) -> tuple[Any, ...]:
    """The gradients of the gradients, by autograd on the reference."""
    tensors = ctx.saved_tensors
    wanted = (ctx.with_x, *(ctx.with_parameters and t is not None for t in tensors[2:]))

    def reference(*inputs: Any) -> tuple[Tensor, ...]:
        grad, x, weight, bias, gain, shift = inputs
        found = _backward_reference(grad, x, weight, bias, gain, shift, False, ctx.with_x, ctx.with_parameters)
        return tuple(g for g, w in zip(found, wanted, strict=True) if w)

    given = [g for g, w in zip(output_gradients, wanted, strict=True) if w]
    with_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        found = differentiate_reference(reference, tensors, ctx.needs_input_grad[: len(tensors)], given)
    return *(g if g is None or with_graph else g.detach() for g in found), None, None, None


_BACKWARD = define(
    "film_siren_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? gain, Tensor? shift, bool fast,"
    " bool with_x, bool with_parameters) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=_backward_fake,
    setup_context=_backward_setup,
    backward=_backward_gradients,
)
_FORWARD = define(
    "film_siren(Tensor x, Tensor weight, Tensor bias, Tensor? gain, Tensor? shift, ScalarType dtype, bool fast)"
    " -> Tensor",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_gradients,
)
