"""Measurements that cannot be made are refused in a sentence before anything is trained."""

from __future__ import annotations

import sys
import urllib.error
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation.fidelity_library import open_torch_fidelity
from training.measuring.measured_runs import reporting

from cips3d import train as command
from cips3d.errors import UserError
from cips3d.models.cips import CIPSConfig
from cips3d.training import measuring
from cips3d.training.config import TrainConfig
from cips3d.training.loop import train
from cips3d.training.resolving import resolved


def offline(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no route to host")


def refuse(config: TrainConfig, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_settings(config: TrainConfig, changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(reporting(config, **changes), words, monkeypatch)


def test_2d_generators(config: TrainConfig) -> None:
    flat = replace(
        reporting(config, metrics=("frechet", "consistency")),
        generator=CIPSConfig(resolution=8),
        stages=(replace(config.stages[0], aux_weight=0.0),),
    )
    with pytest.raises(UserError, match=r"consistency needs a 3-D generator, and cips has no camera"):
        resolved(flat)
    resolved(reporting(flat, metrics=("frechet",)))
    resolved(reporting(flat, metrics_interval=0))


def test_heads_are_known(config: TrainConfig) -> None:
    measured = reporting(config, metrics=("pose", "chirality"))
    resolved(replace(measured, data=None))
    with pytest.raises(UserError, match="pose knows synthetic heads only"):
        resolved(measured)


def test_too_few_real_pictures(
    config: TrainConfig, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "00.png").write_bytes((photo_folder / "00.png").read_bytes())
    words = "frechet compares with 2 pictures or more, and --data holds 1"
    refuse(replace(config, data=str(tmp_path / "one")), words, monkeypatch)


@pytest.mark.parametrize("metric", ["fid", "pr"])
def test_missing_library(config: TrainConfig, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    refuse(reporting(config, metrics=(metric,)), r"pip install 'cips3d\[eval\]'", monkeypatch)


def test_missing_lpips(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    stage = replace(config.stages[0], resolution=16)
    monkeypatch.setitem(measuring.METRICS, "lpips", replace(measuring.METRICS["lpips"], least_side=16))
    refuse(reporting(replace(config, stages=(stage,)), metrics=("frechet", "lpips")), "pip install lpips", monkeypatch)


def test_weights_that_cannot_be_downloaded(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    open_torch_fidelity()
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    monkeypatch.setattr("torch_fidelity.feature_extractor_vgg16.torchvision_load_pretrained_vgg16", offline)
    for metric, flag in (("kid", "--reports.inception FILE"), ("pr", "--reports.vgg FILE")):
        refuse(reporting(config, metrics=(metric,)), f"cannot be downloaded.*no route to host.*{flag}", monkeypatch)


def test_wrong_weights(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_torch_fidelity()
    absent = reporting(config, metrics=("fid",), inception=tmp_path / "none.pth")
    refuse(absent, r"none\.pth does not exist", monkeypatch)
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    other = reporting(config, metrics=("fid",), inception=tmp_path / "a.pth")
    refuse(other, r"a\.pth does not hold the weights of inception", monkeypatch)


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    parsed = command.parse(["--reports.metrics", "fid", "consistency", "--reports.metrics-interval", "100"])
    assert parsed.reports.metrics == ("fid", "consistency") and parsed.reports.metrics_interval == 100
    with pytest.raises(SystemExit) as stopped:
        command.parse(["--reports.metrics", "fvd"])
    assert stopped.value.code == 2
    assert "fvd" in capsys.readouterr().err
