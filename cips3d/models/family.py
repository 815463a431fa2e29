"""The family of generators and discriminators: which there are, and how a configuration becomes one.

A new model is one module like `cips3d.models.stylegan2` (a configuration whose first field is its name, and a subclass
of `Generator`), its import and its entries in `AnyGeneratorConfig` and `GENERATORS`, and a preset like
`cips3d.training.presets.stylegan2`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Union

from cips3d.models.channels import channels_at
from cips3d.models.cips import CIPS, CIPSConfig
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.discriminator import Discriminator, DiscriminatorConfig
from cips3d.models.generator import Generator
from cips3d.models.pigan import PiGAN, PiGANConfig
from cips3d.models.pigan_discriminator import PiGANDiscriminator, PiGANDiscriminatorConfig
from cips3d.models.stylegan2 import StyleGAN2, StyleGAN2Config

AnyGenerator = Generator[Any]
AnyGeneratorConfig = Union[CIPS3DConfig, PiGANConfig, CIPSConfig, StyleGAN2Config]  # noqa: UP007 # read at run time
AnyDiscriminator = Union[Discriminator, PiGANDiscriminator]  # noqa: UP007
AnyDiscriminatorConfig = Union[DiscriminatorConfig, PiGANDiscriminatorConfig]  # noqa: UP007

GENERATORS: dict[type, type[AnyGenerator]] = {
    CIPS3DConfig: CIPS3D,
    PiGANConfig: PiGAN,
    CIPSConfig: CIPS,
    StyleGAN2Config: StyleGAN2,
}


def generator_class(config: AnyGeneratorConfig) -> type[AnyGenerator]:
    """The model that a configuration describes."""
    return GENERATORS[type(config)]


def make_generator(config: AnyGeneratorConfig) -> AnyGenerator:
    """A generator with random weights."""
    return generator_class(config)(config)


def make_discriminator(config: AnyDiscriminatorConfig) -> AnyDiscriminator:
    """A discriminator with random weights."""
    if isinstance(config, PiGANDiscriminatorConfig):
        return PiGANDiscriminator(config)
    return Discriminator.from_config(config)


def generator_config_at(config: AnyGeneratorConfig, resolution: int) -> AnyGeneratorConfig:
    """The configuration of the same generator for pictures of another size, where its networks depend on the size."""
    if isinstance(config, StyleGAN2Config):
        return replace(config, channels=channels_at(config.channels, resolution))
    if isinstance(config, CIPSConfig):
        return replace(config, resolution=resolution)
    return config


def discriminator_config_at(config: AnyDiscriminatorConfig, resolution: int) -> AnyDiscriminatorConfig:
    """The same of a discriminator; a progressive one takes all sizes up to its largest as it is."""
    if not isinstance(config, DiscriminatorConfig):
        return config
    if config.progressive and resolution <= config.resolution_max:
        return config
    aux = config.aux_channels
    return replace(
        config,
        main_channels=channels_at(config.main_channels, resolution),
        aux_channels=None if aux is None else channels_at(aux, resolution),
    )
