"""What the command shows: views, trajectories, ways through faces, mixtures, for every kind of model."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.small_runs import STEP
from convert.small_networks import CIPS_CONFIG, PIGAN_CONFIG, STYLEGAN2_CONFIG
from PIL import Image
from rendering.command import RenderCommand, frames_of, shown_in

from cips3d import pictures
from cips3d.cameras import TRAJECTORIES, CameraRange, Cameras, PoseDistribution
from cips3d.cameras.poses import PITCH_MARGIN
from cips3d.errors import UserError
from cips3d.models.cips import CIPS
from cips3d.models.generator import Generator
from cips3d.models.pigan import PiGAN
from cips3d.models.stylegan2 import StyleGAN2
from cips3d.rendering import (
    LoadedGenerator,
    interpolated_styles,
    mixed_styles,
    render_pairs,
    render_views,
    styles_of_seeds,
)
from cips3d.rendering.frame_sequence import every_face
from cips3d.rendering.options import Options
from cips3d.rendering.staging import stage
from cips3d.rendering.views import Look

FRONT = torch.tensor([math.pi / 2])


@pytest.mark.parametrize(
    ("flags", "pitch", "yaw"),
    [
        ({}, [1.2] * 3, [1.5, 1.9, 2.3]),
        ({"pitch": (0.1,), "yaw": (-0.2, 0.3)}, [1.3] * 2, [1.7, 2.2]),
        ({"trajectory": "yaw", "frames": 4}, [1.2] * 4, [1.9, 2.3, 1.9, 1.5]),
        ({"trajectory": "circle", "frames": 4}, [1.4, 1.2, 1.0, 1.2], [1.9, 2.3, 1.9, 1.5]),
        ({"trajectory": "way.json"}, [1.3], [1.7]),
    ],
)
def test_angles_are_counted_from_the_front_of_the_training_cameras(
    loaded: LoadedGenerator, tmp_path: Path, flags: dict[str, Any], pitch: list[float], yaw: list[float]
) -> None:
    (tmp_path / "way.json").write_text('[{"pitch": 0.1, "yaw": -0.2}]')
    if flags.get("trajectory") == "way.json":
        flags = {"trajectory": str(tmp_path / "way.json")}
    model = replace(loaded, poses=PoseDistribution(pitch_mean=1.2, yaw_mean=1.9))
    cameras = stage(model, Options(tmp_path, tmp_path / "out.png", **flags)).sequence.cameras
    torch.testing.assert_close(cameras.pitch, torch.tensor(pitch))
    torch.testing.assert_close(cameras.yaw, torch.tensor(yaw))


CARLA = PoseDistribution("spherical_uniform", yaw_std=math.pi, pitch_mean=math.pi / 4, pitch_std=math.pi / 4)
BAND = replace(CARLA, pitch_std=math.pi / 20)


@pytest.mark.parametrize(
    ("poses", "flags"),
    [
        (CARLA, {}),
        (CARLA, {"trajectory": "circle", "frames": 8}),
        (CARLA, {"trajectory": "dolly", "frames": 8}),
        (BAND, {}),
        (BAND, {"trajectory": "yaw", "frames": 4}),
        (BAND, {"trajectory": "front", "frames": 2}),
        (BAND, {"pitch": (-0.1, 0.1)}),
        (BAND, {"trajectory": "way.json"}),
    ],
)
def test_views_lie_where_cameras_were_trained(
    loaded: LoadedGenerator, tmp_path: Path, poses: PoseDistribution, flags: dict[str, Any]
) -> None:
    (tmp_path / "way.json").write_text('[{"pitch": 0.0, "yaw": -0.2}, {"pitch": 0.1}]')
    if flags.get("trajectory") == "way.json":
        flags = {"trajectory": str(tmp_path / "way.json")}
    model = replace(loaded, poses=poses)
    pitch = stage(model, Options(tmp_path, tmp_path / "out.png", **flags)).sequence.cameras.pitch
    trained, _ = poses.sample(4096, generator=torch.Generator().manual_seed(0))
    assert trained.min() < pitch.min() <= pitch.max() < trained.max()


def test_pitch_may_go_as_far_as_the_pole(loaded: LoadedGenerator, tmp_path: Path) -> None:
    """Counted from the front, which is at π/3 here."""
    model = replace(loaded, poses=BAND)
    stage(model, Options(tmp_path, tmp_path / "out.png", pitch=(-1.0, 2.0)))
    with pytest.raises(UserError, match=r"--pitch -1\.1 goes over a pole; give angles between -1\.05 and 2\.09"):
        stage(model, Options(tmp_path, tmp_path / "out.png", pitch=(-1.1,)))


@pytest.mark.parametrize(
    ("mean", "ends"),
    [(0.1, (PITCH_MARGIN, 0.3)), (math.pi - 0.1, (math.pi - 0.3, math.pi - PITCH_MARGIN))],
)
def test_moving_cameras_keep_clear_of_the_poles(
    loaded: LoadedGenerator, tmp_path: Path, mean: float, ends: tuple[float, float]
) -> None:
    model = replace(loaded, poses=PoseDistribution(pitch_mean=mean))
    options = Options(tmp_path, tmp_path / "out.png", trajectory="circle", frames=4)
    pitch = stage(model, options).sequence.cameras.pitch
    assert (pitch.min(), pitch.max()) == pytest.approx(ends, abs=1e-3)  # acos is coarse there


def test_views_close_to_a_pole_are_on_this_side_of_it(loaded: LoadedGenerator, tmp_path: Path) -> None:
    """π / 2 to seven decimals: in float32 the angle is beyond the pole, and the picture would be upside down."""
    options = Options(tmp_path, tmp_path / "out.png", pitch=(1.5707, 1.5707963), yaw=(0.3,))
    low, high = stage(loaded, options).sequence.cameras.rotation
    torch.testing.assert_close(high, low, atol=1e-3, rtol=0)


class TestTrajectories:
    @pytest.mark.parametrize("out", ["swing.gif", "swing.webp"])
    def test_animation(self, command: RenderCommand, tmp_path: Path, out: str) -> None:
        flags = ("--trajectory", "yaw", "--frames", 8, "--fps", 16, "--seeds", "0-3", "--resolution", 64)
        assert "4 seeds in 8 frames" in command(*flags, out=out)
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

    @pytest.mark.parametrize("name", TRAJECTORIES)
    def test_frames_side_by_side(
        self, command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path, name: str
    ) -> None:
        """A picture of a trajectory shows what its cameras see, with the model's angle of view."""
        flags = ("--trajectory", name, "--frames", 3, "--seeds", "0,5", "--resolution", 16)
        assert "2 seeds in 3 frames" in command(*flags)
        ranges = TRAJECTORIES[name].ranges
        front = math.pi / 2
        extent = CameraRange(
            pitch=(front - 0.2, front + 0.2) if "pitch" in ranges else (front, front),
            yaw=(front - 0.4, front + 0.4) if "yaw" in ranges else (front, front),
            fov_degrees=loaded.fov_degrees,
        )
        sequence = every_face(loaded, styles_of_seeds(loaded, [0, 5]), TRAJECTORIES[name].cameras(3, extent), Look(16))
        rows = sequence.part(0, 3)[:, :, 0].transpose(0, 1).flatten(0, 1)
        found, expected = shown_in(tmp_path / "out.png", pictures.image_grid(rows, 3, enlarge=8))
        np.testing.assert_array_equal(found, expected)

    def test_frames_are_the_trajectorys_views(
        self, command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path
    ) -> None:
        """With a batch of any size: a frame's pictures stand where they belong."""
        flags = ("--trajectory", "yaw", "--frames", 4, "--seeds", "0-1", "--kind", "all", "--pitch", "-0.2")
        command(*flags, "--resolution", 32, "--batch-size", 9, out="swing.webp")
        styles = styles_of_seeds(loaded, [0, 1])
        middle = math.pi / 2 - 0.2
        extent = CameraRange((middle, middle), (math.pi / 2 - 0.4, math.pi / 2 + 0.4), fov_degrees=loaded.fov_degrees)
        cameras = TRAJECTORIES["yaw"].cameras(4, extent)
        sequence = every_face(loaded, styles, cameras, Look(32, ("image", "aux", "depth", "normals")))
        for shown, frame in zip(frames_of(tmp_path / "swing.webp"), sequence.frames(), strict=True):
            expected = np.asarray(pictures.image_grid(frame.flatten(0, 1), 4, enlarge=4)).astype(int)
            error = np.abs(shown.astype(int)[:, -expected.shape[1] :] - expected)
            assert error.mean() < 5  # lossy WebP; pictures in wrong places differ by 20 and more

    def test_ranges_are_given_by_flags(self, command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        flags = ("--trajectory", "dolly", "--frames", 3, "--seeds", 1, "--resolution", 16, "--fov", 15)
        command(*flags, "--yaw", "0.3", "-0.1", "--pitch", "0.1", "--distance", "0.6", "1.2")
        front = math.pi / 2
        extent = CameraRange((front + 0.1, front + 0.1), (front - 0.1, front + 0.3), (0.6, 1.2), fov_degrees=15.0)
        cameras = TRAJECTORIES["dolly"].cameras(3, extent)
        styles = styles_of_seeds(loaded, [1, 1, 1])
        expected = pictures.image_grid(render_pairs(loaded, styles, cameras, Look(16)).image, 3, enlarge=8)
        np.testing.assert_array_equal(*shown_in(tmp_path / "out.png", expected))

    def test_list_of_cameras(self, command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        way = [{"yaw": 0.2}, {"radius": 1.4, "pitch": 0.1, "fov_degrees": 9}]
        (tmp_path / "way.json").write_text(json.dumps(way))
        said = command("--seeds", "0", "--trajectory", tmp_path / "way.json", "--resolution", 16)
        assert "1 seed in 2 frames" in said
        front = math.pi / 2
        cameras = Cameras.from_angles(
            torch.tensor([front, front + 0.1]),
            torch.tensor([front + 0.2, front]),
            torch.tensor([loaded.fov_degrees, 9.0]),
            torch.tensor([1.0, 1.4]),
        )
        shown = render_pairs(loaded, styles_of_seeds(loaded, [0, 0]), cameras, Look(16)).image
        found, expected = shown_in(tmp_path / "out.png", pictures.image_grid(shown, 2, enlarge=8))
        # The file's cameras are computed in double precision, and steep sines magnify the difference.
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1

    @pytest.mark.parametrize("seeds", ["0-2", "4", "1,7"])
    def test_any_number_of_seeds(self, command: RenderCommand, tmp_path: Path, seeds: str) -> None:
        command("--trajectory", "circle", "--frames", 2, "--seeds", seeds, out="swing.gif")
        assert (tmp_path / "swing.gif").is_file()

    def test_video(self, command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        pytest.importorskip("imageio_ffmpeg", reason="needs pip install 'cips3d[video]'")
        command("--trajectory", "circle", "--frames", 5, "--seeds", 0, "--resolution", 130, out="swing.mp4")
        frames = frames_of(tmp_path / "swing.mp4")
        assert len(frames) == 5
        front = math.pi / 2
        extent = CameraRange((front - 0.2, front + 0.2), (front - 0.4, front + 0.4), fov_degrees=loaded.fov_degrees)
        sequence = every_face(
            loaded, styles_of_seeds(loaded, [0]), TRAJECTORIES["circle"].cameras(5, extent), Look(130)
        )
        for shown, frame in zip(frames, sequence.frames(), strict=True):
            expected = pictures.to_uint8(frame[0, 0]).permute(1, 2, 0).numpy().astype(int)
            assert shown.shape == expected.shape  # a lone face has no label
            assert np.abs(shown - expected).mean() < 4  # lossy, with colours of half resolution

    def test_video_without_its_library(
        self, command: RenderCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Said before anything is loaded or rendered."""
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
        flags = ("--trajectory", "yaw")
        said = command(*flags, out="a.mp4", source=tmp_path / "nowhere", fails=True)
        assert "pip install 'cips3d[video]'" in said


class TestFaces:
    def test_interpolation(self, command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        styles = styles_of_seeds(loaded, [3, 4], 0.7)
        shown = {}
        for part in ("shape", "appearance", "both"):
            flags = ("--seeds", "3,4", "--truncation", 0.7, "--frames", 4, "--resolution", 16)
            assert "a path through 2 seeds in 4 frames" in command(*flags, "--interpolate", part)
            way = interpolated_styles(styles, 4, part)  # type: ignore[arg-type]
            front = Cameras.from_angles(FRONT.expand(4), FRONT.expand(4), loaded.fov_degrees)
            expected = pictures.image_grid(render_pairs(loaded, way, front, Look(16)).image, 4, enlarge=8)
            found, wanted = shown_in(tmp_path / "out.png", expected)
            assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1  # cameras made in double precision
            shown[part] = found
        assert (shown["shape"] != shown["appearance"]).any()
        assert (shown["shape"] != shown["both"]).any()

    def test_interpolation_on_a_trajectory(self, command: RenderCommand, tmp_path: Path) -> None:
        flags = ("--seeds", "0-2", "--interpolate", "both", "--resolution", 16)
        assert "72 frames" in command(*flags, "--batch-size", 16, out="still.gif")
        command(*flags, "--frames", 6, "--trajectory", "yaw", out="moving.gif")
        command(*flags, "--frames", 6, out="standing.gif")
        assert (frames_of(tmp_path / "moving.gif")[1] != frames_of(tmp_path / "standing.gif")[1]).any()

    def test_mixing(self, command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        """Shape of the row, appearance of the column; the first column and row show the faces themselves."""
        assert "2 x 3 mixed seeds in 1 view" in command("--seeds", "0,1", "--mix", "5-7", "--resolution", 16)
        first, second = styles_of_seeds(loaded, [0, 1]), styles_of_seeds(loaded, [5, 6, 7])
        own, other, mixed = (
            render_views(loaded, styles, FRONT, FRONT, Look(16)).image[:, 0]
            for styles in (first, second, mixed_styles(loaded, first, second, 0))
        )
        rows = [torch.ones(1, 3, 16, 16), other, own[:1], mixed[:3], own[1:], mixed[3:]]
        found, expected = shown_in(tmp_path / "out.png", pictures.image_grid(torch.cat(rows), 4, enlarge=8))
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1  # styles by layer: other matrix products

    def test_layer_of_mixing(self, command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
        flags = ("--seeds", "0", "--mix", "5", "--resolution", 16)
        shown = []
        for layer in (0, 2, loaded.generator.style_layers):
            command(*flags, "--mix-layer", layer)
            shown.append(np.asarray(Image.open(tmp_path / "out.png"))[-128:].astype(int))
        own = shown[2][:, -128 - pictures.GAP - 128 : -128 - pictures.GAP]
        assert np.abs(shown[2][:, -128:] - own).max() <= 1  # no layer of the other
        assert (shown[0][:, -128:] != shown[1][:, -128:]).any()
        assert (shown[1][:, -128:] != shown[2][:, -128:]).any()

    def test_mixing_moves(self, command: RenderCommand, tmp_path: Path) -> None:
        command("--seeds", "0", "--mix", "5,6", "--trajectory", "yaw", "--frames", 3, out="mixed.gif")
        assert len(frames_of(tmp_path / "mixed.gif")) == 3

    def test_tables_that_no_picture_holds(self, command: RenderCommand, monkeypatch: pytest.MonkeyPatch) -> None:
        """Their styles would take all memory, and are not made."""

        def fail(*_: object) -> None:
            raise AssertionError("styles were mixed")

        monkeypatch.setattr("cips3d.rendering.staging.mixing", fail)
        assert "give fewer seeds" in command("--seeds", "0-4095", "--mix", "0-4095", fails=True)

    def test_labels_need_room_too(self, command: RenderCommand, monkeypatch: pytest.MonkeyPatch) -> None:
        """128 columns of 126 pixels and their gaps fit into a WebP of 16383, but not beside the name of their row."""

        def fail(*_: object) -> None:
            raise AssertionError("pictures were made")

        monkeypatch.setattr("cips3d.rendering.frame_sequence.FrameSequence.part", fail)
        yaws = [f"{k / 1000:g}" for k in range(126)]
        flags = ("--seeds", "0", "--resolution", 8, "--yaw", *yaws)
        assert "more than 16383 a side" in command(*flags, out="a.webp", fails=True)

    def test_animations_that_last_too_long(self, command: RenderCommand) -> None:
        flags = ("--seeds", "0", "--trajectory", "front", "--frames", 66, "--fps", "0.1")
        assert "a.gif would last 660 s" in command(*flags, out="a.gif", fails=True)

    def test_same_picture_every_time(self, command: RenderCommand, tmp_path: Path) -> None:
        for jitter in ((), ("--jitter",)):
            command("--seeds", "0", *jitter, out="a.png")
            command("--seeds", "0", *jitter, out="b.png")
            assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


class TestOtherModels:
    def test_of_two_dimensions(
        self, command: RenderCommand, other_model: Callable[[Generator], LoadedGenerator], tmp_path: Path
    ) -> None:
        """Seeds, truncation, ways and mixtures are there; noise is fixed."""
        for generator in (CIPS(CIPS_CONFIG), StyleGAN2(STYLEGAN2_CONFIG)):
            loaded = other_model(generator)
            side = loaded.resolution
            command("--seeds", "0-3", "--truncation", "0.7")
            command("--seeds", "0-3", "--truncation", "0.7", "--kind", "all", out="again.png")
            assert (tmp_path / "out.png").read_bytes() == (tmp_path / "again.png").read_bytes()
            shown = render_views(loaded, styles_of_seeds(loaded, range(4), 0.7), FRONT, FRONT, Look(side)).image[:, 0]
            expected = pictures.image_grid(shown, 1, enlarge=128 // side)
            np.testing.assert_array_equal(*shown_in(tmp_path / "out.png", expected))
            assert "a path through 4 seeds in 8 frames" in command(
                "--seeds", "0-3", "--interpolate", "both", "--frames", 8, out="way.gif"
            )
            assert "2 x 2 mixed seeds" in command("--seeds", "0,1", "--mix", "2,3")
            second = styles_of_seeds(loaded, [3])
            layer = generator.style_layers // 2
            mixed = generator.mixed(styles_of_seeds(loaded, [1]), second, layer)
            last = pictures.to_uint8(render_views(loaded, mixed, FRONT, FRONT, Look(side)).image[0, 0])
            found = np.asarray(Image.open(tmp_path / "out.png"))[-128 :: 128 // side, -128 :: 128 // side]
            assert np.abs(found.astype(int) - last.permute(1, 2, 0).numpy().astype(int)).max() <= 1

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--yaw", "0.3"], "2-D model and has no camera; leave out --yaw"),
            (["--pitch", "0.3"], "leave out --pitch"),
            (["--fov", "20"], "leave out --fov"),
            (["--trajectory", "circle"], "leave out --trajectory"),
            (["--kind", "depth"], "--kind depth"),
            (["--kind", "normals"], "--kind normals"),
            (["--kind", "aux"], "--kind aux"),
            (["--interpolate", "shape"], "give both"),
            (["--resolution", "32"], "give 16"),
            (["--mix", "1", "--mix-layer", "7"], "give 0 to 6"),
        ],
    )
    def test_what_two_dimensions_do_not_have(
        self,
        command: RenderCommand,
        other_model: Callable[[Generator], LoadedGenerator],
        flags: list[str],
        message: str,
    ) -> None:
        other_model(StyleGAN2(STYLEGAN2_CONFIG))
        assert message in command(*flags, fails=True)

    def test_pigan(self, command: RenderCommand, other_model: Callable[[Generator], LoadedGenerator]) -> None:
        other_model(PiGAN(PIGAN_CONFIG))
        assert "2 seeds in 3 views" in command("--seeds", "0,1", "--kind", "all")
        command("--seeds", "0,1", "--interpolate", "both", "--trajectory", "dolly", "--frames", 3)
        command("--seeds", "0,1", "--mix", "2")
        assert "give both" in command("--interpolate", "appearance", out="b.png", fails=True)
        assert "--kind aux" in command("--kind", "aux", out="b.png", fails=True)

    def test_locked_view(
        self, command: RenderCommand, other_model: Callable[[Generator], LoadedGenerator], tmp_path: Path
    ) -> None:
        """Nothing but colours changes, and only of models whose colours depend on the direction."""
        assert "leave it out" in command("--seeds", 0, "--lock-view", fails=True)
        generator = PiGAN(PIGAN_CONFIG)
        torch.nn.init.normal_(generator.nerf.output.weight)  # colours that differ visibly
        other_model(generator)
        differences = {}
        for kind in ("image", "depth"):
            shown = []
            for flags in ((), ("--lock-view",)):
                command("--seeds", 0, "--kind", kind, *flags)
                shown.append(np.asarray(Image.open(tmp_path / "out.png")).astype(int))
            differences[kind] = np.abs(shown[0] - shown[1]).max()
        assert differences["image"] > 10  # of 255
        assert differences["depth"] <= 1  # the same in another order

    def test_step_is_told_where_it_is_known(
        self, command: RenderCommand, other_model: Callable[[Generator], LoadedGenerator]
    ) -> None:
        assert f"at step {STEP}" in command("--seeds", 0)
        other_model(PiGAN(PIGAN_CONFIG))
        assert "at step" not in command("--seeds", 0)

    def test_front_close_to_a_pole(
        self, command: RenderCommand, other_model: Callable[[Generator], LoadedGenerator], tmp_path: Path
    ) -> None:
        """The ends that are not asked for stay on this side of it."""
        model = other_model(PiGAN(PIGAN_CONFIG))
        object.__setattr__(model, "poses", PoseDistribution(pitch_mean=0.1))
        command("--seeds", 0, "--trajectory", "circle", "--frames", 3)
