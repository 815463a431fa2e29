"""Training does not notice that it is measured, and what is measured goes on with a resumed run."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training.measuring.measured_runs import best_step, lines_of, reporting
from training.runs import after_steps, assert_equal_states

from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint
from cips3d.errors import UserError
from cips3d.evaluation import evaluate
from cips3d.evaluation.evaluate import Evaluation
from cips3d.rendering import LoadedGenerator
from cips3d.training import measuring
from cips3d.training.config import TrainConfig
from cips3d.training.loop import Training, train
from cips3d.training.measuring import Measurement
from cips3d.training.run_folder import LOG_FILE, METRICS_FILE, append_measurement, cut_records
from cips3d.training.stage_images import StageImages


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


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def wait_for_the_next_second() -> None:
    """TensorBoard reads files in the order of the seconds in their names; what happens within one has none."""
    time.sleep(1.01 - time.time() % 1)


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

    @pytest.mark.parametrize("number", [1, 2, 4])
    def test_measuring_is_left_at_a_signal_and_made_up_for(
        self, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """The first measurement, one on the way, and the last, after which nothing is left to train."""
        whole, _ = train(replace(config, out=tmp_path / "whole"))
        original, begun = measuring.evaluate_generator, []

        def evaluate(*arguments: Any, **options: Any) -> Evaluation:
            begun.append(1)
            if len(begun) == number:
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("measuring went on")
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(measuring, "evaluate_generator", evaluate)
            part, exit_code = train(replace(config, out=tmp_path / "part"))
        assert exit_code == 128 + signal.SIGTERM and len(begun) == number
        assert load_checkpoint(find_checkpoint(part))["step"] == [0, 2, 4, 6][number - 1]
        assert "go on with: python -m cips3d.train --resume" in (part / LOG_FILE).read_text()
        assert not list(part.glob("*.webp"))
        resumed, exit_code = train(replace(config, out=None, resume=part))
        assert exit_code == 0 and list(part.glob("*.webp"))
        assert_equal_states(load_checkpoint(find_checkpoint(whole)), load_checkpoint(find_checkpoint(resumed)))
        assert (whole / METRICS_FILE).read_bytes() == (resumed / METRICS_FILE).read_bytes()
        assert best_step(whole) == best_step(resumed)
        with pytest.raises(UserError, match="has finished its 6 steps"):
            train(replace(config, out=None, resume=part))

    def test_what_was_made_up_for_is_written_once(
        self, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also where the run is killed before its next checkpoint."""
        whole, _ = train(replace(config, out=tmp_path / "whole"))
        part = tmp_path / "part"
        with monkeypatch.context() as patch:
            after_steps(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
            train(replace(config, out=part))
        for owner, place in ((Training, "_save"), (StageImages, "next")):  # between measurement and checkpoint; behind
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(owner, place, interrupt)
                train(replace(config, out=None, resume=part))
            assert [line["step"] for line in lines_of(part)] == [0, 2]
        train(replace(config, out=None, resume=part))
        assert (whole / METRICS_FILE).read_bytes() == (part / METRICS_FILE).read_bytes()
        assert best_step(whole) == best_step(part)

    def test_a_measurement_due_in_the_stage_before(
        self, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is made up for with pictures of the resolution that it was due at."""
        first = replace(config.stages[0], steps=4)
        config = replace(config, stages=(first, replace(first, resolution=16, steps=2)))
        whole, _ = train(replace(config, out=tmp_path / "whole"))
        with monkeypatch.context() as patch:
            after_steps(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
            part, _ = train(replace(config, out=tmp_path / "part"))
        assert [line["step"] for line in lines_of(part)] == [0, 2]
        train(replace(config, out=None, resume=part))
        assert [line["resolution"] for line in lines_of(part)] == [8, 8, 8, 16]
        assert (whole / METRICS_FILE).read_bytes() == (part / METRICS_FILE).read_bytes()

    def test_from_an_earlier_checkpoint(self, config: TrainConfig) -> None:
        """Lines of steps that are made once more are written once more, not twice."""
        folder, _ = train(config)
        told, last = (folder / METRICS_FILE).read_bytes(), find_checkpoint(folder)
        state = load_checkpoint(last)
        last.unlink()
        wait_for_the_next_second()
        train(replace(config, out=None, resume=folder))
        assert (folder / METRICS_FILE).read_bytes() == told
        assert_equal_states(load_checkpoint(last), state)
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert [point.step for point in events.Scalars("metrics/frechet")] == [0, 2, 4, 6]

    def test_curves_keep_the_checkpoint_s_own_step(self, config: TrainConfig) -> None:
        folder, _ = train(replace(config, steps=4))
        wait_for_the_next_second()
        train(replace(config, out=None, resume=folder))
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert [point.step for point in events.Scalars("metrics/frechet")] == [0, 2, 4, 6]

    def test_lines_are_cut(self, tmp_path: Path) -> None:
        cut_records(tmp_path / METRICS_FILE, 0)  # nothing was measured
        for step in (0, 2, 4):
            append_measurement(tmp_path, Measurement(step, 4 * step, 8, {"frechet": 1.0, "fid": math.inf}))
        before = (tmp_path / METRICS_FILE).read_bytes()
        cut_records(tmp_path / METRICS_FILE, 4)
        assert (tmp_path / METRICS_FILE).read_bytes() == before
        cut_records(tmp_path / METRICS_FILE, 3)
        assert lines_of(tmp_path) == [
            {"step": 0, "images": 0, "resolution": 8, "values": {"frechet": 1.0, "fid": None}},
            {"step": 2, "images": 8, "resolution": 8, "values": {"frechet": 1.0, "fid": None}},
        ]

    @pytest.mark.parametrize("end", [b'{"step": 2, "va', b"\0" * 40, b"\0" * 40 + b"\n"])
    def test_what_a_power_failure_left_at_the_end_goes(self, tmp_path: Path, end: bytes) -> None:
        (tmp_path / METRICS_FILE).write_bytes(b'{"step": 1}\n' + end)
        cut_records(tmp_path / METRICS_FILE, 5)
        assert (tmp_path / METRICS_FILE).read_bytes() == b'{"step": 1}\n'

    def test_other_lines_are_kept(self, tmp_path: Path) -> None:
        (tmp_path / METRICS_FILE).write_text('{"step": 1}\nthe best one!\n')
        with pytest.raises(UserError, match=r"metrics\.jsonl has something else in line 2"):
            cut_records(tmp_path / METRICS_FILE, 0)
        assert "the best one!" in (tmp_path / METRICS_FILE).read_text()
