"""A stylised model as a checkpoint that every command takes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from cips3d.checkpoints.converted import Converted, Source, write_converted
from cips3d.checkpoints.networks import Networks
from cips3d.files import sha256_of
from cips3d.plain import to_plain


def write_stylised(path: str | Path, generator: dict[str, Tensor], base: Networks, style: Networks) -> None:
    """Write a generator between two others, whole or not at all.

    With it goes a discriminator to train on with: the style's, which knows the new pictures, or else the base's.

    Args:
        path: ends in .safetensors.
        generator: its state dict (`interpolated_state`).
        base: what its configuration, cameras and resolution are from.
        style: the other one.

    Raises:
        UserError: the place cannot be written, or the disk is full.
    """
    judge = style if style.discriminator is not None else base
    states = {"generator_ema": generator}
    if judge.discriminator is not None:
        states["discriminator"] = judge.discriminator
    converted = Converted(
        system=base.generator_config.system,
        rendering=base.rendering,
        sources=tuple(Source(networks.file.name, sha256_of(networks.file)) for networks in (base, style)),
        generator_config=to_plain(base.generator_config),
        discriminator_config=None if judge.discriminator is None else to_plain(judge.discriminator_config),
        states=states,
    )
    write_converted(Path(path), converted)
