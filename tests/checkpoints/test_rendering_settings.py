"""How pictures are composited: as in training, but for pi-GAN's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cips3d.checkpoints.rendering_settings import volume_of_pictures
from cips3d.training.presets import PRESETS


@pytest.mark.parametrize("name", list(PRESETS))
def test_volume_of_pictures(name: str) -> None:
    """pi-GAN's pictures of faces and cats take the light that is left, those of cars on white do not."""
    config = PRESETS[name]
    closed = config.volume.last_back or name in ("pigan-celeba", "pigan-cats")
    assert volume_of_pictures(config.generator, config.volume) == replace(config.volume, last_back=closed)
