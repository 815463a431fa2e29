"""Networks of the family: generators, discriminators and what they are made of."""

from cips3d.models.cips import CIPS, CIPSConfig
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig, CIPS3DStyles
from cips3d.models.discriminator import Discriminator
from cips3d.models.family import make_discriminator, make_generator
from cips3d.models.generator import Generator, truncated
from cips3d.models.pigan import PiGAN, PiGANConfig, PiGANStyles
from cips3d.models.pigan_discriminator import PiGANDiscriminator, PiGANDiscriminatorConfig
from cips3d.models.residual_discriminator import ResidualDiscriminator, ResidualDiscriminatorConfig
from cips3d.models.style_mapping import WStyles
from cips3d.models.stylegan2 import StyleGAN2, StyleGAN2Config
from cips3d.models.view import Picture, View
from cips3d.models.volume import VolumeSettings
from cips3d.models.volume_generator import Rendering, VolumeGenerator

__all__ = [
    "CIPS",
    "CIPS3D",
    "CIPS3DConfig",
    "CIPS3DStyles",
    "CIPSConfig",
    "Discriminator",
    "Generator",
    "PiGAN",
    "PiGANConfig",
    "PiGANDiscriminator",
    "PiGANDiscriminatorConfig",
    "PiGANStyles",
    "Picture",
    "Rendering",
    "ResidualDiscriminator",
    "ResidualDiscriminatorConfig",
    "StyleGAN2",
    "StyleGAN2Config",
    "View",
    "VolumeGenerator",
    "VolumeSettings",
    "WStyles",
    "make_discriminator",
    "make_generator",
    "truncated",
]
