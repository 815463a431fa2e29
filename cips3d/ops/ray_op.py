"""What the ops from rays to composited colours have in common, whatever field they go through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.composite_checks import DensityActivation
from cips3d.ops.march import Field, RayDraws, march_rays

RAY_TENSORS = 2 + len(RayDraws._fields)  # arguments in front of the field's: origins, directions, draws


class RaySettings(NamedTuple):
    """The last arguments of an op: how rays are sampled and composited, and which products are of 16 bits."""

    t_near: float
    t_far: float
    activation: DensityActivation
    last_back: bool
    fast: bool
    fast_gradients: bool


def ray_schema(name: str, field: str, outputs: int) -> str:
    """The schema of an op.

    Args:
        name: of the op.
        field: the field's arguments.
        outputs: how many there are.
    """
    return (
        f"{name}(Tensor origins, Tensor directions, Tensor stratified, Tensor? importance, Tensor? coarse_noise, "
        f"Tensor? merged_noise, {field}, float t_near, float t_far, str activation, bool last_back, bool fast, "
        f"bool fast_gradients) -> ({', '.join(['Tensor'] * outputs)})"
    )


def rays_and_draws(arguments: Sequence[Any]) -> tuple[Tensor, Tensor, RayDraws]:
    """Origins, directions and draws of an op's arguments."""
    origins, directions, *draws = arguments[:RAY_TENSORS]
    return origins, directions, RayDraws(*draws)


def marched(
    field: Field, origins: Tensor, directions: Tensor, draws: RayDraws, settings: RaySettings
) -> tuple[Tensor, ...]:
    """What `march_rays` gives, none of it a view of an argument."""
    seen = march_rays(
        field,
        origins,
        directions,
        draws,
        settings.t_near,
        settings.t_far,
        activation=settings.activation,
        last_back=settings.last_back,
    )
    return *seen[:4], seen.depths.clone()


def empty_outputs(origins: Tensor, colors: int, samples: int, by_sample: int) -> tuple[Tensor, ...]:
    """Colours [B, R, C], opacity and depth [B, R], and so many tensors [B, R, S]."""
    rays = origins.shape[:2]
    return (
        origins.new_empty(*rays, colors),
        *(origins.new_empty(rays) for _ in range(2)),
        *(origins.new_empty(*rays, samples) for _ in range(by_sample)),
    )


def launch_rays(
    name: str,
    tensors: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    field: Sequence[float],
    settings: RaySettings,
    workspace: int | None = None,
) -> None:
    """Launch the kernel of an op.

    Args:
        name: of its launcher.
        tensors: of the op.
        outputs: to be written.
        field: sizes and numbers of the field.
        settings: of the op.
        workspace: bytes that it is given besides; None: it takes none.
    """
    origins, _, draws = rays_and_draws(tensors)
    fine = 0 if draws.importance is None else draws.importance.shape[2]
    kernels.launch(
        name,
        *(None if x is None else x.contiguous() for x in tensors),
        *(() if workspace is None else (origins.new_empty(workspace, dtype=torch.uint8),)),
        *outputs,
        *origins.shape[:2],
        draws.stratified.shape[2],
        fine,
        *field,
        settings.t_near,
        settings.t_far,
        settings.activation == "softplus",
        settings.last_back,
        not settings.fast,
    )
