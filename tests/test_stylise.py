"""The command `python -m cips3d.stylise`: grids, animations, checkpoints, and what is said of mistakes."""

from __future__ import annotations

import dataclasses
import gc
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints.small_runs import write_checkpoint, write_run
from convert.small_networks import CIPS_CONFIG, STYLEGAN2_CONFIG
from rendering.command import frames_of
from sweeps.command import SweepCommand, as_shown, assert_same_picture, cells_of

from cips3d import mesh, render
from cips3d.checkpoints.networks import load_networks
from cips3d.models.cips import CIPS
from cips3d.models.cips3d import CIPS3D
from cips3d.models.residual_discriminator import ResidualDiscriminator
from cips3d.models.stylegan2 import StyleGAN2
from cips3d.rendering import LoadedGenerator, Look, load_generator, render_views, styles_of_seeds
from cips3d.rendering.latents import latent_of, write_latent
from cips3d.stylisation import Shares, stylised, write_stylised
from cips3d.stylise import main
from cips3d.train import defaults
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.resolving import resolved
from cips3d.training.state import TrainingState

FRONT = torch.tensor([math.pi / 2])
SIDE, ENLARGE = 8, 16  # of the pictures, and how they are enlarged in grids


@pytest.fixture
def models(small_config: TrainConfig, tmp_path: Path) -> tuple[Path, Path]:
    """Two checkpoints of the same networks; the second one has a discriminator."""
    base = write_run(tmp_path / "base", small_config)
    torch.manual_seed(1)
    other = CIPS3D(dataclasses.replace(small_config.generator, rgb_init=1.0, aux_init=1.0)).state_dict()
    judge = ResidualDiscriminator.from_config(small_config.discriminator).state_dict()
    write_checkpoint(tmp_path / "style.pt", small_config, generator_ema=other, discriminator=judge, step=7)
    return base, tmp_path / "style.pt"


@pytest.fixture
def command(models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> SweepCommand:
    return SweepCommand(main, models, tmp_path, capsys)


@pytest.fixture
def base(models: tuple[Path, Path]) -> LoadedGenerator:
    return load_generator(models[0])


@pytest.fixture
def style(models: tuple[Path, Path]) -> LoadedGenerator:
    return load_generator(models[1])


def seen(loaded: LoadedGenerator, seeds: list[int], *, yaw: float = 0.0, truncation: float = 1.0) -> np.ndarray:
    """[faces, side, side, 3] grey levels of a model's faces."""
    styles = styles_of_seeds(loaded, seeds, truncation)
    return as_shown(render_views(loaded, styles, FRONT, FRONT + yaw, Look(SIDE)).image[:, 0])


class TestGrids:
    def test_from_base_to_style(
        self, command: SweepCommand, base: LoadedGenerator, style: LoadedGenerator, tmp_path: Path
    ) -> None:
        said = command("--seeds", "0,3", "--also", "mapping", "shape")
        assert f"{tmp_path / 'out.png'} shows 2 rows at 5 strengths in pictures of 8 x 8" in said
        cells = cells_of(tmp_path / "out.png", 2, 5, SIDE, ENLARGE)
        assert_same_picture(cells[:, 0], seen(base, [0, 3]))
        assert_same_picture(cells[:, 4], seen(style, [0, 3]))
        half = stylised(base, style, Shares((0.5, 0.5), 0.5, 0.5))
        assert_same_picture(cells[:, 2], seen(half, [0, 3]))

    def test_models_are_made_one_at_a_time(self, command: SweepCommand, monkeypatch: pytest.MonkeyPatch) -> None:
        """Many strengths take no more memory than one."""
        made: list[weakref.ref[object]] = []
        alive: list[int] = []

        def counted(*arguments: object) -> LoadedGenerator:
            model = stylised(*arguments)  # type: ignore[arg-type]
            made.append(weakref.ref(model.generator))
            gc.collect()
            alive.append(sum(each() is not None for each in made))
            return model

        monkeypatch.setattr("cips3d.stylise.stylised", counted)
        command("--strengths", *(k / 9 for k in range(10)))
        assert len(alive) == 10
        assert max(alive) <= 2

    def test_weights_of_blocks(
        self, command: SweepCommand, base: LoadedGenerator, style: LoadedGenerator, tmp_path: Path
    ) -> None:
        command("--seeds", 1, "--weights", 0, 0.5, "--strengths", 0.5, 1, "--yaw", 0.3, "--truncation", 0.6)
        cells = cells_of(tmp_path / "out.png", 1, 2, SIDE, ENLARGE)
        for column, share in enumerate((0.25, 0.5)):
            between = stylised(base, style, Shares((0.0, share)))
            assert_same_picture(cells[:, column], seen(between, [1], yaw=0.3, truncation=0.6))

    def test_layer_swapping(
        self, command: SweepCommand, base: LoadedGenerator, style: LoadedGenerator, tmp_path: Path
    ) -> None:
        command("--seeds", "0,3", "--swap-from", "1,0")
        cells = cells_of(tmp_path / "out.png", 2, 3, SIDE, ENLARGE)
        assert_same_picture(cells[:, 0], seen(base, [0, 3]))
        assert_same_picture(cells[:, 1], seen(stylised(base, style, Shares((0.0, 1.0))), [0, 3]))
        assert_same_picture(cells[:, 2], seen(stylised(base, style, Shares((1.0, 1.0))), [0, 3]))

    def test_faces_of_latents(
        self, command: SweepCommand, base: LoadedGenerator, style: LoadedGenerator, tmp_path: Path
    ) -> None:
        write_latent(tmp_path / "me.safetensors", latent_of(base, styles_of_seeds(base, [5]), None))
        command("--latent", tmp_path / "me.safetensors", "--strengths", 0, 1)
        cells = cells_of(tmp_path / "out.png", 1, 2, SIDE, ENLARGE)
        assert_same_picture(cells[:, 0], seen(base, [5]))
        assert_same_picture(cells[:, 1], seen(stylised(base, style, Shares((1.0, 1.0))), [5]))

    def test_a_2d_model(
        self, command: SweepCommand, monkeypatch: pytest.MonkeyPatch, base: LoadedGenerator, tmp_path: Path
    ) -> None:
        models = [dataclasses.replace(base, generator=CIPS(CIPS_CONFIG).eval()) for _ in range(2)]
        given = iter(models)
        monkeypatch.setattr("cips3d.stylise.load_generator", lambda *_, **__: next(given))
        assert "4 rows at 2 strengths" in command("--strengths", 0, 1)
        given = iter(models)
        command("--strengths", 0, 1, "--frames", 2, out="out.gif")
        given = iter(models)
        assert "--also shape is for CIPS-3D" in command("--also", "shape", fails=True, out="a.png")
        given = iter(models)
        assert "2-D model" in command("--trajectory", "yaw", fails=True, out="a.gif")


class TestAnimations:
    def test_strengths_come_and_go(
        self, command: SweepCommand, base: LoadedGenerator, style: LoadedGenerator, tmp_path: Path
    ) -> None:
        said = command("--seeds", "0,3", "--frames", 4, out="out.webp")
        assert "2 rows from strength 0 to 1 and back in 4 frames" in said
        frames = frames_of(tmp_path / "out.webp")
        assert len(frames) == 4
        for frame, share in ((0, 0.0), (2, 1.0)):
            shown = frames[frame][-SIDE * ENLARGE :, : SIDE * ENLARGE].astype(float)
            expected = seen(stylised(base, style, Shares((share, share))), [0])[0]
            large = np.kron(expected, np.ones((ENLARGE, ENLARGE, 1)))
            assert np.abs(shown - large).mean() < 8  # grey levels; WebP at quality 90 halves the colours' resolution
        assert np.abs(frames[0].astype(float) - frames[2]).mean() > 16

    def test_a_camera_that_moves(self, command: SweepCommand, tmp_path: Path) -> None:
        said = command(
            *("--seeds", "0,3", "--strengths", 0, 1, "--trajectory", "yaw", "--yaw", -0.5, 0.5, "--frames", 3),
            out="out.gif",
        )
        assert "2 rows at 2 strengths in 3 frames of 8 x 8" in said
        frames = frames_of(tmp_path / "out.gif")
        assert len(frames) == 3
        assert frames[0].shape[0] > 2 * SIDE * ENLARGE

    def test_webp_without_motion_is_a_picture(self, command: SweepCommand, tmp_path: Path) -> None:
        command("--seeds", 0, out="out.webp")
        assert len(frames_of(tmp_path / "out.webp")) == 1


class TestCheckpoints:
    def test_renders_as_the_model_in_memory(
        self, command: SweepCommand, base: LoadedGenerator, style: LoadedGenerator, tmp_path: Path
    ) -> None:
        said = command("--weights", 0.25, 1, "--strengths", 0.5, "--also", "mapping", out="a.safetensors")
        assert "a.safetensors is a checkpoint with the style's blocks at 0.125 0.5 and its mapping at 0.5" in said
        written = load_generator(tmp_path / "a.safetensors")
        in_memory = stylised(base, style, Shares((0.125, 0.5), mapping=0.5))
        pictures = [
            render_views(model, styles_of_seeds(model, [0, 1]), FRONT, FRONT + 0.2, Look(SIDE)).image
            for model in (written, in_memory)
        ]
        assert torch.equal(*pictures)
        for name in ("settings", "fov_degrees", "resolution", "poses"):
            assert getattr(written, name) == getattr(base, name)

    def test_layer_swapping(
        self, command: SweepCommand, base: LoadedGenerator, style: LoadedGenerator, tmp_path: Path
    ) -> None:
        command("--swap-from", 1, out="a.safetensors")
        state = load_networks(tmp_path / "a.safetensors").averaged
        expected = stylised(base, style, Shares((0.0, 1.0))).generator.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())

    def test_other_commands_take_it(
        self, command: SweepCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command(out="a.safetensors")
        file, device = str(tmp_path / "a.safetensors"), ("--device", "cpu")
        assert render.main([file, "--seeds", "0", "--out", str(tmp_path / "r.png"), *device]) == 0
        pytest.importorskip("skimage")
        pytest.importorskip("trimesh")
        arguments = ["--resolution", "12", "--threshold", "0.01", "--no-preview", "--picture-resolution", "8"]
        code = mesh.main([file, "--out", str(tmp_path / "m.ply"), *arguments, *device])
        assert code == 0, capsys.readouterr().err

    def test_an_ending_in_capitals(self, command: SweepCommand, tmp_path: Path) -> None:
        command(out="a.SAFETENSORS")
        assert load_networks(tmp_path / "a.SAFETENSORS").averaged

    def test_training_goes_on_from_it_with_the_discriminator_of_the_style(
        self, command: SweepCommand, models: tuple[Path, Path], tmp_path: Path
    ) -> None:
        command("--strengths", 0.5, out="a.safetensors")
        config = resolved(dataclasses.replace(defaults("finetune", None, tmp_path / "a.safetensors"), resolution=8))
        state = TrainingState(config, Processes())
        networks = load_networks(tmp_path / "a.safetensors")
        state.start_from(networks)
        judge = load_networks(models[1]).discriminator
        assert judge is not None
        found = state.discriminator.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in judge.items())
        learned = state.generator.state_dict()
        assert all(torch.equal(learned[name], tensor) for name, tensor in networks.averaged.items())

    def test_of_two_discriminators_that_of_the_style_goes_with_it(
        self, small_config: TrainConfig, tmp_path: Path
    ) -> None:
        for name in ("base", "style"):
            judge = ResidualDiscriminator.from_config(small_config.discriminator).state_dict()
            write_checkpoint(tmp_path / f"{name}.pt", small_config, discriminator=judge)
        base, style = (load_networks(tmp_path / f"{name}.pt") for name in ("base", "style"))
        write_stylised(tmp_path / "a.safetensors", base.averaged, base, style)
        found = load_networks(tmp_path / "a.safetensors").discriminator
        assert found is not None and base.discriminator is not None and style.discriminator is not None
        assert all(torch.equal(found[name], tensor) for name, tensor in style.discriminator.items())
        assert any(not torch.equal(found[name], tensor) for name, tensor in base.discriminator.items())

    def test_nothing_is_overwritten_unasked(
        self, command: SweepCommand, models: tuple[Path, Path], tmp_path: Path
    ) -> None:
        command(out="a.safetensors")
        before = (tmp_path / "a.safetensors").read_bytes()
        assert "exists; give another name, or --overwrite" in command("--strengths", 0, out="a.safetensors", fails=True)
        assert (tmp_path / "a.safetensors").read_bytes() == before
        command("--strengths", 0, "--overwrite", out="a.safetensors")
        assert (tmp_path / "a.safetensors").read_bytes() != before
        again = [models[0], tmp_path / "a.safetensors"]
        said = command("--overwrite", models=again, out="a.safetensors", fails=True)
        assert "is one of the two models" in said


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m cips3d.stylise runs/faces" in capsys.readouterr().out


class TestMistakes:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (("--weights", 1, 0, 1), "--weights are 3 numbers for the 2 blocks of this CIPS3D; give 2 or one"),
            (("--weights", "nan"), "--weights nan must be numbers"),
            (("--weights", "1e300"), "--weights 1e+300 must be numbers from -1000 to 1000"),
            (("--strengths", "1e300"), "--strengths 1e+300 must be one or more numbers from -1000 to 1000"),
            (("--strengths", "inf"), "--strengths inf must be"),
            (("--swap-from", "2"), "beyond the 2 blocks of this CIPS3D; give 0 to 1"),
            (("--swap-from", "x"), "--swap-from 'x' is not a list of blocks"),
            (("--swap-from", 1, "--strengths", 1), "--strengths and --swap-from say the same"),
            (("--swap-from", 1, "--weights", 0), "--weights and --swap-from say the same"),
            (("--overwrite",), "--overwrite is for a checkpoint"),
            (("--trajectory", "yaw"), "--trajectory yaw is for what moves"),
            (("--frames", 8), "--frames 8 is for what moves"),
            (("--yaw", 0, 0.3), "more than one view"),
            (("--seeds", "a"), "not a list of seeds"),
            (("--resolution", 0), "leaves no pixel"),
            (("--latent", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
        ],
        ids=lambda value: value[0][2:] if isinstance(value, tuple) else "",
    )
    def test_pictures(self, command: SweepCommand, flags: tuple[object, ...], message: str) -> None:
        assert message in command(*flags, fails=True)

    @pytest.mark.parametrize(
        ("flags", "out", "message"),
        [
            (("--strengths", 0.5), "a.gif", "one strength, which does not move"),
            (("--swap-from", 0), "a.mp4", "nothing between the models"),
            (("--frames", 1), "a.gif", "--frames 1 is no animation"),
            (("--frames", 10**9), "a.mp4", "--frames 1000000000 is too many"),
            (("--fps", 1000), "a.gif", "--fps 1000 is out of range"),
            (("--trajectory", "spiral"), "a.gif", "--trajectory spiral is unknown"),
            ((), "a.txt", "must end in .png or"),
            (("--strengths", 0, 1), "a.safetensors", "--strengths names several models"),
            (("--swap-from", "0-1"), "a.safetensors", "--swap-from names several models"),
            (("--latent", "x"), "a.safetensors", "a checkpoint has no faces"),
            (("--resolution", 64), "a.safetensors", "--resolution is for pictures"),
            (("--yaw", 0.1), "a.safetensors", "--yaw is for pictures"),
            (("--trajectory", "yaw"), "a.safetensors", "--trajectory yaw is for what moves"),
            (("--fps", 12), "a.safetensors", "--fps 12 is for what moves"),
            (("--kind", "depth"), "a.safetensors", "--kind is for pictures, and a checkpoint keeps what BASE has"),
            (("--truncation", 0.3), "a.safetensors", "--truncation is for faces, and a checkpoint has none"),
        ],
    )
    def test_files(self, command: SweepCommand, flags: tuple[object, ...], out: str, message: str) -> None:
        assert message in command(*flags, out=out, fails=True)

    def test_models_that_do_not_fit(
        self, command: SweepCommand, models: tuple[Path, Path], small_config: TrainConfig, tmp_path: Path
    ) -> None:
        wider = dataclasses.replace(small_config.generator, inr_width=10, rgb_init=1.0, aux_init=1.0)
        state = CIPS3D(wider).state_dict()
        config = dataclasses.replace(small_config, generator=wider)
        write_checkpoint(tmp_path / "wide.pt", config, generator_ema=state)
        assert "inr_width is 10, not 8" in command(models=[models[0], tmp_path / "wide.pt"], fails=True)
        other = dataclasses.replace(small_config, generator=STYLEGAN2_CONFIG)
        write_checkpoint_of(tmp_path / "other.pt", small_config, other)
        said = command(models=[models[0], tmp_path / "other.pt"], fails=True)
        assert "the second checkpoint is a StyleGAN2, the first a CIPS3D" in said
        assert "does not exist" in command(models=[models[0], tmp_path / "nowhere"], fails=True)


def write_checkpoint_of(path: Path, small: TrainConfig, config: TrainConfig) -> None:
    """A checkpoint of StyleGAN2."""
    write_checkpoint(path, small, config=config.to_json(), generator_ema=StyleGAN2(STYLEGAN2_CONFIG).state_dict())
