"""Runs that are measured: their settings, and what they have written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cips3d.checkpoints.trained import load_checkpoint
from cips3d.evaluation.evaluate import Evaluation
from cips3d.rendering import LoadedGenerator
from cips3d.training import measuring
from cips3d.training.config import TrainConfig
from cips3d.training.run_folder import METRICS_FILE


def reporting(config: TrainConfig, **changes: Any) -> TrainConfig:
    return replace(config, reports=replace(config.reports, **changes))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def best_step(folder: Path) -> int:
    return int(load_checkpoint(folder / "checkpoints" / "best.pt")["step"])


def rig(monkeypatch: pytest.MonkeyPatch, values: Callable[[int], dict[str, float]]) -> None:
    """Let every measurement find known values."""

    def found(loaded: LoadedGenerator, metrics: Sequence[str], *_: object, **__: object) -> Evaluation:
        assert loaded.step is not None
        return Evaluation(values(loaded.step))

    monkeypatch.setattr(measuring, "evaluate_generator", found)
