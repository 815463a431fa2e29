"""A folder of single pictures: what they are called, that they hold what was rendered and nothing else."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rendering.command import RenderCommand

from cips3d import pictures
from cips3d.cameras import Cameras, read_cameras
from cips3d.errors import UserError
from cips3d.pictures import to_uint8
from cips3d.render import main
from cips3d.rendering import Look, load_generator, render_views, styles_of_seeds
from cips3d.rendering.frame_sequence import FrameSequence
from cips3d.rendering.latents import latent_of, write_latent
from cips3d.rendering.separate import CAMERAS


def names(folder: Path) -> list[str]:
    """Of all files but that of the cameras."""
    return sorted(path.name for path in folder.iterdir() if path.name != CAMERAS)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_pixels_as_they_were_rendered(
    command: RenderCommand, run_folder: Path, tmp_path: Path, batch_size: int
) -> None:
    said = command("--seeds", "0-4,12", "--yaw", 0.1, "--resolution", 9, "--batch-size", batch_size, out="faces")
    assert "6 pictures of 6 seeds in 1 view of 9 x 9" in said
    assert names(tmp_path / "faces") == [f"seed{seed:04d}.png" for seed in (0, 1, 2, 3, 4, 12)]
    loaded = load_generator(run_folder)
    front = torch.tensor([math.pi / 2])
    for seed in (0, 12):
        image = render_views(loaded, styles_of_seeds(loaded, [seed]), front, front + 0.1, Look(9)).image[0, 0]
        with Image.open(tmp_path / "faces" / f"seed{seed:04d}.png") as picture:
            shown, expected = np.asarray(picture, int), to_uint8(image).permute(1, 2, 0).numpy()
        assert abs(shown - expected).max() <= 1  # batches of other sizes may round otherwise


def test_cameras_of_the_pictures(command: RenderCommand, tmp_path: Path) -> None:
    """One a view, in the order in which they are asked for; they show the same once more as a trajectory."""
    command("--seeds", 3, "--yaw", 0.3, -0.2, "--pitch", 0.1, "--fov", 13, out="faces")
    path = tmp_path / "faces" / CAMERAS
    cameras = read_cameras(path)
    expected = Cameras.from_angles(torch.full((2,), math.pi / 2 + 0.1), math.pi / 2 + torch.tensor([0.3, -0.2]), 13.0)
    for part in ("rotation", "position", "fov_degrees"):
        torch.testing.assert_close(getattr(cameras, part), getattr(expected, part), rtol=0, atol=1e-6)
    command("--seeds", 3, "--trajectory", path, out="again")
    for frame, view in enumerate(("pitch0.1_yaw0.3", "pitch0.1_yaw-0.2")):
        files = (tmp_path / "faces" / f"seed0003_{view}.png", tmp_path / "again" / f"seed0003_frame{frame:04d}.png")
        with Image.open(files[0]) as a, Image.open(files[1]) as b:
            assert abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--seeds", 3), ["seed0003_yaw-0.4.png", "seed0003_yaw0.4.png", "seed0003_yaw0.png"]),
        (
            ("--seeds", 3, "--yaw", 0, "--pitch", -0.1, 0.2),
            ["seed0003_pitch-0.1_yaw0.png", "seed0003_pitch0.2_yaw0.png"],
        ),
        (("--seeds", "3,4", "--yaw", 0, "--kind", "depth"), ["seed0003_depth.png", "seed0004_depth.png"]),
        (
            ("--seeds", 3, "--yaw", 0, "--kind", "all"),
            [f"seed0003_{kind}.png" for kind in ("aux", "depth", "image", "normals")],
        ),
        (
            ("--seeds", 3, "--trajectory", "yaw", "--frames", 2),
            ["seed0003_frame0000.png", "seed0003_frame0001.png"],
        ),
        (("--seeds", "3,4", "--interpolate", "both", "--frames", 2), ["frame0000.png", "frame0001.png"]),
    ],
)
def test_names(command: RenderCommand, tmp_path: Path, flags: tuple[object, ...], expected: list[str]) -> None:
    command(*flags, out="faces")
    assert names(tmp_path / "faces") == expected


def test_latents_of_one_name_stay_apart(command: RenderCommand, run_folder: Path, tmp_path: Path) -> None:
    loaded = load_generator(run_folder)
    files = [tmp_path / place / "my face.safetensors" for place in ("a", "b")]
    for seed, file in enumerate(files):
        file.parent.mkdir()
        write_latent(file, latent_of(loaded, styles_of_seeds(loaded, [seed]), None))
    command("--latent", *files, "--yaw", 0, out="faces")
    assert names(tmp_path / "faces") == ["0000-my-face.png", "0001-my-face.png"]
    command("--latent", files[0], "--yaw", 0, out="one")
    assert names(tmp_path / "one") == ["my-face.png"]


def test_views_of_one_name_stay_apart(command: RenderCommand, tmp_path: Path) -> None:
    said = command("--seeds", 3, "--yaw", 0.1234561, 0.1234562, out="faces")
    assert "2 views" in said and "holds 2 pictures" in said
    assert names(tmp_path / "faces") == [f"seed0003_000{index}-yaw0.123456.png" for index in (0, 1)]


@pytest.mark.parametrize("seeds", ["3,3", "1,3-4,2-3"])
def test_seeds_named_twice(command: RenderCommand, tmp_path: Path, seeds: str) -> None:
    assert f"--seeds '{seeds}' names 3 twice" in command("--seeds", seeds, "--yaw", 0, out="faces", fails=True)
    assert not (tmp_path / "faces").exists()
    command("--seeds", seeds, "--interpolate", "both", "--frames", 2, out="frames")  # there is nothing to confuse
    command("--seeds", seeds, "--yaw", 0, out="grid.png")


def test_files_are_written_while_the_next_pictures_are_rendered(
    command: RenderCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered, render, save = threading.Semaphore(0), FrameSequence.part, pictures.save_image

    def part(*of: Any) -> torch.Tensor:
        shown = render(*of)
        rendered.release()
        return shown

    def save_later(path: Path, image: Image.Image) -> None:
        if path.name == "seed0000.png":
            assert rendered.acquire(timeout=20) and rendered.acquire(timeout=20)  # its own picture and another
        save(path, image)

    monkeypatch.setattr(FrameSequence, "part", part)
    monkeypatch.setattr(pictures, "save_image", save_later)
    assert "5 pictures" in command("--seeds", "0-4", "--yaw", 0, "--batch-size", 1, out="faces")
    assert names(tmp_path / "faces") == [f"seed{seed:04d}.png" for seed in range(5)]


def test_a_file_that_cannot_be_written(command: RenderCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, image: Image.Image) -> None:
        raise UserError(f"the disk is full: {path.name} was not written")

    rendered, render = [], FrameSequence.part
    monkeypatch.setattr(FrameSequence, "part", lambda *of: rendered.append(of) or render(*of))
    monkeypatch.setattr(pictures, "save_image", full)
    flags = ("--seeds", "0-40", "--yaw", 0, "--batch-size", 1)
    assert "seed0000.png was not written" in command(*flags, out="faces", fails=True)
    assert len(rendered) < 41  # of pictures that wait to be written there are only so many
    assert "seed0003.png was not written" in command("--seeds", 3, "--yaw", 0, out="faces", fails=True)


def test_cameras_that_cannot_be_written(command: RenderCommand, tmp_path: Path) -> None:
    (tmp_path / "faces" / "cameras.json").mkdir(parents=True)
    assert "cameras.json cannot be written" in command("--seeds", "0", "--yaw", 0, out="faces", fails=True)


def test_what_else_is_in_the_folder_stays(command: RenderCommand, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "notes").write_text("mine")
    command("--seeds", "0", "--yaw", 0, out="faces")
    assert "faces holds 1 picture of 1 seed" in command("--seeds", "0", "--yaw", 0, out="faces")
    assert names(tmp_path / "faces") == ["notes", "seed0000.png"]


def test_a_file_is_no_folder(command: RenderCommand, tmp_path: Path) -> None:
    file = tmp_path / "faces"
    file.write_text("mine")
    assert main([str(command.run_folder), "--out", str(file), "--device", "cpu"]) == 2
    assert "faces is a file" in command.capsys.readouterr().err
    assert file.read_text() == "mine"


def test_more_faces_than_fit_into_a_picture(command: RenderCommand, tmp_path: Path) -> None:
    assert "names more than 4096 seeds" in command("--seeds", "0-4096", fails=True)
    assert "names more than 100000 seeds" in command("--seeds", "0-100000", out="faces", fails=True)
    said = command("--seeds", "0-4096", "--yaw", 0, "--resolution", 1, "--batch-size", 4096, out="faces")
    assert "4097 pictures" in said
    assert len(names(tmp_path / "faces")) == 4097
