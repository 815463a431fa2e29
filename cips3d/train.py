"""The command that trains a 3-D generator on images: `python -m cips3d.train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tyro

from cips3d.checkpoints.networks import load_networks
from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint
from cips3d.data.source import HEADS
from cips3d.errors import UserError
from cips3d.process.devices import choose_device
from cips3d.process.ending import exit_on_user_error
from cips3d.training.config import TrainConfig
from cips3d.training.loop import train
from cips3d.training.presets import preset

PROGRAM = "python -m cips3d.train"
DESCRIPTION = f"""Train a generator on images: CIPS-3D or pi-GAN in 3-D, CIPS or StyleGAN2 in 2-D.

Examples:
  {PROGRAM}                                      synthetic heads, a preset that fits this machine
  {PROGRAM} --data photos.zip --preset ffhq      the published schedule on your own pictures
  {PROGRAM} --resume runs/00000-tiny             go on with a run
  {PROGRAM} --preset finetune --init-from runs/00003-ffhq --data paintings/

Ctrl-C ends a run after its step; it is saved, and goes on with --resume.
"""


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that a command line means: a preset, or the resumed run's own, and the flags on top."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--device", default="auto")
    first.add_argument("--resume", type=Path)
    first.add_argument("--init-from", "--init_from", type=Path)
    first.add_argument("--heads")
    known, _ = first.parse_known_args(arguments)
    given = defaults(known.preset, known.resume, known.init_from, known.device)
    config = tyro.cli(
        TrainConfig,
        args=list(arguments),
        default=given,
        prog=PROGRAM,
        description=DESCRIPTION,
        config=(tyro.conf.AvoidSubcommands,),  # the preset decides which networks there are
    )
    if known.resume is not None:
        check_resumed(config, given)
    if config.data not in (None, HEADS) and known.heads is not None:
        raise UserError(
            f"--heads {known.heads} counts synthetic heads, and --data {config.data} takes their place; leave it out, "
            "or give --data heads"
        )
    return config


def check_resumed(config: TrainConfig, run: TrainConfig) -> None:
    """Raise `UserError` where a run is told to go on as another one."""
    if config.init_from is not None:
        raise UserError(
            f"--init-from {config.init_from} starts a run, and --resume {run.resume} goes on with one; leave one out"
        )
    if config.data == run.data and config.data is not None and not Path(config.data).exists():
        raise UserError(
            f"--resume {run.resume} was trained on --data {config.data}, which is not there, seen from {Path.cwd()}; "
            "give --data its place"
        )
    for flag, value, own in (("preset", config.preset, run.preset), ("seed", config.seed, run.seed)):
        if value != own:
            raise UserError(
                f"--{flag} {value} is not that of --resume {run.resume}, a run with {flag} {own}; leave it out, "
                "or start a new run"
            )


def defaults(preset_name: str | None, resume: Path | None, init_from: Path | None, device: str = "auto") -> TrainConfig:
    """The configuration before flags are applied.

    Raises:
        UserError: unknown preset or device, unreadable checkpoint, one for other networks than the preset's, or a
            fine-tuning without one.
    """
    if resume is not None:
        return replace(config_of(resume), resume=resume, init_from=None, out=None)
    flag = "--preset" if preset_name else "the default --preset"
    name = preset_name or ("heads64" if choose_device(device).type == "cuda" else "tiny")
    config = preset(name)
    if init_from is not None:
        trained = load_networks(init_from)
        rendering, system = trained.rendering, trained.generator_config.system
        if name != "finetune" and system != config.generator.system:  # whose rates and losses are for other networks
            raise UserError(
                f"--init-from {init_from} is a {system}, and {flag} {name} is for {config.generator.system}; "
                f"give --preset finetune, or another one for {system}"
            )
        return replace(
            config,
            resolution=rendering.resolution if name == "finetune" else None,  # its one stage, at the model's own size
            generator=trained.generator_config,
            discriminator=trained.discriminator_config or config.discriminator,
            volume=rendering.volume,
            poses=rendering.poses,
            fov_degrees=rendering.fov_degrees,
        )
    if name == "finetune":
        raise UserError("--preset finetune starts from a trained model; name one with --init-from RUN_OR_CHECKPOINT")
    return config


def config_of(path: Path) -> TrainConfig:
    """The configuration that a run or checkpoint was trained with."""
    checkpoint = find_checkpoint(path)
    try:
        return TrainConfig.from_json(load_checkpoint(checkpoint)["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{checkpoint} was written by a version of cips3d with other settings ({error}); train again"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: the process's) and return its exit code."""

    def command() -> int:
        _, exit_code = train(parse(sys.argv[1:] if arguments is None else arguments))
        return exit_code

    return exit_on_user_error(command)


if __name__ == "__main__":
    raise SystemExit(main())
