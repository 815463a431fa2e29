"""The command that blends two models, block by block: `python -m cips3d.stylise`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

import tyro

from cips3d.checkpoints.networks import load_networks
from cips3d.checkpoints.tensor_files import ENDING
from cips3d.checkpoints.trained import find_checkpoint
from cips3d.errors import LARGEST_NUMBER, UserError
from cips3d.models.family import AnyGenerator
from cips3d.process.devices import choose_device
from cips3d.process.ending import exit_on_user_error
from cips3d.rendering import LoadedGenerator, load_generator, styles_of_seeds
from cips3d.rendering.options import listed
from cips3d.rendering.seeds import parse_integers
from cips3d.stylisation import Shares, check_same_networks, interpolated_state, stylised, swapped, write_stylised
from cips3d.sweeps import Column, Scene, SweepOptions, check_options, prepared, write_sweep
from cips3d.sweeps.options import check_no_picture, check_strengths

PROGRAM = "python -m cips3d.stylise"
DESCRIPTION = f"""Blend two models, block by block: faces keep their shape and take the look of the style.

BASE and STYLE have the same networks: STYLE is BASE after some training on other pictures, such as
python -m cips3d.train --preset finetune --init-from BASE --data paintings/

Examples:
  {PROGRAM} runs/faces runs/paintings --seeds 0-3 --out styles.png
  {PROGRAM} runs/faces runs/paintings --weights 0 0 0.5 1 1 1 1 1 1 --out styles.png
  {PROGRAM} runs/faces runs/paintings --swap-from 0-8 --out swapped.png
  {PROGRAM} runs/faces runs/paintings --strengths 0 0.5 1 --trajectory yaw --out turning.webp
  {PROGRAM} runs/faces runs/paintings --strengths 0 1 --out changing.mp4
  {PROGRAM} runs/faces runs/paintings --strengths 0.6 --out half.safetensors

Every block's weights and its ToRGB become (1 - g) BASE + g STYLE, g its number in --weights times the strength. The
.safetensors file is a checkpoint that render, mesh, evaluate and train --init-from take.
"""

GRID_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
FULL_STRENGTH = (1.0,)


@dataclass(frozen=True, kw_only=True)
class Options(SweepOptions):
    """The command's options."""

    default_seeds: ClassVar[str] = "0-3"

    base: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BASE")]
    """run folder or checkpoint at strength 0; cameras and resolution are its own"""
    style: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STYLE")]
    """run folder or checkpoint at strength 1"""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """file to write: .png, .webp or .jpg, a column each of --strengths; .gif, .mp4 or (with --trajectory or --frames)
    a moving .webp, where strengths come and go or the camera moves; .safetensors, a checkpoint"""
    strengths: Annotated[
        tuple[float, ...] | None,
        tyro.conf.arg(metavar="NUMBER [NUMBER ...]", help_behavior_hint="(default: 0 0.25 0.5 0.75 1; checkpoint: 1)"),
    ] = None
    """how much of the style, a column each; in an animation, from the first to the last and back"""
    weights: Annotated[
        tuple[float, ...], tyro.conf.arg(metavar="NUMBER [NUMBER ...]", help_behavior_hint="(default: 1)")
    ] = (1.0,)
    """how far each block follows the strength, in order of depth, or one number for all"""
    swap_from: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="(default: none)")] = None
    """layer swapping: blocks from this one on are the style's, those before it the base's; several give a column each;
    in place of --strengths and --weights"""
    also: Annotated[
        tuple[Literal["mapping", "shape"], ...], tyro.conf.arg(help_behavior_hint="(default: the blocks alone)")
    ] = ()
    """what else follows the strength: the mapping that gives the blocks their styles; the 3-D part with its mapping"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace a checkpoint that exists"""

    @property
    def writes_checkpoint(self) -> bool:
        return self.out.suffix.lower() == ENDING


class LabelledShares(NamedTuple):
    """How much of the style is in a column, and what the column is called."""

    label: str
    shares: Shares


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: the process's) and return its exit code."""
    return exit_on_user_error(lambda: stylise(tyro.cli(Options, args=argv, prog=PROGRAM, description=DESCRIPTION)))


def stylise(options: Options) -> int:
    """Load both models, blend, save, and say where."""
    check(options)
    device = choose_device(options.device)
    files = find_checkpoint(options.base), find_checkpoint(options.style)  # once: runs that go on write others
    base, style = (load_generator(file, device, precision=options.precision) for file in files)
    check_same_networks(base, style)
    full, blends = blends_of(base.generator, options)
    if options.writes_checkpoint:
        write_checkpoint(options, files, blends[-1])
        return 0
    scene = prepared(base, options)
    shown = write_sweep(
        options,
        scene,
        scene.faces.names,
        [partial(column_of, options, scene, style, blend) for blend in blends],
        way_of(options),
        lambda strength: column_of(options, scene, style, blend_at(full, strength)),
    )
    print(f"{options.out} shows {shown}")
    return 0


def check(options: Options) -> None:
    """Raise `UserError` for what can be known to be wrong before the models are loaded."""
    check_options(options, (ENDING,))
    if options.strengths is not None:
        check_strengths(options.strengths)
    if not options.weights or not all(abs(weight) <= LARGEST_NUMBER for weight in options.weights):
        raise UserError(
            f"--weights {listed(options.weights)} must be numbers from -{LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}, "
            "one a block or one for all; give some such as 0 0.5 1"
        )
    if options.swap_from is not None:
        swaps_of(options)
        for flag, given in (
            ("--strengths", options.strengths is not None),
            ("--weights", options.weights != FULL_STRENGTH),
        ):
            if given:
                raise UserError(f"{flag} and --swap-from say the same things in two ways; leave one out")
        if options.is_animation and options.trajectory is None:
            raise UserError(
                "--swap-from has nothing between the models that could move; add a --trajectory, or give a .png"
            )
    elif options.is_animation and options.trajectory is None and len(options.strengths or GRID_STRENGTHS) < 2:
        raise UserError("--strengths names one strength, which does not move; give two or more, or a --trajectory")
    if options.writes_checkpoint:
        _check_checkpoint(options)
    elif options.overwrite:
        raise UserError(f"--overwrite is for a checkpoint, and {options.out} is a picture; leave it out")


def _check_checkpoint(options: Options) -> None:
    """A checkpoint has one blend, and no camera."""
    if options.out.exists() and not options.overwrite:
        raise UserError(f"--out {options.out} exists; give another name, or --overwrite to replace it")
    for flag, given in (("--seeds", options.seeds), ("--latent", options.latent)):
        if given is not None:
            raise UserError(f"{flag} is for pictures, and a checkpoint has no faces; leave it out")
    check_no_picture(options, "a checkpoint keeps what BASE has")
    if options.truncation != Options.truncation:
        raise UserError("--truncation is for faces, and a checkpoint has none; leave it out")
    for flag, several in (
        ("--strengths", len(options.strengths or ()) > 1),
        ("--swap-from", len(swaps_of(options)) > 1),
    ):
        if several:
            raise UserError(f"{flag} names several models, and a {ENDING} holds one; give one")


def swaps_of(options: Options) -> list[int]:
    """The blocks of --swap-from."""
    return [] if options.swap_from is None else parse_integers(options.swap_from, "--swap-from", "blocks")


def blends_of(generator: AnyGenerator, options: Options) -> tuple[Shares, list[LabelledShares]]:
    """The shares of the style at strength 1, and those of every column.

    Raises:
        UserError: the model has no such blocks or parts.
    """
    name, parts = type(generator).__name__, generator.weight_parts()
    blocks, weights = len(parts.blocks), options.weights
    if len(weights) not in (1, blocks):
        raise UserError(
            f"--weights are {len(weights)} numbers for the {blocks} blocks of this {name}; give {blocks} or one"
        )
    if "shape" in options.also and not parts.shape:
        raise UserError(f"--also shape is for CIPS-3D; {name} keeps no shape apart from its blocks: leave it out")
    full = Shares(
        weights * blocks if len(weights) == 1 else weights,
        float("mapping" in options.also),
        float("shape" in options.also),
    )
    if options.swap_from is None:
        default = FULL_STRENGTH if options.writes_checkpoint else GRID_STRENGTHS
        return full, [blend_at(full, strength) for strength in options.strengths or default]
    swaps = swaps_of(options)
    if max(swaps) >= blocks:
        raise UserError(
            f"--swap-from {options.swap_from} is beyond the {blocks} blocks of this {name}; give 0 to {blocks - 1}"
        )
    columns = [LabelledShares(f"from {first}", replace(full, blocks=swapped(blocks, first))) for first in swaps]
    return full, [blend_at(full, 0.0), *columns]


def blend_at(full: Shares, strength: float) -> LabelledShares:
    """The blend of a strength."""
    return LabelledShares("base" if strength == 0 else f"{strength:g}", full.times(strength))


def way_of(options: Options) -> tuple[float, float]:
    """Between which strengths an animation goes."""
    strengths = options.strengths or GRID_STRENGTHS
    return strengths[0], strengths[-1]


def column_of(options: Options, scene: Scene, style: LoadedGenerator, blend: LabelledShares) -> Column:
    """The faces of a scene as a blend shows them."""
    loaded = stylised(scene.loaded, style, blend.shares)
    styles, seeds = scene.faces.styles, scene.faces.seeds
    if seeds is not None and not blend.shares.keeps_styles:
        styles = styles_of_seeds(loaded, seeds, options.truncation)
    return Column(blend.label, loaded, styles)


def write_checkpoint(options: Options, files: tuple[Path, Path], blend: LabelledShares) -> None:
    """The blend of two models as a file of its own."""
    base, style = map(load_networks, files)
    for networks in (base, style):
        if options.out.exists() and options.out.samefile(networks.file):
            raise UserError(f"--out {options.out} is one of the two models; give another name")
    parts = base.generator().weight_parts()
    write_stylised(options.out, interpolated_state(parts, base.averaged, style.averaged, blend.shares), base, style)
    print(f"{options.out} is a checkpoint with {described(blend.shares)}")


def described(shares: Shares) -> str:
    """Shares in words."""
    blocks = " ".join(f"{share:g}" for share in shares.blocks)
    also = [
        f"its {part} at {share:g}" for part, share in (("mapping", shares.mapping), ("shape", shares.shape)) if share
    ]
    return " and ".join([f"the style's blocks at {blocks}", *also])


if __name__ == "__main__":
    raise SystemExit(main())
