"""Pictures of a run, and animations at its end."""

from __future__ import annotations

import errno
import json
import math
import os
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from evaluation.analytic import Flat, loaded_of
from inversion.small_models import small

from cips3d.cameras import PoseDistribution
from cips3d.errors import UserError
from cips3d.pictures import depth_image
from cips3d.rendering import Look, render_views, styles_of_seeds
from cips3d.training import report
from cips3d.training.checks import check_pictures
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.objectives import StepReport
from cips3d.training.report import Reporter, as_loaded, face_rows, front_view, interpolation, turntable
from cips3d.training.run_folder import LOG_FILE, SCALARS_FILE
from cips3d.training.schedule import plan_at
from cips3d.training.state import TrainingState


def test_pictures_are_taken_as_the_run_trains(small_config: TrainConfig) -> None:
    config = replace(small_config, fov_degrees=20.0, poses=PoseDistribution("uniform", yaw_std=0.7))
    loaded = as_loaded(Flat(), config, 8, 3)
    assert (loaded.fov_degrees, loaded.poses, loaded.settings) == (20.0, config.poses, config.volume)
    assert (loaded.resolution, loaded.step) == (8, 3)


def test_rows_of_views() -> None:
    """From the front of the training cameras, from above, from the right and the left, and the depth from the front."""
    loaded = small("cips3d")
    poses = PoseDistribution(pitch_mean=1.2, yaw_mean=1.9)
    loaded = replace(loaded, settings=replace(loaded.settings, t_near=0.9, t_far=1.2), poses=poses)
    rows = face_rows(loaded, 2)
    assert list(rows) == ["front", "tilted", "yaw -0.4", "yaw +0.4", "auxiliary", "depth", "truncated 0.7"]
    pitch, yaw = torch.tensor([1.2]), torch.tensor([1.9])
    assert front_view(loaded) == (pitch, yaw)
    for name, up, turn in (
        ("front", 0.0, 0.0),
        ("tilted", -0.25, 0.0),
        ("yaw -0.4", 0.0, -0.4),
        ("yaw +0.4", 0.0, 0.4),
    ):
        views = render_views(
            loaded, styles_of_seeds(loaded, range(2)), pitch + up, yaw + turn, Look(8, ("image", "aux", "depth"))
        )
        torch.testing.assert_close(rows[name], views.image[:, 0])
        if name == "front":
            assert views.aux_image is not None and views.depth is not None
            torch.testing.assert_close(rows["auxiliary"], views.aux_image[:, 0])
            torch.testing.assert_close(rows["depth"], depth_image(views.depth[:, 0], 0.9, 1.2))


@pytest.mark.parametrize("system", ["cips3d", "pigan", "stylegan2"])
def test_as_many_faces_as_there_is_room_for(small_config: TrainConfig, tmp_path: Path, system: str) -> None:
    """The largest grids that are allowed can be written; what is refused has their size."""
    loaded = small(system)
    rows = face_rows(loaded, 1)
    reports = replace(small_config.reports, faces=600, enlarge_to=1)
    stage = replace(small_config.stages[0], resolution=1000)
    config = replace(small_config, generator=loaded.generator.config, stages=(stage,), reports=reports)
    with pytest.raises(UserError, match=f"x {1002 * len(rows) - 2}, more than"):
        check_pictures(config)
    check_pictures(replace(config, reports=replace(reports, faces=24)))


def test_rows_of_pictures_without_cameras() -> None:
    """Each face with other noise, and with the layers of the one after it from the middle on."""
    loaded = small("stylegan2")
    for name, parameter in loaded.generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(1.0)
    rows = face_rows(loaded, 2)
    images = [rows[name] for name in ("image", "random noise", "mixed")]
    assert all(image.shape == (2, 3, 16, 16) for image in images)
    own, following = styles_of_seeds(loaded, range(2)), styles_of_seeds(loaded, range(1, 3))
    mixed = loaded.generator.mixed(own, following, loaded.generator.style_layers // 2)
    torch.testing.assert_close(images[2], render_views(loaded, mixed, *front_view(loaded), Look(16)).image[:, 0])
    assert not any(torch.allclose(a, b) for a, b in combinations(images, 2))


def test_points_of_the_curves(small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every two steps of two seconds, in which four pictures are seen; what pauses take does not count."""
    now = [0.0]
    monkeypatch.setattr(report, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    stage = replace(small_config.stages[0], fade_steps=8, density_noise=3.0)
    config = replace(small_config, stages=(stage,), cooldown=1.0)
    reporter, state = Reporter(tmp_path, config, 0, is_measured=True), TrainingState(config, Processes())
    for state.step in range(1, 5):
        with reporter.pause():
            now[0] += 100
        now[0] += 2
        reporter.step(StepReport({"d/loss": torch.tensor(0.5)}), plan_at(config, state.step - 1), state)
    reporter.close()
    points = [json.loads(line) for line in (tmp_path / SCALARS_FILE).read_text().splitlines()]
    schedule = {"resolution": 8, "fade": 3 / 8, "density_noise": 3 / 4, "learning_rate_factor": 1 / 2}
    assert [point["step"] for point in points] == [2, 4]
    assert [point["speed/images_per_second"] for point in points] == [2, 2]
    assert {name: points[1][f"schedule/{name}"] for name in schedule} == pytest.approx(schedule)
    assert points[1]["d/loss"] == 0.5 and points[1]["skipped_steps"] == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE])
def test_a_terminal_that_is_gone(small_config: TrainConfig, tmp_path: Path, number: int) -> None:
    """What is said is in the log; a run that was told to live on does."""

    class Gone:
        def write(self, line: str, file: object) -> None:
            raise OSError(number, os.strerror(number))

        def close(self) -> None:
            pass

    reporter = Reporter(tmp_path, small_config, 0, is_measured=True)
    reporter.bar.close()
    reporter.bar = Gone()
    with nullcontext() if number == errno.EIO else pytest.raises(BrokenPipeError):
        reporter.say("words")
    reporter.close()
    assert "words" in (tmp_path / LOG_FILE).read_text()


def test_turntable() -> None:
    """Swings around the front of the training cameras, first to the left."""
    loaded = replace(small("cips3d"), poses=PoseDistribution(pitch_mean=1.2, yaw_mean=1.9))
    frames = turntable(loaded, faces=1, frames=4)
    assert len(frames) == 4
    for frame, turn in zip(frames, (0.0, 0.6, 0.0, -0.6), strict=True):
        pitch, yaw = torch.tensor([1.2]), torch.tensor([1.9 + turn])
        torch.testing.assert_close(
            frame, render_views(loaded, styles_of_seeds(loaded, [0]), pitch, yaw, Look(8)).image[:, 0]
        )


def test_front_of_cameras_on_a_sphere() -> None:
    """Half of them stand higher: the mean of their pitches' v is not that of the pitches."""
    poses = PoseDistribution("spherical_uniform", pitch_mean=math.pi / 4, pitch_std=math.pi / 20)
    loaded = replace(small("cips3d"), poses=poses)
    styles = styles_of_seeds(loaded, range(1))
    pitch, yaw = torch.tensor([math.pi / 3]), torch.tensor([math.pi / 2])
    torch.testing.assert_close(front_view(loaded), (pitch, yaw))
    rows = face_rows(loaded, 1)
    for name, up in (("front", 0.0), ("tilted", -0.25)):
        torch.testing.assert_close(rows[name], render_views(loaded, styles, pitch + up, yaw, Look(8)).image[:, 0])
    first = turntable(loaded, faces=1, frames=3)[0]
    torch.testing.assert_close(first, render_views(loaded, styles, pitch, yaw, Look(8)).image[:, 0])


def test_faces_turn_into_each_other_and_back() -> None:
    loaded = loaded_of(Flat(), 8)
    frames = interpolation(loaded, faces=3, frames=8)
    own, following = (
        render_views(loaded, styles_of_seeds(loaded, range(first, first + 3)), *front_view(loaded), Look(8)).image[:, 0]
        for first in (0, 1)
    )
    assert len(frames) == 8
    torch.testing.assert_close(frames[0], own)
    torch.testing.assert_close(frames[4], following)
    torch.testing.assert_close(frames[1], frames[7])
    assert (frames[1] - own).abs().mean() < (frames[2] - own).abs().mean() / 2  # slow at both ends: 0.156 to 0.5
