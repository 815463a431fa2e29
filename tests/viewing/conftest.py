"""Small models to look at."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from checkpoints.small_runs import write_run

from cips3d.rendering import LoadedGenerator, load_generator
from cips3d.training.config import TrainConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # browser.py opens one as the benchmarks do


@pytest.fixture
def run_folder(small_config: TrainConfig, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", small_config)


@pytest.fixture
def loaded(run_folder: Path) -> LoadedGenerator:
    return load_generator(run_folder)
