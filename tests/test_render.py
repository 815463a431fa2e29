"""The command `python -m cips3d.render`: grids, and what happens when something is wrong outside of it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints.small_runs import STEP
from PIL import Image
from rendering.command import RenderCommand

from cips3d import pictures
from cips3d.cameras import Cameras
from cips3d.models.cips3d import CIPS3D
from cips3d.render import main
from cips3d.rendering import LoadedGenerator, Look, normals_from_depth, render_views, styles_of_seeds
from cips3d.rendering.frame_sequence import BACKGROUND_SHARE

FRONT = torch.tensor([math.pi / 2])


@pytest.fixture
def command(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RenderCommand:
    return RenderCommand(run_folder, tmp_path, capsys)


class TestStills:
    def test_grid_of_seeds_and_views(self, command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        said = command("--seeds", "0,7", "--yaw", "-0.4", "0", "0.4", "--resolution", "16")
        assert str(tmp_path / "out.png") in said
        assert f"step {STEP}" in said
        front = math.pi / 2
        yaw = torch.tensor([front - 0.4, front, front + 0.4])
        views = render_views(loaded, styles_of_seeds(loaded, [0, 7]), FRONT.expand(3), yaw, Look(16))
        expected = np.asarray(pictures.image_grid(views.image.flatten(0, 1), 3, enlarge=8))
        with Image.open(tmp_path / "out.png") as grid:
            shown = np.asarray(grid)[-expected.shape[0] :, -expected.shape[1] :]
        np.testing.assert_array_equal(shown, expected)

    def test_defaults(self, command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        assert "8 seeds in 3 views of 8 x 8" in command()
        with Image.open(tmp_path / "out.png") as grid:
            cell = 8 * 16 + pictures.GAP  # the model's 8², enlarged 16 times
            assert grid.height > 8 * cell - pictures.GAP
            assert grid.height < 8.5 * cell
            assert grid.width > 3 * cell - pictures.GAP

    @pytest.mark.parametrize("kind", ["aux", "depth", "normals", "all"])
    def test_kinds(self, command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path, kind: str) -> None:
        command("--seeds", 2, "--yaw", 0, "--resolution", 130, "--kind", kind, out="out.png")
        views = render_views(loaded, styles_of_seeds(loaded, [2]), FRONT, FRONT, Look(130, ("image", "aux", "depth")))
        assert views.aux_image is not None
        assert views.depth is not None
        near, far = loaded.settings.t_near, loaded.settings.t_far
        normals = normals_from_depth(views.depth[0], Cameras.from_angles(FRONT, FRONT))
        rows = {
            "image": views.image[0],
            "aux": views.aux_image[0],
            "depth": pictures.depth_image(views.depth[0], near, far),
            "normals": normals * (views.depth[0] <= far - BACKGROUND_SHARE * (far - near)),
        }
        chosen = torch.cat([row for name, row in rows.items() if kind in (name, "all")])
        expected = np.asarray(pictures.image_grid(chosen, 1))
        with Image.open(tmp_path / "out.png") as grid:
            shown = np.asarray(grid)[-expected.shape[0] :, -130:]
        np.testing.assert_array_equal(shown, expected)

    @pytest.mark.parametrize(
        "flags",
        [
            ("--truncation", "0.2"),
            ("--fov", "20"),
            ("--pitch", "0.3"),
            ("--yaw", "0.3"),
            ("--jitter",),
            ("--seeds", "1"),
            ("--kind", "aux"),
        ],
        ids=lambda flags: flags[0][2:],
    )
    def test_flags_change_the_picture(self, command: RenderCommand, tmp_path: Path, flags: tuple[str, ...]) -> None:
        command("--seeds", 0, "--yaw", 0, out="plain.png")
        command("--seeds", 0, "--yaw", 0, *flags, out="changed.png")
        plain, changed = (
            np.asarray(Image.open(tmp_path / f"{name}.png"))[-128:, -128:] for name in ("plain", "changed")
        )
        assert (plain != changed).any()

    def test_several_pitches(self, command: RenderCommand) -> None:
        assert "1 seed in 6 views" in command("--seeds", 0, "--pitch", "-0.2", "0.2")

    def test_still_webp(self, command: RenderCommand, tmp_path: Path) -> None:
        command("--seeds", 0, out="out.webp")
        with Image.open(tmp_path / "out.webp") as picture:
            assert getattr(picture, "n_frames", 1) == 1


class TestMistakes:
    def test_missing_and_foreign_runs(self, command: RenderCommand, tmp_path: Path) -> None:
        assert "does not exist" in command(source=tmp_path / "nowhere", fails=True)
        (tmp_path / "empty").mkdir()
        assert "holds no checkpoint" in command(source=tmp_path / "empty", fails=True)
        (tmp_path / "note.txt").write_text("not a checkpoint")
        assert "note.txt" in command(source=tmp_path / "note.txt", fails=True)

    def test_truncated_checkpoint(self, command: RenderCommand, run_folder: Path) -> None:
        (file,) = (run_folder / "checkpoints").iterdir()
        file.write_bytes(file.read_bytes()[:-200])
        assert file.name in command(fails=True)

    def test_cuda_where_there_is_none(self, command: RenderCommand, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "--device cuda" in command("--device", "cuda", fails=True)

    def test_place_is_checked_before_the_model_is_loaded(self, command: RenderCommand, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        assert "not a folder" in command(source=tmp_path / "nowhere", out="file/a.png", fails=True)

    @pytest.mark.parametrize("where", ["cuda", "cpu"])
    def test_too_little_memory(self, command: RenderCommand, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        def fail(*arguments: object, **options: object) -> None:
            if where == "cuda":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            torch.empty(2**60)

        monkeypatch.setattr(CIPS3D, "synthesis", fail)
        assert "too little memory for --batch-size 4" in command(fails=True)

    def test_programming_errors_keep_their_traceback(
        self, command: RenderCommand, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(CIPS3D, "synthesis", fail)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            command()

    def test_process_ends_with_code_2_and_no_traceback(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "cips3d.render", str(tmp_path / "none"), "--out", str(tmp_path / "a.png")],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr == f"error: {tmp_path / 'none'} does not exist; give a run folder or a checkpoint file\n"
        assert done.stdout == ""

    def test_help_shows_examples(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        for words in ("RUN_OR_CHECKPOINT", "Examples:", "--seeds", "--trajectory", "radians", "--fov", "FILE.json"):
            assert words in text


def test_precision_is_the_generator_s(command: RenderCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(CIPS3D, "set_precision", lambda _, precision: asked.append(precision))
    command("--seeds", "0")
    assert asked == []
    command("--seeds", "0", "--precision", "fast")
    assert asked == ["fast"]
