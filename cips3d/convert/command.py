"""The command that makes one file of weights of published checkpoints and of own runs: `python -m cips3d.convert`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import nn

from cips3d.checkpoints.converted import Converted, Source, read_converted, write_converted
from cips3d.checkpoints.networks import Average, load_networks, networks_of_checkpoint
from cips3d.checkpoints.rendering_settings import RenderingSettings
from cips3d.checkpoints.tensor_files import ENDING
from cips3d.checkpoints.torch_file import read_torch_file
from cips3d.checkpoints.trained import checked_checkpoint, is_training_checkpoint
from cips3d.convert import SYSTEMS
from cips3d.convert.detect import DISCRIMINATOR, Contents, box_side_of, describe, system_name
from cips3d.convert.parts import PART_NAMES, Part, gather
from cips3d.convert.pigan import GRID_KEY
from cips3d.convert.state import shortened
from cips3d.errors import UserError
from cips3d.files import sha256_of
from cips3d.models.family import AnyGeneratorConfig
from cips3d.models.pigan import PiGANConfig
from cips3d.plain import to_plain
from cips3d.process.ending import exit_on_user_error
from cips3d.training.presets import PRESETS, preset

PROGRAM = "python -m cips3d.convert"
DESCRIPTION = f"""Convert a published checkpoint of CIPS-3D, pi-GAN, CIPS or StyleGAN2 (rosinality's), or a run of this
package, into one safetensors file that all commands take. Of a run, it holds the averaged generator and the
discriminator, without what only training goes on from: a quarter or so of a checkpoint, to pass on.

Files are read without executing anything of theirs, pickled modules included.

Examples:
  {PROGRAM} G_ema_model.pth ffhq.safetensors                 # CIPS-3D
  {PROGRAM} generator_model.pth ffhq.safetensors --ema G_ema_model.pth --discriminator discriminator_model.pth
  {PROGRAM} generator.pth celeba.safetensors --ema ema.pth   # pi-GAN
  {PROGRAM} 550000.pt stylegan2.safetensors                  # StyleGAN2, CIPS: all networks in one file
  {PROGRAM} runs/00003-ffhq mine.safetensors
  {PROGRAM} runs/00004-pigan-cats mine.safetensors --average slow

Render the result: python -m cips3d.render ffhq.safetensors --seeds 0-7 --out grid.png
"""


@dataclass(frozen=True)
class Options:
    """The command's options."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """published checkpoint: a file of torch.save with state dicts or a whole module; or a run folder (its newest
    checkpoint is taken) or checkpoint of python -m cips3d.train"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.safetensors")]
    """file to write"""
    ema: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """the averaged generator, where it is a file of its own (pi-GAN's ema.pth, CIPS-3D's G_ema_model.pth)"""
    discriminator: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """the discriminator, where it is a file of its own"""
    system: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: detected)")] = None
    """cips3d, pigan, cips or stylegan2: take the generator for one of this system; a file of the discriminator alone
    takes the name with -discriminator"""
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the system's)")] = None
    """how pictures are taken: cameras, depths, samples and resolution of this preset of training, such as afhq or
    pigan-cats"""
    box_warp: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """a state dict of pi-GAN is that of a generator with box warp (CelebA, Cats)"""
    no_box_warp: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """a state dict of pi-GAN is that of a generator without box warp (CARLA)"""
    average: Annotated[Average | None, tyro.conf.arg(help_behavior_hint="(default: fast)")] = None
    """of a run, which average of the generator: the one that its pictures show, or the slower one that it keeps with
    --slow-ema-decay, as the presets of pi-GAN do"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace OUT where it exists"""


@dataclass(frozen=True)
class Result:
    """A part of the result."""

    module: nn.Module
    config: Any  # a frozen dataclass


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: the process's) and return its exit code."""
    return exit_on_user_error(lambda: convert(tyro.cli(Options, args=argv, prog=PROGRAM, description=DESCRIPTION)))


def convert(options: Options) -> int:
    """Read, recognise, convert, write, and say what."""
    check_options(options)
    if options.file.suffix.lower() == ENDING and options.file.is_file():
        read_converted(options.file)  # which says so where it is another one
        raise UserError(f"{options.file} is converted already; copy it, or give the file that it was made of")
    loaded = None if options.file.is_dir() else read_torch_file(options.file)
    if loaded is None or is_training_checkpoint(loaded):
        return convert_own(options, loaded)
    if options.average is not None:
        raise UserError("--average is for runs of this package; leave it out, or give a file of averages with --ema")
    parts, contents = gather(
        options.file, loaded, ema=options.ema, discriminator=options.discriminator, given=options.system
    )
    generator_options, box_side = options_of_generator(options, parts)
    results: dict[str, Result] = {}
    for name, part in parts.items():
        results[name] = converted_part(part, {} if name == "discriminator" else generator_options)
        if box_side is not None and isinstance(results[name].config, PiGANConfig):
            results[name] = replace(results[name], config=replace(results[name].config, box_side=box_side))
        print(f"{part.file}: {described(name, part, results[name])}, step {shown_step(contents.step)}")
    converted = assembled(options, parts, results, contents.step)
    write_converted(options.out, converted)
    *firsts, last = [f"the {PART_NAMES[name]}" for name in results]
    held = f"{', '.join(firsts)} and {last}" if firsts else last
    print(f"{options.out} holds {held}{left_out(contents)}")
    return 0


def convert_own(options: Options, checkpoint: dict[str, Any] | None) -> int:
    """The same for a run or, where its content is given, a checkpoint of this package, which says what it holds."""
    for flag, is_given in (
        ("--ema", options.ema is not None),
        ("--discriminator", options.discriminator is not None),
        ("--system", options.system is not None),
        ("--preset", options.preset is not None),
        ("--box-warp", options.box_warp),
        ("--no-box-warp", options.no_box_warp),
    ):
        if is_given:
            raise UserError(f"{flag} is for published checkpoints, and {options.file} is of this package; leave it out")
    which: Average = options.average or "fast"
    if checkpoint is None:
        networks = load_networks(options.file, average=which)
    else:
        networks = networks_of_checkpoint(options.file, checked_checkpoint(options.file, checkpoint), which)
    write_converted(options.out, networks.converted())
    average = "slow average" if options.average == "slow" else "average"
    with_discriminator = "" if networks.discriminator is None else ", and the discriminator"
    print(f"{options.out} holds the generator's {average} at step {networks.step}{with_discriminator}")
    return 0


def check_options(options: Options) -> None:
    """Raise `UserError` for what can be seen to be wrong before anything is read."""
    if options.out.suffix.lower() != ENDING:
        raise UserError(f"{options.out}: the file to write must end in {ENDING}")
    if options.out.is_dir():
        raise UserError(f"{options.out} is a folder; give the name of a file")
    if options.out.exists() and not options.overwrite:
        raise UserError(f"{options.out} exists; give another name, or --overwrite to replace it")
    if options.system is not None and options.system not in SYSTEMS:
        raise UserError(f"--system {options.system} is unknown; choose one of {', '.join(SYSTEMS)}")
    if options.box_warp and options.no_box_warp:
        raise UserError("--box-warp and --no-box-warp contradict each other; give one of them")
    if options.preset is not None:
        preset(options.preset)


def options_of_generator(options: Options, parts: dict[str, Part]) -> tuple[dict[str, Any], float | None]:
    """Options of a generator's converter that no weight tells, and the side of pi-GAN's box where it is known."""
    told = True if options.box_warp else False if options.no_box_warp else None
    generators = [part for name, part in parts.items() if name != "discriminator"]
    if not any(part.system == "pigan" for part in generators):
        if told is not None:
            raise UserError("--box-warp and --no-box-warp are for generators of pi-GAN; leave them out")
        return {}, None
    modules = [part.network.module for part in generators if part.network.module is not None]
    if told is None and modules:
        side = box_side_of(modules[0])
        return {"box_warp": side is not None}, side
    if told is None and not any(GRID_KEY in part.network.state for part in generators):
        raise UserError(
            f"{generators[0].file} does not tell whether points are warped to a box; "
            "give --box-warp (CelebA, Cats) or --no-box-warp (CARLA)"
        )
    return {"box_warp": told}, None


def converted_part(part: Part, options: dict[str, Any]) -> Result:
    """This package's module with the weights of a network."""
    where = f"{part.file}{f', {part.network.label}' if part.network.label else ''}"
    try:
        module = SYSTEMS[part.system](part.network.state, **options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (RuntimeError, MemoryError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{where}: its weights make no network of {part.system}: {reason}") from error
    return Result(module, module.config)


def described(name: str, part: Part, result: Result) -> str:
    """A line about a converted network: its part, system and dimensions."""
    count = sum(parameter.numel() for parameter in result.module.parameters())
    shown = f"{count / 1e6:.2f} M" if count >= 1e5 else str(count)
    return f"{PART_NAMES[name]} of {system_name(part.system)}: {describe(result.config)}, {shown} parameters"


def shown_step(step: int | None) -> str:
    return "unknown" if step is None else str(step)


def left_out(contents: Contents) -> str:
    names = [name for name in contents.others if name]
    return f"; left out: {shortened(names)}" if names else ""


def assembled(options: Options, parts: dict[str, Part], results: dict[str, Result], step: int | None) -> Converted:
    """The converted checkpoint with all parts."""
    configs = {name: result.config for name, result in results.items()}
    generator = configs.get("generator", configs.get("generator_ema"))
    if generator is not None and configs.get("generator_ema", generator) != generator:
        raise UserError(
            f"{parts['generator_ema'].file}: the averaged generator has other dimensions than the generator of "
            f"{parts['generator'].file}"
        )
    system = next(iter(parts.values())).system.removesuffix(DISCRIMINATOR)
    discriminator = configs.get("discriminator")
    files = dict.fromkeys([options.file, *(part.file for part in parts.values())])
    return Converted(
        system=system,
        rendering=rendering_defaults(system, generator, options.preset),
        sources=tuple(Source(file.name, sha256_of(file)) for file in files),
        generator_config=None if generator is None else to_plain(generator),
        discriminator_config=None if discriminator is None else to_plain(discriminator),
        step=step,
        states={name: result.module.state_dict() for name, result in results.items()},
    )


def rendering_defaults(system: str, generator: AnyGeneratorConfig | None, preset_name: str | None) -> RenderingSettings:
    """How pictures of a system are taken: as its preset says, at the generator's own resolution if it has one.

    Raises:
        UserError: the preset is another system's.
    """
    defaults = {"cips3d": "ffhq", "pigan": "pigan-celeba", "cips": "cips-ffhq", "stylegan2": "stylegan2-256"}
    if isinstance(generator, PiGANConfig) and not generator.box_warp:
        defaults["pigan"] = "pigan-carla"
    config = preset(preset_name or defaults[system])
    if config.generator.system != system:
        fitting = [name for name, known in PRESETS.items() if known.generator.system == system]
        raise UserError(
            f"--preset {preset_name} is not one of {system_name(system)}; choose one of {', '.join(fitting)}"
        )
    return RenderingSettings(
        volume=config.volume,
        fov_degrees=config.fov_degrees,
        resolution=getattr(generator, "resolution", config.stages[-1].resolution),
        poses=config.poses,
    )
