"""CIPS (arXiv 2011.13775): StyleGAN2's training of a generator without spatial operators."""

from __future__ import annotations

from dataclasses import replace

from cips3d.models.cips import CIPSConfig
from cips3d.training.presets.stylegan2 import STYLEGAN2_256

# Whole pictures of 256²; --stages.0.crop 64 trains on random parts of them.
CIPS_FFHQ = replace(
    STYLEGAN2_256,
    preset="cips-ffhq",
    generator=CIPSConfig(resolution=256),
    path_length_weight=0.0,
    style_mixing=0.0,
)

PRESETS = (CIPS_FFHQ,)
