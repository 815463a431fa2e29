"""The command that turns a face of a trained 3-D model into a mesh: `python -m cips3d.mesh`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from cips3d import pictures
from cips3d.errors import UserError
from cips3d.meshing import MESH_ENDINGS, Components, ExtractedMesh, MeshSettings, extract_mesh, write_mesh
from cips3d.meshing.extraction import check_installed
from cips3d.meshing.preview import preview
from cips3d.process.devices import choose_device, memory_explained
from cips3d.process.ending import exit_on_user_error
from cips3d.rendering import LoadedGenerator, check_is_3d, load_generator, styles_of_latents, styles_of_seeds
from cips3d.rendering.flags import DeviceFlag, PrecisionFlag, RunArgument
from cips3d.rendering.seeds import check_seed, check_truncation

PROGRAM = "python -m cips3d.mesh"
DESCRIPTION = f"""Make a mesh of a face: the surface of its volume, coloured with what pictures of it show.

Examples:
  {PROGRAM} runs/heads --seed 3 --resolution 256 --out head.glb
  {PROGRAM} runs/heads --seed 3 --truncation 0.7 --components largest --out head.ply
  {PROGRAM} runs/heads --seed 3 --threshold 40 --no-preview --out head.obj
  {PROGRAM} runs/heads --latent inverted/latent.safetensors --out head.glb

Beside the mesh lies a picture of it from six sides (head.preview.png). Sides that no training camera saw are guesses.
"""

MIN_RESOLUTION, MAX_RESOLUTION = 8, 1024
SMALLEST_BOX = 1e-6  # scene units
LARGEST_BOX = 100.0  # scene units: far beyond what any camera sees; very far out, networks give no numbers


@dataclass(frozen=True)
class Options:
    """The command's options."""

    run: RunArgument
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """file to write: .glb, .ply or .obj"""
    seed: Annotated[int | None, tyro.conf.arg(metavar="SEED", help_behavior_hint="(default: 0)")] = None
    """which face"""
    latent: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """the face that python -m cips3d.invert found, in the place of that of a seed"""
    truncation: float = 1.0
    """1: the face of the seed as it comes; nearer to 0: a more typical one"""
    resolution: int = 256
    """points along an edge of the grid of densities; 512 takes 0.5 GB and eight times as long"""
    threshold: Annotated[
        float | None, tyro.conf.arg(metavar="DENSITY", help_behavior_hint="(default: nearest to what pictures show)")
    ] = None
    """density on the surface, per scene unit: higher shrinks it, lower swells it"""
    box_side: Annotated[
        float | None, tyro.conf.arg(metavar="LENGTH", help_behavior_hint="(default: what the front camera sees)")
    ] = None
    """side of the cube around the origin that is searched, in scene units; what reaches its sides is cut flat"""
    components: Components = "main"
    """main: without floaters (parts with less than 1% of the largest one's area) and inner cavities; largest: the
    largest part only; all: everything"""
    picture_resolution: Annotated[
        int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: as --resolution)")
    ] = None
    """side of the pictures that colours are taken from"""
    preview: bool = True
    """write a picture of the mesh beside it, FILE with the ending .preview.png"""
    device: DeviceFlag = "auto"
    precision: PrecisionFlag = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: the process's) and return its exit code."""
    return exit_on_user_error(lambda: mesh(tyro.cli(Options, args=argv, prog=PROGRAM, description=DESCRIPTION)))


def mesh(options: Options) -> int:
    """Load, extract, save, and say what came out."""
    check_options(options)
    check_installed()
    device = choose_device(options.device)
    loaded = load_generator(options.run, device, precision=options.precision)
    check_is_3d(loaded, "a mesh")
    fixed = loaded.generator.fixed_resolution
    if options.picture_resolution is not None and fixed not in (None, options.picture_resolution):
        raise UserError(f"--picture-resolution {options.picture_resolution} is not the model's; give {fixed}")
    settings = MeshSettings(
        options.resolution, options.threshold, options.box_side, options.components, options.picture_resolution
    )
    with memory_explained(
        f"there is too little memory for --resolution {options.resolution} on {device}; give a lower one"
    ):
        made = extract_mesh(loaded, styles_of(loaded, options), settings, progress=True)
    with pictures.reported(options.out):
        write_mesh(options.out, made.mesh)
    shown = ""
    if options.preview:
        picture = preview_path(options.out)
        pictures.save_image(picture, preview(made.mesh))
        shown = f"; {picture} shows it"
    print(f"{options.out}: {described(made)}{shown}")
    return 0


def styles_of(loaded: LoadedGenerator, options: Options) -> tuple[Tensor, ...]:
    """The styles of the face."""
    if options.latent is not None:
        return styles_of_latents(loaded, [options.latent])
    return styles_of_seeds(loaded, [options.seed or 0], options.truncation)


def preview_path(out: Path) -> Path:
    """The path of a mesh's preview picture."""
    return out.with_suffix(".preview.png")


def described(made: ExtractedMesh) -> str:
    """One line about a mesh."""
    mesh = made.mesh
    closed = "watertight" if mesh.is_watertight else "not watertight"
    x, y, z = mesh.extent
    return (
        f"{len(mesh.vertices)} vertices, {len(mesh.faces)} faces, {closed}, extent {x:.3f} x {y:.3f} x {z:.3f}, "
        f"threshold {made.threshold:.4g}, {made.seen_share:.0%} of the vertices coloured from pictures"
    )


def check_options(options: Options) -> None:
    """Raise `UserError` for what can be known to be wrong before the model is loaded."""
    if options.latent is not None and options.seed is not None:
        raise UserError("--latent takes the place of --seed; leave one of them out")
    if options.latent is not None and options.truncation != 1:
        raise UserError("--truncation is for the face of a seed, and --latent gives another; leave it out")
    if options.seed is not None:
        check_seed(options.seed)
    check_truncation(options.truncation)
    if not MIN_RESOLUTION <= options.resolution <= MAX_RESOLUTION:
        raise UserError(f"--resolution {options.resolution} is out of range; give {MIN_RESOLUTION} to {MAX_RESOLUTION}")
    if options.picture_resolution is not None and options.picture_resolution < 2:
        raise UserError(f"--picture-resolution {options.picture_resolution} shows nothing; give 2 or more")
    if options.threshold is not None and not 0 < options.threshold < math.inf:
        raise UserError(f"--threshold {options.threshold:g} is out of range; give a positive number")
    if options.box_side is not None and not SMALLEST_BOX <= options.box_side <= LARGEST_BOX:
        raise UserError(
            f"--box-side {options.box_side:g} is out of range; give a length from {SMALLEST_BOX:g} to {LARGEST_BOX:g}"
        )
    pictures.check_path(options.out, MESH_ENDINGS, "a mesh")
    if options.preview:
        pictures.check_path(preview_path(options.out), pictures.IMAGE_ENDINGS, "a preview")


if __name__ == "__main__":
    raise SystemExit(main())
