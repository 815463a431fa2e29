"""Numbers of a training run that make no sense, whatever else is set."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cips3d.errors import UserError
from cips3d.training.config import TrainConfig

RATES = ("lr_nerf", "lr_inr", "lr_mapping", "lr_discriminator")


def check_ranges(config: TrainConfig) -> None:
    """Raise `UserError` for the first number that is outside of its range, or is none."""
    for flag, value, least, most in _numbers(config):
        if not least <= value <= most:
            allowed = f"{least:g} or more" if math.isinf(most) else f"a number from {least:g} to {most:g}"
            raise UserError(f"--{flag.replace('_', '-')} {value:g} makes no sense; give {allowed}")


def _numbers(config: TrainConfig) -> Iterator[tuple[str, float, float, float]]:
    """Flags, values, and the least and the largest that is allowed."""
    most, below_one = math.inf, 0.99999
    yield from ((name, getattr(config, name), 0, most) for name in ("workers", "seed", "r1_gamma", "r2_gamma"))
    yield from ((name, getattr(config, name), 1, most) for name in ("r1_every", "path_length_every"))
    yield from ((name, getattr(config, name), 0, 1) for name in ("ema_decay", "slow_ema_decay", "cooldown"))
    yield "top_k", config.top_k, 1e-3, 1
    yield "fov_degrees", config.fov_degrees, 0.1, 170
    yield from (("adam_betas", beta, 0, below_one) for beta in config.adam_betas)
    for index, stage in enumerate(config.stages):
        yield from ((f"stages.{index}.{name}", getattr(stage, name), 0, 1e3) for name in RATES)
