"""Where a run stands: its stage, and everything that changes with the step."""

from __future__ import annotations

from dataclasses import dataclass

from cips3d.training.config import Stage, TrainConfig

FINAL_RATE = 0.05  # share of the learning rate that is left at the end of a cooldown


@dataclass(frozen=True)
class StepPlan:
    """The settings of one step."""

    step: int
    """steps finished so far in the whole run"""
    stage_index: int
    stage: Stage
    fade: float
    """α of the discriminators' newest block, 0 to 1"""
    density_noise: float
    rate: float
    """factor on all learning rates"""
    r1_due: bool
    """R1 (and R2) is due in this step"""
    path_length_due: bool
    """path length regularisation is due in this step"""


def plan_at(config: TrainConfig, step: int) -> StepPlan:
    """The settings of step `step`, counted from 0; behind the end, the last stage goes on."""
    begin, index = 0, 0
    while index + 1 < len(config.stages) and step >= begin + config.stages[index].steps:
        begin += config.stages[index].steps
        index += 1
    stage = config.stages[index]
    noisy_steps = step - begin if config.density_noise_restarts else step
    noise_left = max(0.0, 1 - noisy_steps / config.density_noise_steps) if config.density_noise_steps > 0 else 0.0
    return StepPlan(
        step=step,
        stage_index=index,
        stage=stage,
        fade=min(1.0, (step - begin) / stage.fade_steps) if stage.fade_steps > 0 else 1.0,
        density_noise=stage.density_noise * noise_left,
        rate=learning_rate_factor(config, step),
        r1_due=max(config.r1_gamma, config.r2_gamma) > 0 and step % config.r1_every == 0,
        path_length_due=config.path_length_weight > 0 and step % config.path_length_every == 0,
    )


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """1, falling linearly towards 0 over the last `cooldown` share of the run, but not below `FINAL_RATE`."""
    cooldown_steps = config.cooldown * config.total_steps
    if cooldown_steps == 0:
        return 1.0
    left = max(0.0, (config.total_steps - step) / cooldown_steps)
    return min(1.0, max(FINAL_RATE, left))
