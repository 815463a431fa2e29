"""A small run that is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from training.measuring.measured_runs import reporting

from cips3d.training.config import TrainConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(small_config: TrainConfig) -> TrainConfig:
    """6 steps, measured at 0, 2, 4 and 6, with a checkpoint at 3."""
    return reporting(small_config, metrics=("frechet",), metrics_interval=8, metrics_images=6)
