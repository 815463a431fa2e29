"""The NeRF branch in one operation: rays, folded sine layers and random draws in, composited colours out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops import render_deep_rays as deep
from cips3d.ops.checks import check_alike, check_number
from cips3d.ops.compiling import constant_while_compiling
from cips3d.ops.composite_checks import DensityActivation
from cips3d.ops.composite_reference import light_in_front
from cips3d.ops.deep_field import DeepSirenField, evaluate_deep_field
from cips3d.ops.library import define
from cips3d.ops.march import Field, RayDraws, RenderedRays, check_draws, march_rays
from cips3d.ops.precision import Precision, is_fast, takes_float16
from cips3d.ops.ray_op import RAY_TENSORS, RaySettings, empty_outputs, launch_rays, marched, ray_schema, rays_and_draws
from cips3d.ops.ray_tensors import kernels_take_float32, require_float32
from cips3d.ops.render_rays_backward import BACKWARD
from cips3d.ops.second_order import gradients_of_op
from cips3d.ops.siren_field import (
    LAYER_NAMES,
    LAYER_SCHEMA,
    LAYERS,
    SirenField,
    check_siren_field,
    evaluate_siren_field,
    field_of,
    is_wide,
    tensors_of,
)
from cips3d.ops.stratified import check_range, ray_points

WIDTH_MAX = 256  # of any layer: what the kernels have room for
SAMPLES_MAX = 96  # coarse and fine together


@constant_while_compiling
def _fits(device: torch.device, coarse: int, fine: int, width: int, color: int, fast: bool) -> bool:
    """Whether a device's shared memory has room for the kernel."""
    if not _streams(device, coarse, fine, width, color, fast):
        return True
    module, index = kernels.module_for(device), device.index or 0
    fits: bool = module.render_wide_rays_fits(index, coarse, fine, width, color, not fast)
    return fits


def _streams(device: torch.device, coarse: int, fine: int, width: int, color: int, fast: bool) -> bool:
    """Whether it has no room for all weights, which then stream through it."""
    if is_wide(width, color):
        return True
    resident: bool = kernels.module_for(device).render_rays_fits(device.index or 0, coarse, fine, not fast)
    return not resident


def _constant(size: int) -> int:
    """The size, also where torch.compile leaves it open: there a range makes it one of the graph's assumptions."""
    return len(range(size))


def _rounds_gradients(field: SirenField | DeepSirenField, precision: Precision | None) -> bool:
    """Whether operands of gradients are rounded: to bfloat16 in a deep field, which is less than "high" asks for."""
    return is_fast(precision) if isinstance(field, DeepSirenField) else takes_float16(precision)


def why_not_fused(
    field: SirenField | DeepSirenField, draws: RayDraws, *, precision: Precision | None = None
) -> str | None:
    """Why `render_rays` does not compute these with one kernel, in a sentence; None if it does.

    Args:
        field, draws, precision: see `render_rays`; on a device that has kernels.
    """
    coarse = _constant(draws.stratified.shape[2])
    fine = 0 if draws.importance is None else _constant(draws.importance.shape[2])
    samples, device, fast = coarse + fine, field.density_weight.device, takes_float16(precision)
    if isinstance(field, DeepSirenField):
        width, color = field.trunk_bias.shape[1], field.color_bias.shape[0]
    else:
        width, color = _constant(field.second.weight.shape[1]), _constant(field.color.weight.shape[1])
    if max(width, color) > WIDTH_MAX:
        return f"the fused kernel has room for widths up to {WIDTH_MAX}, not for {width} and {color}"
    if samples > SAMPLES_MAX:
        return f"the fused kernel has room for {SAMPLES_MAX} samples a ray, not for {samples}"
    if isinstance(field, SirenField) and not _fits(device, coarse, fine, width, color, fast):
        return f"the shared memory of {device} has no room for the {'16-bit' if fast else 'accurate'} fused kernel"
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
    field of up to 128 channels and 64 colours on the chip too, where shared memory has room for it (187 KB, or 96 KB
    with float16 operands); else for a bounded number of samples at a time, in two kernels and sums over the samples.
    Plain PyTorch, and kernels where `why_not_fused` says why, go through the same computation op by op.

    Args:
        origins, directions: [B, R, 3]; all tensors have one dtype and device. Gradients flow to these and to the
            field's tensors, not to the draws.
        field: `SirenField`, folded for B images, or `DeepSirenField`; its colours are composited as they are.
        draws: `RayDraws`; without fine samples, `importance` is None.
        t_near, t_far: range of depths in scene units.
        activation, last_back: see `composite`.
        precision: `Precision` of the kernels' products, or None for PyTorch's setting. Relative errors at initial
            weights are about 1e-6 with "highest", 5e-6 in gradients and 1e-5 in those of a deep field; with "fast" 6e-4
            in colours and gradients, more in a deep field; with "high" as with "fast", but for gradients of a deep
            field, which are as with "highest". Where operands of up to 128 channels and 64 colours are rounded to
            float16, compute capability 9.0 has kernels of its own, for gradients only where rays have none; the
            environment variable CIPS3D_WGMMA=0 refuses them.

    Returns:
        `RenderedRays`.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the range is empty; the argument is named.
        TypeError: field or draws are of another kind.

    Source: CIPS-3D (arXiv 2110.09788), section 3.1; pi-GAN (arXiv 2012.00926), section 3.1; NeRF (arXiv 2003.08934),
    section 5.

    Example:
        >>> widths = ((16, 3), (16, 16), (8, 16))
        >>> layers = [FoldedLayer(torch.randn(1, *shape), torch.zeros(1, shape[0])) for shape in widths]
        >>> field = SirenField(*layers, torch.randn(16), torch.zeros(1))
        >>> origins, directions = torch.zeros(1, 5, 3), torch.tensor([0.0, 0.0, 1.0]).expand(1, 5, 3)
        >>> draws = RayDraws(torch.rand(1, 5, 12), torch.rand(1, 5, 12))
        >>> render_rays(origins, directions, field, draws, 0.5, 1.5).colors.shape
        torch.Size([1, 5, 8])
    """
    if not isinstance(field, (SirenField, DeepSirenField)):
        raise TypeError(f"field must be SirenField or DeepSirenField, got {type(field).__name__}; see march_rays")
    check_range(t_near, t_far)
    layers: dict[str, Tensor]
    if isinstance(field, DeepSirenField):
        deep.check_deep_rays(origins, directions, field, draws, activation)
        layers = dict(zip(DeepSirenField._fields, field, strict=True))
        evaluate: Field = partial(evaluate_deep_field, field, directions, precision=precision)
    else:
        check_render_rays(origins, directions, field, draws, activation)
        check_number("field.ball_density", field.ball_density)
        check_number("field.ball_radius", field.ball_radius)
        if field.ball_radius < 0:
            raise ValueError(f"field.ball_radius must not be negative, got {field.ball_radius}")
        layers = dict(zip(LAYER_NAMES, tensors_of(field), strict=True))
        evaluate = partial(evaluate_siren_field, field, precision=precision)
    draws = draws.detach()
    others: dict[str, Tensor | None] = {"directions": directions}  # in the order of the ops' schemas
    others.update({f"draws.{name}": draw for name, draw in zip(RayDraws._fields, draws, strict=True)})
    others.update({f"field.{name}": layer for name, layer in layers.items()})
    check_alike("origins", origins, others)
    if kernels_take_float32(origins, *others.values()):
        reason = why_not_fused(field, draws, precision=precision)
        if reason is None:
            rounds = takes_float16(precision), _rounds_gradients(field, precision)
            settings = RaySettings(t_near, t_far, activation, last_back, *rounds)
            if isinstance(field, DeepSirenField):
                return deep.render_deep_rays(origins, directions, field, draws, settings)
            return RenderedRays(*_OP(origins, *others.values(), field.ball_density, field.ball_radius, *settings)[:5])
        kernels.warn_composed(reason, "renders rays op by op")
    return march_rays(evaluate, origins, directions, draws, t_near, t_far, activation=activation, last_back=last_back)


def check_render_rays(origins: Tensor, directions: Tensor, field: SirenField, draws: RayDraws, activation: str) -> int:
    """Raise ValueError, naming the argument, unless these fit together; returns the samples a ray."""
    samples = check_draws(origins, directions, draws, activation)
    check_siren_field(field, origins.shape[0])
    return samples


INPUTS = RAY_TENSORS + LAYERS  # tensors of the op


def _unpack(arguments: Sequence[Any]) -> tuple[Tensor, Tensor, RayDraws, SirenField, RaySettings]:
    """The op's arguments as what they stand for."""
    ball_density, ball_radius, *settings = arguments[INPUTS:]
    field = field_of(tuple(arguments[RAY_TENSORS:INPUTS]), ball_density, ball_radius)
    return *rays_and_draws(arguments), field, RaySettings(*settings)


# The registered op. Its last output, the transmittance in front of every sample, is for the backward.


def _reference(*arguments: Any) -> tuple[Tensor, ...]:
    origins, directions, draws, field, settings = _unpack(arguments)
    evaluate = partial(evaluate_siren_field, field, precision="highest")
    *seen, depths = marched(evaluate, origins, directions, draws, settings)
    density, _ = evaluate(ray_points(origins, directions, depths).flatten(1, 2))
    light = light_in_front(density.view(depths.shape), depths, draws.composited_noise, settings.activation)
    return *seen, depths, light


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    origins, directions, draws, field, settings = _unpack(arguments)
    samples = check_render_rays(origins, directions, field, draws, settings.activation)
    return empty_outputs(origins, field.color.weight.shape[1], samples, by_sample=3)


def _kernel(*arguments: Any) -> tuple[Tensor, ...]:
    origins, directions, draws, field, settings = _unpack(arguments)
    outputs = _fake(*arguments)
    require_float32(origins=origins, directions=directions, **draws._asdict())
    require_float32(**dict(zip(LAYER_NAMES, tensors_of(field), strict=True)))
    images, rays = origins.shape[:2]
    if images * rays > 0:
        color, width = field.color.weight.shape[1:]
        name, workspace = "render_rays", None
        coarse, fine = draws.stratified.shape[2], 0 if draws.importance is None else draws.importance.shape[2]
        if _streams(origins.device, coarse, fine, width, color, settings.fast):
            name, module = "render_wide_rays", kernels.module_for(origins.device)
            workspace = module.render_wide_rays_workspace(images, width, color, not settings.fast)
        numbers = (width, color, field.ball_density, field.ball_radius)
        launch_rays(name, arguments[:INPUTS], outputs, numbers, settings, workspace)
    return outputs


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.settings = inputs[INPUTS:]
    _, _, _, weights, depths, transmittance = output
    ctx.save_for_backward(*inputs[:INPUTS], weights, depths, transmittance)
    ctx.set_materialize_grads(False)  # most outputs have no gradient


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, weights, depths, transmittance = ctx.saved_tensors

    def written() -> tuple[Tensor | None, ...]:
        origins, directions, draws, field, settings = _unpack([*inputs, *ctx.settings])
        of_colors, *of_others = grads[:4]
        if of_colors is None:
            of_colors = origins.new_zeros(*origins.shape[:2], field.color.weight.shape[1])
        *of_layers, of_origins, of_directions = BACKWARD(
            origins,
            directions,
            depths,
            transmittance,
            weights,
            draws.composited_noise,
            of_colors,
            *of_others,
            *tensors_of(field),
            field.ball_density,
            field.ball_radius,
            settings.activation,
            settings.last_back,
            settings.fast_gradients,
            ctx.needs_input_grad[0] or ctx.needs_input_grad[1],
        )
        return of_origins, of_directions, None, None, None, None, *of_layers

    return gradients_of_op(ctx, _reference, inputs, grads[:4], written)


_OP = define(
    ray_schema("render_rays", LAYER_SCHEMA, outputs=6),
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_gradients,
)
