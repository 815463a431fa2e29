"""The command that moves faces along semantic directions: `python -m cips3d.edit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from shlex import quote
from typing import Annotated, ClassVar

import torch
import tyro

from cips3d.checkpoints.tensor_files import ENDING
from cips3d.editing import Directions, edited, semantic_directions
from cips3d.errors import UserError
from cips3d.models.family import AnyGenerator
from cips3d.models.generator import chosen, styles_of
from cips3d.process.devices import choose_device
from cips3d.process.ending import exit_on_user_error
from cips3d.rendering import LoadedGenerator, latent_of, load_generator, read_latent, write_latent
from cips3d.rendering.flags import RunArgument
from cips3d.rendering.options import check_latent
from cips3d.rendering.seeds import check_truncation, parse_integers, parse_seeds
from cips3d.rendering.staging import faces_of
from cips3d.sweeps import Column, Scene, SweepOptions, check_options, prepared, write_sweep
from cips3d.sweeps.options import check_no_picture, check_strengths, render_options

PROGRAM = "python -m cips3d.edit"
DESCRIPTION = f"""Change faces along semantic directions, found in closed form in the weights of a trained model (SeFa).

Examples:
  {PROGRAM} runs/faces --seeds 3 --out directions.png
  {PROGRAM} runs/faces --seeds 0-7 --directions 2 --strengths -3 -1.5 0 1.5 3 --out direction.png
  {PROGRAM} runs/faces --seeds 0-3 --branch appearance --layers 0-3 --directions 0 --out early.png
  {PROGRAM} runs/faces --seeds 3 --branch shape --directions 0-5 --kind normals --out shapes.mp4
  {PROGRAM} runs/faces --latent inverted/latent.safetensors --trajectory yaw --out turning.webp
  {PROGRAM} runs/faces --seeds 3 --directions 2 --strengths 1.5 --out older.safetensors

The last one writes the face itself: a latent, which render, mesh and the others take as --latent.

Direction 0 changes most how the chosen layers are modulated, direction 1 most of what is left, and so on: the
eigenvectors of A^T A, A the weights through which styles reach the layers. What each means is to be seen. In CIPS-3D,
shape goes to the NeRF's FiLM layers, appearance to the INR's modulated ones.
"""

SEVERAL_DIRECTIONS, ONE_DIRECTION = "0-4", "0"  # defaults of --directions, for one face and for several


@dataclass(frozen=True, kw_only=True)
class Options(SweepOptions):
    """The command's options."""

    default_seeds: ClassVar[str] = "0"

    run: RunArgument
    seeds: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="(default: 0)")] = None
    """which faces: integers and ranges, such as 3 or 0-7 or 1,5,9-12"""
    directions: Annotated[
        str | None,
        tyro.conf.arg(
            aliases=["--direction"], metavar="LIST", help_behavior_hint="(default: 0-4 for one face, 0 for several)"
        ),
    ] = None
    """which directions, a row each for every face; 0 is the strongest"""
    strengths: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER [NUMBER ...]")] = (-3.0, -1.5, 0.0, 1.5, 3.0)
    """how far along a direction, a column each: in standard deviations of random faces; in an animation, from the
    first to the last and back"""
    branch: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: shape of CIPS-3D; others have one)")
    ] = None
    """of the styles: shape or appearance"""
    layers: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="(default: all)")] = None
    """layers of the branch that are decomposed and changed, such as 0-3; the first ones come first"""

    @property
    def writes_latent(self) -> bool:
        """The face itself is written, not a picture of it."""
        return self.out.suffix.lower() == ENDING


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: the process's) and return its exit code."""
    return exit_on_user_error(lambda: edit(tyro.cli(Options, args=argv, prog=PROGRAM, description=DESCRIPTION)))


def edit(options: Options) -> int:
    """Load, find the directions, move the faces, save, and say where."""
    check(options)
    loaded = load_generator(options.run, choose_device(options.device), precision=options.precision)
    directions = directions_of(loaded.generator, options)
    if options.writes_latent:
        write_face(options, loaded, directions)
        return 0
    scene = prepared(loaded, options)
    indices = indices_of(options, directions, len(scene.faces))
    several_faces, several_directions = len(scene.faces) > 1, len(indices) > 1
    rows = [
        ", ".join([name] * several_faces + [f"direction {index}"] * (several_directions or not several_faces))
        for name in scene.faces.names
        for index in indices
    ]
    shown = write_sweep(
        options,
        scene,
        rows,
        [partial(moved, scene, directions, indices, strength) for strength in options.strengths],
        (options.strengths[0], options.strengths[-1]),
        lambda strength: moved(scene, directions, indices, strength),
    )
    which = f"direction {indices[0]}" if len(indices) == 1 else f"{len(indices)} directions"
    print(f"{options.out} shows {which} of the {directions.branch}: {shown}{loaded.at_step}")
    return 0


def check(options: Options) -> None:
    """Raise `UserError` for what can be known to be wrong before the model is loaded."""
    check_options(options, (ENDING,))
    check_strengths(options.strengths)
    if options.directions is not None:
        parse_integers(options.directions, "--directions", "directions")
    if options.layers is not None:
        parse_integers(options.layers, "--layers", "layers")
    if options.is_animation and options.trajectory is None and len(options.strengths) < 2:
        raise UserError("--strengths names one strength, which does not move; give two or more, or a --trajectory")
    if options.writes_latent:
        _check_latent(options)


def _check_latent(options: Options) -> None:
    """A latent holds one face."""
    if options.out.exists():
        raise UserError(f"--out {options.out} exists; give another name")
    check_no_picture(options, "a latent holds a face alone")
    check_truncation(options.truncation)
    if options.latent is not None:
        check_latent(render_options(options))
    faces = options.latent or parse_seeds(options.seeds or options.default_seeds)
    directions = parse_integers(options.directions or SEVERAL_DIRECTIONS, "--directions", "directions")
    for flag, given in (
        ("--seeds" if options.latent is None else "--latent", faces),
        ("--directions", directions),
        ("--strengths", options.strengths),
    ):
        if len(given) > 1:
            raise UserError(f"{flag} are {len(given)}, and a {ENDING} holds one face; give one")


def write_face(options: Options, loaded: LoadedGenerator, directions: Directions) -> None:
    """One face, moved along one direction, as a latent; its camera, if it is known, stays."""
    faces = faces_of(loaded, render_options(options))
    (index,) = indices_of(options, directions, len(faces))
    (strength,) = options.strengths
    styles = edited(faces.styles, directions, index, strength)
    camera = None if options.latent is None else read_latent(options.latent[0]).camera
    write_latent(options.out, latent_of(loaded, styles, camera))
    print(
        f"{options.out} is {faces.names[0]} at {strength:+g} along direction {index} of the {directions.branch}"
        f"{loaded.at_step}; look at it with: python -m cips3d.render {quote(str(options.run))} --latent "
        f"{quote(str(options.out))}"
    )


def directions_of(generator: AnyGenerator, options: Options) -> Directions:
    """The directions of the branch and layers that are asked for.

    Raises:
        UserError: the model does not have them.
    """
    name, weights = type(generator).__name__, generator.style_weights()
    if not weights:
        raise UserError(f"{name} has no styles that could be decomposed; give another model")
    branch = options.branch or next(iter(weights))
    if branch not in weights:
        raise UserError(f"--branch {branch} is no branch of {name}'s styles; give {' or '.join(weights)}")
    layers, count = None, len(weights[branch])
    if options.layers is not None:
        layers = parse_integers(options.layers, "--layers", "layers")
        if max(layers) >= count:
            raise UserError(
                f"--layers {options.layers} is beyond the {branch} of this {name}, whose layers are 0 to {count - 1}; "
                "give some of these"
            )
    return semantic_directions(generator, branch, layers)


def indices_of(options: Options, directions: Directions, faces: int) -> list[int]:
    """The directions that so many faces are shown along."""
    asked = options.directions or (SEVERAL_DIRECTIONS if faces == 1 else ONE_DIRECTION)
    indices = parse_integers(asked, "--directions", "directions")
    if options.directions is None:
        return indices[: len(directions)]
    if max(indices) >= len(directions):
        raise UserError(
            f"--directions {options.directions} is beyond the {len(directions)} that these layers have; "
            f"give 0 to {len(directions) - 1}"
        )
    return indices


def moved(scene: Scene, directions: Directions, indices: Sequence[int], strength: float) -> Column:
    """Every face of a scene along every direction, faces first."""
    along = [edited(scene.faces.styles, directions, index, strength) for index in indices]  # [D] styles of F faces
    faces, count = len(scene.faces), len(indices)
    together = styles_of(scene.faces.styles, [torch.cat(parts) for parts in zip(*along, strict=True)])
    order = torch.arange(faces * count, device=scene.loaded.device).view(count, faces).T.flatten()
    label = "0" if strength == 0 else f"{strength:+g}"
    return Column(label, scene.loaded, chosen(together, order))


if __name__ == "__main__":
    raise SystemExit(main())
