"""Named configurations: one module a system of the family."""

from __future__ import annotations

from cips3d.errors import UserError
from cips3d.training.config import TrainConfig
from cips3d.training.presets import cips, cips3d, pigan, stylegan2

PRESETS = {config.preset: config for system in (cips3d, pigan, cips, stylegan2) for config in system.PRESETS}


def preset(name: str) -> TrainConfig:
    """The configuration called `name`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise UserError(f"--preset {name} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


__all__ = ["PRESETS", "preset"]
