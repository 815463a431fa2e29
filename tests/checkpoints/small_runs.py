"""Checkpoints of small models that were never trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from cips3d.checkpoints.trained import save_checkpoint
from cips3d.models.cips3d import CIPS3D
from cips3d.training.config import TrainConfig

STEP = 1200


def write_checkpoint(path: Path, config: TrainConfig, /, **changes: object) -> None:
    """A checkpoint with averaged weights whose pictures differ visibly from seed to seed and view to view."""
    torch.manual_seed(0)
    averaged = CIPS3D(dataclasses.replace(config.generator, rgb_init=1.0, aux_init=1.0))
    state = {"config": config.to_json(), "generator_ema": averaged.state_dict(), "step": STEP}
    save_checkpoint(path, {**state, **changes})


def write_run(folder: Path, config: TrainConfig) -> Path:
    """A run of 8² pictures with one checkpoint; returns its folder."""
    write_checkpoint(folder / "checkpoints" / f"step-{STEP:08d}.pt", config)
    return folder
