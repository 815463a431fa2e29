"""Small generators, never trained, and pictures of theirs."""

from __future__ import annotations

from dataclasses import replace

import torch
from convert.small_networks import CIPS_CONFIG, PIGAN_CONFIG, STYLEGAN2_CONFIG
from torch import Tensor

from cips3d.cameras import PoseDistribution
from cips3d.inversion.objective import seen_by
from cips3d.models.cips import CIPS
from cips3d.models.cips3d import CIPS3D
from cips3d.models.family import AnyGenerator
from cips3d.models.pigan import PiGAN
from cips3d.models.stylegan2 import StyleGAN2
from cips3d.models.volume import VolumeSettings
from cips3d.rendering import LoadedGenerator, styles_of_seeds
from cips3d.training.presets.cips3d import TINY

STYLE_SHARE = 0.1  # of what styles do to an untrained NeRF: every face would be another pattern, seen from anywhere
PATTERN = 1.5  # how much finer it is: a smooth one hardly changes when it turns


ONE_CAMERA = PoseDistribution("fixed")  # the search looks from there alone, and is quick


def loaded_of(generator: AnyGenerator, resolution: int, poses: PoseDistribution) -> LoadedGenerator:
    """A generator as it is when it was loaded from a file."""
    generator.requires_grad_(False).eval()
    return LoadedGenerator(generator, VolumeSettings(samples=8, last_back=True), 12.0, resolution, poses, 7)


def painted_ball() -> LoadedGenerator:
    """The preset `tiny` as it is before training, a soft ball, painted; faces differ in their colours and dents."""
    torch.manual_seed(0)
    generator = CIPS3D(replace(TINY.generator, inr_width=32, rgb_init=0.5))
    with torch.no_grad():
        for layer in (*generator.nerf.layers, generator.nerf.color):
            layer.gain.weight.mul_(STYLE_SHARE)
            layer.shift.weight.mul_(STYLE_SHARE)
        generator.nerf.layers[0].linear.weight.mul_(PATTERN)
    return loaded_of(generator, 16, PoseDistribution())


def small(system: str) -> LoadedGenerator:
    """The smallest generator of a system, trained with one camera."""
    torch.manual_seed(0)
    if system == "cips3d":
        config = replace(TINY.generator, nerf_width=8, nerf_color_width=8, features=6, inr_width=8, inr_blocks=2)
        return loaded_of(CIPS3D(replace(config, rgb_init=1.0)), 8, ONE_CAMERA)
    if system == "pigan":
        return loaded_of(PiGAN(PIGAN_CONFIG), 8, ONE_CAMERA)
    if system == "cips":
        return loaded_of(CIPS(CIPS_CONFIG), 8, ONE_CAMERA)
    return loaded_of(StyleGAN2(STYLEGAN2_CONFIG), 16, ONE_CAMERA)


def own_picture(loaded: LoadedGenerator, seed: int, pitch: float, yaw: float) -> Tensor:
    """[3, R, R] the face of a seed, in the 256 levels of a file."""
    angles = (torch.tensor([angle]) for angle in (pitch, yaw))
    with torch.no_grad():
        seen = seen_by(loaded, styles_of_seeds(loaded, [seed]), *angles, loaded.resolution)
    return ((seen[0].clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
