"""The NeRF branch in one operation: rays, folded sine layers and random draws in, composited colours out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops import render_deep_rays as deep
from cips3d.ops.checks import check_shape
from cips3d.ops.composite import DensityActivation
from cips3d.ops.composite_reference import composite_backward_reference, light_in_front
from cips3d.ops.deep_field import DeepSirenField, evaluate_deep_field
from cips3d.ops.film_siren import FoldedLayer, siren_field
from cips3d.ops.library import define
from cips3d.ops.march import Field, RayDraws, RenderedRays, check_draws, march_rays, warn_composed
from cips3d.ops.precision import Precision, is_fast
from cips3d.ops.ray_tensors import kernels_take
from cips3d.ops.second_order import differentiate_outputs
from cips3d.ops.stratified import ray_points

WIDTH_MAX, COLOR_MAX = 128, 64  # what the kernel has room for
SAMPLES_MAX = 96  # coarse and fine together
RAYS_A_BLOCK = 64  # of the backward, at a time
SCALE_EXPONENT = (
    4  # the largest gradient of a colour becomes 8 to 16: 12 bits below float16's largest, 20 above its least
)


class SirenField(NamedTuple):
    """A radiance field: h1 = sin(W1 p + b1), h2 = sin(W2 h1 + b2), σ = v · h2 + c + ball, colour = sin(Wc h2 + bc).

    ball = ball_density · (1 - |p| / ball_radius), a sphere around the origin; radius 0: none.
    """

    first: FoldedLayer  # [B, W, 3], [B, W]
    second: FoldedLayer  # [B, W, W], [B, W]
    color: FoldedLayer  # [B, C, W], [B, C]
    density_weight: Tensor  # [W]
    density_bias: Tensor  # [1]
    ball_density: float = 0.0
    ball_radius: float = 0.0


@torch.compiler.assume_constant_result
def _fits(device: torch.device, coarse: int, fine: int, fast: bool, with_gradients: bool) -> bool:
    """Whether a device's shared memory has room for the kernels."""
    module, index = kernels.module_for(device), device.index or 0
    fits: bool = module.render_rays_fits(index, coarse, fine, not fast)
    return fits and (not with_gradients or module.render_rays_backward_fits(index, not fast))


def why_not_fused(
    field: SirenField | DeepSirenField,
    draws: RayDraws,
    *,
    precision: Precision | None = None,
    with_gradients: bool,
) -> str | None:
    """Why `render_rays` does not compute these with one kernel, in a sentence; None if it does.

    Args:
        field, draws, precision: see `render_rays`; on a device that has kernels.
        with_gradients: the result will be differentiated.
    """
    coarse = draws.stratified.shape[2]
    fine = 0 if draws.importance is None else draws.importance.shape[2]
    samples, device, fast = coarse + fine, field.density_weight.device, is_fast(precision)
    if isinstance(field, DeepSirenField):
        width, color = field.trunk_bias.shape[1], field.color_bias.shape[0]
        width_max = color_max = deep.WIDTH_MAX
    else:
        width, color = field.second.weight.shape[1], field.color.weight.shape[1]
        width_max, color_max = WIDTH_MAX, COLOR_MAX
    if width > width_max or color > color_max:
        return f"the fused kernel has room for widths up to {width_max} and {color_max}, not for {width} and {color}"
    if samples > SAMPLES_MAX:
        return f"the fused kernel has room for {SAMPLES_MAX} samples a ray, not for {samples}"
    if isinstance(field, DeepSirenField):
        fits, with_gradients = deep.deep_kernel_fits(device, coarse, fine, fast), False
    else:
        fits = _fits(device, coarse, fine, fast, with_gradients)
    if not fits:
        kind = f"{'16-bit' if fast else 'accurate'} fused kernel{'s with gradients' if with_gradients else ''}"
        return f"the shared memory of {device} has no room for the {kind}"
    return None


def render_rays(
    origins: Tensor,
    directions: Tensor,
    field: SirenField | DeepSirenField,
    draws: RayDraws,
    t_near: float,
    t_far: float,
    *,
    activation: DensityActivation = "relu",
    last_back: bool = False,
    precision: Precision | None = None,
) -> RenderedRays:
    """`march_rays` through a field of sine layers, without anything a sample in device memory.

    Kernels keep samples, depths, densities and colours on the chip. The backward computes the field anew: of a shallow
    field on the chip too, of a deep one op by op, for a bounded number of samples at a time. Plain PyTorch, and kernels
    where `why_not_fused` says why, go through the same computation op by op.

    Args:
        origins, directions: [B, R, 3].
        field: `SirenField`, folded for B images, or `DeepSirenField`; its colours are composited as they are.
        draws: `RayDraws`; without fine samples, `importance` is None.
        t_near, t_far: range of depths in scene units.
        activation, last_back: see `composite`.
        precision: `Precision` of the kernels' products, or None for PyTorch's setting. Relative errors at initial
            weights are about 1e-6 with "highest" and "high"; with "fast" 5e-4 in colours and gradients, more in a
            deep field.

    Returns:
        `RenderedRays`.

    Raises:
        ValueError: a shape does not fit; the argument is named.

    Source: CIPS-3D (arXiv 2110.09788), section 3.1; pi-GAN (arXiv 2012.00926), section 3.1; NeRF (arXiv 2003.08934),
    section 5.
    """
    fast = is_fast(precision)
    if isinstance(field, DeepSirenField):
        deep.check_deep_rays(origins, directions, field, draws, activation)
        tensors: tuple[Tensor | None, ...] = (origins, directions, *draws, *field)
        evaluate: Field = partial(evaluate_deep_field, field, directions, precision=precision)
    else:
        check_render_rays(origins, directions, field, draws, activation)
        tensors = (origins, directions, *draws, *_tensors(field))
        evaluate = partial(evaluate_field, field, precision=precision)
    if kernels_take(origins, *tensors[1:]):
        differentiated = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
        reason = why_not_fused(field, draws, precision=precision, with_gradients=differentiated)
        if reason is None:
            settings = (t_near, t_far, activation, last_back, fast)
            if isinstance(field, DeepSirenField):
                return deep.render_deep_rays(origins, directions, field, draws, *settings)
            return RenderedRays(*_OP(*tensors, field.ball_density, field.ball_radius, *settings)[:5])
        warn_composed(reason)
    seen, depths = march_rays(
        *(evaluate, origins, directions, draws, t_near, t_far), activation=activation, last_back=last_back
    )
    return RenderedRays(seen.features, seen.opacity, seen.depth, seen.weights, depths)


def evaluate_field(field: SirenField, points: Tensor, *, precision: Precision | None = None) -> tuple[Tensor, Tensor]:
    """Raw density [B, N] and colour activations [B, N, C] at points [B, N, 3]; precision as in `render_rays`."""
    trunk, density_layer = (field.first, field.second), (field.density_weight, field.density_bias)
    with torch.autocast(points.device.type, enabled=False):  # is for layers without sines
        density, colors = siren_field(points, trunk, field.color, *density_layer, precision=precision)
    if field.ball_radius:
        density = density + field.ball_density * (1 - points.norm(dim=-1) / field.ball_radius)
    return density, colors


def check_render_rays(origins: Tensor, directions: Tensor, field: SirenField, draws: RayDraws, activation: str) -> int:
    """Raise ValueError, naming the argument, unless these fit together; returns the samples a ray."""
    samples = check_draws(origins, directions, draws, activation)
    batch = origins.shape[0]
    _, width, _ = check_shape("field.first.weight", field.first.weight, (batch, None, 3))
    check_shape("field.first.bias", field.first.bias, (batch, width))
    check_shape("field.second.weight", field.second.weight, (batch, width, width))
    check_shape("field.second.bias", field.second.bias, (batch, width))
    _, color, _ = check_shape("field.color.weight", field.color.weight, (batch, None, width))
    check_shape("field.color.bias", field.color.bias, (batch, color))
    check_shape("field.density_weight", field.density_weight, (width,))
    check_shape("field.density_bias", field.density_bias, (1,))
    return samples


def _tensors(field: SirenField) -> tuple[Tensor, ...]:
    """The field's tensors in the order of the registered op."""
    return (*field.first, *field.second, field.density_weight, field.density_bias, *field.color)


LAYERS = 8  # tensors of a field
INPUTS = 6 + LAYERS  # tensors of the op


def _unpack(tensors: tuple[Any, ...], ball: tuple[float, float]) -> tuple[Tensor, Tensor, RayDraws, SirenField]:
    """What the op's tensors are."""
    origins, directions, *others = tensors
    first_weight, first_bias, second_weight, second_bias, density_weight, density_bias, *color = others[4:]
    field = SirenField(
        FoldedLayer(first_weight, first_bias),
        FoldedLayer(second_weight, second_bias),
        FoldedLayer(*color),
        density_weight,
        density_bias,
        *ball,
    )
    return origins, directions, RayDraws(*others[:4]), field


# The registered op. Its last output, the transmittance in front of every sample, is for the backward.


def _reference(*arguments: Any) -> tuple[Tensor, ...]:
    ball_density, ball_radius, t_near, t_far, activation, last_back, _ = arguments[INPUTS:]
    origins, directions, draws, field = _unpack(arguments[:INPUTS], (ball_density, ball_radius))
    seen, depths = march_rays(
        partial(evaluate_field, field, precision="highest"),
        *(origins, directions, draws, t_near, t_far),
        activation=activation,
        last_back=last_back,
    )
    density, _ = evaluate_field(field, ray_points(origins, directions, depths).flatten(1, 2), precision="highest")
    noise = draws.coarse_noise if draws.importance is None else draws.merged_noise
    light = light_in_front(density.view(depths.shape), depths, noise, activation)
    return seen.features, seen.opacity, seen.depth, seen.weights, depths.clone(), light


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    *ball, _, _, activation, _, _ = arguments[INPUTS:]
    origins, directions, draws, field = _unpack(arguments[:INPUTS], (ball[0], ball[1]))
    samples = check_render_rays(origins, directions, field, draws, activation)
    rays = origins.shape[:2]
    return (
        origins.new_empty(*rays, field.color.weight.shape[1]),
        *(origins.new_empty(rays) for _ in range(2)),
        *(origins.new_empty(*rays, samples) for _ in range(3)),
    )


def _kernel(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, settings = arguments[:INPUTS], arguments[INPUTS:]
    outputs = _fake(*arguments)
    ball_density, ball_radius, t_near, t_far, activation, last_back, fast = settings
    origins, _, draws, field = _unpack(tensors, (ball_density, ball_radius))
    if origins.shape[0] * origins.shape[1] > 0:
        fine = 0 if draws.importance is None else draws.importance.shape[2]
        kernels.launch(
            "render_rays",
            *(None if x is None else x.contiguous() for x in tensors),
            *outputs,
            *(origins.shape[0], origins.shape[1], draws.stratified.shape[2], fine),
            *(*field.color.weight.shape[:0:-1], ball_density, ball_radius, t_near, t_far),
            *(activation == "softplus", last_back, not fast),
        )
    return outputs


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.settings = inputs[INPUTS:]
    _, _, _, weights, depths, transmittance = output
    ctx.save_for_backward(*inputs[:INPUTS], weights, depths, transmittance)
    ctx.set_materialize_grads(False)  # most outputs have no gradient


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, weights, depths, transmittance = ctx.saved_tensors
    needed = ctx.needs_input_grad[:INPUTS]
    none = (None,) * (len(ctx.needs_input_grad) - INPUTS)
    grad_colors, grad_opacity, grad_depth, grad_weights = grads[:4]
    if all(grad is None for grad in grads[:4]):
        return (None,) * len(ctx.needs_input_grad)
    if torch.is_grad_enabled():
        return *differentiate_outputs(_reference, inputs, needed, grads[:4], ctx.settings), *none
    ball_density, ball_radius, _, _, activation, last_back, fast = ctx.settings
    origins, directions, draws, field = _unpack(tuple(inputs), (ball_density, ball_radius))
    if grad_colors is None:
        grad_colors = origins.new_zeros(*origins.shape[:2], field.color.weight.shape[1])
    with_rays = needed[0] or needed[1]
    *of_layers, of_origins, of_directions = _BACKWARD(
        *(origins, directions, depths, transmittance, weights),
        draws.coarse_noise if draws.importance is None else draws.merged_noise,
        *(grad_colors, grad_opacity, grad_depth, grad_weights, *_tensors(field)),
        *(ball_density, ball_radius, activation, last_back, fast, with_rays),
    )
    gradients = (of_origins, of_directions, None, None, None, None, *of_layers)
    return *(grad if wanted else None for grad, wanted in zip(gradients, needed, strict=True)), *none


# Its gradients from the depths, transmittances and weights that the forward has left.

BACKWARD_TENSORS = 10 + LAYERS


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    origins, with_rays = arguments[0], arguments[-1]
    layers = arguments[10:BACKWARD_TENSORS]
    of_rays = [origins.new_empty(origins.shape if with_rays else 0) for _ in range(2)]
    return *(x.new_empty(x.shape) for x in layers), *of_rays


def _backward_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    tensors: list[Any] = [None if x is None else x.contiguous() for x in arguments[:BACKWARD_TENSORS]]
    ball_density, ball_radius, activation, last_back, fast, with_rays = arguments[BACKWARD_TENSORS:]
    origins, _, depths = tensors[:3]
    colors, layers = tensors[6], tensors[10:]
    *outputs, of_origins, of_directions = _backward_fake(*arguments)
    images, rays, samples = depths.shape
    if images * rays == 0:
        return *(x.zero_() for x in outputs), of_origins, of_directions
    color, width = layers[6].shape[1:]
    module = kernels.module_for(origins.device)
    size = module.render_rays_gradient_size(width, color)
    # A block stays with one image, whose sums it keeps.
    blocks = max(1, min(kernels.multiprocessors(origins.device) // images, -(-rays // RAYS_A_BLOCK)))
    partial_sums = origins.new_empty(images, blocks, size)
    sums = origins.new_empty(images, size)
    kernels.launch(
        "render_rays_backward",
        *(*tensors[:10], _scale(colors), *layers, partial_sums, sums),
        *((of_origins, of_directions) if with_rays else (None, None)),
        *(images, rays, samples, width, color, ball_density, ball_radius, blocks),
        *(activation == "softplus", last_back, not fast),
    )
    return *_from_sums(sums, layers), of_origins, of_directions


def _scale(grad_colors: Tensor) -> Tensor:
    """A power of two that brings the largest gradient of a colour near 2^SCALE_EXPONENT, [1] on the device."""
    _, exponent = torch.frexp(grad_colors.abs().amax())
    # Where all of them are 0 the exponent is 0, and so large a power as float32 cannot hold is never needed.
    return torch.ldexp(grad_colors.new_ones(1), (SCALE_EXPONENT - exponent).clamp(-100, 100))


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


def _backward_reference(*arguments: Any) -> tuple[Tensor, ...]:
    origins, directions, depths, _, _, noise = arguments[:6]
    grad_colors, grad_opacity, grad_depth, grad_weights = arguments[6:10]
    layers = arguments[10:BACKWARD_TENSORS]
    ball_density, ball_radius, activation, last_back, _, with_rays = arguments[BACKWARD_TENSORS:]
    *_, field = _unpack((origins, directions, *(None,) * 4, *layers), (ball_density, ball_radius))
    points = ray_points(origins, directions, depths).flatten(1, 2)
    first = torch.baddbmm(field.first.bias[:, None], points, field.first.weight.mT)
    h1 = first.sin()
    second = torch.baddbmm(field.second.bias[:, None], h1, field.second.weight.mT)
    h2 = second.sin()
    color = torch.baddbmm(field.color.bias[:, None], h2, field.color.weight.mT)
    density = (h2 @ field.density_weight + field.density_bias).view(depths.shape)
    norm = points.norm(dim=-1, keepdim=True)
    if ball_radius:
        density = density + ball_density * (1 - norm.view(depths.shape) / ball_radius)
    of_density, of_colors, *_ = composite_backward_reference(
        *(density, color.sin().view(*depths.shape, -1), depths, None, None, None, noise),
        *(grad_colors, grad_depth, grad_weights, None, grad_opacity),
        activation,
        *(last_back, False, True, True, False),
    )
    of_density = of_density.flatten(1)[..., None]
    of_color = of_colors.flatten(1, 2) * color.cos()
    of_second = (of_color @ field.color.weight + of_density * field.density_weight) * second.cos()
    of_first = (of_second @ field.second.weight) * first.cos()
    of_layers = (
        *(of_first.mT @ points, of_first.sum(1)),
        *(of_second.mT @ h1, of_second.sum(1)),
        *((of_density * h2).sum((0, 1)), of_density.sum().view(1)),
        *(of_color.mT @ h2, of_color.sum(1)),
    )
    if not with_rays:
        return *of_layers, origins.new_empty(0), origins.new_empty(0)
    of_points = of_first @ field.first.weight
    if ball_radius:
        of_points = of_points - of_density * ball_density / ball_radius * points / norm
    of_points = of_points.view(*depths.shape, 3)
    return *of_layers, of_points.sum(2), (of_points * depths[..., None]).sum(2)


_LAYER_SCHEMA = (
    "Tensor first_weight, Tensor first_bias, Tensor second_weight, Tensor second_bias, Tensor density_weight, "
    "Tensor density_bias, Tensor color_weight, Tensor color_bias, float ball_density, float ball_radius"
)
_OP = define(
    "render_rays(Tensor origins, Tensor directions, Tensor stratified, Tensor? importance, Tensor? coarse_noise, "
    f"Tensor? merged_noise, {_LAYER_SCHEMA}, float t_near, float t_far, str activation, bool last_back, bool fast)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_gradients,
)
_BACKWARD = define(
    "render_rays_backward(Tensor origins, Tensor directions, Tensor depths, Tensor transmittance, Tensor weights, "
    "Tensor? noise, Tensor grad_colors, Tensor? grad_opacity, Tensor? grad_depth, Tensor? grad_weights, "
    f"{_LAYER_SCHEMA}, str activation, bool last_back, bool fast, bool with_rays)"
    f" -> ({', '.join(['Tensor'] * (LAYERS + 2))})",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=_backward_fake,
)
