"""State dicts of the published systems, read into this package's modules and written back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

from torch import Tensor, nn

from cips3d.convert.cips import cips_from_reference, cips_to_reference
from cips3d.convert.cips3d_discriminator import discriminator_from_reference, discriminator_to_reference
from cips3d.convert.cips3d_generator import generator_from_reference, generator_to_reference
from cips3d.convert.pigan import pigan_from_reference, pigan_to_reference
from cips3d.convert.pigan_discriminator import pigan_discriminator_from_reference, pigan_discriminator_to_reference
from cips3d.convert.state import without_parallel_prefix
from cips3d.convert.stylegan2 import (
    stylegan2_discriminator_from_reference,
    stylegan2_discriminator_to_reference,
    stylegan2_from_reference,
    stylegan2_to_reference,
)
from cips3d.errors import UserError, require_choice
from cips3d.models.cips import CIPS
from cips3d.models.cips3d import CIPS3D
from cips3d.models.pigan import PiGAN
from cips3d.models.pigan_discriminator import PiGANDiscriminator
from cips3d.models.residual_discriminator import ResidualDiscriminator
from cips3d.models.stylegan2 import StyleGAN2

SYSTEMS: dict[str, Callable[..., nn.Module]] = {
    "cips3d": generator_from_reference,
    "cips3d-discriminator": discriminator_from_reference,
    "pigan": pigan_from_reference,
    "pigan-discriminator": pigan_discriminator_from_reference,
    "cips": cips_from_reference,
    "stylegan2": stylegan2_from_reference,
    "stylegan2-discriminator": stylegan2_discriminator_from_reference,
}


@overload
def from_reference(state: Mapping[str, Tensor], system: Literal["cips3d"]) -> CIPS3D: ...
@overload
def from_reference(
    state: Mapping[str, Tensor], system: Literal["cips3d-discriminator", "stylegan2-discriminator"]
) -> ResidualDiscriminator: ...
@overload
def from_reference(state: Mapping[str, Tensor], system: Literal["pigan"], *, box_warp: bool | None = None) -> PiGAN: ...
@overload
def from_reference(
    state: Mapping[str, Tensor], system: Literal["pigan-discriminator"], *, strided: bool | None = None
) -> PiGANDiscriminator: ...
@overload
def from_reference(
    state: Mapping[str, Tensor], system: Literal["cips"], *, mapping_lr_multiplier: float = 0.01
) -> CIPS: ...
@overload
def from_reference(
    state: Mapping[str, Tensor], system: Literal["stylegan2"], *, mapping_lr_multiplier: float = 0.01
) -> StyleGAN2: ...
def from_reference(state: Mapping[str, Tensor], system: str, **options: Any) -> nn.Module:
    """The module of a published system, with the weights of its state dict; dimensions are read off the shapes.

    Args:
        state: names and tensors as the original's `state_dict()` gives them, or that of the original in DataParallel.
        system: one of `SYSTEMS`: "cips3d", "pigan", "cips" and "stylegan2" give generators, "cips3d-discriminator"
            (with one part or both), "pigan-discriminator" and "stylegan2-discriminator" (CIPS's too) discriminators.
        options: what a state dict cannot tell. `box_warp` of "pigan": points are scaled to the box (CelebA, Cats; the
            default) or not (CARLA). `strided` of "pigan-discriminator". `mapping_lr_multiplier` of "cips", "stylegan2".

    Raises:
        UserError: the system is unknown, it has no such option, or the state is not one of its.
    """
    require_choice("system", system, SYSTEMS)
    known = list(inspect.signature(SYSTEMS[system]).parameters)[1:]
    for option in options:
        if option not in known:
            offered = f"; it has {', '.join(known)}" if known else ""
            raise UserError(f"{option} is no option of {system}{offered}")
    return SYSTEMS[system](without_parallel_prefix(state), **options)


def to_reference(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that the published code of a module's system loads: the inverse of `from_reference`.

    What no state dict tells has to be as published, but for the options that `from_reference` takes.

    Args:
        module: a generator or discriminator of this package. A `ResidualDiscriminator` that is not progressive counts
            as StyleGAN2's, others as CIPS-3D's.

    Raises:
        UserError: the module is none of them, or the published system has none like it: settings are named.
    """
    if isinstance(module, ResidualDiscriminator):
        write = discriminator_to_reference if module.main.progressive else stylegan2_discriminator_to_reference
        return write(module)
    writers: dict[type, Callable[[Any], dict[str, Tensor]]] = {
        CIPS3D: generator_to_reference,
        PiGAN: pigan_to_reference,
        PiGANDiscriminator: pigan_discriminator_to_reference,
        CIPS: cips_to_reference,
        StyleGAN2: stylegan2_to_reference,
    }
    if type(module) not in writers:
        raise UserError(f"{type(module).__name__} is no network of a published system")
    return writers[type(module)](module)


__all__ = ["SYSTEMS", "from_reference", "to_reference"]
