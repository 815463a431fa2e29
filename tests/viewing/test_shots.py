"""Pictures of what is asked for."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from convert.small_networks import CIPS_CONFIG, PIGAN_CONFIG, STYLEGAN2_CONFIG

from cips3d import pictures
from cips3d.errors import UserError
from cips3d.models.cips import CIPS
from cips3d.models.cips3d import CIPS3D
from cips3d.models.generator import Generator
from cips3d.models.pigan import PiGAN
from cips3d.models.stylegan2 import StyleGAN2
from cips3d.rendering import LoadedGenerator, Look, normals_from_depth, render_views, styles_of_seeds
from cips3d.rendering.views import PictureKind
from cips3d.viewing.blending import Blend
from cips3d.viewing.orbit import Orbit
from cips3d.viewing.shots import GivenUpError, Shot, Studio

SIDE = 12


@pytest.fixture
def studio(loaded: LoadedGenerator) -> Studio:
    return Studio(loaded)


def reference(loaded: LoadedGenerator, styles: tuple[torch.Tensor, ...], orbit: Orbit) -> np.ndarray:
    """The same picture as the render command makes it."""
    pitch, yaw = torch.tensor([orbit.pitch]), torch.tensor([orbit.yaw])
    image = render_views(loaded, styles, pitch, yaw, Look(SIDE)).image[0, 0]
    return pictures.to_uint8(image).permute(1, 2, 0).numpy()


def test_is_the_picture_that_render_makes(studio: Studio) -> None:
    orbit = Orbit(1.3, 1.7)
    shot = dataclasses.replace(studio.first_shot, orbit=orbit, seed=4, truncation=0.6)
    expected = reference(studio.loaded, styles_of_seeds(studio.loaded, [4], 0.6), orbit)
    assert np.array_equal(studio.take(shot, SIDE), expected)


def test_begins_at_the_front(studio: Studio) -> None:
    poses = studio.loaded.poses
    shot = studio.first_shot
    assert (shot.orbit.yaw, shot.orbit.pitch) == pytest.approx((poses.yaw_mean, poses.pitch_mean))
    assert (shot.seed, shot.shares, shot.kind) == (0, (0.0, 0.0), "image")


def test_shape_and_appearance_are_mixed_apart(studio: Studio) -> None:
    assert studio.first_shot.parts == ("shape", "appearance")
    first, second = (styles_of_seeds(studio.loaded, [seed]) for seed in (2, 9))
    for shares in ((0.0, 1.0), (1.0, 0.0), (0.25, 0.5)):
        mixed = studio.styles(dataclasses.replace(studio.first_shot, seed=2, second_seed=9, shares=shares))
        for a, b, share, got in zip(first, second, shares, mixed, strict=True):
            assert torch.allclose(got, (1 - share) * a + share * b, atol=1e-6)


def test_given_styles(loaded: LoadedGenerator) -> None:
    given = styles_of_seeds(loaded, [11])
    studio = Studio(loaded, given)
    shot = studio.first_shot
    assert shot.seed is None
    assert np.array_equal(studio.take(shot, SIDE), studio.take(dataclasses.replace(shot, seed=11), SIDE))
    typical = dataclasses.replace(shot, truncation=0.3)
    seeded = studio.styles(dataclasses.replace(typical, seed=11))
    assert all(torch.equal(a, b) for a, b in zip(studio.styles(typical), seeded, strict=True))
    with pytest.raises(ValueError, match="face must be styles of one face"):
        Studio(loaded, styles_of_seeds(loaded, [1, 2]))
    with pytest.raises(ValueError, match="seed must be an integer"):
        Studio(loaded).styles(shot)


@pytest.mark.parametrize("truncation", [0.0, 0.7, 1.3])
def test_given_styles_lean_as_those_of_seeds(loaded: LoadedGenerator, truncation: float) -> None:
    studio = Studio(loaded, styles_of_seeds(loaded, [11]))
    shot = dataclasses.replace(studio.first_shot, truncation=truncation)
    seeded = studio.styles(dataclasses.replace(shot, seed=11))
    assert all(torch.equal(a, b) for a, b in zip(studio.styles(shot), seeded, strict=True))


@pytest.mark.parametrize("kind", ["image", "aux", "depth", "normals"])
def test_kinds(studio: Studio, kind: PictureKind) -> None:
    shot = dataclasses.replace(studio.first_shot, kind=kind)
    pixels = studio.take(shot, SIDE)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert pixels.dtype == np.uint8
    if kind != "normals":
        return
    pitch, yaw = torch.tensor([shot.orbit.pitch]), torch.tensor([shot.orbit.yaw])
    seen = render_views(studio.loaded, styles_of_seeds(studio.loaded, [0]), pitch, yaw, Look(SIDE, ("image", "depth")))
    assert seen.depth is not None
    normals = normals_from_depth(seen.depth[0], shot.orbit.cameras(studio.loaded.fov_degrees))
    expected = pictures.to_uint8(normals[0]).permute(1, 2, 0).numpy()
    empty = (pixels == pictures.to_uint8(torch.zeros(1)).item()).all(-1)  # grey
    assert np.array_equal(pixels[~empty], expected[~empty])


def test_second_checkpoint(studio: Studio) -> None:
    torch.manual_seed(5)
    other = dataclasses.replace(studio.loaded, generator=CIPS3D(studio.loaded.generator.config).requires_grad_(False))
    shot = dataclasses.replace(studio.first_shot, seed=3, truncation=0.5, model_share=1.0)
    first = studio.take(shot, SIDE)  # no second checkpoint: its weight does not count
    studio.blend = Blend(studio.loaded, other)
    expected = reference(other, styles_of_seeds(other, [3], 0.5), shot.orbit)
    assert np.array_equal(studio.take(shot, SIDE), expected)
    assert np.array_equal(studio.take(dataclasses.replace(shot, model_share=0.0), SIDE), first)
    assert not np.array_equal(first, expected)


@pytest.mark.parametrize(
    ("generator", "side", "parts"),
    [
        (PiGAN(PIGAN_CONFIG), 9, ("face",)),
        (CIPS(CIPS_CONFIG), 12, ("face",)),
        (StyleGAN2(STYLEGAN2_CONFIG), 16, ("face",)),
    ],
    ids=["pigan", "cips", "stylegan2"],
)
def test_every_model_of_the_family(
    loaded: LoadedGenerator, generator: Generator[tuple[torch.Tensor, ...]], side: int, parts: tuple[str, ...]
) -> None:
    studio = Studio(dataclasses.replace(loaded, generator=generator.requires_grad_(False).eval()))
    assert studio.first_shot.parts == parts
    shot = dataclasses.replace(studio.first_shot, seed=1, second_seed=2, shares=(1.0,))
    second = dataclasses.replace(shot, seed=2, shares=(0.0,))
    assert np.array_equal(studio.take(shot, side), studio.take(second, side))
    assert studio.take(shot, side).shape == (side, side, 3)


def unwanted_after(asked: int) -> Callable[[], bool]:
    """Says False so many times, then True."""
    left = [asked]

    def unwanted() -> bool:
        left[0] -= 1
        return left[0] < 0

    return unwanted


def test_is_given_up_in_the_middle(studio: Studio) -> None:
    shot = studio.first_shot
    whole = studio.take(shot, 64)  # four chunks of rays
    for asked in (0, 3, 10):
        with pytest.raises(GivenUpError):
            studio.take(shot, 64, unwanted_after(asked))
    assert np.array_equal(studio.take(shot, 64), whole)  # nothing is left behind


def test_giving_up_concerns_its_own_thread(studio: Studio) -> None:
    """Another thread may ask the same network for styles while a picture is given up."""
    errors: list[BaseException] = []

    def use() -> None:
        try:
            styles_of_seeds(studio.loaded, [0])
        except BaseException as error:
            errors.append(error)

    def unwanted() -> bool:
        if not threads:
            threads.append(threading.Thread(target=use))
            threads[0].start()
            threads[0].join()
        return True

    threads: list[threading.Thread] = []
    with pytest.raises(GivenUpError):
        studio.take(studio.first_shot, SIDE, unwanted)
    assert threads
    assert not errors


def test_too_little_memory(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(CIPS3D, "render", fail)
    with pytest.raises(UserError, match="too little memory for 12 x 12 pixels"):
        studio.take(studio.first_shot, SIDE)


def test_a_shot_is_all_that_counts(studio: Studio) -> None:
    """Equal shots are equal pictures; each field changes the picture."""
    studio.blend = Blend(
        studio.loaded, dataclasses.replace(studio.loaded, generator=CIPS3D(studio.loaded.generator.config))
    )
    shot = dataclasses.replace(studio.first_shot, shares=(0.3, 0.3), truncation=0.8)
    picture = studio.take(shot, SIDE)
    assert np.array_equal(studio.take(dataclasses.replace(shot), SIDE), picture)
    changes: dict[str, object] = {"orbit": Orbit(1.2, 1.5), "seed": 5, "second_seed": 6, "shares": (0.9, 0.9)}
    changes |= {"truncation": 0.1, "kind": "depth", "model_share": 0.5}
    assert set(changes) == {field.name for field in dataclasses.fields(Shot)}
    for name, value in changes.items():
        changed = dataclasses.replace(shot, **{name: value})  # type: ignore[arg-type]
        assert not np.array_equal(studio.take(changed, SIDE), picture), name
