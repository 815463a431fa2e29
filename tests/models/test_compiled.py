"""A captured render gives what the generator gives."""

from __future__ import annotations

import pytest
import torch

from cips3d.cameras import Cameras
from cips3d.models.cips3d import CIPS3D, Styles
from cips3d.models.compiled import CompiledRender
from cips3d.models.volume import VolumeSettings

SETTINGS = VolumeSettings(samples=4)


def generator_on(device: str) -> CIPS3D:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    return CIPS3D().eval().to(device)


def inputs(generator: CIPS3D, seed: int, batch: int = 2) -> tuple[Styles, Cameras]:
    z = generator.sample_z(batch, generator=torch.Generator().manual_seed(seed))
    angle = torch.linspace(1.4, 1.7, batch) + 0.01 * seed
    with torch.no_grad():
        return generator.mapping(*z), Cameras.from_angles(angle, angle).to(generator.device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_replays_are_renderings(device: str) -> None:
    generator = generator_on(device)
    render = CompiledRender(generator, SETTINGS, batch=2, resolution=6, return_aux=True)
    for seed in range(3):
        styles, cameras = inputs(generator, seed)
        with torch.no_grad():
            expected = generator.synthesis(styles, cameras, SETTINGS, resolution=6, jitter=False, return_aux=True)
        found = render(styles, cameras)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        assert not found.image.requires_grad


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_weights_may_change(device: str) -> None:
    generator = generator_on(device)
    render = CompiledRender(generator, SETTINGS, batch=1, resolution=5)
    styles, cameras = inputs(generator, 0, batch=1)
    before = render(styles, cameras).image.clone()
    with torch.no_grad():
        for parameter in generator.inr.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(render(styles, cameras).image, before)


def test_as_many_as_it_was_made_for() -> None:
    generator = generator_on("cpu")
    render = CompiledRender(generator, SETTINGS, batch=3, resolution=4)
    with pytest.raises(ValueError, match="styles must be 3"):
        render(*inputs(generator, 0))
    with pytest.raises(ValueError, match="batch must be at least 1"):
        CompiledRender(generator, SETTINGS, batch=0, resolution=4)
