"""Small networks of every published system, and their state dicts in the originals' names."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from cips3d.convert.cips import cips_to_reference
from cips3d.convert.cips3d_discriminator import discriminator_to_reference
from cips3d.convert.cips3d_generator import generator_to_reference
from cips3d.convert.pigan import pigan_to_reference
from cips3d.convert.pigan_discriminator import pigan_discriminator_to_reference
from cips3d.convert.stylegan2 import stylegan2_discriminator_to_reference, stylegan2_to_reference
from cips3d.models.cips import CIPS, CIPSConfig
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.discriminator import Discriminator, DiscriminatorConfig, channel_table
from cips3d.models.pigan import PiGAN, PiGANConfig
from cips3d.models.pigan_discriminator import PiGANDiscriminator, PiGANDiscriminatorConfig
from cips3d.models.stylegan2 import StyleGAN2, StyleGAN2Config

CIPS3D_CONFIG = CIPS3DConfig(
    z_shape_dim=6,
    shape_style_dim=8,
    nerf_width=16,
    nerf_color_width=8,
    features=4,
    z_appearance_dim=5,
    appearance_style_dim=8,
    inr_width=8,
)
CIPS3D_DISCRIMINATOR_CONFIG = DiscriminatorConfig(
    main_channels=channel_table(16, base=64, cap=8), aux_channels=channel_table(16, base=64, cap=4)
)
PIGAN_CONFIG = PiGANConfig(z_dim=5, width=6, layers=3, mapping_width=7, mapping_layers=3)
PIGAN_DISCRIMINATOR_CONFIG = PiGANDiscriminatorConfig(channels={2: 5, 4: 5, 8: 4}, latent_dim=3)
CIPS_CONFIG = CIPSConfig(resolution=8, hidden=6, widths=(5, 4), z_dim=7, style_dim=8, mapping_layers=2)
STYLEGAN2_CONFIG = StyleGAN2Config(channels={4: 6, 8: 5, 16: 4}, z_dim=7, style_dim=8, mapping_layers=2)
STYLEGAN2_DISCRIMINATOR_CONFIG = DiscriminatorConfig(
    main_channels={4: 6, 8: 5, 16: 4}, aux_channels=None, main_minibatch_std_group=4, progressive=False
)


class System(NamedTuple):
    """How a small network of a system is made, and its state dict written."""

    make: Callable[[], nn.Module]
    to_reference: Callable[..., dict[str, Tensor]]


SYSTEMS = {
    "cips3d": System(lambda: CIPS3D(CIPS3D_CONFIG), generator_to_reference),
    "cips3d-discriminator": System(
        lambda: Discriminator.from_config(CIPS3D_DISCRIMINATOR_CONFIG), discriminator_to_reference
    ),
    "pigan": System(lambda: PiGAN(PIGAN_CONFIG), pigan_to_reference),
    "pigan-discriminator": System(
        lambda: PiGANDiscriminator(PIGAN_DISCRIMINATOR_CONFIG), pigan_discriminator_to_reference
    ),
    "cips": System(lambda: CIPS(CIPS_CONFIG), cips_to_reference),
    "stylegan2": System(lambda: StyleGAN2(STYLEGAN2_CONFIG), stylegan2_to_reference),
    "stylegan2-discriminator": System(
        lambda: Discriminator.from_config(STYLEGAN2_DISCRIMINATOR_CONFIG), stylegan2_discriminator_to_reference
    ),
}


def made(system: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small network with random weights, and its state dict in the original's names."""
    module = SYSTEMS[system].make()
    return module, SYSTEMS[system].to_reference(module)
