"""What is said where a run ends before all is done."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from cips3d.errors import UserError
from cips3d.files import is_disk_full
from cips3d.models.family import generator_class
from cips3d.process.devices import is_out_of_memory
from cips3d.training.config import TrainConfig


class TrainingDiverged(UserError):
    """Losses or gradients stayed non-finite; the checkpoints from before are all there."""


def diverged(skipped: int, step: int, path: Path, saved_step: int, way_on: str) -> TrainingDiverged:
    """What ends a run after `skipped` steps in a row up to `step`, whose weights are in `path`."""
    return TrainingDiverged(
        f"losses or gradients were not finite in {skipped} steps in a row, up to step {step}, whose weights are in "
        f"{path}; lower the learning rates (--stages.N.lr-...) or, with --amp.nerf, --amp.inr or --amp.discriminator, "
        f"use bf16 or none, and from the checkpoint before them, of step {saved_step}, {way_on}"
    )


def in_words(error: Exception, device: torch.device) -> str | None:
    """A sentence for errors that mean a full disk or too little memory; None for all others."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    if cause is not None and is_disk_full(cause):
        return "the disk is full; free some space"
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return f"{device} has too little memory; give a smaller --batch-size or more passes (--stages.N.accumulation)"
    return None


def how_to_go_on(folder: Path, config: TrainConfig, *, complete: bool) -> str:
    """The command that trains on or, where nothing is left to train and measure, makes the animation of the end."""
    run = shlex.quote(str(folder))
    if not complete:
        return f"go on with: python -m cips3d.train --resume {run}"
    moving = "--trajectory yaw" if generator_class(config.generator).is_3d else "--interpolate both"
    out = shlex.quote(str(folder / "animation.webp"))
    return (
        "training is complete; what moves is shown by: python -m cips3d.render "
        f"{run} --seeds 0-{config.reports.faces - 1} {moving} --out {out}"
    )
