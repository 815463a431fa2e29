"""The command that renders pictures, animations and videos of a trained model: `python -m cips3d.render`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import tyro
from PIL import Image
from tqdm import tqdm

from cips3d import pictures
from cips3d.pictures.animations import save_animation
from cips3d.process.devices import choose_device, memory_explained
from cips3d.process.ending import exit_on_user_error
from cips3d.rendering import load_generator
from cips3d.rendering.arrays import save_arrays
from cips3d.rendering.frame_sequence import arranged, strip
from cips3d.rendering.options import Options, check_options
from cips3d.rendering.separate import save_separately
from cips3d.rendering.staging import Staging, stage

PROGRAM = "python -m cips3d.render"
DESCRIPTION = f"""Render a trained model: faces from several sides, a moving camera, ways from face to face.

Examples:
  {PROGRAM} runs/heads --seeds 0-7 --out grid.png
  {PROGRAM} runs/heads --seeds 3 --kind all --resolution 512 --out face.png
  {PROGRAM} runs/heads --seeds 0-3 --truncation 0.7 --trajectory yaw --yaw -0.5 0.5 --out swing.webp
  {PROGRAM} runs/heads --seeds 0,5,9 --interpolate shape --trajectory circle --out shapes.mp4
  {PROGRAM} runs/heads --seeds 0-3 --mix 10-13 --out mixed.png
  {PROGRAM} runs/heads --seeds 0-999 --yaw 0 --out faces        a folder of single pictures
  {PROGRAM} runs/heads --seeds 0-9 --kind all --out views.npz   NumPy arrays: depth in scene units, cameras
  {PROGRAM} runs/heads --latent inverted/latent.safetensors --trajectory yaw --out turn.webp

A model trained at 32 x 32 renders at 128 x 128 or any other size (but StyleGAN2): --resolution is free.
With a --trajectory or --interpolate, a .png or .jpg shows the frames side by side.

Trajectories:
  front             stands still
  yaw               swings from side to side
  circle            looks in from an ellipse of --yaw and --pitch
  dolly             the circle, coming near and going far; the angle of view changes so that the head keeps its size
  translate         slides right and left, then up and down
  translate-rotate  the same, then turns once around the viewing axis
  FILE.json         a list of cameras, one a frame, all of whose keys may be left out:
                      [{{"yaw": 0.3, "pitch": 0, "radius": 1, "fov_degrees": 12, "look_at": [0, 0, 0], "roll": 0,
                        "translation": [0, 0, 0]}}, ...]
                    with yaw and pitch in radians from the front, and a translation along the camera's right, up and
                    backward axes; or {{"camera_to_world": [[...], [...], [...]], "fov_degrees": 12}} with rows of a
                    matrix whose columns are these axes and the position; a front camera on the
                    horizon stands at (0, 0, 1)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: the process's) and return its exit code."""
    return exit_on_user_error(lambda: render(tyro.cli(Options, args=argv, prog=PROGRAM, description=DESCRIPTION)))


def render(options: Options) -> int:
    """Load, render, save, and say where."""
    check_options(options)
    device = choose_device(options.device)
    loaded = replace(load_generator(options.run, device, precision=options.precision), lock_view=options.lock_view)
    resolution = loaded.resolution if options.resolution is None else options.resolution
    with memory_explained(
        f"{device} has too little memory for --batch-size {options.batch_size} at --resolution {resolution}; "
        "lower one of them"
    ):
        staging = stage(loaded, options)
        if options.is_folder:
            count = save_separately(options.out, staging)
            held = f"{count} picture{'s' if count > 1 else ''}"
            print(f"{options.out} holds {held} of {staging.contents}{loaded.at_step}")
            return 0
        if options.is_arrays:
            save_arrays(options.out, staging.sequence, staging.faces.names)
        elif options.is_animation:
            save_animation(options.out, frames(staging), options.fps)
        else:
            pictures.save_image(options.out, still(staging))
    verb = "holds numbers of" if options.is_arrays else "shows"
    print(f"{options.out} {verb} {staging.contents}{loaded.at_step}")
    return 0


def still(staging: Staging) -> Image.Image:
    """Everything in one picture."""
    sequence, layout = staging.sequence, staging.layout
    if staging.is_table:
        return arranged(sequence.part(0, 1, progress=True)[0], layout)
    return strip(sequence, staging.row_labels, staging.column_labels, layout.enlarge)


def frames(staging: Staging) -> Iterator[Image.Image]:
    """One picture after the other, made when it is asked for."""
    with tqdm(total=len(staging.sequence), desc="rendering", unit="frame", leave=False) as bar:
        for frame in staging.sequence.frames():
            yield arranged(frame, staging.layout)
            bar.update()


if __name__ == "__main__":
    raise SystemExit(main())
