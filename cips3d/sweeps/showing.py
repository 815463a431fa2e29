"""From faces at several strengths to a picture or an animation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cips3d import pictures
from cips3d.cameras import Cameras
from cips3d.pictures.animations import check_duration, save_animation
from cips3d.process.devices import memory_explained
from cips3d.rendering import LoadedGenerator
from cips3d.rendering.frame_sequence import take_pictures
from cips3d.rendering.prefetch import prefetched
from cips3d.rendering.staging import FRAMES, Faces, stage
from cips3d.rendering.views import Look
from cips3d.sweeps.options import SweepOptions, render_options

LONGEST_ROW = 6  # faces; more are arranged in a square


class Column(NamedTuple):
    """All rows at one strength.

    Attributes:
        styles: a row each.
    """

    label: str
    loaded: LoadedGenerator
    styles: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """The faces before anything is changed, and how they are looked at."""

    loaded: LoadedGenerator
    faces: Faces
    cameras: Cameras
    """one a frame; a single one stands still"""
    look: Look
    enlarge: int
    """whole factor by which pixels are repeated, so that small pictures can be seen"""


def prepared(loaded: LoadedGenerator, options: SweepOptions) -> Scene:
    """The faces and cameras that are asked for.

    Raises:
        UserError: the model does not have them.
    """
    staging = stage(loaded, render_options(options, one_view=loaded.generator.is_3d))
    shown = staging.sequence
    return Scene(shown.loaded, staging.faces, shown.cameras, shown.look, staging.layout.enlarge)


def write_sweep(
    options: SweepOptions,
    scene: Scene,
    rows: Sequence[str],
    columns: Sequence[Callable[[], Column]],
    way: tuple[float, float],
    at: Callable[[float], Column],
) -> str:
    """Write the picture or animation that the options ask for.

    Args:
        options: of the command.
        scene: cameras and look.
        rows: what each row shows.
        columns: of a picture, and of every frame with a moving camera; each is made when its turn comes, since it may
            bring a model of its own.
        way: strengths that an animation with a camera that stands still begins at, goes to and comes back from.
        at: the rows at any strength.

    Returns:
        What is to be seen, in words.

    Raises:
        UserError: it would be too large, the file cannot be written, or memory is too small.
    """
    side = scene.look.resolution
    moves = options.trajectory is not None
    if options.is_animation and not moves:
        across, count = _faces_across(len(rows)), len(rows)
    else:
        across, count = len(columns), len(rows) * len(columns)
    pictures.check_size(options.out, *pictures.grid_size(count, across, *scene.look.size, scene.enlarge))
    frames = len(scene.cameras) if moves else options.frames or FRAMES
    if options.is_animation:
        check_duration(options.out, frames, options.fps)
    with memory_explained(
        f"{scene.loaded.device} has too little memory for --batch-size {options.batch_size} at --resolution {side}; "
        "lower one of them"
    ):
        if not options.is_animation:
            with tqdm(columns, desc="rendering", unit="column", leave=False) as turns:
                pictures.save_image(options.out, _table(scene, rows, (make() for make in turns), scene.cameras))
        else:
            made = (
                _turning(scene, rows, [make() for make in columns])
                if moves
                else _swinging(scene, rows, way, at, frames)
            )
            made = prefetched(made, scene.loaded.device)
            with tqdm(made, total=frames, desc="rendering", unit="frame", leave=False) as shown:
                save_animation(options.out, shown, options.fps)
    faces = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
    if options.is_animation and not moves:
        return f"{faces} from strength {way[0]:g} to {way[1]:g} and back in {frames} frames of {side} x {side}"
    view = f"{frames} frames" if moves else "pictures"
    return f"{faces} at {len(columns)} strength{'s' if len(columns) > 1 else ''} in {view} of {side} x {side}"


def _table(scene: Scene, rows: Sequence[str], columns: Iterable[Column], camera: Cameras) -> Image.Image:
    """All rows in all columns, from one camera."""
    labels, taken = zip(*((column.label, _taken(scene, column, camera)) for column in columns), strict=True)
    return pictures.image_grid(
        torch.stack(taken, dim=1).flatten(0, 1),
        len(taken),
        row_labels=rows,
        column_labels=labels,
        enlarge=scene.enlarge,
    )


def _turning(scene: Scene, rows: Sequence[str], columns: Sequence[Column]) -> Iterator[Image.Image]:
    """The table from camera to camera."""
    for frame in range(len(scene.cameras)):
        yield _table(scene, rows, columns, scene.cameras[frame : frame + 1])


def _swinging(
    scene: Scene, rows: Sequence[str], way: tuple[float, float], at: Callable[[float], Column], frames: int
) -> Iterator[Image.Image]:
    """The rows beside each other, from one strength to another and back: first + (last - first) (1 - cos 2πt) / 2."""
    first, last = way
    across = _faces_across(len(rows))
    for frame in range(frames):
        strength = first + (last - first) * (1 - math.cos(2 * math.pi * frame / frames)) / 2
        yield pictures.image_grid(
            _taken(scene, at(strength), scene.cameras),
            across,
            column_labels=rows if across == len(rows) else None,
            enlarge=scene.enlarge,
        )


def _taken(scene: Scene, column: Column, camera: Cameras) -> Tensor:
    """Pictures [rows, 3, R, R] of a column."""
    count = len(column.styles[0])
    return take_pictures(column.loaded, column.styles, camera[torch.zeros(count, dtype=torch.long)], scene.look)[:, 0]


def _faces_across(count: int) -> int:
    return count if count <= LONGEST_ROW else math.ceil(math.sqrt(count))
