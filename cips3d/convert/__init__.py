"""State dicts of the published systems, read into this package's modules and written back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, overload

from torch import Tensor, nn

from cips3d.convert.cips3d_discriminator import discriminator_from_reference
from cips3d.convert.cips3d_generator import generator_from_reference
from cips3d.errors import UserError
from cips3d.models.discriminator import Discriminator
from cips3d.models.generator import Generator

SYSTEMS: dict[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {
    "cips3d": generator_from_reference,
    "cips3d-discriminator": discriminator_from_reference,
}


@overload
def from_reference(state: Mapping[str, Tensor], system: Literal["cips3d"]) -> Generator: ...
@overload
def from_reference(state: Mapping[str, Tensor], system: Literal["cips3d-discriminator"]) -> Discriminator: ...
def from_reference(state: Mapping[str, Tensor], system: str) -> nn.Module:
    """The module of a published system, with the weights of its state dict; dimensions are read off the shapes.

    Args:
        state: names and tensors as the original's `state_dict()` gives them.
        system: "cips3d" (a `Generator`) or "cips3d-discriminator" (a `Discriminator`, with one part or both).

    Raises:
        UserError: the system is unknown, or the state is not one of its.
    """
    if system not in SYSTEMS:
        raise UserError(f"system {system!r} is unknown; choose one of {', '.join(SYSTEMS)}")
    return SYSTEMS[system](state)


__all__ = ["SYSTEMS", "from_reference"]
