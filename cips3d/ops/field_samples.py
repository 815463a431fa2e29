"""Gradients of radiance fields whose weights stream past their samples.

One kernel evaluates the field at the samples of rays and keeps every layer's inputs and the cosines of its phases.
Behind the compositing another one goes from the colours back to the first layer and leaves the gradients of all phases.
Those of the parameters are sums over samples of both.

With operands of 16 bits, inputs and cosines are float16, and gradients bfloat16 in a deep field, where they may have
any magnitude, or scaled float16 in a shallow one. Otherwise all are float32, and their products those of two parts of
16 bits each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cips3d.ops import kernels
from cips3d.ops.film_siren_op import Gradients, Parameters, of_parameters, sums_over_samples
from cips3d.ops.gradient_scales import gradient_scales
from cips3d.ops.layer_by_layer import through_compositing
from cips3d.ops.library import OPS
from cips3d.ops.siren_field import through_ball
from cips3d.ops.stratified import ray_points

STRIP = 64  # channels; kernels fill widths up to whole ones
ALIGNED = 8  # 16-bit numbers that are moved at a time
LARGEST_HALF = torch.finfo(torch.float16).max


class StreamedField(NamedTuple):
    """L sine layers of W channels and a colour layer of C, for B images.

    With a head, as `DeepSirenField`: layers are shared by the images, which have gains and shifts of their own, and the
    colour layer sees the direction. Without, as `SirenField`: the images have layers of their own, I = B.

    Attributes:
        first: weight [W, 3] or [I, W, 3], bias [W] or [I, W], gain and shift [B, W] or None.
        hidden: layers 2 to L: weight [L - 1, W, W] or [I, L - 1, W, W], bias [L - 1, W] or [I, L - 1, W], gain and
            shift [B, L - 1, W] or None.
        density_weight: [W].
        density_bias: [1].
        color: weight [C, 3 + W] or [I, C, W], bias [C] or [I, C], gain and shift [B, C] or None.
        head_weight: [3, C] or None.
        head_bias: [3] or None.
        trunk_gain: [B, L, W] those of `first` and `hidden`, or None.
        trunk_shift: [B, L, W], or None.
        ball_density, ball_radius: see `SirenField`.
    """

    first: Parameters
    hidden: Parameters
    density_weight: Tensor
    density_bias: Tensor
    color: Parameters
    head_weight: Tensor | None = None
    head_bias: Tensor | None = None
    trunk_gain: Tensor | None = None
    trunk_shift: Tensor | None = None
    ball_density: float = 0.0
    ball_radius: float = 0.0

    def sizes(self) -> tuple[int, int, int]:
        """L, W, C."""
        return self.hidden.weight.shape[-3] + 1, self.first.weight.shape[-2], self.color.weight.shape[-2]


class FieldGradients(NamedTuple):
    """Those of the tensors of a `StreamedField`, of the samples' points [B, N, 3] and of rays' directions [B, R, 3].

    The last two are empty where not wanted, the directions' without a head too. They are those that the colour layer
    sees: that points move with a direction is not in them.
    """

    first: Gradients
    hidden: list[Gradients]
    density_weight: Tensor
    density_bias: Tensor
    color: Gradients
    head_weight: Tensor | None
    head_bias: Tensor | None
    points: Tensor
    directions: Tensor


class _Scales(NamedTuple):
    """What gradients are multiplied by on their way through the kernel, and divided by behind it; None: nothing.

    Attributes:
        both: [2], by `GradientScale` of the kernel.
        colors: [] of the gradients of the colour layer's phases.
        all: [] of all the others.
    """

    both: Tensor | None = None
    colors: Tensor | None = None
    all: Tensor | None = None


def _unscaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x / scale


class _Records(NamedTuple):
    """What is kept of N samples of B images; channels in whole strips.

    Attributes:
        inputs: [L, B, N, W] of layers 2 to L and of the colour layer.
        slopes: [L, B, N, W] cosines of the phases of layers 2 to L; the first layer has room for its gradients.
        color_slopes: [B, N, C] those of the colour layer.
        activations: [B, N, C] of the colour layer.
        density: [B, N] raw.
        colors: [B, N, 3], or [B, N, C] without a head.
    """

    inputs: Tensor
    slopes: Tensor
    color_slopes: Tensor
    activations: Tensor
    density: Tensor
    colors: Tensor


def field_gradients(
    field: StreamedField,
    origins: Tensor,
    directions: Tensor,
    depths: Tensor,
    noise: Tensor | None,
    *of_seen: Tensor | None,
    activation: str,
    last_back: bool,
    fast: bool,
    with_rays: bool,
) -> FieldGradients:
    """Gradients through the compositing of samples [B, R, S] at given depths.

    Args:
        field: contiguous float32, like all tensors here.
        origins, directions: [B, R, 3].
        depths, noise: [B, R, S], see `composite`.
        of_seen: gradients of colours, opacity, depth and weights; None: 0.
        activation, last_back: see `composite`.
        fast: with operands of 16 bits.
        with_rays: whether points and directions have gradients.
    """
    records = _record(field, origins, directions, depths, fast)
    of_density, of_colors = through_compositing(
        records.density.view(depths.shape),
        records.colors.view(*depths.shape, -1),
        depths,
        noise,
        *of_seen,
        activation=activation,
        last_back=last_back,
    )
    of_density, of_colors = of_density.flatten(1), of_colors.flatten(1, 2)
    if field.head_weight is not None:
        of_colors = of_colors * records.colors * (1 - records.colors)
    scales = _Scales()
    if _phase_type(field, fast) == torch.float16:
        both = gradient_scales(depths, *of_seen)  # type: ignore[arg-type]
        scales = _Scales(both, *both.unbind())
    of_first, records = _differentiate(field, records, of_density, of_colors, scales, fast)
    points = ray_points(origins, directions, depths).flatten(1, 2)
    found = OPS["film_siren_backward"](of_first, points, *field.first, fast, with_rays, True)
    first = Gradients(*(_unscaled(gradient, scales.all) for gradient in found))
    of_points = first.x
    if with_rays and field.ball_radius:
        of_points = of_points + through_ball(of_density, points, field.ball_density, field.ball_radius)
    of_color, of_directions = _of_color_layer(field, records, directions, scales, with_rays)
    return FieldGradients(
        first=first,
        hidden=_of_hidden_layers(field, records, scales),
        density_weight=_of_density_weight(field, records, of_density, scales),
        density_bias=of_density.sum().view(1),
        color=of_color,
        head_weight=None if field.head_weight is None else _of_head_weight(field, records, of_colors),
        head_bias=None if field.head_bias is None else of_colors.sum((0, 1)),
        points=of_points,
        directions=of_directions,
    )


def _whole_strips(channels: int) -> int:
    return -(-channels // STRIP) * STRIP


def _phase_type(field: StreamedField, fast: bool) -> torch.dtype:
    """Of the gradients of phases."""
    if not fast:
        return torch.float32
    return torch.float16 if field.head_weight is None else torch.bfloat16


def _record(field: StreamedField, origins: Tensor, directions: Tensor, depths: Tensor, fast: bool) -> _Records:
    images, rays, samples = depths.shape
    layers, width, color = field.sizes()
    has_head, count = field.head_weight is not None, rays * samples
    wide, wide_color = _whole_strips(width), _whole_strips(color)

    def empty(*shape: int, dtype: torch.dtype = torch.float16 if fast else torch.float32) -> Tensor:
        return depths.new_empty(shape, dtype=dtype)

    records = _Records(
        inputs=empty(layers, images, count, wide),
        slopes=empty(layers, images, count, wide),
        color_slopes=empty(images, count, wide_color),
        activations=empty(images, count, wide_color),
        density=empty(images, count, dtype=torch.float32),
        colors=empty(images, count, 3 if has_head else 0, dtype=torch.float32),
    )
    size = kernels.module_for(depths.device).field_samples_workspace(images, layers, width, color, has_head, not fast)
    tensors = (
        *(origins, directions, depths),
        *(field.first.weight, field.first.bias, field.hidden.weight, field.hidden.bias),
        *(field.trunk_gain, field.trunk_shift, field.density_weight, field.density_bias),
        *(*field.color, field.head_weight, field.head_bias),
    )
    kernels.launch(
        "field_samples",
        *_contiguous(*tensors),
        empty(size, dtype=torch.uint8),
        *records[:5],
        records.colors if has_head else None,
        *(images, rays, samples, layers, width, color),
        *(field.ball_density, field.ball_radius, not fast),
    )
    return records if has_head else records._replace(colors=records.activations[..., :color].float())


def _differentiate(
    field: StreamedField, records: _Records, of_density: Tensor, of_colors: Tensor, scales: _Scales, fast: bool
) -> tuple[Tensor, _Records]:
    """Gradients [B, N, W] of the first layer's outputs, and in place of the slopes those of the phases."""
    images, count = of_density.shape
    layers, width, color = field.sizes()
    has_head = field.head_weight is not None
    dtype = _phase_type(field, fast)
    module = kernels.module_for(of_density.device)
    size = module.field_samples_backward_workspace(images, layers, width, color, has_head, not fast)
    tensors = (
        *(of_density, of_colors, field.hidden.weight, field.trunk_gain, field.density_weight),
        *(field.color.weight, field.color.gain, field.head_weight, scales.both),
    )
    kernels.launch(
        "field_samples_backward",
        *_contiguous(*tensors),
        of_density.new_empty(size, dtype=torch.uint8),
        *(records.slopes, records.color_slopes),
        *(images, count, layers, width, color, not fast),
    )
    slopes, color_slopes = records.slopes.view(dtype), records.color_slopes.view(dtype)
    return slopes[0, ..., :width], records._replace(slopes=slopes, color_slopes=color_slopes)


def _contiguous(*tensors: Tensor | None) -> Iterator[Tensor | None]:
    return (None if x is None else x.contiguous() for x in tensors)


def _none(like: Tensor) -> Gradients:
    return Gradients(*(like.new_empty(0) for _ in Gradients._fields))


def _of_hidden_layers(field: StreamedField, records: _Records, scales: _Scales) -> list[Gradients]:
    """The gradients of all hidden layers' parameters: their sums over samples are one launch."""
    layers, width, _ = field.sizes()
    images, count, wide = records.inputs.shape[1:]
    slopes, inputs = (x.view(-1, count, wide) for x in (records.slopes[1:], records.inputs[:-1]))
    product, total = sums_over_samples(slopes, inputs)
    product = _unscaled(product.view(layers - 1, images, wide, wide)[..., :width, :width], scales.all)
    total = _unscaled(total.view(layers - 1, images, wide)[..., :width], scales.all)
    along = (field.hidden.weight.dim() - 3, field.hidden.bias.dim() - 2, 1, 1)  # of the parameters' layers
    found = []
    for k in range(layers - 1):
        layer = [None if p is None else p.select(dim, k) for p, dim in zip(field.hidden, along, strict=True)]
        found.append(of_parameters(product[k], total[k], Parameters(*layer), _none(total)))  # type: ignore[arg-type]
    return found


def _of_color_layer(
    field: StreamedField, records: _Records, directions: Tensor, scales: _Scales, with_rays: bool
) -> tuple[Gradients, Tensor]:
    """The gradients of its parameters, and of the rays' directions where it sees them."""
    _, width, color = field.sizes()
    slopes = records.color_slopes
    product, total = sums_over_samples(slopes, records.inputs[-1])
    product, total = (_unscaled(x, scales.colors) for x in (product[:, :color, :width], total[:, :color]))
    of_directions = directions.new_empty(0)
    if field.head_weight is not None:
        count = slopes.shape[1] // directions.shape[1]
        of_seen, _ = sums_over_samples(
            slopes, _columns(directions, records.inputs.dtype).repeat_interleave(count, dim=1)
        )
        product = torch.cat([of_seen[:, :color, :3], product], -1)
        if with_rays:
            gain = field.color.gain
            assert gain is not None
            of_rays = slopes[..., :color].unflatten(1, (-1, count)).sum(2, dtype=torch.float32)
            seeing = gain[:, :, None] * field.color.weight[:, :3]
            of_directions = (of_rays[..., None] * seeing[:, None]).sum(2)  # no matrix product, which might be TF32's
    return of_parameters(product, total, field.color, _none(total)), of_directions


def _of_density_weight(field: StreamedField, records: _Records, of_density: Tensor, scales: _Scales) -> Tensor:
    """[W]."""
    column = of_density if scales.all is None else (of_density * scales.all).clamp(-LARGEST_HALF, LARGEST_HALF)
    product, _ = sums_over_samples(_columns(column[..., None], records.slopes.dtype), records.inputs[-1])
    return _unscaled(product[:, 0, : field.sizes()[1]].sum(0), scales.all)


def _of_head_weight(field: StreamedField, records: _Records, of_colors: Tensor) -> Tensor:
    """[3, C]."""
    product, _ = sums_over_samples(_columns(of_colors, records.slopes.dtype), records.activations)
    return product[:, :3, : field.sizes()[2]].sum(0)


def _columns(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Few columns [B, N, any] as many as are moved at a time."""
    return functional.pad(x.to(dtype), (0, ALIGNED - x.shape[-1]))
