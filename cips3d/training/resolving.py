"""Stages from flags: `--steps`, `--batch-size` and `--resolution` reshape the stages of a preset."""

from __future__ import annotations

from dataclasses import replace

from cips3d.data.source import HEADS
from cips3d.errors import UserError
from cips3d.training.checks import check_metrics, check_numbers, check_pictures, check_stage
from cips3d.training.config import Stage, TrainConfig


def resolved(config: TrainConfig) -> TrainConfig:
    """Apply `--steps`, `--batch-size` and `--resolution` to the stages and check what can be checked.

    Raises:
        UserError: a value makes no sense; the flag is named.
    """
    check_numbers(config)
    stages = list(config.stages)
    if config.resolution is not None:
        stages = stages_up_to(stages, config.resolution)
    if config.batch_size is not None:
        stages = [replace(stage, batch_size=config.batch_size) for stage in stages]
    if config.steps is not None:
        stages = stages_of_length(stages, config.steps)
    config = replace(
        config,
        data=None if config.data == HEADS else config.data,
        stages=tuple(stages),
        generator=config.generator.at(stages[-1].resolution),
        discriminator=config.discriminator.at(stages[-1].crop or stages[-1].resolution),
        steps=None,
        batch_size=None,
        resolution=None,
    )
    for stage in stages:
        check_stage(stage, config)
    check_pictures(config)
    check_metrics(config)
    return config


def stages_up_to(stages: list[Stage], resolution: int) -> list[Stage]:
    """The stages below `resolution`, and one at it: the preset's own or the nearest one's settings."""
    if resolution < 8 or resolution & (resolution - 1):
        raise UserError(f"--resolution {resolution} cannot be trained; give a power of two from 8 on")
    lower = [stage for stage in stages if stage.resolution < resolution]
    same = [stage for stage in stages if stage.resolution == resolution]
    if not same:
        nearest = min(stages, key=lambda stage: (abs(stage.resolution - resolution), stage.resolution))
        same = [replace(nearest, resolution=resolution)]
        if nearest in lower and len(lower) == len(stages):  # above the preset: its last stage moves up
            lower.remove(nearest)
    return lower + same


def check_reached(config: TrainConfig, trained: TrainConfig, index: int) -> None:
    """Raise `UserError` where stages that a resumed run has reached, up to number `index`, would get another size:
    the discriminators' new layers would come in all at once."""
    before, now = ([stage.resolution for stage in each.stages[: index + 1]] for each in (trained, config))
    if before != now:
        raise UserError(
            f"--resume {config.resume} has reached its stage of {before[-1]} pixels, which no flag can change any "
            f"more; leave out --resolution, or start a new run with --init-from {config.resume}"
        )


def stages_of_length(stages: list[Stage], steps: int) -> list[Stage]:
    """The stages cut, or the last one stretched, to `steps` in all."""
    if steps < 1:
        raise UserError(f"--steps {steps} trains nothing; give 1 or more")
    fitted: list[Stage] = []
    for index, stage in enumerate(stages):
        left = steps - sum(s.steps for s in fitted)
        is_last = index + 1 == len(stages)
        if left > 0:
            fitted.append(replace(stage, steps=left if is_last else min(stage.steps, left)))
    return fitted
