"""The networks of a file, whether training wrote it or it was converted from a published checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from cips3d.checkpoints.converted import Converted, Source, State, read_converted
from cips3d.checkpoints.rendering_settings import RenderingSettings
from cips3d.checkpoints.tensor_files import ENDING
from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint
from cips3d.errors import UserError, require_choice
from cips3d.files import sha256_of
from cips3d.models.family import AnyDiscriminatorConfig, AnyGenerator, AnyGeneratorConfig, make_generator
from cips3d.plain import from_plain, to_plain

Average = Literal["fast", "slow"]
"""Which average of the generator that a run has trained: the one that pictures show (`ema_decay`), or the slower one
that it may keep beside it (`slow_ema_decay`)."""
AVERAGES: dict[Average, str] = {"fast": "generator_ema", "slow": "generator_slow_ema"}  # as checkpoints call them

# Unions are types for `from_plain`, but not for type checkers.
GENERATOR_CONFIG = cast("type[AnyGeneratorConfig]", AnyGeneratorConfig)
DISCRIMINATOR_CONFIG = cast("type[AnyDiscriminatorConfig | None]", AnyDiscriminatorConfig | None)


@dataclass(frozen=True, eq=False)
class Networks:
    """Configurations and weights, and how pictures are taken with them."""

    file: Path
    generator_config: AnyGeneratorConfig
    discriminator_config: AnyDiscriminatorConfig | None
    """None: the file has no discriminator"""
    rendering: RenderingSettings
    step: int | None
    """training steps taken, where the file tells"""
    averaged: State
    """of the generator that pictures are made with"""
    discriminator: State | None

    def converted(self, *sources: Path) -> Converted:
        """As a file of weights alone, without what only training goes on from; `write_converted` writes it.

        Args:
            sources: files that the weights came from; default: this one.
        """
        states = {"generator_ema": self.averaged}
        if self.discriminator is not None:
            states["discriminator"] = self.discriminator
        return Converted(
            system=self.generator_config.system,
            rendering=self.rendering,
            sources=tuple(Source(file.name, sha256_of(file)) for file in sources or (self.file,)),
            generator_config=to_plain(self.generator_config),
            discriminator_config=None if self.discriminator is None else to_plain(self.discriminator_config),
            step=self.step,
            states=states,
        )

    def generator(self) -> AnyGenerator:
        """The averaged generator.

        Raises:
            UserError: its weights do not fit its configuration.
        """
        try:
            generator = make_generator(self.generator_config)
            generator.load_state_dict(self.averaged)
        except (RuntimeError, TypeError, MemoryError) as error:
            raise UserError(
                f"the weights in {self.file} do not fit the networks it describes; try another checkpoint of the run"
            ) from error
        return generator.requires_grad_(False).eval()


def load_networks(path: str | Path, *, average: Average = "fast") -> Networks:
    """Read a run folder (its newest checkpoint), a checkpoint, or a file that `python -m cips3d.convert` wrote.

    Raises:
        UserError: nothing is there, it is not a file that this package can use, or it has no such average.
    """
    require_choice("average", average, AVERAGES)
    file = find_checkpoint(Path(path))
    if file.suffix.lower() != ENDING:
        return networks_of_checkpoint(file, load_checkpoint(file), average)
    if average != "fast":
        raise UserError(f"{file} holds one average of its generator; take it as it is")
    return _of_converted(file)


def networks_of_checkpoint(file: Path, state: dict[str, Any], average: Average = "fast") -> Networks:
    """The networks of a checkpoint of training that was read already (`load_checkpoint`).

    Raises:
        UserError: it is of another version, or has no such average.
    """
    if average == "slow" and state.get(AVERAGES["slow"]) is None:
        raise UserError(f"{file} holds no slow average, which runs keep with --slow-ema-decay; take the fast one")
    try:
        config = json.loads(state["config"])  # of the run; how it was trained may be of any version
        rendering = {name: config[name] for name in ("volume", "fov_degrees", "poses")}
        return Networks(
            file,
            from_plain(GENERATOR_CONFIG, config["generator"]),
            from_plain(DISCRIMINATOR_CONFIG, config["discriminator"]),
            from_plain(RenderingSettings, {**rendering, "resolution": config["stages"][-1]["resolution"]}),
            int(state["step"]),
            state[AVERAGES[average]],
            state.get("discriminator"),
        )
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{file} does not describe a model of this version ({error}); "
            "use it with the version of cips3d that trained it"
        ) from error


def _of_converted(file: Path) -> Networks:
    converted = read_converted(file)
    averaged = converted.generator_state
    if averaged is None or converted.generator_config is None:
        raise UserError(f"{file} holds no generator; convert the generator's file")
    try:
        generator_config = from_plain(GENERATOR_CONFIG, converted.generator_config)
        discriminator_config = from_plain(DISCRIMINATOR_CONFIG, converted.discriminator_config)
    except ValueError as error:
        raise UserError(f"{file} does not describe a model of this version ({error}); convert it once more") from error
    return Networks(
        file,
        generator_config,
        discriminator_config,
        converted.rendering,
        converted.step,
        averaged,
        converted.states.get("discriminator"),
    )
