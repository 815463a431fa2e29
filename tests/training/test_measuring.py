"""Metrics during training: what is written, which checkpoint is the best, and that training does not notice."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import urllib.error
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation.fidelity_library import open_torch_fidelity
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training.test_loop import after_steps, assert_equal_states

from cips3d import train as command
from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint
from cips3d.errors import UserError
from cips3d.evaluation import evaluate
from cips3d.evaluation.evaluate import Evaluation
from cips3d.evaluation.image_sets import SourceImages
from cips3d.models.cips import CIPSConfig
from cips3d.rendering import LoadedGenerator
from cips3d.training import measuring
from cips3d.training.config import Reports, TrainConfig
from cips3d.training.loop import train
from cips3d.training.measuring import Best, Measurement, new_best
from cips3d.training.run_folder import METRICS_FILE, append_measurement, cut_measurements
from cips3d.training.settling import settled


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(small_config: TrainConfig) -> TrainConfig:
    """6 steps, measured at 0, 2, 4 and 6, with a checkpoint at 3."""
    return reporting(small_config, metrics=("frechet",), metrics_interval=8, metrics_images=6)


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

    def test_another_folder_has_a_best_of_its_own(
        self, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rig(monkeypatch, lambda step: {"frechet": float(step)})
        folder, _ = train(replace(config, steps=2))
        moved, _ = train(replace(config, out=tmp_path / "moved", resume=folder))
        assert best_step(moved) == 4
        assert [line["step"] for line in lines_of(moved)] == [4, 6]


class TestTrainingDoesNotNotice:
    def test_same_weights_with_and_without(self, config: TrainConfig, tmp_path: Path) -> None:
        """Every random number included."""
        changes: dict[str, Any] = {"metrics": ("frechet", "consistency"), "metrics_interval": 12}
        measured, _ = train(reporting(replace(config, out=tmp_path / "measured"), **changes))
        plain, _ = train(reporting(replace(config, out=tmp_path / "plain"), metrics_interval=0))
        a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (measured, plain))
        assert a.pop("best") is not None and b.pop("best") is None
        assert_equal_states(a, b)

    def test_random_numbers_of_libraries(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        """LPIPS makes its network with random weights before it loads them."""

        def drawing(*_: object) -> Callable[..., torch.Tensor]:
            torch.rand(7)
            return lambda a, b: (a - b)[:, :1].abs()

        monkeypatch.setattr(measuring, "lpips_map", drawing)
        monkeypatch.setattr(evaluate, "lpips_map", drawing)
        stage = replace(config.stages[0], resolution=32, steps=1, grad_points=20, aux_weight=0.0)
        channels = dict.fromkeys((4, 8, 16, 32), 4)
        larger = replace(config, stages=(stage,), discriminator=replace(config.discriminator, main_channels=channels))
        measured, _ = train(reporting(larger, metrics=("lpips",)))
        assert "consistency_lpips" in lines_of(measured)[0]["values"]
        plain, _ = train(reporting(replace(larger, out=measured.parent / "plain"), metrics_interval=0))
        a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (measured, plain))
        del a["best"], b["best"]
        assert_equal_states(a, b)

    def test_networks_keep_their_modes(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[bool] = []
        original = measuring.evaluate_generator

        def watched(loaded: LoadedGenerator, *arguments: Any, **options: Any) -> Evaluation:
            before = [loaded.generator.training, *(p.requires_grad for p in loaded.generator.parameters())]
            found = original(loaded, *arguments, **options)
            assert [loaded.generator.training, *(p.requires_grad for p in loaded.generator.parameters())] == before
            assert all(p.grad is None for p in loaded.generator.parameters())
            assert torch.is_grad_enabled()
            seen.extend(before)
            return found

        monkeypatch.setattr(measuring, "evaluate_generator", watched)
        train(reporting(config, metrics=("frechet", "symmetry"), metrics_interval=400))
        assert seen and not any(seen)


class TestResume:
    def test_after_a_signal(self, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, _ = train(replace(config, out=tmp_path / "whole"))
        with monkeypatch.context() as patch:
            after_steps(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
            part, _ = train(replace(config, out=tmp_path / "part"))
        resumed, _ = train(replace(config, out=None, resume=part))
        assert_equal_states(load_checkpoint(find_checkpoint(whole)), load_checkpoint(find_checkpoint(resumed)))
        assert (whole / METRICS_FILE).read_bytes() == (resumed / METRICS_FILE).read_bytes()
        assert best_step(whole) == best_step(resumed)

    def test_from_an_earlier_checkpoint(self, config: TrainConfig) -> None:
        """Lines of steps that are made once more are written once more, not twice."""
        folder, _ = train(config)
        told, last = (folder / METRICS_FILE).read_bytes(), find_checkpoint(folder)
        state = load_checkpoint(last)
        last.unlink()
        train(replace(config, out=None, resume=folder))
        assert (folder / METRICS_FILE).read_bytes() == told
        assert_equal_states(load_checkpoint(last), state)
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert [point.step for point in events.Scalars("metrics/frechet")] == [0, 2, 4, 6]

    def test_curves_keep_the_checkpoint_s_own_step(self, config: TrainConfig) -> None:
        folder, _ = train(replace(config, steps=4))
        train(replace(config, out=None, resume=folder))
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert [point.step for point in events.Scalars("metrics/frechet")] == [0, 2, 4, 6]

    def test_lines_are_cut(self, tmp_path: Path) -> None:
        cut_measurements(tmp_path, 0)  # nothing was measured
        for step in (0, 2, 4):
            append_measurement(tmp_path, Measurement(step, 4 * step, 8, {"frechet": 1.0, "fid": math.inf}))
        before = (tmp_path / METRICS_FILE).read_bytes()
        cut_measurements(tmp_path, 4)
        assert (tmp_path / METRICS_FILE).read_bytes() == before
        cut_measurements(tmp_path, 3)
        assert lines_of(tmp_path) == [
            {"step": 0, "images": 0, "resolution": 8, "values": {"frechet": 1.0, "fid": None}},
            {"step": 2, "images": 8, "resolution": 8, "values": {"frechet": 1.0, "fid": None}},
        ]

    def test_other_lines_are_kept(self, tmp_path: Path) -> None:
        (tmp_path / METRICS_FILE).write_text('{"step": 1}\nthe best one!\n')
        with pytest.raises(UserError, match=r"metrics\.jsonl has something else in line 2"):
            cut_measurements(tmp_path, 0)
        assert "the best one!" in (tmp_path / METRICS_FILE).read_text()


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


def offline(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no route to host")


class TestMistakesAreToldFirst:
    def refuse(self, config: TrainConfig, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sentence before anything is trained or any folder made."""

        def fail(*_: object) -> None:
            raise AssertionError("training began")

        monkeypatch.setattr("cips3d.training.loop.TrainingStep.__call__", fail)
        with pytest.raises(UserError, match=words):
            train(config)
        assert config.out is not None and not config.out.exists()

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"metrics": ("frechet", "fvd")}, "--reports.metrics fvd is unknown; choose out of fid,kid"),
            ({"metrics": ("pose",)}, "--reports.metrics pose knows synthetic heads only; .*--data .*photos"),
            ({"metrics": ("chirality",)}, "--reports.metrics chirality knows synthetic heads only"),
            ({"metrics": ("lpips",)}, "lpips takes pictures of 32 pixels or more, and a stage has 8"),
            ({"metrics": ("is",), "metrics_images": 9}, "--reports.metrics-images 9 is too few for is; give 10"),
            ({"metrics_images": 0}, "--reports.metrics-images 0"),
            ({"metrics_interval": -5}, "--reports.metrics-interval -5"),
        ],
    )
    def test_settings(
        self, config: TrainConfig, changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.refuse(reporting(config, **changes), words, monkeypatch)

    def test_2d_generators(self, config: TrainConfig) -> None:
        flat = replace(
            reporting(config, metrics=("frechet", "consistency")),
            generator=CIPSConfig(resolution=8),
            stages=(replace(config.stages[0], aux_weight=0.0),),
        )
        with pytest.raises(UserError, match=r"consistency needs a 3-D generator, and cips has no camera"):
            settled(flat)
        settled(reporting(flat, metrics=("frechet",)))
        settled(reporting(flat, metrics_interval=0))

    def test_heads_are_known(self, config: TrainConfig) -> None:
        settled(reporting(replace(config, data=None), metrics=("pose", "chirality")))

    def test_too_few_real_pictures(
        self, config: TrainConfig, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "00.png").write_bytes((photo_folder / "00.png").read_bytes())
        words = "frechet compares with 2 pictures or more, and --data holds 1"
        self.refuse(replace(config, data=str(tmp_path / "one")), words, monkeypatch)

    @pytest.mark.parametrize("metric", ["fid", "pr"])
    def test_missing_library(self, config: TrainConfig, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch_fidelity", None)
        self.refuse(reporting(config, metrics=(metric,)), r"pip install 'cips3d\[eval\]'", monkeypatch)

    def test_missing_lpips(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "lpips", None)
        stage = replace(config.stages[0], resolution=16)
        monkeypatch.setitem(measuring.METRICS, "lpips", replace(measuring.METRICS["lpips"], least_side=16))
        self.refuse(
            reporting(replace(config, stages=(stage,)), metrics=("frechet", "lpips")), "pip install lpips", monkeypatch
        )

    def test_weights_that_cannot_be_downloaded(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        open_torch_fidelity()
        monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
        monkeypatch.setattr("torch_fidelity.feature_extractor_vgg16.torchvision_load_pretrained_vgg16", offline)
        for metric, flag in (("kid", "--reports.inception FILE"), ("pr", "--reports.vgg FILE")):
            self.refuse(
                reporting(config, metrics=(metric,)), f"cannot be downloaded.*no route to host.*{flag}", monkeypatch
            )

    def test_wrong_weights(self, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        open_torch_fidelity()
        absent = reporting(config, metrics=("fid",), inception=tmp_path / "none.pth")
        self.refuse(absent, r"none\.pth does not exist", monkeypatch)
        torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
        other = reporting(config, metrics=("fid",), inception=tmp_path / "a.pth")
        self.refuse(other, r"a\.pth does not hold the weights of inception", monkeypatch)

    def test_on_the_command_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        parsed = command.parse(["--reports.metrics", "fid", "consistency", "--reports.metrics-interval", "100"])
        assert parsed.reports.metrics == ("fid", "consistency") and parsed.reports.metrics_interval == 100
        with pytest.raises(SystemExit) as stopped:
            command.parse(["--reports.metrics", "fvd"])
        assert stopped.value.code == 2
        assert "fvd" in capsys.readouterr().err
