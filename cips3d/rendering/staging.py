"""From the options of a command to what is shown: which faces, seen from where, and how they are labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cips3d import pictures
from cips3d.cameras import TRAJECTORIES, CameraRange, Cameras, read_cameras
from cips3d.cameras.poses import PITCH_MARGIN
from cips3d.errors import UserError
from cips3d.pictures import animations
from cips3d.rendering.arrays import check_count
from cips3d.rendering.frame_sequence import (
    FrameSequence,
    Layout,
    arranged_size,
    every_face,
    interpolation,
    kinds_of,
    mixing,
)
from cips3d.rendering.latents import face_name, styles_of_latents
from cips3d.rendering.loading import LoadedGenerator, check_resolution_of
from cips3d.rendering.options import DEFAULT_SEEDS, Options
from cips3d.rendering.seeds import MAX_SEEDS, parse_seeds, styles_of_seeds
from cips3d.rendering.style_paths import style_parts
from cips3d.rendering.views import VIEW_YAWS, VISIBLE_SIDE, Look, PictureKind

YAW_ENDS, PITCH_ENDS = (-0.4, 0.4), (-0.2, 0.2)  # the same, of moving cameras
FRAMES, FRAMES_A_SEED = 48, 24  # of animations
COLUMNS, COLUMNS_A_SEED = 8, 4  # of pictures that show frames side by side


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces that are shown."""

    styles: tuple[Tensor, ...]
    names: tuple[str, ...]
    """one a face, such as "seed 3" """
    seeds: tuple[int, ...] | None
    """None: they are those of latents"""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counted(self) -> str:
        """ "1 seed", "3 latents" """
        return f"{len(self)} {'latent' if self.seeds is None else 'seed'}{'s' if len(self) > 1 else ''}"

    @property
    def flag(self) -> str:
        return "--latent" if self.seeds is None else "--seeds"


def faces_of_seeds(loaded: LoadedGenerator, text: str, flag: str, truncation: float, most: int = MAX_SEEDS) -> Faces:
    """The faces of a list of seeds."""
    seeds = parse_seeds(text, flag, most)
    return Faces(styles_of_seeds(loaded, seeds, truncation), tuple(f"seed {seed}" for seed in seeds), tuple(seeds))


def faces_of(loaded: LoadedGenerator, options: Options) -> Faces:
    """The faces that are asked for: of latents, or of seeds."""
    if options.latent is None:
        return faces_of_seeds(loaded, options.seeds or DEFAULT_SEEDS, "--seeds", options.truncation, options.most_seeds)
    return Faces(styles_of_latents(loaded, options.latent), tuple(map(face_name, options.latent)), None)


@dataclass(frozen=True, eq=False)
class Staging:
    """What is shown, and where in the picture."""

    sequence: FrameSequence
    faces: Faces
    """that were asked for; the sequence of an interpolation shows one that goes from each to the next"""
    has_frames: bool
    """something moves"""
    layout: Layout
    """of a frame"""
    is_table: bool
    """every frame is a picture of its own; otherwise frames can stand side by side, as columns"""
    row_labels: tuple[str, ...] | None
    """where frames are columns: one a face and kind"""
    column_labels: tuple[str, ...] | None
    """where frames are columns: one a frame"""
    contents: str
    """in words"""


def stage(loaded: LoadedGenerator, options: Options) -> Staging:
    """Decide what is shown.

    Raises:
        UserError: the model does not have it, or it does not fit into a picture.
    """
    if options.fov is not None and loaded.generator.is_3d:
        loaded = replace(loaded, fov_degrees=options.fov)
    resolution = loaded.resolution if options.resolution is None else options.resolution
    look = _look(loaded, options, resolution)
    _check_model(loaded, options, resolution)
    faces = faces_of(loaded, options)
    mixed = None if options.mix is None else faces_of_seeds(loaded, options.mix, "--mix", options.truncation)
    cameras, layout = _cameras(loaded, options, len(faces)), _layout(options, look, faces, mixed)
    rows = _row_labels(options, look, faces)
    columns = _column_labels(loaded, options, faces, len(cameras))
    _check_size(options, look, layout, _faces_a_frame(options, faces, mixed), len(cameras), rows, columns)
    sequence, seen = _sequence(loaded, options, look, faces, mixed, cameras)
    what = "frame" if options.has_frames else "view"
    count = f"{len(sequence)} {what}{'s' if len(sequence) > 1 else ''}"
    return Staging(
        sequence,
        faces,
        options.has_frames,
        layout,
        mixed is not None,
        rows,
        columns,
        f"{seen} in {count} of {resolution} x {resolution}",
    )


def _faces_a_frame(options: Options, faces: Faces, mixed: Faces | None) -> int:
    """Places of a frame, the empty one of a table among them."""
    if mixed is not None:
        return (len(faces) + 1) * (len(mixed) + 1)
    return 1 if options.interpolate is not None else len(faces)


def _sequence(
    loaded: LoadedGenerator, options: Options, look: Look, faces: Faces, mixed: Faces | None, cameras: Cameras
) -> tuple[FrameSequence, str]:
    """The faces from where they are seen, and what they are in words."""
    if options.interpolate is not None and len(faces) < 2:
        raise UserError(f"--interpolate goes nowhere with one face; give two or more to {faces.flag}")
    styles = faces.styles
    if mixed is not None:
        sequence = mixing(loaded, styles, mixed.styles, _mixed_layer(loaded, options, styles), cameras, look)
        rows = f"{len(faces)}" if faces.seeds is not None else faces.counted
        return sequence, f"{rows} x {len(mixed)} mixed seeds"
    if options.interpolate is not None:
        if options.interpolate not in ("both", *style_parts(styles)):
            name = type(loaded.generator).__name__
            raise UserError(f"--interpolate {options.interpolate} is no part of {name}'s styles; give both")
        sequence = interpolation(loaded, styles, cameras, look, options.interpolate)
        return sequence, f"a path through {faces.counted}"
    return every_face(loaded, styles, cameras, look), faces.counted


def _look(loaded: LoadedGenerator, options: Options, resolution: int) -> Look:
    available = kinds_of(loaded.generator)
    kinds: tuple[PictureKind, ...] = available if options.kind == "all" else (options.kind,)
    if not set(kinds) <= set(available):
        what = "an auxiliary picture" if options.kind == "aux" else options.kind
        name = type(loaded.generator).__name__
        raise UserError(f"--kind {options.kind} shows {what}, which {name} does not have; use image")
    return Look(resolution, kinds, options.jitter, options.batch_size)


def _check_model(loaded: LoadedGenerator, options: Options, resolution: int) -> None:
    """Raise `UserError` where a flag asks for what the model cannot do."""
    generator = loaded.generator
    name = type(generator).__name__
    if not generator.is_3d:
        camera = {
            "--yaw": options.yaw,
            "--pitch": options.pitch,
            "--trajectory": options.trajectory,
            "--fov": options.fov,
        }
        for flag, given in camera.items():
            if given is not None:
                raise UserError(f"{name} is a 2-D model and has no camera; leave out {flag}")
    if options.lock_view and not generator.has_view_dependence:
        raise UserError(f"--lock-view is for pi-GAN; the colours of {name} are the same from all sides, leave it out")
    check_resolution_of(loaded, resolution)
    front = loaded.poses.front_pitch
    for pitch in options.pitch or ():
        if not 0 < front + pitch < math.pi:
            raise UserError(
                f"--pitch {pitch:g} goes over a pole; give angles between {-front:.2f} and {math.pi - front:.2f}"
            )


def _mixed_layer(loaded: LoadedGenerator, options: Options, styles: tuple[Tensor, ...]) -> int:
    """The first layer of the other seed: where styles keep shape and appearance apart, all of the appearance's."""
    layers, name = loaded.generator.style_layers, type(loaded.generator).__name__
    if layers == 0:
        raise UserError(f"--mix takes layers of another seed, and {name} has one style for all; leave it out")
    layer = options.mix_layer
    if layer is None:
        return 0 if "shape" in style_parts(styles) else layers // 2
    if not 0 <= layer <= layers:
        raise UserError(f"--mix-layer {layer} is none of this {name}; give 0 to {layers}")
    return layer


def _cameras(loaded: LoadedGenerator, options: Options, faces: int) -> Cameras:
    """One a view, or one a frame."""
    poses = loaded.poses
    if options.camera_file is not None:
        return read_cameras(
            options.camera_file,
            fov_degrees=loaded.fov_degrees,
            front_pitch=poses.front_pitch,
            front_yaw=poses.yaw_mean,
        )
    if options.has_frames:
        return _trajectory(loaded, options, _frame_count(options, faces))
    one_view = options.mix is not None or not loaded.generator.is_3d
    yaws = options.yaw or ((0.0,) if one_view else VIEW_YAWS)
    views = [(pitch, yaw) for pitch in options.pitch or (0.0,) for yaw in yaws]
    pitch = torch.tensor([poses.front_pitch + pitch for pitch, _ in views])
    yaw = torch.tensor([poses.yaw_mean + yaw for _, yaw in views])
    return Cameras.from_angles(pitch.clamp(PITCH_MARGIN, math.pi - PITCH_MARGIN), yaw, loaded.fov_degrees)


def _frame_count(options: Options, faces: int) -> int:
    if options.frames is not None:
        return options.frames
    if options.interpolate is not None:
        return faces * (COLUMNS_A_SEED if options.is_one_picture else FRAMES_A_SEED)
    return COLUMNS if options.is_one_picture else FRAMES


def _trajectory(loaded: LoadedGenerator, options: Options, frames: int) -> Cameras:
    trajectory = TRAJECTORIES[options.trajectory or "front"]

    def ends(axis: str, given: tuple[float, ...] | None, default: tuple[float, float]) -> tuple[float, float]:
        angles = given or (default if axis in trajectory.ranges else (0.0,))
        return min(angles), max(angles)

    low, high = ends("pitch", options.pitch, PITCH_ENDS)
    left, right = ends("yaw", options.yaw, YAW_ENDS)
    poses = loaded.poses
    extent = CameraRange(
        pitch=(max(poses.front_pitch + low, PITCH_MARGIN), min(poses.front_pitch + high, math.pi - PITCH_MARGIN)),
        yaw=(poses.yaw_mean + left, poses.yaw_mean + right),
        distance=options.distance or CameraRange.distance,
        fov_degrees=loaded.fov_degrees,
    )
    return trajectory.cameras(frames, extent)


def _layout(options: Options, look: Look, faces: Faces, mixed: Faces | None) -> Layout:
    """Faces of a frame: in a table where styles are mixed, in a square where each is one picture, else a row each."""
    enlarge = max(1, VISIBLE_SIDE // max(look.size))
    if mixed is not None:
        return Layout(len(mixed) + 1, ("", *faces.names), ("", *mixed.names), enlarge)
    if options.interpolate is not None:
        return Layout(1, enlarge=enlarge)
    columns = math.ceil(math.sqrt(len(faces))) if len(look.kinds) == 1 else 1
    labels = tuple(_row_label(faces, start, start + columns) for start in range(0, len(faces), columns))
    return Layout(columns, labels if len(faces) > 1 else None, enlarge=enlarge)


def _row_label(faces: Faces, start: int, stop: int) -> str:
    """The label of a row of several faces: "seed 3", "seeds 0-3", "seeds 1, 5, 9" or the latents' names."""
    names = faces.names[start:stop]
    if faces.seeds is None or len(names) == 1:
        return ", ".join(names)
    seeds = faces.seeds[start:stop]
    if seeds == tuple(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return "seeds " + ", ".join(map(str, seeds))


def _row_labels(options: Options, look: Look, faces: Faces) -> tuple[str, ...] | None:
    """Labels of the rows of a picture whose columns are views or frames."""
    several = len(look.kinds) > 1
    if options.interpolate is not None:  # one face, which changes
        return look.kinds if several else None
    return tuple(f"{name} {kind}" if several else name for name in faces.names for kind in look.kinds)


def _column_labels(loaded: LoadedGenerator, options: Options, faces: Faces, count: int) -> tuple[str, ...] | None:
    """Labels of a picture's columns: the face that an interpolation has reached, the frame, or the view."""
    if options.interpolate is not None:
        reached = {round(index * count / len(faces)): name for index, name in enumerate(faces.names)}
        return tuple(reached.get(frame, "") for frame in range(count))
    if options.has_frames:
        return tuple(f"frame {frame}" for frame in range(count))
    if not loaded.generator.is_3d:
        return None
    pitches, yaws = options.pitch or (0.0,), options.yaw or VIEW_YAWS
    return tuple(
        f"yaw {yaw:g}" if pitches == (0.0,) else f"pitch {pitch:g} yaw {yaw:g}" for pitch in pitches for yaw in yaws
    )


def _check_size(
    options: Options,
    look: Look,
    layout: Layout,
    faces: int,
    frames: int,
    rows: Sequence[str] | None,
    columns: Sequence[str] | None,
) -> None:
    """Raise `UserError` where the picture would be too large for its format, or the animation too long; before styles
    of all faces are made.

    Args:
        faces: of a frame.
        rows, columns: labels of a picture whose columns are views or frames.
    """
    if options.is_arrays:
        check_count(options.out, faces, frames, look)
        return
    if options.is_folder:
        height, width = look.size
        pictures.check_size(options.out / "one.png", width, height)
        return
    if options.is_animation or options.mix is not None:
        size = arranged_size(faces, look, layout)
    else:
        cells = frames * faces * len(look.kinds)
        size = pictures.grid_size(cells, frames, *look.size, layout.enlarge, row_labels=rows, column_labels=columns)
    pictures.check_size(options.out, *size)
    if options.is_animation:
        animations.check_duration(options.out, frames, options.fps)
