"""The command `python -m cips3d.mesh`."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_command
from PIL import Image

from cips3d.checkpoints.trained import save_checkpoint
from cips3d.mesh import main
from cips3d.meshing import extraction
from cips3d.models.cips3d import CIPS3D
from cips3d.rendering import latent_of, load_generator, styles_of_seeds, write_latent
from cips3d.training.config import TrainConfig

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")
pytest.importorskip("scipy")

STEP = 1200
SMALL = ("--resolution", "24")
QUICK = ("--resolution", "24", "--picture-resolution", "8", "--no-preview")


@pytest.fixture
def run_folder(small_config: TrainConfig, tmp_path: Path) -> Path:
    """A run with one checkpoint, whose volume is the soft ball that training starts from, a little bent."""
    torch.manual_seed(0)
    config = dataclasses.replace(
        small_config,
        generator=dataclasses.replace(small_config.generator, initial_radius=0.09, rgb_init=1.0, density_scale=200.0),
    )
    state = {"config": config.to_json(), "generator_ema": CIPS3D(config.generator).state_dict(), "step": STEP}
    save_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{STEP:08d}.pt", state)
    return tmp_path / "run"


@pytest.fixture
def command(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command on the run; returns what it prints, or the error of one that must fail with code 2."""

    def call(*arguments: object, out: str = "head.glb", source: Path = run_folder, fails: bool = False) -> str:
        argv = [source, "--out", tmp_path / out, "--device", "cpu", *arguments]
        said = run_command(main, argv, capsys, fails)
        assert not (fails and (tmp_path / out).is_file())
        return said

    return call


@pytest.mark.parametrize("ending", [".glb", ".ply", ".obj"])
def test_writes_a_mesh_and_its_picture(command: Callable[..., str], tmp_path: Path, ending: str) -> None:
    said = command("--seed", 3, *SMALL, out=f"head{ending}")
    mesh = trimesh.load(tmp_path / f"head{ending}", process=False, force="mesh")
    assert said.count("\n") == 1
    for words in (
        f"head{ending}",
        f"{len(mesh.vertices)} vertices",
        f"{len(mesh.faces)} faces",
        ", watertight",
        "extent",
        "threshold",
        "head.preview.png",
    ):
        assert words in said
    assert mesh.is_watertight
    assert 0.05 < np.ptp(mesh.vertices, axis=0).max() < 0.24
    with Image.open(tmp_path / "head.preview.png") as picture:
        assert picture.width > 6 * 256
        assert np.asarray(picture).std() > 10


def test_no_preview(command: Callable[..., str], tmp_path: Path) -> None:
    assert "png" not in command("--no-preview", *SMALL)
    assert not (tmp_path / "head.preview.png").exists()


def test_a_preview_with_no_room_is_told_before_the_work(command: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "head.preview.png").mkdir()
    assert "head.preview.png is a folder" in command(fails=True)
    assert not (tmp_path / "head.glb").exists()
    command("--no-preview", *SMALL)


def test_is_the_same_every_time_but_for_its_flags(command: Callable[..., str], tmp_path: Path) -> None:
    def made(*flags: str) -> bytes:
        command(*QUICK, *flags, out="a.ply")
        return (tmp_path / "a.ply").read_bytes()

    plain = made()
    assert made() == plain
    for flags in (
        ("--seed", "1"),
        ("--truncation", "0.2"),
        ("--threshold", "30"),
        ("--box-side", "0.15"),
        ("--resolution", "20"),
        ("--picture-resolution", "5"),
    ):
        assert made(*flags) != plain, flags


def test_latent(command: Callable[..., str], run_folder: Path, tmp_path: Path) -> None:
    """The latent of a seed's face gives the seed's mesh."""
    loaded = load_generator(run_folder)
    path = tmp_path / "latent.safetensors"
    write_latent(path, latent_of(loaded, styles_of_seeds(loaded, [3]), None))
    command(*QUICK, "--seed", "3", out="a.ply")
    command(*QUICK, "--latent", path, out="b.ply")
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    assert "takes the place of --seed" in command("--latent", path, "--seed", 0, fails=True)
    assert "--truncation is for the face of a seed" in command("--latent", path, "--truncation", 0.5, fails=True)


@pytest.mark.parametrize(
    ("flags", "out", "message"),
    [
        (["--seed", "-1"], "a.glb", "--seed -1"),
        (["--truncation", "nan"], "a.glb", "--truncation nan"),
        (["--resolution", "7"], "a.glb", "--resolution 7"),
        (["--resolution", "5000"], "a.glb", "--resolution 5000"),
        (["--threshold", "0"], "a.glb", "--threshold 0"),
        (["--threshold", "inf"], "a.glb", "--threshold inf"),
        (["--threshold", "1e9", *SMALL], "a.glb", "lower --threshold"),
        (["--threshold", "1e300", *SMALL], "a.glb", "lower --threshold"),
        (["--box-side", "-1"], "a.glb", "--box-side -1"),
        (["--box-side", "1e-18"], "a.glb", "--box-side 1e-18 is out of range; give a length from 1e-06 to 100"),
        (["--box-side", "1e30"], "a.glb", "--box-side 1e+30 is out of range"),
        (["--picture-resolution", "1"], "a.glb", "--picture-resolution 1"),
        (["--device", "tpu"], "a.glb", "--device tpu"),
        ([], "a.stl", ".glb or .ply or .obj"),
    ],
)
def test_mistakes_are_one_clear_line(command: Callable[..., str], flags: list[str], out: str, message: str) -> None:
    assert message in command(*flags, out=out, fails=True)


def test_missing_run(command: Callable[..., str], tmp_path: Path) -> None:
    assert "does not exist" in command(source=tmp_path / "nowhere", fails=True)


def test_place_without_room(command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr("cips3d.files.os.fsync", full)
    assert "head.ply cannot be written (File too large)" in command(*QUICK, out="head.ply", fails=True)


def test_two_dimensional_model(command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIPS3D, "is_3d", False)
    assert "a mesh needs a 3-D model, and CIPS3D is 2-D" in command(fails=True)


def test_missing_library(command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extraction.LIBRARIES, "no_such_library", "nothing")
    assert "pip install 'cips3d[mesh]'" in command(fails=True)


def test_too_little_memory(command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(CIPS3D, "density", fail)
    assert "too little memory for --resolution 24" in command(*SMALL, fails=True)


def test_process_ends_with_code_2_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cips3d.mesh", str(tmp_path / "none"), "--out", str(tmp_path / "a.glb")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none'} does not exist; give a run folder or a checkpoint file\n"


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for words in ("RUN_OR_CHECKPOINT", "Examples:", "--seed", "--threshold", ".glb", "--no-preview", "1%"):
        assert words in text
    assert "%%" not in text
