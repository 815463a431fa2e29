"""Metrics during training: what is written, and which checkpoint is the best."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training.measuring.measured_runs import best_step, lines_of, reporting, rig

from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint
from cips3d.errors import UserError
from cips3d.evaluation.image_sets import SourceImages
from cips3d.training.config import Reports, TrainConfig
from cips3d.training.loop import train
from cips3d.training.measuring import Best, Measurement, new_best
from cips3d.training.run_folder import METRICS_FILE


class TestWhatIsWritten:
    def test_lines_and_curves(self, config: TrainConfig) -> None:
        folder, _ = train(reporting(config, metrics=("frechet", "consistency")))
        lines = lines_of(folder)
        assert [(line["step"], line["images"], line["resolution"]) for line in lines] == [
            (0, 0, 8),
            (2, 8, 8),
            (4, 16, 8),
            (6, 24, 8),
        ]
        names = ["frechet", "consistency_psnr", "consistency_overlap"]
        assert all(list(line["values"]) == names for line in lines)
        assert len({line["values"]["frechet"] for line in lines}) == 4
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        for name in names:
            points = {point.step: point.value for point in events.Scalars(f"metrics/{name}")}
            assert points == pytest.approx({line["step"]: line["values"][name] for line in lines})

    @pytest.mark.parametrize(("interval", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6]), (6, [0, 2, 3, 5, 6]), (999, [0, 6])])
    def test_distance_in_pictures(
        self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, interval: int, steps: list[int]
    ) -> None:
        """4 pictures a step: whenever a multiple of the interval is reached or passed."""
        rig(monkeypatch, lambda step: {"frechet": 1.0})
        folder, _ = train(reporting(config, metrics_interval=interval))
        assert [line["step"] for line in lines_of(folder)] == steps

    def test_what_is_no_number(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        rig(monkeypatch, lambda step: {"frechet": math.nan if step < 6 else 1.0})
        folder, _ = train(config)
        assert [line["values"]["frechet"] for line in lines_of(folder)] == [None, None, None, 1.0]
        assert best_step(folder) == 6

    @pytest.mark.parametrize("changes", [{"metrics_interval": 0}, {"metrics": ()}])
    def test_never(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
        def fail(step: int) -> dict[str, float]:
            raise AssertionError("measured")

        rig(monkeypatch, fail)
        folder, _ = train(reporting(config, **changes))
        assert not (folder / METRICS_FILE).exists()
        assert not (folder / "checkpoints" / "best.pt").exists()

    def test_real_pictures_are_read_once(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[int] = []
        original = SourceImages.__getitem__

        def counted(self: SourceImages, index: int) -> torch.Tensor:
            read.append(index)
            return original(self, index)

        monkeypatch.setattr(SourceImages, "__getitem__", counted)
        train(config)
        assert sorted(read) == list(range(12))

    def test_stages_are_measured_at_their_resolution(
        self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last step of a stage belongs to it, and other resolutions have a best of their own."""
        rig(monkeypatch, lambda step: {"frechet": float(step)})
        first = replace(config.stages[0], steps=4)
        second = replace(first, resolution=16, grad_points=50)
        folder, _ = train(replace(config, stages=(first, second)))
        assert [(line["step"], line["resolution"]) for line in lines_of(folder)] == [
            (0, 8),
            (2, 8),
            (4, 8),
            (6, 16),
            (8, 16),
        ]
        assert best_step(folder) == 6
        assert load_checkpoint(find_checkpoint(folder))["best"] == {
            "name": "frechet",
            "resolution": 16,
            "images": 6,
            "value": 6.0,
        }


class TestTheBest:
    def test_smaller_is_better(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        """Step 0 does not count: nothing is learned there."""
        rig(monkeypatch, lambda step: {"frechet": {0: 1.0, 2: 5.0, 4: 3.0, 6: 4.0}[step], "fid": -step})
        folder, _ = train(config)
        assert best_step(folder) == 4
        assert load_checkpoint(find_checkpoint(folder))["best"]["value"] == 3.0

    def test_larger_is_better(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of several metrics, the first one that has a direction decides."""
        psnr = {0: 50.0, 2: 30.0, 4: 33.0, 6: 31.0}
        rig(monkeypatch, lambda step: {"mirror_symmetry": 0.5, "consistency_psnr": psnr[step], "frechet": 10.0 - step})
        folder, _ = train(reporting(config, metrics=("symmetry", "consistency", "frechet")))
        assert best_step(folder) == 4

    def test_without_direction(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        rig(monkeypatch, lambda step: {"mirror_symmetry": 0.5})
        folder, _ = train(reporting(config, metrics=("symmetry",)))
        assert len(lines_of(folder)) == 4
        assert not (folder / "checkpoints" / "best.pt").exists()

    def test_another_metric_starts_anew(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        rig(monkeypatch, lambda step: {"frechet": 1.0, "consistency_psnr": 0.5})
        folder, _ = train(replace(config, steps=4))
        assert best_step(folder) == 2
        other = reporting(config, metrics=("consistency",))
        train(replace(other, out=None, resume=folder))
        assert best_step(folder) == 6  # 0.5 dB are more than nothing, and would have been fewer than 1.0
        assert load_checkpoint(find_checkpoint(folder))["best"]["name"] == "consistency_psnr"

    def test_only_like_is_compared_with_like(self) -> None:
        reports = Reports(metrics=("frechet",), metrics_images=10)
        best = Best("frechet", 8, 10, 1.0)
        assert new_best(best, Measurement(1, 1, 8, {"frechet": 2.0}), reports) is None
        assert new_best(best, Measurement(1, 1, 8, {"frechet": 0.5}), reports) == replace(best, value=0.5)
        assert new_best(best, Measurement(1, 1, 16, {"frechet": 2.0}), reports) == Best("frechet", 16, 10, 2.0)
        fewer = replace(reports, metrics_images=5)
        assert new_best(best, Measurement(1, 1, 8, {"frechet": 2.0}), fewer) == Best("frechet", 8, 5, 2.0)
        assert new_best(None, Measurement(1, 1, 8, {"frechet": math.nan}), reports) is None

    @pytest.mark.parametrize(("metric", "best"), [("frechet", 4), ("consistency", 2)])
    def test_other_pictures_are_another_measure(
        self, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, best: int
    ) -> None:
        """Where generated ones are compared with them."""
        rig(monkeypatch, lambda step: {"frechet": float(step), "consistency_psnr": -float(step)})
        config = reporting(config, metrics=(metric,))
        folder, _ = train(replace(config, steps=2))
        assert best_step(folder) == 2
        assert config.data is not None
        shutil.copytree(config.data, tmp_path / "others")
        shutil.copy(next((tmp_path / "others").iterdir()), tmp_path / "others" / "one-more.png")
        train(replace(config, out=None, resume=folder, data=str(tmp_path / "others")))
        assert best_step(folder) == best

    def test_another_folder_has_a_best_of_its_own(
        self, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rig(monkeypatch, lambda step: {"frechet": float(step)})
        folder, _ = train(replace(config, steps=2))
        moved, _ = train(replace(config, out=tmp_path / "moved", resume=folder))
        assert best_step(moved) == 4
        assert [line["step"] for line in lines_of(moved)] == [4, 6]


def test_failed_measurement_loses_nothing(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(step: int) -> dict[str, float]:
        if step == 4:
            raise UserError("the cache cannot be written")
        return {"frechet": 1.0}

    rig(monkeypatch, broken)
    with pytest.raises(UserError, match="cache cannot be written"):
        train(config)
    assert config.out is not None
    assert load_checkpoint(find_checkpoint(config.out))["step"] == 4
