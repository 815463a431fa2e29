"""The command that shows a trained model in the browser: `python -m cips3d.viewer`."""

from __future__ import annotations

import sys
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from cips3d.checkpoints.trained import find_checkpoint
from cips3d.errors import UserError
from cips3d.files import printable
from cips3d.process.devices import choose_device
from cips3d.process.ending import exit_on_user_error
from cips3d.process.signals import stop_on_signals
from cips3d.rendering import LoadedGenerator, check_resolution_of, load_generator, styles_of_latents
from cips3d.rendering.flags import DeviceFlag, PrecisionFlag, RunArgument
from cips3d.rendering.latents import CameraAngles, read_latent
from cips3d.rendering.seeds import check_truncation
from cips3d.viewing import Exhibit, Gallery, open_server
from cips3d.viewing.orbit import Orbit, trained_limits
from cips3d.viewing.page import LARGEST_SEED
from cips3d.viewing.server import check_installed, is_loopback
from cips3d.viewing.shots import Studio

PROGRAM = "python -m cips3d.viewer"
DESCRIPTION = f"""Look at a trained model in the browser: turn the head, change the face, mix two, save pictures.

Examples:
  {PROGRAM} runs/heads
  {PROGRAM} runs/heads --seed 3 --truncation 0.7 --resolution 512
  {PROGRAM} runs/heads --second runs/paintings
  {PROGRAM} runs/heads --latent inverted/latent.safetensors
  {PROGRAM} runs/heads --no-open --port 9000

While something moves, pictures are as small as it takes to be smooth; when all is still, they get finer up to
--resolution. Several browsers may look at once, each at its own face. Ctrl-C ends it.
"""

DEFAULT_RESOLUTION = 256
MAX_RESOLUTION = 4096
SIGNAL_SECONDS = 0.2  # between two looks at whether one came


@dataclass(frozen=True)
class Options:
    """The command's options."""

    run: RunArgument
    second: Annotated[Path | None, tyro.conf.arg(metavar="RUN_OR_CHECKPOINT", help_behavior_hint="(default: none)")] = (
        None
    )
    """a second checkpoint of the same networks, to interpolate weights with"""
    seed: Annotated[int | None, tyro.conf.arg(metavar="SEED", help_behavior_hint="(default: 0)")] = None
    """which face comes first"""
    latent: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """a face that python -m cips3d.invert found, in the place of that of a seed, from where it was seen"""
    truncation: float = 1.0
    """1: faces as they come; nearer to 0: more typical ones"""
    resolution: Annotated[
        int | None,
        tyro.conf.arg(metavar="PIXELS", help_behavior_hint=f"(default: the model's, at least {DEFAULT_RESOLUTION})"),
    ] = None
    """side of the finest pictures, and of saved ones"""
    host: str = "127.0.0.1"
    """where to serve; 0.0.0.0 lets other machines look too, whoever they are"""
    port: int = 8080
    """where to serve; the next free one where it is taken"""
    open: bool = True
    """open the page in a browser"""
    device: DeviceFlag = "auto"
    precision: PrecisionFlag = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: the process's) and return its exit code."""
    return exit_on_user_error(lambda: view(tyro.cli(Options, args=argv, prog=PROGRAM, description=DESCRIPTION)))


def view(options: Options) -> int:
    """Serve the page until Ctrl-C; a damaged checkpoint makes a page that says so, and exit code 2."""
    check_options(options)
    exhibit: Exhibit | str
    try:
        loaded = model_of(options)
    except UserError as error:
        exhibit = str(error)
        print(f"error: {error}", file=sys.stderr)
    else:
        exhibit = exhibit_of(options, loaded)
    gallery = Gallery(open_server(options.host, options.port, title_of(options, exhibit)), exhibit)
    what = "why there is nothing to show" if isinstance(exhibit, str) else title_of(options, exhibit)
    print(f"{gallery.address} shows {what}; Ctrl-C ends it", flush=True)
    if options.open:
        webbrowser.open(gallery.address)
    try:
        _wait_for_the_end()
    finally:
        gallery.close()
    return 2 if isinstance(exhibit, str) else 0


def model_of(options: Options) -> LoadedGenerator:
    """Load the model.

    Raises:
        UserError: it cannot be shown.
    """
    return load_generator(options.run, choose_device(options.device), precision=options.precision)


def exhibit_of(options: Options, loaded: LoadedGenerator) -> Exhibit:
    """The model as it is asked for.

    Raises:
        UserError: it does not have what is asked for.
    """
    face = None if options.latent is None else styles_of_latents(loaded, [options.latent])
    shot = replace(Studio(loaded, face).first_shot, truncation=options.truncation)
    if options.seed is not None:
        shot = replace(shot, seed=options.seed)
    if options.latent is not None:
        shot = replace(shot, orbit=orbit_of(loaded, read_latent(options.latent).camera))
    return Exhibit(
        loaded,
        shot,
        largest=resolution_of(options, loaded),
        face=face,
        second=options.second,
        may_open_files=is_loopback(options.host),
    )


def orbit_of(loaded: LoadedGenerator, camera: CameraAngles | None) -> Orbit:
    """The view of the trained ones that is nearest to a latent's camera."""
    limits = trained_limits(loaded.poses)
    return limits.front if camera is None else limits.held(Orbit(camera.yaw, camera.pitch))


def check_options(options: Options) -> None:
    """Raise `UserError` for what can be known to be wrong before anything is loaded or served."""
    check_installed()
    if options.seed is not None and options.latent is not None:
        raise UserError("--latent takes the place of --seed; leave one of them out")
    if options.seed is not None and not 0 <= options.seed <= LARGEST_SEED:
        raise UserError(f"--seed {options.seed} is out of range; give an integer from 0 to 2^53 - 1")
    check_truncation(options.truncation)
    if options.truncation < 0:
        raise UserError(f"--truncation {options.truncation:g} is below the slider's 0; give a number such as 0.7")
    if options.resolution is not None and not 2 <= options.resolution <= MAX_RESOLUTION:
        raise UserError(f"--resolution {options.resolution} is out of range; give 2 to {MAX_RESOLUTION}")
    choose_device(options.device)
    for path in (options.run, options.second):
        if path is not None:
            find_checkpoint(path)


def resolution_of(options: Options, loaded: LoadedGenerator) -> int:
    """Side of the finest pictures."""
    check_resolution_of(loaded, options.resolution)
    return options.resolution or loaded.generator.fixed_resolution or max(loaded.resolution, DEFAULT_RESOLUTION)


def title_of(options: Options, exhibit: Exhibit | str) -> str:
    """The page's title."""
    name = printable(options.run.resolve().name)
    return name if isinstance(exhibit, str) else f"{name}{exhibit.loaded.at_step}"


def _wait_for_the_end() -> None:
    """Return when Ctrl-C or SIGTERM came."""
    with stop_on_signals() as request:
        while not request:
            time.sleep(SIGNAL_SECONDS)


if __name__ == "__main__":
    raise SystemExit(main())
