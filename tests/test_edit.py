"""The command `python -m cips3d.edit`: sweeps along semantic directions, and what is said of mistakes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from checkpoints.small_runs import STEP, write_checkpoint
from convert.small_networks import CIPS_CONFIG, PIGAN_CONFIG, STYLEGAN2_CONFIG
from rendering.command import frames_of
from sweeps.command import SweepCommand, as_shown, assert_same_picture, cells_of

from cips3d.edit import main
from cips3d.editing import Directions, edited, semantic_directions
from cips3d.errors import UserError
from cips3d.models.cips3d import CIPS3D
from cips3d.models.family import AnyGeneratorConfig, make_generator
from cips3d.models.generator import with_same_layers
from cips3d.models.volume import VolumeSettings
from cips3d.render import main as render_main
from cips3d.rendering import (
    CameraAngles,
    LoadedGenerator,
    Look,
    latent_of,
    read_latent,
    render_views,
    styles_of_latents,
    styles_of_seeds,
    write_latent,
)
from cips3d.training.config import TrainConfig

FRONT = torch.tensor([math.pi / 2])
SIDE, ENLARGE = 8, 16  # of the pictures, and how they are enlarged in grids


@pytest.fixture
def command(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> SweepCommand:
    return SweepCommand(main, [run_folder], tmp_path, capsys)


def seen(loaded: LoadedGenerator, styles: tuple[torch.Tensor, ...], yaw: float = 0.0) -> np.ndarray:
    """[faces, side, side, 3] grey levels of faces."""
    return as_shown(render_views(loaded, styles, FRONT, FRONT + yaw, Look(SIDE)).image[:, 0])


def moved(loaded: LoadedGenerator, seeds: list[int], directions: Directions, index: int, strength: float) -> np.ndarray:
    return seen(loaded, edited(styles_of_seeds(loaded, seeds), directions, index, strength))


class TestGrids:
    def test_directions_of_a_face(self, command: SweepCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        said = command("--seeds", 3)
        assert "out.png shows 5 directions of the shape: 5 rows at 5 strengths in pictures of 8 x 8" in said
        assert f"at step {STEP}" in said
        cells = cells_of(tmp_path / "out.png", 5, 5, SIDE, ENLARGE)
        unedited = seen(loaded, styles_of_seeds(loaded, [3]))
        directions = semantic_directions(loaded.generator, "shape")
        for row in range(5):
            assert_same_picture(cells[row, 2], unedited[0])
            for column, strength in enumerate((-3.0, -1.5, 0.0, 1.5, 3.0)):
                assert_same_picture(cells[row, column], moved(loaded, [3], directions, row, strength)[0])
            assert (cells[row, 0] != unedited[0]).any()

    def test_faces_along_one_direction(self, command: SweepCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        said = command(
            *("--seeds", "0,4,2", "--direction", 2, "--strengths", -2, 0, 4),
            *("--branch", "appearance", "--layers", "0-1,3", "--yaw", -0.3, "--truncation", 0.5),
        )
        assert "shows direction 2 of the appearance: 3 rows at 3 strengths" in said
        cells = cells_of(tmp_path / "out.png", 3, 3, SIDE, ENLARGE)
        directions = semantic_directions(loaded.generator, "appearance", [0, 1, 3])
        styles = styles_of_seeds(loaded, [0, 4, 2], 0.5)
        for column, strength in enumerate((-2.0, 0.0, 4.0)):
            expected = seen(loaded, edited(styles, directions, 2, strength), -0.3)
            assert_same_picture(cells[:, column], expected)

    def test_faces_and_directions(self, command: SweepCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        command("--seeds", "0,4", "--directions", "1,0", "--strengths", 2)
        cells = cells_of(tmp_path / "out.png", 4, 1, SIDE, ENLARGE)
        directions = semantic_directions(loaded.generator, "shape")
        for row, (seed, index) in enumerate(((0, 1), (0, 0), (4, 1), (4, 0))):
            assert_same_picture(cells[row, 0], moved(loaded, [seed], directions, index, 2.0)[0])

    def test_faces_of_latents(self, command: SweepCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        write_latent(tmp_path / "me.safetensors", latent_of(loaded, styles_of_seeds(loaded, [5]), None))
        command("--latent", tmp_path / "me.safetensors", "--directions", "0", "--strengths", 0, 1)
        cells = cells_of(tmp_path / "out.png", 1, 2, SIDE, ENLARGE)
        directions = semantic_directions(loaded.generator, "shape")
        for column, strength in enumerate((0.0, 1.0)):
            assert_same_picture(cells[:, column], moved(loaded, [5], directions, 0, strength))

    def test_depth(self, command: SweepCommand, tmp_path: Path) -> None:
        command("--kind", "depth", "--strengths", -3, 3, "--directions", 0)
        cells = cells_of(tmp_path / "out.png", 1, 2, SIDE, ENLARGE)
        assert (cells[0, 0] != cells[0, 1]).any()

    @pytest.mark.parametrize(
        "config", [PIGAN_CONFIG, CIPS_CONFIG, STYLEGAN2_CONFIG], ids=["pigan", "cips", "stylegan2"]
    )
    def test_other_models(
        self,
        command: SweepCommand,
        loaded: LoadedGenerator,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        config: AnyGeneratorConfig,
    ) -> None:
        torch.manual_seed(2)
        generator = make_generator(config).requires_grad_(False).eval()
        side = generator.fixed_resolution or SIDE
        volume = VolumeSettings(samples=4, last_back=True)  # nothing of the untrained volume is empty
        model = dataclasses.replace(loaded, generator=generator, resolution=side, settings=volume)
        monkeypatch.setattr("cips3d.edit.load_generator", lambda *_, **__: model)
        command("--directions", "0-1", "--strengths", -9, 0, 9)
        cells = cells_of(tmp_path / "out.png", 2, 3, side, 128 // side)
        assert (cells[0, 1] == cells[1, 1]).all()
        assert len({cells[row, column].tobytes() for row, column in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2))}) == 5
        assert "--branch shape is no branch of" in command("--branch", "shape", fails=True, out="a.png")
        command("--directions", 0, "--frames", 2, out="out.gif")


class TestAnimations:
    def test_strengths_come_and_go(self, command: SweepCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        said = command("--directions", "0-1", "--strengths", 3, -3, "--frames", 4, out="out.gif")
        assert "2 directions of the shape: 2 rows from strength 3 to -3 and back in 4 frames" in said
        frames = frames_of(tmp_path / "out.gif")
        assert len(frames) == 4
        directions = semantic_directions(loaded.generator, "shape")
        for frame, strength in ((0, 3.0), (1, 0.0), (2, -3.0)):
            shown = frames[frame][-SIDE * ENLARGE :, : SIDE * ENLARGE].astype(float)
            expected = np.kron(moved(loaded, [0], directions, 0, strength)[0], np.ones((ENLARGE, ENLARGE, 1)))
            assert np.abs(shown - expected).mean() < 6  # grey levels; ordered dithering adds up to 6

    def test_many_rows_form_a_square(self, command: SweepCommand, tmp_path: Path) -> None:
        assert "--frames 1 is no animation" in command("--frames", 1, out="one.gif", fails=True)
        command("--seeds", "0-7", "--frames", 2, out="out.gif")
        assert frames_of(tmp_path / "out.gif")[0].shape[:2] == (3 * SIDE * ENLARGE + 4, 3 * SIDE * ENLARGE + 4)

    def test_a_camera_that_moves(self, command: SweepCommand, tmp_path: Path) -> None:
        said = command("--directions", "0", "--trajectory", "circle", "--frames", 3, out="out.webp")
        assert "1 row at 5 strengths in 3 frames" in said
        assert len(frames_of(tmp_path / "out.webp")) == 3


class TestLatents:
    """The face itself, in the place of pictures."""

    ONE: ClassVar[tuple[object, ...]] = ("--directions", 2, "--strengths", -1.5)

    def test_an_edited_face(self, command: SweepCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        """Other commands take it; moved further it is what both moves together make."""
        said = command("--seeds", 3, *self.ONE, "--truncation", 0.5, out="face.safetensors")
        assert "face.safetensors is seed 3 at -1.5 along direction 2 of the shape at step" in said
        path = tmp_path / "face.safetensors"
        directions = semantic_directions(loaded.generator, "shape")
        expected = edited(styles_of_seeds(loaded, [3], 0.5), directions, 2, -1.5)
        found = styles_of_latents(loaded, [path])
        assert [style.shape for style in found] == [style.shape for style in expected]
        assert (seen(loaded, found) == seen(loaded, expected)).all()
        command("--latent", path, "--directions", 0, "--strengths", 3, out="further.safetensors")
        further = edited(expected, directions, 0, 3.0)
        assert (
            seen(loaded, styles_of_latents(loaded, [tmp_path / "further.safetensors"])) == seen(loaded, further)
        ).all()

    def test_its_camera_stays(self, command: SweepCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        write_latent(
            tmp_path / "a.safetensors", latent_of(loaded, styles_of_seeds(loaded, [0]), CameraAngles(1.5, 1.7, 12.0))
        )
        command("--latent", tmp_path / "a.safetensors", *self.ONE, out="b.safetensors")
        assert read_latent(tmp_path / "b.safetensors").camera == CameraAngles(1.5, 1.7, 12.0)

    def test_beside_a_face_that_was_not_edited(
        self, command: SweepCommand, loaded: LoadedGenerator, tmp_path: Path
    ) -> None:
        """One has a style for every layer, the other one for all."""
        command("--seeds", 1, *self.ONE, out="edited.safetensors")
        write_latent(tmp_path / "plain.safetensors", latent_of(loaded, styles_of_seeds(loaded, [2]), None))
        both = styles_of_latents(loaded, [tmp_path / "plain.safetensors", tmp_path / "edited.safetensors"])
        assert_same_picture(seen(loaded, both)[0], seen(loaded, styles_of_seeds(loaded, [2]))[0])
        assert (
            render_main(
                [str(loaded_run) for loaded_run in command.models]
                + ["--latent", *(str(tmp_path / f"{name}.safetensors") for name in ("plain", "edited"))]
                + ["--interpolate", "both", "--frames", "2", "--device", "cpu", "--out", str(tmp_path / "way.gif")]
            )
            == 0
        )

    @pytest.mark.parametrize("branch", ["shape", "appearance"])
    def test_its_layers_mix_with_those_of_others(
        self, command: SweepCommand, loaded: LoadedGenerator, tmp_path: Path, branch: str
    ) -> None:
        path = tmp_path / "edited.safetensors"
        command("--seeds", 1, *self.ONE, "--branch", branch, out=path.name)
        arguments = ["--latent", path, "--mix", "2,3", "--mix-layer", 1, "--yaw", 0, "--out", tmp_path / "mixed.png"]
        assert render_main([str(argument) for argument in (*command.models, *arguments, "--device", "cpu")]) == 0
        first, second = with_same_layers(styles_of_latents(loaded, [path]), styles_of_seeds(loaded, [2]))
        mixture = loaded.generator.mixed(first, second, 1)
        assert (seen(loaded, mixture) != seen(loaded, first)).any()

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (("--seeds", 0), "--directions are 5, and a .safetensors holds one face; give one"),
            (("--directions", "4-0"), "--directions '4-0' counts down in 4-0; write it as 0-4"),
            (("--directions", "0-9999"), "--directions '0-9999' names more than 4096 directions"),
            (("--directions", 0), "--strengths are 5, and a .safetensors holds one face"),
            ((*ONE, "--seeds", "0-2"), "--seeds are 3, and a .safetensors holds one face"),
            ((*ONE, "--yaw", 0.2), "--yaw is for pictures, and a latent holds a face alone"),
            ((*ONE, "--batch-size", 2), "--batch-size is for pictures, and a latent holds a face alone"),
            ((*ONE, "--latent"), "--latent names no file; give one or more"),
            (
                (*ONE, "--seeds", 3, "--latent", "a.safetensors"),
                "--latent takes the place of --seeds; leave one",
            ),
            ((*ONE, "--latent", "a.safetensors", "--truncation", 0.3), "--truncation is for faces of seeds"),
            ((*ONE, "--trajectory", "circle"), "--trajectory circle is for what moves"),
            ((*ONE, "--truncation", "nan"), "--truncation nan is out of range"),
            (("--directions", 9999, "--strengths", 1), "--directions 9999 is beyond"),
        ],
    )
    def test_mistakes(self, command: SweepCommand, flags: tuple[object, ...], message: str) -> None:
        assert message in command(*flags, out="face.safetensors", fails=True)

    def test_nothing_is_replaced(self, command: SweepCommand, tmp_path: Path) -> None:
        command(*self.ONE, out="face.safetensors")
        before = (tmp_path / "face.safetensors").read_bytes()
        assert "face.safetensors exists; give another name" in command(*self.ONE, out="face.safetensors", fails=True)
        assert (tmp_path / "face.safetensors").read_bytes() == before

    def test_styles_of_too_many_layers(self, loaded: LoadedGenerator, tmp_path: Path) -> None:
        styles = styles_of_seeds(loaded, [0])
        wrong = type(styles)(styles[0][:, None].expand(-1, 4, -1).contiguous(), styles[1])  # FiLM layers are three
        write_latent(tmp_path / "wrong.safetensors", latent_of(loaded, wrong, None))
        with pytest.raises(UserError, match="give the model it was made with"):
            styles_of_latents(loaded, [tmp_path / "wrong.safetensors"])


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m cips3d.edit runs/faces" in capsys.readouterr().out


class TestMistakes:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (("--branch", "colour"), "--branch colour is no branch of CIPS3D's styles; give shape or appearance"),
            (("--layers", "0-3"), "--layers 0-3 is beyond the shape of this CIPS3D, whose layers are 0 to 2"),
            (("--layers", "low"), "--layers 'low' is not a list of layers"),
            (("--directions", "4-6"), "--directions 4-6 is beyond the 6 that these layers have; give 0 to 5"),
            (("--directions", "-1"), "--directions '-1' is not a list of directions"),
            (("--strengths", "nan"), "--strengths nan must be"),
            (("--strengths", "1e300"), "--strengths 1e+300 must be"),
            (("--trajectory", "yaw"), "--trajectory yaw is for what moves"),
            (("--fps", 12), "--fps 12 is for what moves"),
            (("--pitch", 2), "--pitch 2 goes over a pole"),
            (("--fov", 0), "--fov 0 is no angle"),
            (("--resolution", 20000), "would have"),
        ],
        ids=lambda value: value[0][2:] if isinstance(value, tuple) else "",
    )
    def test_flags(self, command: SweepCommand, flags: tuple[object, ...], message: str) -> None:
        assert message in command(*flags, fails=True)

    def test_size_is_told_before_faces_are_made(self, command: SweepCommand, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise AssertionError("faces were made")

        monkeypatch.setattr("cips3d.edit.edited", fail)
        assert "would have" in command("--seeds", "0-400", "--directions", "0-5", fails=True)

    def test_one_strength_does_not_move(self, command: SweepCommand) -> None:
        assert "does not move" in command("--strengths", 1, out="a.gif", fails=True)

    @pytest.mark.parametrize("value", [0.0, math.nan])
    def test_weights_without_directions(
        self, command: SweepCommand, small_config: TrainConfig, tmp_path: Path, value: float
    ) -> None:
        averaged = {name: torch.full_like(x, value) for name, x in CIPS3D(small_config.generator).state_dict().items()}
        write_checkpoint(tmp_path / "broken.pt", small_config, generator_ema=averaged)
        said = command(models=[tmp_path / "broken.pt"], fails=True)
        assert "the shape of this CIPS3D meets give no direction" in said and "give an earlier checkpoint" in said

    def test_no_model(self, command: SweepCommand, tmp_path: Path) -> None:
        assert "does not exist" in command(models=[tmp_path / "nowhere"], fails=True)

    def test_too_little_memory(self, command: SweepCommand, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: object, **options: object) -> None:
            torch.empty(2**60)

        monkeypatch.setattr("cips3d.sweeps.showing.take_pictures", fail)
        assert "too little memory for --batch-size 4 at --resolution 8" in command(fails=True)
