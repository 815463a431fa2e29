"""`render_rays` through a deep field in one kernel, and its gradients for some rays at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.deep_field import (
    DIRECTION_COLUMNS,
    DeepSirenField,
    behind_directions,
    check_deep_field,
    evaluate_deep_field,
    with_room,
    without_room,
)
from cips3d.ops.field_samples import FieldGradients, StreamedField, field_gradients
from cips3d.ops.film_siren_op import Parameters, sine
from cips3d.ops.layer_by_layer import rays_at_a_time, through_compositing
from cips3d.ops.library import OPS, define
from cips3d.ops.march import RayDraws, RenderedRays, check_draws
from cips3d.ops.ray_op import RAY_TENSORS, RaySettings, empty_outputs, launch_rays, marched, ray_schema, rays_and_draws
from cips3d.ops.ray_tensors import require_float32
from cips3d.ops.second_order import gradients_of_op
from cips3d.ops.stratified import ray_points


def render_deep_rays(
    origins: Tensor, directions: Tensor, field: DeepSirenField, draws: RayDraws, settings: RaySettings
) -> RenderedRays:
    """The registered op; see `render_rays` for the arguments, which it has checked."""
    return RenderedRays(*_OP(origins, directions, *draws, *field, *settings))


def check_deep_rays(
    origins: Tensor, directions: Tensor, field: DeepSirenField, draws: RayDraws, activation: str
) -> int:
    """Raise ValueError, naming the argument, unless these fit together; returns the samples a ray."""
    samples = check_draws(origins, directions, draws, activation)
    check_deep_field(field, origins.shape[0])
    return samples


FIELD = len(DeepSirenField._fields)
INPUTS = RAY_TENSORS + FIELD  # tensors of the op


def _unpack(arguments: Sequence[Any]) -> tuple[Tensor, Tensor, RayDraws, DeepSirenField, RaySettings]:
    """The op's arguments as what they stand for."""
    field = DeepSirenField(*arguments[RAY_TENSORS:INPUTS])
    return *rays_and_draws(arguments), field, RaySettings(*arguments[INPUTS:])


def _reference(*arguments: Any) -> tuple[Tensor, ...]:
    origins, directions, draws, field, settings = _unpack(arguments)
    evaluate = partial(evaluate_deep_field, field, directions, precision="highest")
    return marched(evaluate, origins, directions, draws, settings)


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    origins, directions, draws, field, settings = _unpack(arguments)
    samples = check_deep_rays(origins, directions, field, draws, settings.activation)
    return empty_outputs(origins, 3, samples, by_sample=2)


def _kernel(*arguments: Any) -> tuple[Tensor, ...]:
    origins, directions, draws, field, settings = _unpack(arguments)
    outputs = _fake(*arguments)
    require_float32(origins=origins, directions=directions, **draws._asdict(), **field._asdict())
    images, rays = origins.shape[:2]
    if images * rays > 0:
        sizes = (*field.trunk_bias.shape, field.color_bias.shape[0])
        workspace = kernels.module_for(origins.device).render_deep_rays_workspace(images, *sizes, not settings.fast)
        launch_rays("render_deep_rays", arguments[:INPUTS], outputs, sizes, settings, workspace)
    return outputs


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.settings = inputs[INPUTS:]
    ctx.save_for_backward(*inputs[:INPUTS], output[4])
    ctx.set_materialize_grads(False)  # most outputs have no gradient


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, depths = ctx.saved_tensors

    def written() -> tuple[Tensor | None, ...]:
        origins, directions, draws, field, settings = _unpack([*inputs, *ctx.settings])
        with_rays = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        *of_field, of_origins, of_directions = _BACKWARD(
            origins,
            directions,
            depths,
            draws.composited_noise,
            *grads[:4],
            *field,
            settings.activation,
            settings.last_back,
            settings.fast_gradients,
            with_rays,
        )
        return of_origins, of_directions, None, None, None, None, *of_field

    return gradients_of_op(ctx, _reference, inputs, grads[:4], written)


# Its gradients: the field evaluated once more at the depths that the forward has left, for so few rays at a time that
# their activations take little memory. Kernels are those of `field_samples`; plain PyTorch goes layer by layer.


class _Evaluation(NamedTuple):
    """What the gradients need of a field at N = R·S points.

    Attributes:
        layers: inputs [B, N, in] of the trunk's layers and of the colour layer.
        trunk: [B, N, W].
        density: [B, N] raw.
        activations: [B, N, C] of the colour layer.
        colors: [B, N, 3].
    """

    layers: list[tuple[Tensor, Parameters]]
    trunk: Tensor
    density: Tensor
    activations: Tensor
    colors: Tensor


def _parameters(field: DeepSirenField) -> Iterator[Parameters]:
    """The parameters of the trunk's layers, then those of the colour layer."""
    gains, shifts = field.trunk_gain.unbind(1), field.trunk_shift.unbind(1)
    for weight, *others in zip(
        (field.first_weight, *field.hidden_weight), field.trunk_bias, gains, shifts, strict=True
    ):
        yield Parameters(weight, *others)
    yield Parameters(with_room(field.color_weight), field.color_bias, field.color_gain, field.color_shift)


def _evaluate(field: DeepSirenField, directions: Tensor, points: Tensor) -> _Evaluation:
    *trunk, color = _parameters(field)
    layers, h = [], points
    for parameters in trunk:
        layers.append((h, parameters))
        h = sine(h, parameters, h.dtype, fast=False)
    layers.append((behind_directions(directions, h), color))
    activations = sine(*layers[-1], h.dtype, fast=False)
    colors = torch.sigmoid(activations @ field.head_weight.mT + field.head_bias)
    return _Evaluation(layers, h, h @ field.density_weight + field.density_bias, activations, colors)


def _differentiate(
    seen: _Evaluation, field: DeepSirenField, of_density: Tensor, of_colors: Tensor, with_rays: bool
) -> tuple[DeepSirenField, Tensor, Tensor]:
    """Gradients of the field, of the points [B, N, 3] and of their directions [B, N, 3] from those at its outputs."""
    of_raw = of_colors * seen.colors * (1 - seen.colors)

    def through(layer: tuple[Tensor, Parameters], grad: Tensor, with_input: bool) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = OPS["film_siren_backward"](grad, layer[0], *layer[1], False, with_input, True)
        return found

    of_input, *of_color = through(seen.layers[-1], of_raw @ field.head_weight, True)
    of_directions = of_input[..., :3]
    grad = torch.addcmul(of_input[..., DIRECTION_COLUMNS:], of_density[..., None], field.density_weight)
    of_trunk: list[tuple[Tensor, ...]] = []
    for k in reversed(range(len(seen.layers) - 1)):
        grad, *of_layer = through(seen.layers[k], grad, with_rays or k > 0)
        of_trunk.insert(0, tuple(of_layer))
    weights, biases, gains, shifts = zip(*of_trunk, strict=True)
    of_color_weight, of_color_bias, of_color_gain, of_color_shift = of_color
    return (
        DeepSirenField(
            first_weight=weights[0],
            hidden_weight=torch.stack(weights[1:]),
            trunk_bias=torch.stack(biases),
            trunk_gain=torch.stack(gains, 1),
            trunk_shift=torch.stack(shifts, 1),
            density_weight=seen.trunk.flatten(0, 1).mT.mv(of_density.flatten()),
            density_bias=of_density.sum().view(1),
            color_weight=without_room(of_color_weight),
            color_bias=of_color_bias,
            color_gain=of_color_gain,
            color_shift=of_color_shift,
            head_weight=of_raw.flatten(0, 1).mT @ seen.activations.flatten(0, 1),
            head_bias=of_raw.sum((0, 1)),
        ),
        grad,
        of_directions,
    )


def _streamed(field: DeepSirenField) -> StreamedField:
    gain, shift = (x[:, 0].contiguous() for x in (field.trunk_gain, field.trunk_shift))
    return StreamedField(
        first=Parameters(field.first_weight, field.trunk_bias[0], gain, shift),
        hidden=Parameters(field.hidden_weight, field.trunk_bias[1:], field.trunk_gain[:, 1:], field.trunk_shift[:, 1:]),
        density_weight=field.density_weight,
        density_bias=field.density_bias,
        color=Parameters(field.color_weight, field.color_bias, field.color_gain, field.color_shift),
        head_weight=field.head_weight,
        head_bias=field.head_bias,
        trunk_gain=field.trunk_gain,
        trunk_shift=field.trunk_shift,
    )


def _of_field(found: FieldGradients) -> DeepSirenField:
    trunk, color = [found.first, *found.hidden], found.color
    assert found.head_weight is not None and found.head_bias is not None
    return DeepSirenField(
        first_weight=found.first.weight,
        hidden_weight=torch.stack([layer.weight for layer in found.hidden]),
        trunk_bias=torch.stack([layer.bias for layer in trunk]),
        trunk_gain=torch.stack([layer.gain for layer in trunk], 1),
        trunk_shift=torch.stack([layer.shift for layer in trunk], 1),
        density_weight=found.density_weight,
        density_bias=found.density_bias,
        color_weight=color.weight,
        color_bias=color.bias,
        color_gain=color.gain,
        color_shift=color.shift,
        head_weight=found.head_weight,
        head_bias=found.head_bias,
    )


class _OfRays(NamedTuple):
    """Gradients of the field, of samples' points [B, N, 3] and of what the colour layer sees of directions [B, R, 3],
    or of none."""

    field: DeepSirenField
    points: Tensor
    directions: Tensor


def _of_rays_with_kernels(field: DeepSirenField, *tensors: Any, **settings: Any) -> _OfRays:
    found = field_gradients(_streamed(field), *tensors, **settings)
    return _OfRays(_of_field(found), found.points, found.directions)


def _of_rays(
    field: DeepSirenField,
    origins: Tensor,
    directions: Tensor,
    depths: Tensor,
    noise: Tensor | None,
    *of_seen: Tensor | None,
    activation: str,
    last_back: bool,
    fast: bool,
    with_rays: bool,
) -> _OfRays:
    seen = _evaluate(field, directions, ray_points(origins, directions, depths).flatten(1, 2))
    of_density, of_colors = through_compositing(
        seen.density.view(depths.shape),
        seen.colors.view(*depths.shape, 3),
        depths,
        noise,
        *of_seen,
        activation=activation,
        last_back=last_back,
    )
    found = _OfRays(*_differentiate(seen, field, of_density.flatten(1), of_colors.flatten(1, 2), with_rays))
    return found._replace(directions=found.directions.unflatten(1, depths.shape[1:]).sum(2))


def _backward_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    origins, directions, depths, noise, *grads = arguments[:8]
    require_float32(origins=origins, directions=directions, depths=depths, noise=noise)
    require_float32(**dict(zip(("grad_colors", "grad_opacity", "grad_depth", "grad_weights"), grads, strict=True)))
    require_float32(**dict(zip(DeepSirenField._fields, arguments[8 : 8 + FIELD], strict=True)))
    return _backward(_of_rays_with_kernels, *arguments)


def _backward_reference(*arguments: Any) -> tuple[Tensor, ...]:
    return _backward(_of_rays, *arguments)


def _backward(of_rays: Callable[..., _OfRays], *arguments: Any) -> tuple[Tensor, ...]:
    """Some rays at a time."""
    origins, directions, depths, noise, *grads = arguments[:8]
    field = DeepSirenField(*arguments[8 : 8 + FIELD])
    activation, last_back, fast, with_rays = arguments[8 + FIELD :]
    images, rays, _ = depths.shape
    total = [x.new_zeros(x.shape) for x in field]
    of_origins, of_directions = (x.new_zeros(x.shape if with_rays else 0) for x in (origins, directions))
    step = rays_at_a_time(depths, 1 + field.trunk_bias.shape[0])
    for start in range(0, rays if images > 0 else 0, step):
        some = slice(start, start + step)
        given = (origins, directions, depths, noise, *grads)
        tensors: list[Any] = [None if x is None else x[:, some].contiguous() for x in given]
        found, of_points, of_d = of_rays(
            field, *tensors, activation=activation, last_back=last_back, fast=fast, with_rays=with_rays
        )
        for sum_so_far, part in zip(total, found, strict=True):
            sum_so_far += part
        if with_rays:
            t = depths[:, some, :, None]
            of_points = of_points.view(*t.shape[:3], 3)
            of_origins[:, some] = of_points.sum(2)
            of_directions[:, some] = (of_points * t).sum(2) + of_d
    return *total, of_origins, of_directions


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    origins, with_rays = arguments[0], arguments[-1]
    of_rays = (origins.new_empty(origins.shape if with_rays else 0) for _ in range(2))
    return *(x.new_empty(x.shape) for x in arguments[8 : 8 + FIELD]), *of_rays


_FIELD_SCHEMA = ", ".join(f"Tensor {name}" for name in DeepSirenField._fields)
_OP = define(
    ray_schema("render_deep_rays", _FIELD_SCHEMA, outputs=5),
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_gradients,
)
_BACKWARD = define(
    "render_deep_rays_backward(Tensor origins, Tensor directions, Tensor depths, Tensor? noise, Tensor? grad_colors, "
    f"Tensor? grad_opacity, Tensor? grad_depth, Tensor? grad_weights, {_FIELD_SCHEMA}, str activation, bool last_back, "
    f"bool fast, bool with_rays) -> ({', '.join(['Tensor'] * (FIELD + 2))})",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=_backward_fake,
)
