"""A small model, and the command on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rendering.command import RenderCommand

from cips3d.cameras import PoseDistribution
from cips3d.models.generator import Generator
from cips3d.models.volume import VolumeSettings
from cips3d.rendering import LoadedGenerator


@pytest.fixture
def command(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RenderCommand:
    return RenderCommand(run_folder, tmp_path, capsys)


@pytest.fixture
def other_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[Generator], LoadedGenerator]:
    """Put a model in the place of the one that the command loads."""

    def place(generator: Generator) -> LoadedGenerator:
        resolution = generator.fixed_resolution or 8
        settings, poses = VolumeSettings(samples=4), PoseDistribution()
        model = LoadedGenerator(generator.eval(), settings, 12.0, resolution, poses, None)
        monkeypatch.setattr("cips3d.render.load_generator", lambda *_, **__: model)
        return model

    return place
