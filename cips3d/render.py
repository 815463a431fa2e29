"""The command that renders pictures and animations of a trained model: `python -m cips3d.render`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cips3d import pictures
from cips3d.errors import UserError, exit_on_user_error
from cips3d.rendering import (
    BATCH_SIZE,
    LoadedGenerator,
    load_generator,
    render_views,
    styles_of_seeds,
    yaw_sweep,
)
from cips3d.training.distributed import choose_device

PROGRAM = "python -m cips3d.render"
DESCRIPTION = f"""Render pictures of a trained model: a grid of faces from several sides, or a swinging animation.

Examples:
  {PROGRAM} runs/heads --seeds 0-7 --out grid.png
  {PROGRAM} runs/heads --seeds 3 --kind all --resolution 128 --out face.png
  {PROGRAM} runs/heads --seeds 0-3 --truncation 0.7 --yaw -0.5 0.5 --sweep --out swing.gif

A model trained at 32 x 32 renders at 128 x 128 or any other size: --resolution is free.
"""

SEED = re.compile(r"[0-9]{1,19}")
SEED_LIMIT = 2**63
MAX_SEEDS = 4096
VISIBLE_SIDE = 128  # smaller pictures are enlarged by the whole factor that brings them nearest below it

DEFAULT_YAWS = (-0.4, 0.0, 0.4)
MODELS_OWN = "(default: the model's)"

Kind = Literal["image", "aux", "depth"]
KINDS: dict[str, tuple[Kind, ...]] = {
    "image": ("image",),
    "aux": ("aux",),
    "depth": ("depth",),
    "all": ("image", "aux", "depth"),
}


@dataclass(frozen=True)
class Options:
    """What the command is told."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_CHECKPOINT")]
    """folder of a training run (its newest checkpoint is taken) or a checkpoint file"""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """file to write: .png, .webp or .jpg; with --sweep .gif or .webp"""
    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-7"
    """which faces, a row each: integers and ranges, such as 3 or 0-7 or 1,5,9-12"""
    yaw: Annotated[
        tuple[float, ...] | None,
        tyro.conf.arg(metavar="RAD [RAD ...]", help_behavior_hint="(default: -0.4 0 0.4; a 2-D model has no sides)"),
    ] = None
    """where the camera stands to the side, a column each: offsets from the front in radians, positive looks from
    the left; with --sweep the camera swings between the smallest and the largest"""
    pitch: Annotated[
        tuple[float, ...] | None, tyro.conf.arg(metavar="RAD [RAD ...]", help_behavior_hint="(default: 0)")
    ] = None
    """how low the camera stands: offsets from the front in radians, positive looks from below; several give
    a column for every pair with --yaw"""
    truncation: float = 1.0
    """1: faces as they come; nearer to 0: more typical ones"""
    resolution: Annotated[int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint=MODELS_OWN)] = None
    """side of a picture"""
    fov: Annotated[float | None, tyro.conf.arg(metavar="DEGREES", help_behavior_hint=MODELS_OWN)] = None
    """the camera's angle of view"""
    kind: Literal["image", "aux", "depth", "all"] = "image"
    """the picture, the NeRF's own picture (auxiliary), the depth (near is bright), or all three"""
    sweep: bool = False
    """an animation of the camera swinging to and fro instead of a grid"""
    frames: int = 48
    """frames of a sweep"""
    fps: float = 24.0
    """frames a second of a sweep"""
    jitter: bool = False
    """sample rays at random depths as in training, which shows as noise"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    batch_size: int = BATCH_SIZE
    """pictures rendered at a time; smaller needs less memory"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: the process's) and return its exit code."""
    options = tyro.cli(Options, args=argv, prog=PROGRAM, description=DESCRIPTION)
    return exit_on_user_error(lambda: render(options))


def render(options: Options) -> int:
    """Load, render, save, and say where."""
    seeds = parse_seeds(options.seeds)
    check_options(options)
    device = choose_device(options.device)
    loaded = load_generator(options.run, device)
    if options.fov is not None:
        loaded = replace(loaded, fov_degrees=options.fov)
    sheet = Sheet(loaded, options, seeds)
    sheet.check()
    try:
        styles = styles_of_seeds(loaded, seeds, options.truncation)
        if options.sweep:
            pictures.save_animation(options.out, sheet.animation(styles), options.fps)
        else:
            pictures.save_image(options.out, sheet.still(styles))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{device} has too little memory for --batch-size {options.batch_size} at --resolution "
            f"{sheet.resolution}; lower one of them"
        ) from error
    print(f"{options.out} shows {sheet.contents} at step {loaded.step}")
    return 0


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for torch's complaints about memory; those of the CPU have no type of their own."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


class Sheet:
    """What a grid or an animation shows, and where in it."""

    def __init__(self, loaded: LoadedGenerator, options: Options, seeds: list[int]) -> None:
        self.loaded = loaded
        self.options = options
        self.seeds = seeds
        self.kinds = KINDS[options.kind]
        self.yaw, self.pitch = viewed(options, loaded.generator.is_3d)
        self.resolution = loaded.resolution if options.resolution is None else options.resolution
        self.enlarge = max(1, VISIBLE_SIDE // self.resolution)
        # In a frame of an animation, pictures of a seed stand side by side; lone ones are arranged in a square.
        self.frame_cells = len(self.kinds) * len(self.pitch)
        self.seeds_per_row = math.ceil(math.sqrt(len(seeds))) if self.frame_cells == 1 else 1
        self.random = torch.Generator(loaded.device).manual_seed(0) if options.jitter else None

    @property
    def contents(self) -> str:
        many = f"{len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"
        views = len(self.pitch) * len(self.yaw)
        seen = f"{self.options.frames} frames" if self.options.sweep else f"{views} view{'s' if views > 1 else ''}"
        return f"{many} in {seen} of {self.resolution} x {self.resolution}"

    def check(self) -> None:
        """Raise `UserError`, before anything is rendered, for what only the model can show to be wrong."""
        self.check_kinds()
        front = self.loaded.poses.pitch_mean
        for pitch in self.pitch:
            if not 0 < front + pitch < math.pi:
                raise UserError(
                    f"--pitch {pitch:g} goes over a pole; give angles between {-front:.2f} and {math.pi - front:.2f}"
                )
        if self.options.sweep:
            count, columns = len(self.seeds) * self.frame_cells, self.seeds_per_row * self.frame_cells
        else:
            columns = len(self.pitch) * len(self.yaw)
            count = len(self.seeds) * len(self.kinds) * columns
        size = pictures.grid_size(count, columns, self.resolution, self.resolution, self.enlarge)
        pictures.check_size(self.options.out, *size)

    def check_kinds(self) -> None:
        """Raise `UserError` where the model does not have what is asked for."""
        generator, options = self.loaded.generator, self.options
        name = type(generator).__name__
        if "aux" in self.kinds and not generator.has_aux_image:
            raise UserError(f"--kind {options.kind} shows an auxiliary picture, which {name} does not have; use image")
        if "depth" in self.kinds and not generator.is_3d:
            raise UserError(f"--kind {options.kind} shows depth, which {name} does not have; use image")
        if not generator.is_3d and (options.sweep or options.yaw or options.pitch):
            raise UserError(f"{name} is a 2-D model and has no camera; leave out --yaw, --pitch and --sweep")
        if generator.fixed_resolution not in (None, self.resolution):
            raise UserError(
                f"--resolution {self.resolution} is not that of this {name}; "
                f"leave it out or give {generator.fixed_resolution}"
            )

    def still(self, styles: tuple[Tensor, ...]) -> Image.Image:
        """The grid: a row a seed and kind, a column a view."""
        views = [(pitch, yaw) for pitch in self.pitch for yaw in self.yaw]
        shown = self.rendered(styles, views, progress=True)  # [S, K, V, 3, H, W]
        single = len(self.kinds) == 1
        return pictures.image_grid(
            shown.flatten(0, 2),
            len(views),
            row_labels=[
                f"seed {seed}" if single else f"seed {seed} {kind}" for seed in self.seeds for kind in self.kinds
            ],
            column_labels=[view_label(pitch, yaw, self.pitch != (0.0,)) for pitch, yaw in views]
            if self.loaded.generator.is_3d
            else None,
            enlarge=self.enlarge,
        )

    def animation(self, styles: tuple[Tensor, ...]) -> list[Image.Image]:
        """A frame for every position of the camera's swing."""
        options = self.options
        yaws = yaw_sweep((min(self.yaw), max(self.yaw)), options.frames).tolist()
        at_once = max(1, options.batch_size // (len(self.seeds) * len(self.pitch)))
        frames: list[Image.Image] = []
        with tqdm(total=len(yaws), desc="rendering", unit="frame", leave=False) as bar:
            for start in range(0, len(yaws), at_once):
                chunk = yaws[start : start + at_once]
                shown = self.rendered(styles, [(pitch, yaw) for pitch in self.pitch for yaw in chunk])
                by_frame = shown.unflatten(2, (len(self.pitch), len(chunk)))  # [S, K, P, F, 3, H, W]
                frames += [self.frame(cells) for cells in by_frame.unbind(3)]
                bar.update(len(chunk))
        return frames

    def frame(self, cells: Tensor) -> Image.Image:
        """One frame of [S, K, P, 3, H, W]."""
        rows = [self.seeds[k : k + self.seeds_per_row] for k in range(0, len(self.seeds), self.seeds_per_row)]
        return pictures.image_grid(
            cells.flatten(0, 2),
            self.seeds_per_row * self.frame_cells,
            row_labels=[row_label(row) for row in rows],
            enlarge=self.enlarge,
        )

    def rendered(self, styles: tuple[Tensor, ...], views: list[tuple[float, float]], progress: bool = False) -> Tensor:
        """Every seed, in every kind, from every view (offsets of pitch and yaw): [S, K, V, 3, H, W]."""
        poses = self.loaded.poses
        shown = render_views(
            self.loaded,
            styles,
            torch.tensor([poses.pitch_mean + pitch for pitch, _ in views]),
            torch.tensor([poses.yaw_mean + yaw for _, yaw in views]),
            self.resolution,
            aux="aux" in self.kinds,
            depth="depth" in self.kinds,
            jitter=self.options.jitter,
            batch_size=self.options.batch_size,
            generator=self.random,
            progress=progress,
        )
        by_kind = {"image": shown.image}
        if shown.aux_image is not None:
            by_kind["aux"] = shown.aux_image
        if shown.depth is not None:
            settings = self.loaded.settings
            colored = pictures.depth_image(shown.depth.flatten(0, 1), settings.t_near, settings.t_far)
            by_kind["depth"] = colored.view_as(shown.image)
        return torch.stack([by_kind[kind] for kind in self.kinds], dim=1)


def viewed(options: Options, is_3d: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The yaws and pitches that are shown, where the command leaves them to us too."""
    yaw = options.yaw or (DEFAULT_YAWS if is_3d else (0.0,))
    return yaw, options.pitch or (0.0,)


def row_label(seeds: list[int]) -> str:
    """What a row of an animation shows: "seed 3", "seeds 0-3" or "seeds 1, 5, 9"."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return "seeds " + ", ".join(map(str, seeds))


def view_label(pitch: float, yaw: float, with_pitch: bool) -> str:
    return f"pitch {pitch:g} yaw {yaw:g}" if with_pitch else f"yaw {yaw:g}"


def parse_seeds(text: str) -> list[int]:
    """The integers of a list such as "0-7", "3" or "1,5,9-12", in the order given.

    Raises:
        UserError: it is not such a list, or names too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [end.strip() for end in ((first, last) if dash else (first, first))]
        if not all(SEED.fullmatch(end) for end in ends):
            raise UserError(f"--seeds {text!r} is not a list of seeds; give integers and ranges such as 3 or 1,5,9-12")
        low, high = int(ends[0]), int(ends[1])
        if high < low:
            raise UserError(f"--seeds {text!r} counts down in {part.strip()}; write it as {high}-{low}")
        if high >= SEED_LIMIT:
            raise UserError(f"--seeds {text!r} holds {high}; give integers below 2^63")
        if len(seeds) + high - low + 1 > MAX_SEEDS:
            raise UserError(f"--seeds {text!r} names more than {MAX_SEEDS} faces; give fewer")
        seeds.extend(range(low, high + 1))
    return seeds


def check_options(options: Options) -> None:
    """Raise `UserError` for what can be known to be wrong before the model is loaded."""
    ending = options.out.suffix.lower()
    if options.sweep:
        if ending in pictures.IMAGE_ENDINGS and ending not in pictures.ANIMATION_ENDINGS:
            raise UserError(f"--out {options.out} cannot hold the animation of --sweep; give a .gif or .webp")
        if options.frames < 2:
            raise UserError(f"--frames {options.frames} is no animation; give 2 or more")
        if options.yaw is not None and min(options.yaw, default=0.0) == max(options.yaw, default=0.0):
            raise UserError(f"--yaw {listed(options.yaw)} leaves --sweep nowhere to go; give two different angles")
    elif ending == ".gif":
        raise UserError(f"--out {options.out} is for animations; add --sweep, or give a .png, .webp or .jpg")
    for flag, angles in (("--yaw", options.yaw), ("--pitch", options.pitch)):
        if angles is not None and not (angles and all(math.isfinite(angle) for angle in angles)):
            raise UserError(f"{flag} {listed(angles)} is no direction; give one or more angles in radians")
    if not math.isfinite(options.truncation):
        raise UserError(f"--truncation {options.truncation} is not a number; give one such as 0.7")
    if options.resolution is not None and options.resolution < 1:
        raise UserError(f"--resolution {options.resolution} leaves no pixel; give 1 or more")
    if options.fov is not None and not 0 < options.fov < 180:
        raise UserError(f"--fov {options.fov:g} is no angle of view; give degrees between 0 and 180")
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size} renders nothing; give 1 or more")
    if options.sweep:
        pictures.check_path(options.out, pictures.ANIMATION_ENDINGS, "an animation")
        pictures.check_fps(ending, options.fps)
    else:
        pictures.check_path(options.out, pictures.IMAGE_ENDINGS, "a picture")


def listed(angles: Sequence[float]) -> str:
    return " ".join(f"{angle:g}" for angle in angles)


if __name__ == "__main__":
    raise SystemExit(main())
