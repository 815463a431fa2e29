"""Latent files, and faces of them in the place of those of seeds."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoints.small_runs import write_run
from convert.small_networks import CIPS_CONFIG, PIGAN_CONFIG
from rendering.command import RenderCommand, shown_in

from cips3d import pictures
from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.models.cips import CIPS
from cips3d.models.cips3d import CIPS3DStyles
from cips3d.models.generator import Generator, styles_of
from cips3d.models.pigan import PiGAN
from cips3d.rendering import (
    CameraAngles,
    LoadedGenerator,
    Look,
    interpolated_styles,
    latent_of,
    load_generator,
    mixed_styles,
    read_latent,
    render_pairs,
    render_views,
    styles_of_latents,
    styles_of_seeds,
    write_latent,
)
from cips3d.rendering.latents import FORMAT, face_name
from cips3d.training.config import TrainConfig

FRONT = torch.tensor([math.pi / 2])


def write(path: Path, loaded: LoadedGenerator, seed: int) -> Path:
    """The face of a seed as a latent."""
    camera = CameraAngles(1.5, 1.7, 12.0) if loaded.generator.is_3d else None
    write_latent(str(path), latent_of(loaded, styles_of_seeds(loaded, [seed]), camera))
    return path


def test_there_and_back(loaded: LoadedGenerator, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.safetensors", loaded, seed) for seed in (4, 2)]
    latent = read_latent(paths[0])
    assert latent.model == "cips3d"
    assert latent.camera == CameraAngles(1.5, 1.7, 12.0)
    styles = styles_of_latents(loaded, paths)
    assert isinstance(styles, CIPS3DStyles)
    for found, expected in zip(styles, styles_of_seeds(loaded, [4, 2]), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)  # mapped alone or together


@pytest.mark.parametrize("make", [lambda: CIPS(CIPS_CONFIG), lambda: PiGAN(PIGAN_CONFIG)], ids=["cips", "pigan"])
def test_other_models(
    make: Callable[[], Generator], other_model: Callable[[Generator], LoadedGenerator], tmp_path: Path
) -> None:
    model = other_model(make())
    path = write(tmp_path / "a.safetensors", model, 4)
    for found, expected in zip(styles_of_latents(model, [path]), styles_of_seeds(model, [4]), strict=True):
        assert torch.equal(found, expected)
    assert (read_latent(path).camera is None) == (not model.generator.is_3d)


def test_styles_have_the_dtype_of_the_weights(loaded: LoadedGenerator, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", loaded, 4)
    double = dataclasses.replace(loaded, generator=copy.deepcopy(loaded.generator).double())
    assert {style.dtype for style in styles_of_latents(double, [path])} == {torch.float64}


def test_files_that_are_no_latents(loaded: LoadedGenerator, run_folder: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "good.safetensors", loaded, 0)
    with pytest.raises(UserError, match="does not exist"):
        read_latent(tmp_path / "none.safetensors")
    with pytest.raises(
        UserError, match=r"is a folder; give the latent\.safetensors that python -m cips3d\.invert wrote"
    ):
        read_latent(tmp_path)
    for name, content in (("cut", good.read_bytes()[:-5]), ("note", b"hello"), ("empty", b"")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.safetensors is not a complete latent"):
            read_latent(path)
    tensors = {"shape": torch.zeros(1, 6)}
    known = {"format_version": 1, "model": "cips3d"}
    for metadata, message in (
        ({"format": "other"}, "is not a latent"),
        ({FORMAT: json.dumps({**known, "format_version": 2})}, "newer version"),
        ({FORMAT: json.dumps(known)}, "not a complete latent"),  # no camera
        ({FORMAT: "{"}, "not a complete latent"),
        ({FORMAT: "[]"}, "not a complete latent"),
        ({FORMAT: "[" * 100_000}, "not a complete latent"),
        ({FORMAT: json.dumps({**known, "camera": {"pitch": "up"}})}, "not a complete latent"),
    ):
        safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", metadata)
        with pytest.raises(UserError, match=message):
            read_latent(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="paths must hold at least one file"):
        styles_of_latents(loaded, [])


def test_latents_that_do_not_fit(loaded: LoadedGenerator, small_config: TrainConfig, tmp_path: Path) -> None:
    wider = dataclasses.replace(
        small_config, generator=dataclasses.replace(small_config.generator, appearance_style_dim=10)
    )
    other = load_generator(write_run(tmp_path / "wider", wider))
    with pytest.raises(UserError, match=r"appearance \[10\], shape \[6\] \(a cips3d model\), and .*nce \[8\], sh"):
        styles_of_latents(loaded, [write(tmp_path / "a.safetensors", other, 0)])
    styles = styles_of_seeds(loaded, [0])
    # Models of two systems may have styles of the same name and width.
    write_latent(tmp_path / "c.safetensors", dataclasses.replace(latent_of(loaded, styles, None), model="stylegan2"))
    with pytest.raises(UserError, match=r"c.safetensors is of a stylegan2 model, and this one is cips3d; give"):
        styles_of_latents(loaded, [tmp_path / "c.safetensors"])
    broken = styles_of(styles, [style * math.nan for style in styles])
    write_latent(tmp_path / "b.safetensors", latent_of(loaded, broken, None))
    with pytest.raises(UserError, match="no numbers"):
        styles_of_latents(loaded, [tmp_path / "b.safetensors"])


def test_faces_are_called_by_file_or_folder() -> None:
    assert face_name(Path("faces/anna.safetensors")) == "anna"
    assert face_name(Path("anna/latent.safetensors")) == "anna"


class TestRender:
    @pytest.fixture
    def latents(self, loaded: LoadedGenerator, tmp_path: Path) -> list[Path]:
        """The faces of seeds 4 and 2."""
        return [write(tmp_path / name / "latent.safetensors", loaded, k) for name, k in (("anna", 4), ("ben", 2))]

    def test_views(self, command: RenderCommand, loaded: LoadedGenerator, latents: list[Path], tmp_path: Path) -> None:
        assert "2 latents in 3 views" in command("--latent", *latents, "--resolution", 16)
        yaw = FRONT + torch.tensor([-0.4, 0.0, 0.4])
        views = render_views(loaded, styles_of_latents(loaded, latents), FRONT.expand(3), yaw, Look(16))
        labels = {"row_labels": ["anna", "ben"], "column_labels": ["yaw -0.4", "yaw 0", "yaw 0.4"]}
        expected = pictures.image_grid(views.image.flatten(0, 1), 3, enlarge=8, **labels)
        np.testing.assert_array_equal(*shown_in(tmp_path / "out.png", expected))

    def test_ways_and_mixtures(
        self, command: RenderCommand, loaded: LoadedGenerator, latents: list[Path], tmp_path: Path
    ) -> None:
        styles, front = styles_of_latents(loaded, latents), FRONT.expand(4)
        assert "a path through 2 latents" in command("--latent", *latents, "--interpolate", "both", "--frames", 4)
        way = interpolated_styles(styles, 4)
        shown = render_pairs(loaded, way, Cameras.from_angles(front, front, loaded.fov_degrees), Look(8)).image
        expected = pictures.image_grid(shown, 4, column_labels=["anna", "", "ben", ""], enlarge=16)
        np.testing.assert_array_equal(*shown_in(tmp_path / "out.png", expected))
        said = command("--latent", latents[0], "--mix", "3", "--mix-layer", 0, "--truncation", 0.5, out="mix.png")
        assert "1 latent x 1 mixed seeds" in said
        second = styles_of_seeds(loaded, [3], 0.5)
        mixture = mixed_styles(loaded, styles_of_latents(loaded, latents[:1]), second, 0)
        corner = render_views(loaded, mixture, FRONT, FRONT, Look(8)).image[0]
        np.testing.assert_array_equal(*shown_in(tmp_path / "mix.png", pictures.image_grid(corner, 1, enlarge=16)))

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--seeds", "0"], "--latent takes the place of --seeds"),
            (["--truncation", "0.5"], "--truncation is for faces of seeds"),
            (["--interpolate", "both"], "give two or more to --latent"),
        ],
    )
    def test_mistakes(self, command: RenderCommand, latents: list[Path], flags: list[str], message: str) -> None:
        assert message in command("--latent", latents[0], *flags, fails=True)

    def test_no_file(self, command: RenderCommand, tmp_path: Path) -> None:
        assert "--latent names no file" in command("--latent", fails=True)
        assert "none.safetensors does not exist" in command("--latent", tmp_path / "none.safetensors", fails=True)
