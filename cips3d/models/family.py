"""The family of generators and discriminators: which there are, and how a configuration becomes one.

A new generator is one module like `cips3d.models.stylegan2` (a `GeneratorConfig` whose first field is its name, and a
subclass of `Generator`), its import and its entries in `AnyGeneratorConfig` and `GENERATORS`, and a preset like
`cips3d.training.presets.stylegan2`. A new discriminator has a configuration with the properties of
`PiGANDiscriminatorConfig`, a subclass of `Discriminator`, and its entries beside theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

from cips3d.models.cips import CIPS, CIPSConfig
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.discriminator import Discriminator
from cips3d.models.generator import Generator
from cips3d.models.pigan import PiGAN, PiGANConfig
from cips3d.models.pigan_discriminator import PiGANDiscriminator, PiGANDiscriminatorConfig
from cips3d.models.residual_discriminator import ResidualDiscriminator, ResidualDiscriminatorConfig
from cips3d.models.stylegan2 import StyleGAN2, StyleGAN2Config

AnyGenerator = Generator[Any]
AnyGeneratorConfig = Union[CIPS3DConfig, PiGANConfig, CIPSConfig, StyleGAN2Config]  # noqa: UP007 # read at run time
AnyDiscriminatorConfig = Union[ResidualDiscriminatorConfig, PiGANDiscriminatorConfig]  # noqa: UP007

GENERATORS: dict[type, type[AnyGenerator]] = {
    CIPS3DConfig: CIPS3D,
    PiGANConfig: PiGAN,
    CIPSConfig: CIPS,
    StyleGAN2Config: StyleGAN2,
}
DISCRIMINATORS: dict[type, Callable[[Any], Discriminator]] = {
    ResidualDiscriminatorConfig: ResidualDiscriminator.from_config,
    PiGANDiscriminatorConfig: PiGANDiscriminator,
}


def generator_class(config: AnyGeneratorConfig) -> type[AnyGenerator]:
    """The model that a configuration describes."""
    return GENERATORS[type(config)]


def make_generator(config: AnyGeneratorConfig) -> AnyGenerator:
    """A generator with random weights."""
    return generator_class(config)(config)


def make_discriminator(config: AnyDiscriminatorConfig) -> Discriminator:
    """A discriminator with random weights."""
    return DISCRIMINATORS[type(config)](config)
