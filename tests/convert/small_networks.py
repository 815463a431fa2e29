"""Small networks of every published system, and their state dicts in the originals' names."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from cips3d.convert import to_reference
from cips3d.models.channels import channel_table
from cips3d.models.cips import CIPS, CIPSConfig
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.pigan import PiGAN, PiGANConfig
from cips3d.models.pigan_discriminator import PiGANDiscriminator, PiGANDiscriminatorConfig
from cips3d.models.residual_discriminator import ResidualDiscriminator, ResidualDiscriminatorConfig
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
CIPS3D_DISCRIMINATOR_CONFIG = ResidualDiscriminatorConfig(
    main_channels=channel_table(16, base=64, cap=8), aux_channels=channel_table(16, base=64, cap=4)
)
PIGAN_CONFIG = PiGANConfig(z_dim=5, width=6, layers=3, mapping_width=7, mapping_layers=3)
PIGAN_DISCRIMINATOR_CONFIG = PiGANDiscriminatorConfig(channels={2: 5, 4: 5, 8: 4}, latent_dim=3)
CIPS_CONFIG = CIPSConfig(resolution=8, hidden=6, widths=(5, 4), z_dim=7, style_dim=8, mapping_layers=2)
STYLEGAN2_CONFIG = StyleGAN2Config(channels={4: 6, 8: 5, 16: 4}, z_dim=7, style_dim=8, mapping_layers=2)
STYLEGAN2_DISCRIMINATOR_CONFIG = ResidualDiscriminatorConfig(
    main_channels={4: 6, 8: 5, 16: 4}, aux_channels=None, main_minibatch_std_group=4, progressive=False
)


SYSTEMS: dict[str, Callable[[], nn.Module]] = {
    "cips3d": lambda: CIPS3D(CIPS3D_CONFIG),
    "cips3d-discriminator": lambda: ResidualDiscriminator.from_config(CIPS3D_DISCRIMINATOR_CONFIG),
    "pigan": lambda: PiGAN(PIGAN_CONFIG),
    "pigan-discriminator": lambda: PiGANDiscriminator(PIGAN_DISCRIMINATOR_CONFIG),
    "cips": lambda: CIPS(CIPS_CONFIG),
    "stylegan2": lambda: StyleGAN2(STYLEGAN2_CONFIG),
    "stylegan2-discriminator": lambda: ResidualDiscriminator.from_config(STYLEGAN2_DISCRIMINATOR_CONFIG),
}


def made(system: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small network with random weights, and its state dict in the original's names."""
    module = SYSTEMS[system]()
    return module, to_reference(module)
