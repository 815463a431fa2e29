"""The command that finds a photograph's face in a trained model: `python -m cips3d.invert`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

import tyro
from torch import Tensor

from cips3d.checkpoints.converted import Source, write_converted
from cips3d.checkpoints.trained import find_checkpoint
from cips3d.data.decoding import UNREADABLE_ERRORS, check_resolution, decode_image, describe
from cips3d.errors import LARGEST_NUMBER, UserError
from cips3d.files import sha256_of
from cips3d.inversion import Inversion, InversionSettings, invert
from cips3d.inversion.figures import comparison, loss_curve
from cips3d.inversion.losses import Perceptual
from cips3d.inversion.tuning import as_converted
from cips3d.pictures import check_folder, check_is_named, from_uint8, reported, save_image
from cips3d.process.devices import choose_device, memory_explained
from cips3d.process.ending import exit_on_user_error
from cips3d.process.signals import stop_on_signals
from cips3d.rendering import LoadedGenerator, check_resolution_of, load_generator
from cips3d.rendering.flags import DeviceFlag, PrecisionFlag, RunArgument
from cips3d.rendering.latents import LATENT_NAME, latent_of, write_latent
from cips3d.rendering.seeds import check_seed

PROGRAM = "python -m cips3d.invert"
DESCRIPTION = f"""Find the face and the camera of a photograph in a trained model, to turn it, mesh it or change it.

Examples:
  {PROGRAM} runs/heads photo.jpg --out inverted
  {PROGRAM} runs/heads photo.jpg --tune --out inverted
  {PROGRAM} runs/heads photo.jpg --pose 0.3 0 --perceptual lpips --out inverted

The folder then holds latent.safetensors (the face and the camera), inversion.png (the photograph, what was found, and
other sides of it), loss.png and, with --tune, tuned.safetensors: a model whose weights are bent to give the photograph.
Go on with:
  python -m cips3d.render runs/heads --latent inverted/latent.safetensors --trajectory yaw --out turn.webp
  python -m cips3d.mesh inverted/tuned.safetensors --latent inverted/latent.safetensors --out head.glb

The photograph should be framed as those of training; its central square is taken. Of pictures that a model could not
have made itself, the camera may be found wrongly: look at inversion.png, and give --pose if the head is seen from
elsewhere. Ctrl-C saves what there is.
"""

TUNED_NAME, PICTURE_NAME, CURVE_NAME = "tuned.safetensors", "inversion.png", "loss.png"
FEWEST_PIXELS = 8
TUNE_STEPS = 350


@dataclass(frozen=True)
class Options:
    """The command's options."""

    run: RunArgument
    photo: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")]
    """the picture of a face: JPEG, PNG, WebP, GIF, BMP or TIFF"""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """folder to write into: a new or an empty one"""
    tune: bool = False
    """also bend the model's weights until its picture is the photograph (pivotal tuning)"""
    pose: Annotated[
        tuple[float, float] | None, tyro.conf.arg(metavar="YAW PITCH", help_behavior_hint="(default: it is found)")
    ] = None
    """where the camera stands, if it is known, as --yaw and --pitch of cips3d.render say it: radians from the front"""
    resolution: Annotated[int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: the model's)")] = (
        None
    )
    """side of the pictures that are compared"""
    steps: int = InversionSettings.steps
    """of gradient descent of face and camera"""
    tune_steps: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=f"(default: {TUNE_STEPS})")] = (
        None
    )
    """of tuning"""
    starts: int = InversionSettings.starts
    """cameras, the most promising of a coarse search, that are refined; more find the right one more surely"""
    perceptual: Perceptual = InversionSettings.perceptual
    """what likeness is measured by, beside pixels: contrasts at several scales (pyramid), a network that was taught
    what people see (lpips; pip install lpips, and it downloads weights), or nothing"""
    perceptual_weight: float = InversionSettings.perceptual_weight
    """of that beside pixels"""
    prior: float = InversionSettings.prior
    """higher: a more typical face; lower: a closer likeness, whose other sides may look worse"""
    seed: int = 0
    """of all that is random: the same seed gives the same result"""
    device: DeviceFlag = "auto"
    precision: PrecisionFlag = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: the process's) and return its exit code."""
    return exit_on_user_error(lambda: run(tyro.cli(Options, args=argv, prog=PROGRAM, description=DESCRIPTION)))


def run(options: Options) -> int:
    """Load, invert, save, and say what came out."""
    check_options(options)
    device = choose_device(options.device)
    file = find_checkpoint(options.run)
    loaded = load_generator(file, device, precision=options.precision)
    source = Source(file.name, sha256_of(file))  # now: a run that is going on writes others, and removes this one
    check_model(loaded, options)
    photo = read_photo(options.photo, options.resolution or loaded.resolution)
    make_folder(options.out)
    with stop_on_signals() as stop:
        with memory_explained(
            f"{device} has too little memory for --starts {options.starts} at --resolution {photo.shape[-1]}; "
            "lower one of them"
        ):
            found = invert(loaded, photo, settings_of(loaded, options), progress=True, stop=lambda: bool(stop))
        save(options, loaded, source, photo, found)
    print(described(options, loaded, found))
    return stop.exit_code


def settings_of(loaded: LoadedGenerator, options: Options) -> InversionSettings:
    """How the library is to invert."""
    pose = options.pose
    return InversionSettings(
        steps=options.steps,
        tune_steps=(TUNE_STEPS if options.tune_steps is None else options.tune_steps) if options.tune else 0,
        pose=None if pose is None else (loaded.poses.front_pitch + pose[1], loaded.poses.yaw_mean + pose[0]),
        starts=options.starts,
        perceptual=options.perceptual,
        perceptual_weight=options.perceptual_weight,
        prior=options.prior,
        seed=options.seed,
    )


def save(options: Options, loaded: LoadedGenerator, source: Source, photo: Tensor, found: Inversion) -> None:
    """Write all that was found, or nothing, so that the same command can be run again."""
    folder = options.out
    try:
        write_latent(folder / LATENT_NAME, latent_of(loaded, found.styles, found.camera))
        if found.tuned is not None:
            write_converted(folder / TUNED_NAME, as_converted(found.tuned, (source,)))
        save_image(folder / PICTURE_NAME, comparison(loaded, photo, found))
        if found.records:
            save_image(folder / CURVE_NAME, loss_curve(found.records))
    except BaseException:
        for name in (LATENT_NAME, TUNED_NAME, PICTURE_NAME, CURVE_NAME):  # the folder was empty
            (folder / name).unlink(missing_ok=True)
        raise


def described(options: Options, loaded: LoadedGenerator, found: Inversion) -> str:
    """A few lines about the result: how near it is, and how to render it."""
    model = quote(str(options.run if found.tuned is None else options.out / TUNED_NAME))
    latent = options.out / LATENT_NAME
    seen = ""
    if found.camera is not None:
        yaw, pitch = found.camera.yaw - loaded.poses.yaw_mean, found.camera.pitch - loaded.poses.front_pitch
        seen = f"seen from yaw {yaw:.3f} and pitch {pitch:.3f}, "
    likeness = f"PSNR {found.psnr:.1f} dB"
    if found.tuned_psnr is not None:
        likeness += f", tuned {found.tuned_psnr:.1f} dB"
    stopped = (
        "" if found.complete else f"stopped early, after {len(found.records)} steps; this is what there was then\n"
    )
    return (
        f"{stopped}{latent}: {seen}{likeness}; {options.out / PICTURE_NAME} shows it\n"
        f"render it: python -m cips3d.render {model} --latent {quote(str(latent))} --out face.png"
    )


def read_photo(path: Path, resolution: int) -> Tensor:
    """The central square of a picture file, [3, resolution, resolution] in [-1, 1].

    Raises:
        UserError: there is no such file, or it is no picture.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no picture file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; give the file of a picture")
    try:
        return from_uint8(decode_image(path.read_bytes(), resolution))
    except UNREADABLE_ERRORS as error:
        raise UserError(f"{path} cannot be read as a picture ({describe(error)}); give another file") from error


def make_folder(folder: Path) -> None:
    """Make the folder for the results.

    Raises:
        UserError: it holds something, or files cannot be made there.
    """
    check_folder(folder)
    with reported(folder):
        if any(folder.iterdir()):
            raise UserError(f"--out {folder} is not empty; give a new folder")


def check_model(loaded: LoadedGenerator, options: Options) -> None:
    """Raise `UserError` where a flag asks for what the model cannot do."""
    generator, name = loaded.generator, type(loaded.generator).__name__
    if not generator.is_3d and options.pose is not None:
        raise UserError(f"{name} is a 2-D model and has no camera; leave out --pose")
    check_resolution_of(loaded, options.resolution)
    front = loaded.poses.front_pitch
    if options.pose is not None and not 0 < front + options.pose[1] < math.pi:
        raise UserError(
            f"--pose with pitch {options.pose[1]:g} goes over a pole; give one between {-front:.2f} and "
            f"{math.pi - front:.2f}"
        )


def check_options(options: Options) -> None:
    """Raise `UserError` for what can be known to be wrong before the model is loaded."""
    for flag, value in (("--steps", options.steps), ("--tune-steps", options.tune_steps), ("--starts", options.starts)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value} is too few; give 1 or more")
    if options.tune_steps is not None and not options.tune:
        raise UserError(f"--tune-steps {options.tune_steps} is for --tune; add that, or leave it out")
    for flag, weight in (("--perceptual-weight", options.perceptual_weight), ("--prior", options.prior)):
        if not 0 <= weight <= LARGEST_NUMBER:
            raise UserError(f"{flag} {weight:g} is no weight; give a number from 0 to {LARGEST_NUMBER:g}")
    check_seed(options.seed)
    if options.resolution is not None and options.resolution < FEWEST_PIXELS:
        raise UserError(f"--resolution {options.resolution} shows no face; give {FEWEST_PIXELS} or more")
    if options.resolution is not None:
        check_resolution(options.resolution)
    if options.pose is not None and not all(abs(angle) <= LARGEST_NUMBER for angle in options.pose):
        raise UserError(f"--pose {options.pose[0]:g} {options.pose[1]:g} is no direction; give two angles in radians")
    check_is_named(options.out)
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; give a new folder")


if __name__ == "__main__":
    raise SystemExit(main())
