"""Generators on the device "meta": shapes of pictures and of gradients, without numbers."""

from __future__ import annotations

import pytest
import torch

from cips3d.cameras import Cameras
from cips3d.models.cips import CIPSConfig
from cips3d.models.cips3d import CIPS3DConfig
from cips3d.models.family import AnyGeneratorConfig, make_generator
from cips3d.models.pigan import PiGANConfig
from cips3d.models.stylegan2 import StyleGAN2Config
from cips3d.models.view import View

SIDE = 16


@pytest.mark.parametrize(
    "config",
    [CIPS3DConfig(), PiGANConfig(), CIPSConfig(resolution=SIDE), StyleGAN2Config(channels={4: 512, 8: 512, 16: 256})],
    ids=lambda config: config.system,
)
def test_published_widths(config: AnyGeneratorConfig) -> None:
    with torch.device("meta"):
        generator = make_generator(config)
        angles = torch.ones(2)
        view = View(SIDE, Cameras.from_angles(angles, angles), return_aux=generator.has_aux_image)
        picture = generator.render(generator.mapping(*generator.sample_z(2)), view)
    assert picture.image.is_meta
    assert picture.image.shape == (2, 3, SIDE, SIDE)
    picture.image.sum().backward()
    with pytest.raises(TypeError, match=r"styles must be .*Styles, as mapping gives them, got tuple"):
        generator.render(generator.sample_z(2), view)
    assert all(p.grad is not None for name, p in generator.named_parameters() if "aux" not in name)
