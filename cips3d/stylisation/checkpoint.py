"""A stylised model as a checkpoint that every command takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from cips3d.checkpoints.converted import write_converted
from cips3d.checkpoints.networks import Networks


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
    trained_with = style if style.discriminator is not None else base
    networks = replace(
        base,
        averaged=generator,
        step=None,
        discriminator=trained_with.discriminator,
        discriminator_config=trained_with.discriminator_config,
    )
    write_converted(Path(path), networks.converted(base.file, style.file))
