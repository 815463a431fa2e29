"""The gradients of `render_rays` through a shallow field, from the depths, transmittances and weights it has left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cips3d.ops import kernels
from cips3d.ops.field_samples import FieldGradients, StreamedField, field_gradients
from cips3d.ops.film_siren_op import Parameters, sine
from cips3d.ops.gradient_scales import gradient_scales
from cips3d.ops.layer_by_layer import rays_at_a_time, through_compositing
from cips3d.ops.library import OPS, define
from cips3d.ops.ray_tensors import require_float32
from cips3d.ops.siren_field import LAYER_NAMES, LAYER_SCHEMA, LAYERS, SirenField, field_of, is_wide, through_ball
from cips3d.ops.stratified import ray_points

RAYS_A_BLOCK = 64  # of the kernel, at a time
MOST_ROUNDS, WELL_FILLED = 4, 0.96  # of blocks
TENSOR_NAMES = (  # of the op
    "origins",
    "directions",
    "depths",
    "transmittance",
    "weights",
    "noise",
    "grad_colors",
    "grad_opacity",
    "grad_depth",
    "grad_weights",
    *LAYER_NAMES,
)
TENSORS = len(TENSOR_NAMES)


class _OfRays(NamedTuple):
    """Gradients of the op's layers, and of the points [B, R, S, 3] or of none."""

    layers: tuple[Tensor, ...]
    points: Tensor


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    origins, with_rays = arguments[0], arguments[-1]
    layers = arguments[10:TENSORS]
    of_rays = [origins.new_empty(origins.shape if with_rays else 0) for _ in range(2)]
    return *(x.new_empty(x.shape) for x in layers), *of_rays


def _kernel(*arguments: Any) -> tuple[Tensor, ...]:
    tensors: list[Any] = [None if x is None else x.contiguous() for x in arguments[:TENSORS]]
    ball_density, ball_radius, activation, last_back, fast, with_rays = arguments[TENSORS:]
    require_float32(**dict(zip(TENSOR_NAMES, tensors, strict=True)))
    origins, _, depths = tensors[:3]
    layers = tensors[10:]
    *outputs, of_origins, of_directions = _fake(*arguments)
    images, rays, samples = depths.shape
    if images * rays == 0:
        return *(x.zero_() for x in outputs), of_origins, of_directions
    color, width = layers[6].shape[1:]
    module = kernels.module_for(origins.device)
    if is_wide(width, color) or not module.render_rays_backward_fits(origins.device.index or 0, not fast):
        return _some_rays_at_a_time(_of_rays_with_kernels, *arguments)
    size = module.render_rays_gradient_size(width, color)
    blocks = _blocks(kernels.multiprocessors(origins.device), images, rays)
    partial_sums = origins.new_empty(images, blocks, module.render_rays_block_floats())
    sums = origins.new_empty(images, size)
    scales = gradient_scales(depths, *tensors[6:10])
    kernels.launch(
        "render_rays_backward",
        *tensors[:6],
        _in_pairs(tensors[6]),
        *tensors[7:10],
        scales,
        *layers,
        partial_sums,
        sums,
        *((of_origins, of_directions) if with_rays else (None, None)),
        images,
        rays,
        samples,
        width,
        color,
        ball_density,
        ball_radius,
        blocks,
        activation == "softplus",
        last_back,
        not fast,
    )
    return *_from_sums(sums, layers), of_origins, of_directions


def _blocks(multiprocessors: int, images: int, rays: int) -> int:
    """Blocks of the kernel an image: a block stays with one, whose sums it keeps.

    All blocks run in rounds, one on every multiprocessor. As few rounds as leave hardly a multiprocessor idle.
    """

    def busy(blocks: int) -> float:
        return images * blocks / (multiprocessors * math.ceil(images * blocks / multiprocessors))

    several = [max(1, rounds * multiprocessors // images) for rounds in range(1, MOST_ROUNDS + 1)]
    fullest = max(several, key=lambda blocks: min(busy(blocks), WELL_FILLED))  # the first of equals
    return min(fullest, -(-rays // RAYS_A_BLOCK))


def _in_pairs(of_colors: Tensor) -> Tensor:
    """Gradients of colours as the kernel reads them: an even number of channels, the last one 0, aligned to 8 bytes."""
    if of_colors.shape[-1] % 2:
        return functional.pad(of_colors, (0, 1))
    return of_colors.clone() if of_colors.data_ptr() % 8 else of_colors


# Where the kernel puts the sums of each of the op's layers (`GradientLayout` in csrc/layer_sums.h).
PLACES = (6, 7, 0, 1, 4, 5, 2, 3)


def _from_sums(sums: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the layers, in the op's order."""
    shared = [layer.dim() == 1 for layer in layers]  # the density's, one for all images
    sizes = [layer.numel() if one else layer[0].numel() for layer, one in zip(layers, shared, strict=True)]
    in_kernel_order = sums.split([sizes[PLACES.index(place)] for place in range(LAYERS)], dim=1)
    parts = (in_kernel_order[place] for place in PLACES)
    return [
        part.sum(0) if one else part.reshape(layer.shape).contiguous()
        for part, layer, one in zip(parts, layers, shared, strict=True)
    ]


# Where the weights stream, whose kernels are those of `field_samples`, and without kernels.


def _reference(*arguments: Any) -> tuple[Tensor, ...]:
    return _some_rays_at_a_time(_of_rays, *arguments)


def _some_rays_at_a_time(of_rays: Callable[..., _OfRays], *arguments: Any) -> tuple[Tensor, ...]:
    origins, directions, depths, _, _, noise = arguments[:6]
    grads = arguments[6:10]
    ball_density, ball_radius, activation, last_back, fast, with_rays = arguments[TENSORS:]
    field = field_of(arguments[10:TENSORS], ball_density, ball_radius)
    images, rays, _ = depths.shape
    total = [x.new_zeros(x.shape) for x in arguments[10:TENSORS]]
    of_origins, of_directions = (x.new_zeros(x.shape if with_rays else 0) for x in (origins, directions))
    step = rays_at_a_time(depths, 3)
    for start in range(0, rays if images > 0 else 0, step):
        some = slice(start, start + step)
        tensors = (origins, directions, depths, noise, *grads)
        found, of_points = of_rays(
            *(None if x is None else x[:, some].contiguous() for x in tensors),
            field,
            activation,
            last_back,
            fast,
            with_rays,
        )
        for sum_so_far, part in zip(total, found, strict=True):
            sum_so_far += part
        if with_rays:
            of_origins[:, some] = of_points.sum(2)
            of_directions[:, some] = (of_points * depths[:, some, :, None]).sum(2)
    return *total, of_origins, of_directions


def _streamed(field: SirenField) -> StreamedField:
    first, second, color = (Parameters(*layer, None, None) for layer in (field.first, field.second, field.color))
    return StreamedField(
        first=first,
        hidden=second._replace(weight=second.weight[:, None], bias=second.bias[:, None]),
        density_weight=field.density_weight,
        density_bias=field.density_bias,
        color=color,
        ball_density=field.ball_density,
        ball_radius=field.ball_radius,
    )


def _of_layers(found: FieldGradients) -> tuple[Tensor, ...]:
    """In the op's order."""
    (second,), of_density = found.hidden, (found.density_weight, found.density_bias)
    return *found.first[1:3], *second[1:3], *of_density, *found.color[1:3]


def _of_rays_with_kernels(*arguments: Any) -> _OfRays:
    depths, (field, activation, last_back, fast, with_rays) = arguments[2], arguments[8:]
    seen = field_gradients(
        _streamed(field), *arguments[:8], activation=activation, last_back=last_back, fast=fast, with_rays=with_rays
    )
    return _OfRays(_of_layers(seen), seen.points.view(*depths.shape, 3) if with_rays else seen.points)


def _of_rays(*arguments: Any) -> _OfRays:
    origins, directions, depths, noise, *of_seen = arguments[:8]
    field, activation, last_back, _, with_rays = arguments[8:]
    points = ray_points(origins, directions, depths).flatten(1, 2)
    first, second, color = (
        Parameters(layer.weight, layer.bias, None, None) for layer in (field.first, field.second, field.color)
    )
    h1 = sine(points, first, points.dtype, fast=False)
    h2 = sine(h1, second, points.dtype, fast=False)
    colors = sine(h2, color, points.dtype, fast=False)
    density = (h2 @ field.density_weight + field.density_bias).view(depths.shape)
    if field.ball_radius:
        density = density + field.ball_density * (1 - points.norm(dim=-1).view(depths.shape) / field.ball_radius)
    of_density, of_colors = through_compositing(
        density, colors.view(*depths.shape, -1), depths, noise, *of_seen, activation=activation, last_back=last_back
    )
    of_density = of_density.flatten(1)[..., None]

    def through(grad: Tensor, x: Tensor, layer: Parameters, with_input: bool) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = OPS["film_siren_backward"](grad, x, *layer, False, with_input, True)
        return found[:3]

    of_h2, *of_color = through(of_colors.flatten(1, 2), h2, color, True)
    of_h2 = torch.addcmul(of_h2, of_density, field.density_weight)
    of_h1, *of_second = through(of_h2, h1, second, True)
    of_points, *of_first = through(of_h1, points, first, with_rays)
    of_weight = h2.flatten(0, 1).mT.mv(of_density.flatten())
    of_layers = (*of_first, *of_second, of_weight, of_density.sum().view(1), *of_color)
    if not with_rays:
        return _OfRays(of_layers, of_points)
    if field.ball_radius:
        of_points = of_points + through_ball(of_density[..., 0], points, field.ball_density, field.ball_radius)
    return _OfRays(of_layers, of_points.view(*depths.shape, 3))


BACKWARD = define(
    "render_rays_backward(Tensor origins, Tensor directions, Tensor depths, Tensor transmittance, Tensor weights, "
    "Tensor? noise, Tensor grad_colors, Tensor? grad_opacity, Tensor? grad_depth, Tensor? grad_weights, "
    f"{LAYER_SCHEMA}, str activation, bool last_back, bool fast, bool with_rays)"
    f" -> ({', '.join(['Tensor'] * (LAYERS + 2))})",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
)
