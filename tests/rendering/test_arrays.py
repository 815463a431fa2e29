"""Numbers instead of pictures: what the arrays hold, and that the cameras among them took the pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from convert.small_networks import STYLEGAN2_CONFIG
from rendering.command import RenderCommand

from cips3d.cameras import Cameras
from cips3d.models.generator import Generator, chosen
from cips3d.models.stylegan2 import StyleGAN2
from cips3d.rendering import LoadedGenerator, Look, normals_from_depth, render_pairs, render_views, styles_of_seeds

FRONT = math.pi / 2
MAPS = {"image": 3, "aux_image": 3, "depth": 1, "normals": 3}  # channels


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_every_kind(command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path, batch_size: int) -> None:
    """Faces first, then views; seen through the cameras in the file they look the same."""
    said = command(
        *("--seeds", "3,5", "--yaw", -0.3, 0, 0.2, "--pitch", 0.1, "--kind", "all", "--resolution", 9),
        *("--fov", 13, "--batch-size", batch_size),
        out="views.npz",
    )
    assert said == f"{tmp_path / 'views.npz'} holds numbers of 2 seeds in 3 views of 9 x 9 at step 1200\n"
    arrays = arrays_in(tmp_path / "views.npz")
    assert arrays.pop("faces").tolist() == ["seed 3", "seed 5"]
    matrices, fov = (torch.from_numpy(arrays.pop(name)) for name in ("camera_to_world", "fov_degrees"))
    assert matrices.shape == (3, 4, 4) and torch.equal(matrices[:, 3], torch.tensor([0.0, 0, 0, 1]).expand(3, 4))
    cameras = Cameras(matrices[:, :3, :3], matrices[:, :3, 3], fov)
    torch.testing.assert_close(cameras.yaw - FRONT, torch.tensor([-0.3, 0, 0.2]))
    torch.testing.assert_close(cameras.pitch - FRONT, torch.full((3,), 0.1))
    assert fov.tolist() == [13.0] * 3
    assert {name: x.shape for name, x in arrays.items()} == {n: (2, 3, c, 9, 9) for n, c in MAPS.items()}
    assert all(x.dtype == np.float32 for x in arrays.values())
    again = render_pairs(
        loaded,
        chosen(styles_of_seeds(loaded, [3, 5]), torch.arange(6) // 3),
        cameras[torch.arange(6) % 3],
        Look(9, ("image", "aux", "depth")),
    )
    for name in ("image", "aux_image", "depth"):
        torch.testing.assert_close(torch.from_numpy(arrays[name]).flatten(0, 1), getattr(again, name))
    assert again.depth is not None
    normals = torch.from_numpy(arrays["normals"]).flatten(0, 1)
    expected = normals_from_depth(again.depth, cameras[torch.arange(6) % 3])
    seen = normals.norm(dim=1) > 0.5
    assert seen.any() and not seen.all()
    torch.testing.assert_close(normals, expected * seen[:, None], rtol=0, atol=1e-4)
    far, near = loaded.settings.t_far, loaded.settings.t_near
    assert torch.equal(seen, again.depth[:, 0] <= far - 0.15 * (far - near))


@pytest.mark.parametrize("kind", ["image", "aux", "depth", "normals"])
def test_one_kind(kind: str, command: RenderCommand, tmp_path: Path) -> None:
    command("--seeds", "0", "--yaw", 0, "--kind", kind, out="a.npz")
    name = "aux_image" if kind == "aux" else kind
    assert arrays_in(tmp_path / "a.npz").keys() == {name, "faces", "camera_to_world", "fov_degrees"}


def test_frames_of_a_trajectory(command: RenderCommand, loaded: LoadedGenerator, tmp_path: Path) -> None:
    said = command("--seeds", "0-2", "--trajectory", "circle", out="a.npz")
    assert "3 seeds in 48 frames of 8 x 8" in said
    arrays = arrays_in(tmp_path / "a.npz")
    assert arrays["image"].shape == (3, 48, 3, 8, 8) and len(arrays["camera_to_world"]) == 48
    expected = render_views(loaded, styles_of_seeds(loaded, [2]), *turn_of(arrays), Look(8)).image[0]
    torch.testing.assert_close(torch.from_numpy(arrays["image"][2]), expected, rtol=1e-4, atol=1e-4)


def turn_of(arrays: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    position = torch.from_numpy(arrays["camera_to_world"][:, :3, 3])
    return torch.acos(position[:, 1]), torch.atan2(position[:, 2], position[:, 0])


def test_a_face_that_changes_has_no_name(command: RenderCommand, tmp_path: Path) -> None:
    command("--seeds", "0-2", "--interpolate", "both", "--frames", 5, out="a.npz")
    arrays = arrays_in(tmp_path / "a.npz")
    assert "faces" not in arrays and arrays["image"].shape == (1, 5, 3, 8, 8)


def test_models_without_cameras(
    command: RenderCommand, other_model: Callable[[Generator], LoadedGenerator], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    other_model(StyleGAN2(STYLEGAN2_CONFIG))
    command("--seeds", "1,4", out="a.npz")
    arrays = arrays_in(tmp_path / "a.npz")
    assert arrays.keys() == {"image", "faces"} and arrays["image"].shape[:3] == (2, 1, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mix", "1"], "is for numbers, and --mix makes one table"),
        (["--fps", "12", "--trajectory", "yaw"], "--fps 12 is for an animation"),
        (["--resolution", "60000", "--seeds", "0"], "takes 32.4 billion numbers in memory, and 0.5 is the limit"),
        # Normals are made of depths, and come with the image.
        (["--resolution", "60000", "--seeds", "0", "--yaw", "0", "--kind", "normals"], "takes 25.2 billion numbers"),
    ],
)
def test_mistakes(arguments: list[str], words: str, command: RenderCommand) -> None:
    assert words in command(*arguments, out="a.npz", fails=True)
