"""A captured render gives what the generator gives."""

from __future__ import annotations

import doctest
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from convert.small_networks import CIPS_CONFIG, PIGAN_CONFIG, STYLEGAN2_CONFIG
from models.test_torch_compile import CIPS3D_CONFIG

from cips3d.cameras import Cameras
from cips3d.models import generator as generator_module
from cips3d.models.family import AnyGenerator, AnyGeneratorConfig, make_generator
from cips3d.models.generator import Generator
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings

CONFIGS: dict[str, AnyGeneratorConfig] = {
    "cips3d": CIPS3D_CONFIG,
    "pigan": PIGAN_CONFIG,
    "cips": CIPS_CONFIG,
    "stylegan2": STYLEGAN2_CONFIG,
}
DEVICES = ["cpu", "cuda"]


def test_example() -> None:
    """That of the docstring."""
    (example,) = doctest.DocTestFinder().find(Generator.compiled_render, "compiled_render", module=generator_module)
    assert doctest.DocTestRunner().run(example).failed == 0


def generator_on(device: str, name: str = "cips3d") -> AnyGenerator:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    return make_generator(CONFIGS[name]).eval().to(device)


def inputs(generator: AnyGenerator, seed: int, batch: int = 2) -> tuple[Any, Cameras]:
    z = generator.sample_z(batch, generator=torch.Generator().manual_seed(seed))
    angle = torch.linspace(1.4, 1.7, batch) + 0.01 * seed
    with torch.no_grad():
        return generator.mapping(*z), Cameras.from_angles(angle, angle).to(generator.device)


def view_of(generator: AnyGenerator, batch: int = 2) -> View:
    cameras = inputs(generator, 0, batch)[1]
    side = generator.fixed_resolution or 8
    return View(side, cameras, VolumeSettings(samples=4), return_aux=generator.has_aux_image, jitter=False)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("device", DEVICES)
def test_replays_are_renderings(device: str, name: str) -> None:
    generator = generator_on(device, name)
    view = view_of(generator)
    render = generator.compiled_render(view)
    for seed in range(3):
        styles, cameras = inputs(generator, seed)
        with torch.no_grad():
            expected = generator.render(styles, replace(view, cameras=cameras))
        found = render(styles, cameras)
        for a, b in zip(found, expected, strict=True):
            if a is None or b is None:
                assert a is b
            else:
                torch.testing.assert_close(a, b)
        assert not found.image.requires_grad
    assert torch.equal(render(styles).image, render(styles, view.cameras).image)


@pytest.mark.parametrize("grid_resolution", [None, 3])
@pytest.mark.parametrize("device", DEVICES)
def test_locked_views(device: str, grid_resolution: int | None) -> None:
    """The direction that they are seen along is no copy from the host, which a graph would refuse."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = make_generator(replace(PIGAN_CONFIG, grid_resolution=grid_resolution)).eval().to(device)
    view = replace(view_of(generator), lock_view=True)
    styles, cameras = inputs(generator, 0)
    with torch.no_grad():
        expected = generator.render(styles, replace(view, cameras=cameras)).image
    torch.testing.assert_close(generator.compiled_render(view)(styles, cameras).image, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_may_change(device: str) -> None:
    generator = generator_on(device)
    render = generator.compiled_render(view_of(generator))
    styles, cameras = inputs(generator, 0)
    before = render(styles, cameras).image.clone()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(render(styles, cameras).image, before)


@pytest.mark.parametrize("name", ["cips3d", "cips"])
@pytest.mark.parametrize("device", DEVICES)
def test_weights_may_change_under_autocast(device: str, name: str) -> None:
    """Which keeps copies of weights in 16 bits for as long as it lasts."""
    generator = generator_on(device, name)
    view = view_of(generator)
    render = generator.compiled_render(view)
    styles, cameras = inputs(generator, 0)
    with torch.autocast(device, dtype=torch.bfloat16):
        render(styles, cameras)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(1.5)
    with torch.autocast(device, dtype=torch.bfloat16), torch.no_grad():
        expected = generator.render(styles, replace(view, cameras=cameras)).image
    # A replay computes as it was captured, whatever holds around it.
    with nullcontext() if device == "cuda" else torch.autocast(device, dtype=torch.bfloat16):
        torch.testing.assert_close(render(styles, cameras).image, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_first_in_inference_mode(device: str) -> None:
    generator = generator_on(device)
    render = generator.compiled_render(view_of(generator))
    styles, cameras = inputs(generator, 0)
    with torch.inference_mode():
        first = render(styles, cameras).image.clone()
    torch.testing.assert_close(render(styles, cameras).image, first)
    with torch.inference_mode():
        torch.testing.assert_close(render(styles, cameras).image, first)


@pytest.mark.parametrize("device", DEVICES)
def test_jitter_is_drawn_anew(device: str) -> None:
    generator = generator_on(device)
    render = generator.compiled_render(replace(view_of(generator), jitter=True))
    styles, cameras = inputs(generator, 0)
    first = render(styles, cameras).image.clone()
    assert not torch.equal(render(styles, cameras).image, first)


def test_as_many_as_it_was_made_for() -> None:
    generator = generator_on("cpu")
    render = generator.compiled_render(view_of(generator, batch=3))
    styles, cameras = inputs(generator, 0)
    with pytest.raises(ValueError, match="styles must be 3"):
        render(styles)
    with pytest.raises(ValueError, match="cameras must be 3"):
        render(inputs(generator, 0, batch=3)[0], cameras)


def test_views_that_cannot_be_captured() -> None:
    generator = generator_on("cpu")
    view = view_of(generator)
    with pytest.raises(ValueError, match=r"view\.generator must be None"):
        generator.compiled_render(replace(view, generator=torch.Generator()))
    with pytest.raises(ValueError, match="at least one"):
        generator.compiled_render(replace(view, cameras=Cameras.from_angles(torch.zeros(0), torch.zeros(0))))
