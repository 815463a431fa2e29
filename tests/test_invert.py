"""The command `python -m cips3d.invert`, and what `render` and `mesh` make of its files."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.small_runs import write_run
from convert.small_networks import CIPS_CONFIG, STYLEGAN2_CONFIG
from inversion.small_models import loaded_of
from PIL import Image

from cips3d import render
from cips3d.cameras import PoseDistribution
from cips3d.checkpoints.converted import read_converted
from cips3d.checkpoints.trained import find_checkpoint
from cips3d.errors import UserError
from cips3d.files import sha256_of
from cips3d.inversion import Inversion, Record, invert
from cips3d.invert import main
from cips3d.models.cips import CIPS
from cips3d.models.cips3d import CIPS3D
from cips3d.models.stylegan2 import StyleGAN2
from cips3d.rendering import LoadedGenerator, Look, load_generator, read_latent, render_views, styles_of_latents
from cips3d.training.config import TrainConfig

QUICK = ("--steps", "9", "--starts", "2")


@pytest.fixture
def run_folder(small_config: TrainConfig, tmp_path: Path) -> Path:
    """A run of 8² pictures, all from one camera: the search, which looks from there alone, is quick."""
    return write_run(tmp_path / "run", dataclasses.replace(small_config, poses=PoseDistribution("fixed")))


@pytest.fixture
def photo(photo_folder: Path) -> Path:
    """20 x 16 pixels."""
    return photo_folder / "00.png"


@pytest.fixture
def command(run_folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command; returns what it prints, or the error of one that must fail with code 2."""

    def call(*flags: object, out: str = "found", source: Path = run_folder, of: Path = photo, code: int = 0) -> str:
        argv = [source, of, "--out", tmp_path / out, "--device", "cpu", *QUICK, *flags]
        assert main([str(argument) for argument in argv]) == code
        printed = capsys.readouterr()
        if code != 2:
            return printed.out
        last = printed.err.rpartition("\r")[2]
        assert last.startswith("error: ")
        assert last.count("\n") == 1
        return last

    return call


def place_model(monkeypatch: pytest.MonkeyPatch, loaded: LoadedGenerator) -> None:
    """Put a model in the place of the one that the command loads."""
    monkeypatch.setattr("cips3d.invert.load_generator", lambda *_, **__: loaded)


class TestResults:
    def test_files(self, command: Callable[..., str], run_folder: Path, tmp_path: Path) -> None:
        said = command()
        assert {file.name for file in (tmp_path / "found").iterdir()} == {
            "latent.safetensors",
            "inversion.png",
            "loss.png",
        }
        for words in (
            "latent.safetensors: seen from yaw ",
            "pitch",
            "PSNR",
            "dB",
            f"cips3d.render {run_folder} --latent",
        ):
            assert words in said
        latent = read_latent(tmp_path / "found" / "latent.safetensors")
        assert latent.model == "cips3d"
        assert latent.camera is not None
        assert set(latent.styles) == {"shape", "appearance"}
        with Image.open(tmp_path / "found" / "inversion.png") as picture:
            assert picture.width > 7 * 128

    def test_shows_the_middle_of_the_photo(self, command: Callable[..., str], photo: Path, tmp_path: Path) -> None:
        command("--resolution", "16")
        with Image.open(photo) as picture:
            middle = np.asarray(picture.convert("RGB").crop((2, 0, 18, 16)))
        with Image.open(tmp_path / "found" / "inversion.png") as picture:
            shown = np.asarray(picture)[-128:, :128]
        np.testing.assert_array_equal(shown[4::8, 4::8], middle)

    def test_the_same_every_time(self, command: Callable[..., str], tmp_path: Path) -> None:
        for out, flags in {"a": (), "b": (), "c": ("--seed", "5")}.items():
            command(*flags, out=out)
        a, b, c = ((tmp_path / out / "latent.safetensors").read_bytes() for out in "abc")
        assert a == b
        assert a != c

    def test_tuned_model_is_a_checkpoint(self, command: Callable[..., str], run_folder: Path, tmp_path: Path) -> None:
        said = command("--tune", "--tune-steps", "4")
        tuned, latent = (tmp_path / "found" / f"{name}.safetensors" for name in ("tuned", "latent"))
        assert "tuned " in said
        assert f"cips3d.render {tuned}" in said
        changed, original = load_generator(tuned), load_generator(run_folder)
        assert changed.step == original.step
        camera = read_latent(latent).camera
        assert camera is not None
        angles = (torch.tensor([camera.pitch]), torch.tensor([camera.yaw]))
        styles = styles_of_latents(original, [latent])
        a, b = (render_views(model, styles, *angles, Look(8)).image for model in (changed, original))
        assert not torch.equal(a, b)

    def test_tuned_model_names_the_checkpoint_that_it_was_made_of(
        self, command: Callable[..., str], run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run that goes on writes others meanwhile, and removes that one."""
        loaded_from = find_checkpoint(run_folder)
        digest = sha256_of(loaded_from)

        def while_the_run_goes_on(*arguments: Any, **options: Any) -> Inversion:
            loaded_from.rename(loaded_from.with_name("step-99999999.pt"))
            return invert(*arguments, **options)

        monkeypatch.setattr("cips3d.invert.invert", while_the_run_goes_on)
        command("--tune", "--tune-steps", "2")
        (source,) = read_converted(tmp_path / "found" / "tuned.safetensors").sources
        assert (source.file, source.sha256) == (loaded_from.name, digest)

    def test_render_takes_the_latent(
        self, command: Callable[..., str], run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command()
        latent = tmp_path / "found" / "latent.safetensors"
        argv = [run_folder, "--latent", latent, "--trajectory", "yaw", "--frames", 3, "--out", tmp_path / "turn.webp"]
        assert render.main([*map(str, argv), "--device", "cpu"]) == 0
        assert "1 latent in 3 frames" in capsys.readouterr().out
        assert (tmp_path / "turn.webp").is_file()

    def test_known_pose(self, command: Callable[..., str], tmp_path: Path) -> None:
        said = command("--pose", "0.25", "-0.1")
        assert "seen from yaw 0.250 and pitch -0.100" in said

    def test_known_pose_among_cameras_on_a_sphere(
        self, command: Callable[..., str], small_config: TrainConfig, tmp_path: Path
    ) -> None:
        """Counted from their median, which is at π/3 here, not from π/4."""
        poses = PoseDistribution("spherical_uniform", pitch_mean=math.pi / 4, pitch_std=math.pi / 20)
        run = write_run(tmp_path / "sphere", dataclasses.replace(small_config, poses=poses))
        assert "seen from yaw 0.250 and pitch -0.100" in command("--pose", "0.25", "-0.1", source=run)
        camera = read_latent(tmp_path / "found" / "latent.safetensors").camera
        assert camera is not None
        assert (camera.pitch, camera.yaw) == pytest.approx((math.pi / 3 - 0.1, math.pi / 2 + 0.25), abs=1e-5)
        over = command("--pose", "0", "-1.1", source=run, out="other", code=2)
        assert "goes over a pole; give one between -1.05 and 2.09" in over

    @pytest.mark.parametrize("config", [CIPS_CONFIG, STYLEGAN2_CONFIG], ids=["cips", "stylegan2"])
    def test_two_dimensional_model(
        self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: object
    ) -> None:
        generator = CIPS(CIPS_CONFIG) if config is CIPS_CONFIG else StyleGAN2(STYLEGAN2_CONFIG)
        place_model(monkeypatch, loaded_of(generator, generator.fixed_resolution or 8, PoseDistribution()))
        said = command()
        assert "yaw" not in said
        assert "PSNR" in said
        assert read_latent(tmp_path / "found" / "latent.safetensors").camera is None
        assert "2-D model and has no camera; leave out --pose" in command("--pose", 0, 0, out="other", code=2)
        if generator.fixed_resolution:
            assert "leave it out or give 16" in command("--resolution", 8, out="other", code=2)

    @pytest.mark.parametrize(("calls", "names"), [(6, 3), (22, 4)])
    def test_ctrl_c_saves_what_there_is(
        self, command: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, names: int
    ) -> None:
        """While the latent is sought, and while weights are tuned."""
        records: list[Record] = []

        def interrupted(*values: object, **named: object) -> Record:
            records.append(Record(*values, **named))  # type: ignore[arg-type]
            if len(records) == calls:
                os.kill(os.getpid(), signal.SIGINT)
            return records[-1]

        for module in ("descent", "tuning"):
            monkeypatch.setattr(f"cips3d.inversion.{module}.Record", interrupted)
        said = command("--tune", "--tune-steps", "100", "--steps", "18", code=130)
        assert f"stopped early, after {calls} steps" in said
        assert len(list((tmp_path / "found").iterdir())) == names


class TestMistakes:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--steps", "0"], "--steps 0 is too few"),
            (["--tune-steps", "0"], "--tune-steps 0"),
            (["--tune-steps", "5"], "--tune-steps 5 is for --tune; add that"),
            (["--starts", "0"], "--starts 0"),
            (["--prior", "-1"], "--prior -1"),
            (["--prior", "1e300"], "--prior 1e+300 is no weight; give a number from 0 to 1000"),
            (["--perceptual-weight", "inf"], "--perceptual-weight inf"),
            (["--seed", "-1"], "--seed -1"),
            (["--resolution", "7"], "--resolution 7"),
            (["--pose", "nan", "0"], "--pose nan 0"),
            (["--pose", "1e300", "0"], "--pose 1e+300 0"),
            (["--pose", "0", "1.6"], "--pose with pitch 1.6 goes over a pole"),
            (["--device", "tpu"], "--device tpu"),
            (["--resolution", "2000000"], "--resolution 2000000"),
        ],
    )
    def test_one_clear_line(self, command: Callable[..., str], tmp_path: Path, flags: list[str], message: str) -> None:
        assert message in command(*flags, code=2)
        assert not (tmp_path / "found").exists()

    def test_photo(self, command: Callable[..., str], tmp_path: Path) -> None:
        assert "does not exist; give the file of a picture" in command(of=tmp_path / "none.png", code=2)
        assert "is a folder" in command(of=tmp_path, code=2)
        assert f"{os.devnull} is no picture file; give the file of a picture" in command(of=Path(os.devnull), code=2)
        (tmp_path / "note.jpg").write_text("no picture")
        assert "note.jpg cannot be read as a picture" in command(of=tmp_path / "note.jpg", code=2)
        assert not (tmp_path / "found").exists()

    def test_nothing_is_overwritten(self, command: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "found").mkdir()
        (tmp_path / "found" / "inversion.png").write_text("mine")
        assert "found is not empty" in command(code=2)
        assert (tmp_path / "found" / "inversion.png").read_text() == "mine"
        (tmp_path / "file").write_text("mine")
        assert "file is a file" in command(out="file", code=2)
        assert "cannot be written (Not a directory)" in command(out="file/folder", code=2)

    def test_a_folder_that_cannot_be_written_is_known_before_the_work(
        self, command: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        (tmp_path / "found").mkdir()
        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
        monkeypatch.setattr("cips3d.invert.invert", lambda *_, **__: pytest.fail("it has begun"))
        assert "found cannot be written (Permission denied); choose another place" in command(code=2)

    def test_full_disk_leaves_nothing_in_the_way(
        self, command: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(path: Path, _: object) -> None:
            raise UserError(f"the disk is full: {path} was not written")

        with monkeypatch.context() as patch:
            patch.setattr("cips3d.invert.save_image", fail)
            assert "inversion.png was not written" in command(code=2)
        assert list((tmp_path / "found").iterdir()) == []
        command()

    def test_missing_run(self, command: Callable[..., str], tmp_path: Path) -> None:
        assert "does not exist" in command(source=tmp_path / "nowhere", code=2)

    def test_lpips_that_is_missing(self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "lpips", None)
        assert "pip install lpips" in command("--perceptual", "lpips", code=2)

    def test_too_little_memory(self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: object, **options: object) -> None:
            torch.empty(2**60)

        monkeypatch.setattr(CIPS3D, "synthesis", fail)
        assert "too little memory for --starts 2 at --resolution 8" in command(code=2)

    def test_process_ends_with_code_2_and_no_traceback(self, tmp_path: Path, photo: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "cips3d.invert", str(tmp_path / "none"), str(photo), "--out", str(tmp_path / "a")],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr == f"error: {tmp_path / 'none'} does not exist; give a run folder or a checkpoint file\n"

    def test_help_shows_examples(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        for words in ("RUN_OR_CHECKPOINT", "PHOTO", "Examples:", "--tune", "--pose", "--latent", "Ctrl-C"):
            assert words in text
