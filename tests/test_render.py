"""Rendering with a trained generator, and the command `python -m cips3d.render`."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cips3d import pictures
from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.models.cips3d import CIPS3D, Styles
from cips3d.render import main, parse_seeds
from cips3d.rendering import LoadedGenerator, load_generator, render_views, styles_of_seeds, yaw_sweep
from cips3d.training.checkpoint import save_checkpoint
from cips3d.training.config import TrainConfig

FRONT = torch.tensor([math.pi / 2])

# Batches of other sizes take other paths through the matrix products: float32 rounding, and no more.
SAME = {"atol": 1e-5, "rtol": 0.0}

STEP = 1200


def write_checkpoint(path: Path, config: TrainConfig, /, **changes: object) -> None:
    torch.manual_seed(0)
    averaged = CIPS3D(dataclasses.replace(config.generator, rgb_init=1.0, aux_init=1.0))  # visible differences
    state = {"config": config.to_json(), "generator_ema": averaged.state_dict(), "step": STEP}
    save_checkpoint(path, {**state, **changes})


@pytest.fixture
def run_folder(small_config: TrainConfig, tmp_path: Path) -> Path:
    """A run of 8² pictures with one checkpoint."""
    write_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{STEP:08d}.pt", small_config)
    return tmp_path / "run"


@pytest.fixture
def loaded(run_folder: Path) -> LoadedGenerator:
    return load_generator(run_folder)


@pytest.fixture
def command(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command on the run; returns what it prints, or the error of one that must fail with code 2."""

    def call(*arguments: object, out: str = "out.png", source: Path = run_folder, fails: bool = False) -> str:
        argv = [source, "--out", tmp_path / out, "--device", "cpu", *arguments]
        code = main([str(argument) for argument in argv])
        printed = capsys.readouterr()
        assert code == (2 if fails else 0), printed.err
        if not fails:
            return printed.out
        last = printed.err.rpartition("\r")[2]  # what is left to see after a progress bar
        assert last.startswith("error: ")
        assert last.count("\n") == 1
        assert not (tmp_path / out).is_file()
        return printed.err

    return call


class TestLoadGenerator:
    def test_folder_and_file_give_the_same(self, run_folder: Path, small_config: TrainConfig) -> None:
        by_folder = load_generator(str(run_folder))
        by_file = load_generator(run_folder / "checkpoints" / f"step-{STEP:08d}.pt")
        weights, same = (each.generator.state_dict() for each in (by_folder, by_file))
        assert all(torch.equal(weights[name], same[name]) for name in weights)
        assert by_folder.step == STEP
        assert by_folder.resolution == 8
        assert by_folder.settings == small_config.volume
        assert by_folder.poses == small_config.poses
        assert by_folder.fov_degrees == small_config.fov_degrees

    def test_is_ready_to_render(self, loaded: LoadedGenerator) -> None:
        assert not loaded.generator.training
        assert not any(p.requires_grad for p in loaded.generator.parameters())

    def test_newest_checkpoint_is_taken(self, run_folder: Path, small_config: TrainConfig) -> None:
        write_checkpoint(run_folder / "checkpoints" / "step-00009000.pt", small_config, step=9000)
        assert load_generator(run_folder).step == 9000

    @pytest.mark.parametrize("config", ["{", "{}", '{"no_such_field": 1}', "[]"])
    def test_configuration_of_another_version(self, tmp_path: Path, small_config: TrainConfig, config: str) -> None:
        write_checkpoint(tmp_path / "a.pt", small_config, config=config)
        with pytest.raises(UserError, match=r"a\.pt does not describe a model"):
            load_generator(tmp_path / "a.pt")

    def test_weights_of_another_network(self, tmp_path: Path, small_config: TrainConfig) -> None:
        other = dataclasses.replace(small_config.generator, inr_width=16)
        write_checkpoint(tmp_path / "a.pt", small_config, generator_ema=CIPS3D(other).state_dict())
        with pytest.raises(UserError, match=r"weights in .*a\.pt do not fit"):
            load_generator(tmp_path / "a.pt")


class TestStylesOfSeeds:
    def test_a_seed_is_the_same_face_in_any_company(self, loaded: LoadedGenerator) -> None:
        together = styles_of_seeds(loaded, [3, 11, 2**62, 0])
        for index, seed in enumerate([3, 11, 2**62, 0]):
            alone = styles_of_seeds(loaded, [seed])
            torch.testing.assert_close(together.shape[index], alone.shape[0], **SAME)
            torch.testing.assert_close(together.appearance[index], alone.appearance[0], **SAME)

    def test_seeds_differ_and_leave_the_global_generator_alone(self, loaded: LoadedGenerator) -> None:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        styles = styles_of_seeds(loaded, [0, 1])
        assert torch.equal(torch.get_rng_state(), before)
        assert (styles.shape[0] - styles.shape[1]).norm() > 1e-2
        assert (styles.appearance[0] - styles.appearance[1]).norm() > 1e-2

    def test_truncation(self, loaded: LoadedGenerator) -> None:
        free, half, none = (styles_of_seeds(loaded, [1, 2], psi) for psi in (1.0, 0.5, 0.0))
        for k in range(2):
            torch.testing.assert_close(half[k], (free[k] + loaded.mean_styles[k]) / 2, **SAME)
            torch.testing.assert_close(none[k], loaded.mean_styles[k].expand_as(none[k]), **SAME)

    def test_mean_is_computed_once_and_only_when_needed(
        self, loaded: LoadedGenerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []
        original = CIPS3D.mean_styles

        def counted(self: CIPS3D) -> Styles:
            calls.append(1)
            return original(self, 64)

        monkeypatch.setattr(CIPS3D, "mean_styles", counted)
        styles_of_seeds(loaded, [1])
        assert not calls
        styles_of_seeds(loaded, [1], 0.7)
        styles_of_seeds(loaded, [2], 0.3)
        assert len(calls) == 1

    def test_no_seeds(self, loaded: LoadedGenerator) -> None:
        with pytest.raises(ValueError, match="seeds"):
            styles_of_seeds(loaded, [])


class TestRenderViews:
    def test_every_style_at_every_view(self, loaded: LoadedGenerator) -> None:
        """Each picture is what the generator gives for that style and camera alone."""
        styles = styles_of_seeds(loaded, [0, 1])
        pitch, yaw = torch.tensor([1.4, 1.6, 1.7]), torch.tensor([1.2, 1.5, 1.9])
        views = render_views(loaded, styles, pitch, yaw, (6, 9), aux=True, depth=True)
        assert views.image.shape == (2, 3, 3, 6, 9)
        assert views.aux_image is not None
        assert views.depth is not None
        for s in range(2):
            for v in range(3):
                single = loaded.generator.synthesis(
                    Styles(styles.shape[s : s + 1], styles.appearance[s : s + 1]),
                    Cameras.from_angles(pitch[v : v + 1], yaw[v : v + 1], loaded.fov_degrees),
                    loaded.settings,
                    resolution=(6, 9),
                    return_aux=True,
                    jitter=False,
                )
                assert single.aux_image is not None
                torch.testing.assert_close(views.image[s, v], single.image[0], **SAME)
                torch.testing.assert_close(views.aux_image[s, v], single.aux_image[0], **SAME)
                filled = single.filled_depth(loaded.settings.t_far)
                torch.testing.assert_close(views.depth[s, v], filled[0], **SAME)
        assert (views.image[0, 0] - views.image[0, 2]).abs().max() > 1e-2
        assert (views.image[0, 0] - views.image[1, 0]).abs().max() > 1e-2

    @pytest.mark.parametrize("batch_size", [1, 4, 100])
    def test_batch_size_changes_nothing(self, loaded: LoadedGenerator, batch_size: int) -> None:
        styles = styles_of_seeds(loaded, [0, 1, 2])
        yaw = torch.tensor([1.4, 1.8])
        views = [
            render_views(loaded, styles, FRONT.expand(2), yaw, 5, depth=True, batch_size=size)
            for size in (batch_size, 3)
        ]
        torch.testing.assert_close(views[0].image, views[1].image, **SAME)
        torch.testing.assert_close(views[0].depth, views[1].depth, **SAME)

    def test_only_what_is_asked_for(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [0])
        plain = render_views(loaded, styles, FRONT, FRONT, 4)
        assert plain.aux_image is None
        assert plain.depth is None
        only_depth = render_views(loaded, styles, FRONT, FRONT, 4, depth=True)
        assert only_depth.aux_image is None
        assert only_depth.depth is not None
        assert only_depth.depth.shape == (1, 1, 1, 4, 4)

    def test_jitter(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [0])

        def pictures_of(seed: int | None) -> torch.Tensor:
            random = None if seed is None else torch.Generator().manual_seed(seed)
            jitter = seed is not None
            return render_views(loaded, styles, FRONT, FRONT, 8, jitter=jitter, generator=random).image

        assert torch.equal(pictures_of(None), pictures_of(None))
        assert torch.equal(pictures_of(1), pictures_of(1))
        assert not torch.equal(pictures_of(1), pictures_of(2))
        assert not torch.equal(pictures_of(1), pictures_of(None))

    def test_empty_space_is_far(self, loaded: LoadedGenerator) -> None:
        with torch.no_grad():
            for parameter in loaded.generator.nerf.parameters():
                parameter.zero_()  # relu(0) = 0: no density anywhere
        depth = render_views(loaded, styles_of_seeds(loaded, [0]), FRONT, FRONT, 4, depth=True).depth
        assert depth is not None
        torch.testing.assert_close(depth, torch.full_like(depth, loaded.settings.t_far))

    def test_diverged_model(self, loaded: LoadedGenerator) -> None:
        with torch.no_grad():
            loaded.generator.aux_to_rgb.weight.fill_(torch.nan)
        styles = styles_of_seeds(loaded, [0])
        render_views(loaded, styles, FRONT, FRONT, 4)  # the auxiliary head is not looked at
        with pytest.raises(UserError, match=f"step {STEP}: its training diverged"):
            render_views(loaded, styles, FRONT, FRONT, 4, aux=True)

    def test_wrong_arguments_are_named(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [0])
        with pytest.raises(ValueError, match="pitch and yaw"):
            render_views(loaded, styles, FRONT, FRONT.expand(2), 4)
        with pytest.raises(ValueError, match="batch_size"):
            render_views(loaded, styles, FRONT, FRONT, 4, batch_size=0)


class TestYawSweep:
    def test_swings_between_the_ends(self) -> None:
        yaw = yaw_sweep((-0.3, 0.5), 48)
        torch.testing.assert_close(yaw[[0, 12, 24, 36]], torch.tensor([0.1, 0.5, 0.1, -0.3]))
        assert yaw.min() >= -0.3 - 1e-6
        assert yaw.max() <= 0.5 + 1e-6

    def test_is_smooth_and_closes(self) -> None:
        steps = torch.cat([yaw_sweep((-0.4, 0.4), 48), yaw_sweep((-0.4, 0.4), 1)]).diff()
        # The largest step of a sine of amplitude a over n frames is at its middle: a · 2π/n.
        assert steps.abs().max() <= 0.4 * 2 * math.pi / 48 + 1e-6
        assert steps[0] > 0
        assert (steps.sign().diff() != 0).sum() == 2  # it turns round twice

    def test_no_frames(self) -> None:
        with pytest.raises(ValueError, match="frames"):
            yaw_sweep((-0.4, 0.4), 0)


class TestParseSeeds:
    @pytest.mark.parametrize(
        ("text", "seeds"),
        [
            ("3", [3]),
            ("0-7", list(range(8))),
            ("1,5,9-12", [1, 5, 9, 10, 11, 12]),
            (" 4 , 2 - 3 ", [4, 2, 3]),
            ("5-5", [5]),
            (str(2**63 - 1), [2**63 - 1]),
        ],
    )
    def test_lists(self, text: str, seeds: list[int]) -> None:
        assert parse_seeds(text) == seeds

    @pytest.mark.parametrize(
        "text",
        ["", ",", "a", "1,,2", "1-", "-3", "1-2-3", "7-0", "1.5", "0x3", "²", "٣", "0-99999", "9" * 5000, str(2**63)],
    )
    def test_mistakes_name_the_flag(self, text: str) -> None:
        with pytest.raises(UserError, match="--seeds"):
            parse_seeds(text)


class TestStills:
    def test_grid_of_seeds_and_views(
        self, command: Callable[..., str], loaded: LoadedGenerator, tmp_path: Path
    ) -> None:
        said = command("--seeds", "0,7", "--yaw", "-0.4", "0", "0.4", "--resolution", "16")
        assert str(tmp_path / "out.png") in said
        assert f"step {STEP}" in said
        front = math.pi / 2
        yaw = torch.tensor([front - 0.4, front, front + 0.4])
        views = render_views(loaded, styles_of_seeds(loaded, [0, 7]), FRONT.expand(3), yaw, 16)
        expected = np.asarray(pictures.image_grid(views.image.flatten(0, 1), 3, enlarge=8))
        with Image.open(tmp_path / "out.png") as grid:
            shown = np.asarray(grid)[-expected.shape[0] :, -expected.shape[1] :]
        np.testing.assert_array_equal(shown, expected)

    def test_defaults(self, command: Callable[..., str], loaded: LoadedGenerator, tmp_path: Path) -> None:
        assert "8 seeds in 3 views of 8 x 8" in command()
        with Image.open(tmp_path / "out.png") as grid:
            cell = 8 * 16 + pictures.GAP  # the model's 8², enlarged 16 times
            assert grid.height > 8 * cell - pictures.GAP
            assert grid.height < 8.5 * cell
            assert grid.width > 3 * cell - pictures.GAP

    @pytest.mark.parametrize("kind", ["aux", "depth", "all"])
    def test_kinds(self, command: Callable[..., str], loaded: LoadedGenerator, tmp_path: Path, kind: str) -> None:
        command("--seeds", 2, "--yaw", 0, "--resolution", 130, "--kind", kind, out="out.png")
        views = render_views(loaded, styles_of_seeds(loaded, [2]), FRONT, FRONT, 130, aux=True, depth=True)
        assert views.aux_image is not None
        assert views.depth is not None
        volume = loaded.settings
        rows = {
            "image": views.image[0],
            "aux": views.aux_image[0],
            "depth": pictures.depth_image(views.depth[0], volume.t_near, volume.t_far),
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
    def test_flags_change_the_picture(
        self, command: Callable[..., str], tmp_path: Path, flags: tuple[str, ...]
    ) -> None:
        command("--seeds", 0, "--yaw", 0, out="plain.png")
        command("--seeds", 0, "--yaw", 0, *flags, out="changed.png")
        plain, changed = (
            np.asarray(Image.open(tmp_path / f"{name}.png"))[-128:, -128:] for name in ("plain", "changed")
        )
        assert (plain != changed).any()

    def test_several_pitches(self, command: Callable[..., str]) -> None:
        assert "1 seed in 6 views" in command("--seeds", 0, "--pitch", "-0.2", "0.2")

    def test_still_webp(self, command: Callable[..., str], tmp_path: Path) -> None:
        command("--seeds", 0, out="out.webp")
        with Image.open(tmp_path / "out.webp") as picture:
            assert getattr(picture, "n_frames", 1) == 1


class TestSweeps:
    @pytest.mark.parametrize("out", ["swing.gif", "swing.webp"])
    def test_animation(self, command: Callable[..., str], tmp_path: Path, out: str) -> None:
        said = command("--sweep", "--frames", 8, "--fps", 16, "--seeds", "0-3", "--resolution", 64, out=out)
        assert "4 seeds in 8 frames" in said
        with Image.open(tmp_path / out) as animation:
            assert animation.n_frames == 8
            assert animation.width > 2 * 128  # four pictures in a square
            assert animation.height == 2 * 128 + pictures.GAP
            total = 0
            for frame in range(8):
                animation.seek(frame)
                animation.load()
                total += animation.info["duration"]
            assert total == 500

    def test_frames_are_the_views_of_the_sweep(
        self, command: Callable[..., str], loaded: LoadedGenerator, tmp_path: Path
    ) -> None:
        """With a batch of any size: a frame's pictures stand where they belong."""
        flags = ("--sweep", "--frames", 4, "--seeds", "0-1", "--kind", "all", "--pitch", "-0.2", "0.2")
        command(*flags, "--resolution", 32, "--batch-size", 9, out="swing.webp")
        styles = styles_of_seeds(loaded, [0, 1])
        yaw = yaw_sweep((-0.4, 0.4), 4) + math.pi / 2
        pitch = torch.tensor([-0.2, 0.2]) + math.pi / 2
        with Image.open(tmp_path / "swing.webp") as animation:
            for k in range(4):
                animation.seek(k)
                shown = np.asarray(animation.convert("RGB")).astype(int)
                views = render_views(loaded, styles, pitch, yaw[k].expand(2), 32, aux=True, depth=True)
                assert views.aux_image is not None
                assert views.depth is not None
                volume = loaded.settings
                depth = pictures.depth_image(views.depth.flatten(0, 1), volume.t_near, volume.t_far)
                rows = torch.stack([views.image, views.aux_image, depth.view_as(views.image)], dim=1)
                expected = np.asarray(pictures.image_grid(rows.flatten(0, 2), 6, enlarge=4)).astype(int)
                error = np.abs(shown[:, -expected.shape[1] :] - expected)
                assert error.mean() < 5  # lossy WebP; pictures in wrong places differ by 20 and more

    @pytest.mark.parametrize("seeds", ["0-2", "4", "1,7"])
    def test_any_number_of_seeds(self, command: Callable[..., str], tmp_path: Path, seeds: str) -> None:
        command("--sweep", "--frames", 2, "--seeds", seeds, out="swing.gif")
        assert (tmp_path / "swing.gif").is_file()


class TestMistakes:
    @pytest.mark.parametrize(
        ("flags", "out", "message"),
        [
            (["--seeds", "x"], "a.png", "--seeds 'x'"),
            (["--resolution", "0"], "a.png", "--resolution 0"),
            (["--resolution", "30000"], "a.png", "a lower --resolution"),
            (["--fov", "180"], "a.png", "--fov 180"),
            (["--fov", "nan"], "a.png", "--fov nan"),
            (["--truncation", "inf"], "a.png", "--truncation inf"),
            (["--batch-size", "0"], "a.png", "--batch-size 0"),
            (["--pitch", "1.6"], "a.png", "--pitch 1.6"),
            (["--yaw", "nan"], "a.png", "--yaw nan"),
            (["--yaw"], "a.png", "--yaw"),
            (["--device", "tpu"], "a.png", "--device tpu"),
            ([], "a.bmp", "a.bmp"),
            ([], "a", ".png or .webp"),
            ([], "a.gif", "--sweep"),
            (["--sweep"], "a.png", ".gif or .webp"),
            (["--sweep"], "a.mp4", ".gif or .webp"),
            (["--sweep", "--yaw", "0.3"], "a.gif", "--yaw 0.3"),
            (["--sweep", "--frames", "1"], "a.gif", "--frames 1"),
            (["--sweep", "--fps", "100"], "a.gif", "--fps 100"),
        ],
    )
    def test_one_clear_line(self, command: Callable[..., str], flags: list[str], out: str, message: str) -> None:
        assert message in command(*flags, out=out, fails=True)

    def test_missing_and_foreign_runs(self, command: Callable[..., str], tmp_path: Path) -> None:
        assert "does not exist" in command(source=tmp_path / "nowhere", fails=True)
        (tmp_path / "empty").mkdir()
        assert "holds no checkpoint" in command(source=tmp_path / "empty", fails=True)
        (tmp_path / "note.txt").write_text("not a checkpoint")
        assert "note.txt" in command(source=tmp_path / "note.txt", fails=True)

    def test_truncated_checkpoint(self, command: Callable[..., str], run_folder: Path) -> None:
        (file,) = (run_folder / "checkpoints").iterdir()
        file.write_bytes(file.read_bytes()[:-200])
        assert file.name in command(fails=True)

    def test_cuda_where_there_is_none(self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "--device cuda" in command("--device", "cuda", fails=True)

    def test_place_is_checked_before_the_model_is_loaded(self, command: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        assert "not a folder" in command(source=tmp_path / "nowhere", out="file/a.png", fails=True)

    @pytest.mark.parametrize("where", ["cuda", "cpu"])
    def test_too_little_memory(self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        def fail(*arguments: object, **options: object) -> None:
            if where == "cuda":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            torch.empty(2**60)

        monkeypatch.setattr(CIPS3D, "synthesis", fail)
        assert "too little memory for --batch-size 4" in command(fails=True)

    def test_programming_errors_keep_their_traceback(
        self, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
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
        for words in ("RUN_OR_CHECKPOINT", "Examples:", "--seeds", "--sweep", "radians", "--fov"):
            assert words in text
