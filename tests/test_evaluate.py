"""The command `python -m cips3d.evaluate`."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import run_command
from evaluation.analytic import Analytic, Flat, loaded_of, nothing
from evaluation.fidelity_library import open_torch_fidelity

from cips3d import evaluate
from cips3d.cameras import PoseDistribution
from cips3d.checkpoints.trained import save_checkpoint
from cips3d.data.heads import SyntheticHeads, load_heads
from cips3d.evaluate import main
from cips3d.evaluation.catalogue import METRICS
from cips3d.evaluation.evaluate import Curve, Evaluation, EvaluationSettings, evaluate_generator
from cips3d.models.family import make_generator
from cips3d.rendering import load_generator
from cips3d.training.config import TrainConfig

STEP = 1200


@pytest.fixture
def run_folder(small_config: TrainConfig, tmp_path: Path) -> Path:
    """A run of 8² pictures with one checkpoint."""
    torch.manual_seed(0)
    averaged = make_generator(dataclasses.replace(small_config.generator, rgb_init=1.0))
    state = {"config": small_config.to_json(), "generator_ema": averaged.state_dict(), "step": STEP}
    save_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{STEP:08d}.pt", state)
    return tmp_path / "run"


@pytest.fixture
def command(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run the command on the run; returns what it prints, or the error of one that must fail with code 2."""
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object, run: object = run_folder, fails: bool = False) -> str:
        argv = [*([] if run is None else [run]), "--device", "cpu", *arguments]
        return run_command(main, argv, capsys, fails)

    return call


class TestModels:
    def test_table_and_file(self, command: Callable[..., str], run_folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "figures" / "metrics.json"
        said = command("--faces", 3, "--seed", 5, "--out", out)
        content = json.loads(out.read_text())
        expected = evaluate_generator(
            load_generator(run_folder), ["consistency", "smoothness", "symmetry"], EvaluationSettings(faces=3, seed=5)
        )
        assert content["values"] == {name: value if value == value else None for name, value in expected.values.items()}
        assert content["better"]["consistency_psnr"] == "larger"
        assert content["curves"]["mirror_symmetry"]["x"] == pytest.approx([0.15, 0.3, 0.45])
        assert (content["step"], content["resolution"], content["seed"]) == (STEP, 8, 5)
        assert content["generator"] == "CIPS3D"
        assert content["settings"]["faces"] == 3
        assert content["versions"]["torch"] == torch.__version__
        assert content["data"] is None
        assert set(content["seconds"]) == {"consistency", "smoothness", "symmetry"}
        for name in content["values"]:
            assert f"{name} " in said
        assert "larger is better" in said
        assert f"3 faces of 8 x 8 from {run_folder} at step {STEP}" in said
        assert str(out) in said

    def test_chosen_metrics_only(self, command: Callable[..., str]) -> None:
        said = command("--metrics", "symmetry", "--faces", 2, "--resolution", 6, "--truncation", 0.5)
        assert "mirror_symmetry" in said
        assert "consistency" not in said
        assert "6 x 6" in said

    def test_frechet_with_data(self, command: Callable[..., str], photo_folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "m.json"
        arguments = ("--metrics", "frechet", "--images", 20, "--out", out)
        assert "20 pictures" in command(*arguments, "--data", photo_folder)
        by_photos = json.loads(out.read_text())
        assert by_photos["data"] == {"name": str(photo_folder), "count": 12}
        command(*arguments, "--data", "heads", "--heads", 16)
        by_heads = json.loads(out.read_text())
        assert by_heads["data"] == {"name": "heads", "count": 16}
        assert by_heads["values"]["frechet"] != by_photos["values"]["frechet"]

    def test_heads_are_seen_by_the_model_s_cameras(
        self, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "cache"))
        loaded = dataclasses.replace(load_generator(run_folder), fov_degrees=20.0, poses=PoseDistribution("uniform"))
        real = evaluate.real_images(evaluate.Options(data="heads", heads=3), ["frechet"], 8, loaded)
        assert isinstance(real, SyntheticHeads)
        assert real.folder == load_heads(8, 3, poses=loaded.poses, fov_degrees=20.0, progress=False).folder

    def test_perfect_heads(self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(evaluate, "HEADS_RESOLUTION", 16)
        assert "16 x 16 from heads" in command("--metrics", "symmetry", "--faces", 2, run="heads")

    def test_curves(self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        found = Evaluation({"pose_yaw_slope": 0.5}, {"pose_seen_yaw": Curve([-0.6, 0.6], [-0.3, math.nan])})
        monkeypatch.setattr(evaluate, "evaluate_generator", lambda *_, **__: found)
        out = tmp_path / "m.json"
        said = command("--metrics", "pose", "--out", out)
        angles, seen = said.splitlines()[1:3]
        assert angles.split() == ["pose_seen_yaw", "at", "angle", "-0.60", "0.60"]
        assert seen.split()[-2:] == ["-0.30", "nan"]
        assert [angles.index("-0.60"), angles.index(" 0.60")] == [seen.index("-0.30"), seen.index("  nan")]
        assert json.loads(out.read_text())["curves"] == {"pose_seen_yaw": {"x": [-0.6, 0.6], "y": [-0.3, None]}}

    def test_place_without_room(
        self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.EFBIG, "File too large")

        monkeypatch.setattr(evaluate, "evaluate_generator", lambda *_, **__: Evaluation({"pose_yaw_slope": 0.5}))
        monkeypatch.setattr("cips3d.files.os.fsync", full)
        told = command("--metrics", "pose", "--out", tmp_path / "m.json", fails=True)
        assert "m.json cannot be written (File too large)" in told
        assert not (tmp_path / "m.json").exists()

    def test_missing_weights_are_told_first(
        self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch, photo_folder: Path, tmp_path: Path
    ) -> None:
        open_torch_fidelity()

        def fail(*arguments: object, **options: object) -> None:
            raise AssertionError("the work began")

        monkeypatch.setattr(evaluate, "real_images", fail)
        data = ("--data", photo_folder)
        assert "none.pth does not exist" in command(
            "--metrics", "fid", "--inception", tmp_path / "none.pth", *data, fails=True
        )
        monkeypatch.setitem(sys.modules, "torch_fidelity", None)
        assert "pip install 'cips3d[eval]'" in command("--metrics", "frechet,pr", *data, fails=True)

    def test_nothing_to_see_is_null(
        self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(evaluate, "load_generator", lambda *_, **__: loaded_of(Analytic(nothing)))
        out = tmp_path / "m.json"
        assert " - " in command("--metrics", "consistency", "--faces", 2, "--out", out)
        assert json.loads(out.read_text())["values"] == {"consistency_psnr": None, "consistency_overlap": 0.0}


class TestFolders:
    def test_same_pictures(self, command: Callable[..., str], photo_folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "m.json"
        arguments = ("--generated", photo_folder, "--metrics", "frechet", "--data", photo_folder, "--out", out)
        assert "12 images" in command(*arguments, run=None)
        content = json.loads(out.read_text())
        assert content["values"]["frechet"] == pytest.approx(0, abs=1e-3)
        assert (content["resolution"], content["count"]) == (16, 12)  # the files are 20 x 16
        command(*arguments, "--resolution", 24, run=None)
        assert json.loads(out.read_text())["resolution"] == 24

    def test_mistakes(self, command: Callable[..., str], photo_folder: Path, tmp_path: Path) -> None:
        assert "--generated" in command("--generated", tmp_path / "none", "--metrics", "is", run=None, fails=True)
        (tmp_path / "a.png").write_bytes(b"broken")
        unreadable = ("--generated", tmp_path, "--metrics", "is", "--resolution", 8)
        assert f"--generated {tmp_path}: none of its 1 files" in command(*unreadable, run=None, fails=True)
        assert "symmetry turns the camera" in command(
            "--generated", photo_folder, "--metrics", "symmetry", run=None, fails=True
        )
        assert "nothing to measure but pictures" in command("--generated", photo_folder, run=None, fails=True)
        assert "one thing to measure" in command("--generated", photo_folder, fails=True)
        assert "one thing to measure" in command(run=None, fails=True)


class TestMistakes:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--metrics", "fid,fvd"], "--metrics fvd is unknown; choose out of fid,kid,is"),
            (["--metrics", ","], "choose out of"),
            (["--metrics", "fid,frechet"], "fid, frechet compare with real pictures; give --data"),
            (["--faces", "1"], "--faces 1"),
            (["--images", "0"], "--images 0"),
            (["--heads", "0"], "--heads 0 is too few"),
            (["--heads", "64"], "--heads 64 is for --data heads"),
            (["--batch-size", "0"], "--batch-size 0"),
            (["--resolution", "1"], "--resolution 1"),
            (["--resolution", "100000"], "--resolution 100000 is too large for a picture"),
            (["--truncation", "nan"], "--truncation nan"),
            (["--seed", "-1"], "--seed -1"),
            (["--out", "a.csv"], ".json"),
            (["--device", "tpu"], "--device tpu"),
            (["--metrics", "frechet", "--data", "nowhere"], "--data nowhere"),
            (["--metrics", "frechet", "--data", ""], '--data "" names nothing'),
            (["--metrics", "is", "--images", "5"], "5 pictures are too few for is"),
            (["--metrics", "lpips", "--faces", "2"], "lpips"),
        ],
    )
    def test_one_clear_line(
        self, command: Callable[..., str], flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "lpips", None)
        assert message in command(*flags, fails=True)

    def test_2d_models_are_refused(self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(evaluate, "load_generator", lambda *_, **__: loaded_of(Flat()))
        assert "pose needs a 3-D model, and Flat is 2-D; choose metrics" in command("--metrics", "pose", fails=True)
        assert "give --data, or --metrics is" in command(fails=True)

    def test_heads_and_pictures_have_no_typical_ones(self, command: Callable[..., str], photo_folder: Path) -> None:
        said = command("--metrics", "symmetry", "--truncation", "0.5", run="heads", fails=True)
        assert "--truncation 0.5 is for a model's faces" in said
        arguments = ("--generated", photo_folder, "--metrics", "is", "--truncation", "0.5")
        assert "--truncation 0.5 is for a model's faces" in command(*arguments, run=None, fails=True)

    @pytest.mark.parametrize("flag", ["--images", "--faces"])
    def test_pictures_that_are_there_are_not_generated(
        self, command: Callable[..., str], photo_folder: Path, flag: str
    ) -> None:
        said = command("--generated", photo_folder, "--metrics", "is", flag, "5", run=None, fails=True)
        assert f"{flag} 5 is for what a model generates; leave it out with --generated" in said

    def test_missing_run(self, command: Callable[..., str], tmp_path: Path) -> None:
        assert "does not exist" in command(run=tmp_path / "none", fails=True)

    def test_weights_that_cannot_be_downloaded(
        self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_torch_fidelity()

        def offline(*arguments: object, **options: object) -> None:
            raise urllib.error.URLError("no route to host")

        monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
        error = command("--metrics", "is", "--images", 10, fails=True)
        assert "inception-v3-compat cannot be downloaded (no route to host)" in error
        assert "--inception FILE" in error

    def test_file_is_kept_where_the_command_fails(
        self, command: Callable[..., str], tmp_path: Path, photo_folder: Path
    ) -> None:
        out = tmp_path / "m.json"
        out.write_text("mine")
        command("--metrics", "frechet", "--out", out, fails=True)
        assert out.read_text() == "mine"


def test_help_explains_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for words in ("RUN_OR_CHECKPOINT", "Examples:", "--generated", "--inception", *METRICS):
        assert words in text
    squeezed = " ".join(text.split())
    assert all(" ".join(metric.meaning.split())[:40] in squeezed for metric in METRICS.values())
