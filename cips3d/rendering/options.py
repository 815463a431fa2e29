"""The options of `python -m cips3d.render`, and checks of everything that needs no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cips3d import pictures
from cips3d.cameras import TRAJECTORIES
from cips3d.cameras.camera import FARTHEST_CAMERA, NARROWEST_FOV, NEAREST_CAMERA, WIDEST_FOV
from cips3d.cameras.camera_file import MAX_CAMERAS
from cips3d.errors import LARGEST_NUMBER, UserError
from cips3d.pictures import animations
from cips3d.pictures.video import import_ffmpeg
from cips3d.rendering.flags import (
    BatchSizeFlag,
    DeviceFlag,
    FovFlag,
    FpsFlag,
    LatentsFlag,
    PrecisionFlag,
    ResolutionFlag,
    RunArgument,
    TruncationFlag,
)
from cips3d.rendering.seeds import MAX_SEEDS, MAX_SEEDS_APART, check_truncation, parse_seeds
from cips3d.rendering.style_paths import Part
from cips3d.rendering.views import BATCH_SIZE

CAMERA_FILE_ENDING = ".json"
ARRAYS_ENDING = ".npz"
DEFAULT_SEEDS = "0-7"


@dataclass(frozen=True)
class Options:
    """The command's options."""

    run: RunArgument
    out: Annotated[Path, tyro.conf.arg(metavar="FILE_OR_FOLDER")]
    """file to write: .png, .jpg or .webp; with --trajectory or --interpolate also .mp4, .gif or a moving .webp; .npz
    for numbers instead of pictures, depth in scene units and the cameras among them; or, without an ending, a folder of
    single pictures, as other programs read them: no labels, the pixels as they are"""
    seeds: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint=f"(default: {DEFAULT_SEEDS})")] = None
    """which faces, a row each: integers and ranges, such as 3 or 0-7 or 1,5,9-12"""
    latent: LatentsFlag = None
    yaw: Annotated[
        tuple[float, ...] | None,
        tyro.conf.arg(metavar="RAD [RAD ...]", help_behavior_hint="(default: -0.4 0 0.4; a 2-D model has no sides)"),
    ] = None
    """where the camera stands to the side, a column each: offsets from the front in radians, positive looks from
    the left; with --trajectory, the ends of its way"""
    pitch: Annotated[
        tuple[float, ...] | None,
        tyro.conf.arg(metavar="RAD [RAD ...]", help_behavior_hint="(default: 0; circle and dolly: -0.2 0.2)"),
    ] = None
    """how low the camera stands: offsets from the front in radians, positive looks from below; several give
    a column for every pair with --yaw; with --trajectory, the ends of its way"""
    trajectory: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: none)")] = None
    """a moving camera: front, yaw, circle, dolly, translate, translate-rotate or FILE.json"""
    distance: Annotated[
        tuple[float, float] | None, tyro.conf.arg(metavar="NEAR FAR", help_behavior_hint="(default: 0.5 2)")
    ] = None
    """how near and far the dolly goes, in scene units from the middle of the head; training cameras stand at 1"""
    interpolate: Annotated[Part | None, tyro.conf.arg(help_behavior_hint="(default: none)")] = None
    """go smoothly from seed to seed and back to the first: in the shape or the appearance alone, which CIPS-3D keeps
    apart, or in both, as all models can"""
    mix: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="(default: none)")] = None
    """style mixing: a table of --seeds or --latent, a row each, with the later layers of these seeds, a column each"""
    mix_layer: Annotated[
        int | None,
        tyro.conf.arg(metavar="LAYER", help_behavior_hint="(default: the middle; CIPS-3D 0: the whole appearance)"),
    ] = None
    """the first layer that --mix takes from the other seed"""
    frames: Annotated[
        int | None, tyro.conf.arg(metavar="COUNT", help_behavior_hint="(default: 48; with --interpolate 24 a seed)")
    ] = None
    """frames of an animation; in a picture, where they stand side by side, the default is 8 (4 a seed)"""
    fps: FpsFlag = 24.0
    truncation: TruncationFlag = 1.0
    resolution: ResolutionFlag = None
    fov: FovFlag = None
    kind: Literal["image", "aux", "depth", "normals", "all"] = "image"
    """the picture, the NeRF's own picture (auxiliary), the depth (near is bright), the surface normals (red faces
    right, green up, blue the camera), or all of these that the model has"""
    lock_view: bool = False
    """colours as seen from one side wherever the camera is, which keeps them still while it moves; of pi-GAN"""
    jitter: bool = False
    """sample rays at random depths as in training, which shows as noise"""
    device: DeviceFlag = "auto"
    precision: PrecisionFlag = None
    batch_size: BatchSizeFlag = BATCH_SIZE

    @property
    def has_frames(self) -> bool:
        """Something moves: the camera, or faces into each other."""
        return self.trajectory is not None or self.interpolate is not None

    @property
    def is_animation(self) -> bool:
        """Frames follow each other in time; in pictures, they stand side by side."""
        return self.has_frames and self.out.suffix.lower() in animations.ANIMATION_ENDINGS

    @property
    def is_folder(self) -> bool:
        """Every picture gets a file of its own."""
        return self.out.suffix == ""

    @property
    def is_arrays(self) -> bool:
        """Numbers are written, not pictures."""
        return self.out.suffix.lower() == ARRAYS_ENDING

    @property
    def most_seeds(self) -> int:
        """How many faces there may be."""
        return MAX_SEEDS_APART if self.is_folder else MAX_SEEDS

    @property
    def is_one_picture(self) -> bool:
        """Everything is shown in one picture."""
        return not (self.is_animation or self.is_folder or self.is_arrays)

    @property
    def camera_file(self) -> Path | None:
        """The list of cameras, where that is the trajectory."""
        given = self.trajectory
        return Path(given) if given is not None and given.lower().endswith(CAMERA_FILE_ENDING) else None


def check_options(options: Options) -> None:
    """Raise `UserError` for what can be known to be wrong before the model is loaded."""
    if options.seeds is not None:
        seeds = parse_seeds(options.seeds, most=options.most_seeds)
        if options.is_folder and options.interpolate is None:
            _check_different(options.seeds, seeds)
    if options.mix is not None:
        parse_seeds(options.mix, "--mix")
    for flag, angles in (("--yaw", options.yaw), ("--pitch", options.pitch)):
        if angles is not None and not (angles and all(abs(angle) <= LARGEST_NUMBER for angle in angles)):
            raise UserError(f"{flag} {listed(angles)} is no direction; give one or more angles in radians")
    check_truncation(options.truncation)
    if options.resolution is not None and options.resolution < 1:
        raise UserError(f"--resolution {options.resolution} leaves no pixel; give 1 or more")
    if options.resolution == 1 and options.kind in ("normals", "all"):
        raise UserError("--resolution 1 shows no surface; give 2 or more for normals")
    if options.fov is not None and not NARROWEST_FOV <= options.fov <= WIDEST_FOV:
        raise UserError(f"--fov {options.fov:g} is no angle of view; give degrees from {NARROWEST_FOV} to {WIDEST_FOV}")
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size} renders nothing; give 1 or more")
    _check_trajectory(options)
    _check_faces(options)
    _check_out(options)


def _check_different(text: str, seeds: Sequence[int]) -> None:
    """Raise `UserError` for a seed that is named twice: files are named after seeds, and one would replace another."""
    again = next((seed for seed, times in Counter(seeds).items() if times > 1), None)
    if again is not None:
        raise UserError(f"--seeds {text!r} names {again} twice, and a folder holds each picture once; leave one out")


def _check_trajectory(options: Options) -> None:
    """Raise `UserError` where options of the camera's way contradict each other."""
    name = options.trajectory
    if options.camera_file is not None:
        for flag, given in (
            ("--yaw", options.yaw),
            ("--pitch", options.pitch),
            ("--distance", options.distance),
            ("--frames", options.frames),
        ):
            if given is not None:
                raise UserError(f"{flag} is not for --trajectory {name}, whose cameras are in the file; leave it out")
        return
    if name is not None and name not in TRAJECTORIES:
        names = ", ".join(TRAJECTORIES)
        raise UserError(f"--trajectory {name} is unknown; give one of {names} or a file that ends in .json")
    ranges = TRAJECTORIES[name].ranges if name is not None else ()
    if options.distance is not None:
        if "distance" not in ranges:
            raise UserError("--distance is for --trajectory dolly; leave it out")
        if not NEAREST_CAMERA <= options.distance[0] <= options.distance[1] <= FARTHEST_CAMERA:
            raise UserError(
                f"--distance {listed(options.distance)} is no range; give the nearer one first, both from "
                f"{NEAREST_CAMERA:g} to {FARTHEST_CAMERA:g}"
            )
    if not options.has_frames:
        return
    if options.frames is not None:
        least = 3 if name == "yaw" else 2  # of two, both would be in the middle of the swing
        check_frames(options.frames, least if options.is_animation else 1)
    for flag, axis, angles in (("--yaw", "yaw", options.yaw), ("--pitch", "pitch", options.pitch)):
        if angles is not None and axis not in ranges and len(angles) > 1:
            still = f"--trajectory {name}" if name is not None else "--interpolate without a --trajectory"
            raise UserError(f"{flag} {listed(angles)} is more than {still} needs; give one angle")
    if name == "yaw" and options.yaw is not None and min(options.yaw) == max(options.yaw):
        raise UserError(f"--yaw {listed(options.yaw)} leaves --trajectory yaw nowhere to go; give two different angles")


def check_frames(frames: int, least: int = 2) -> None:
    """Raise `UserError` for so few frames that nothing moves, or more than the limit."""
    if frames < least:
        raise UserError(f"--frames {frames} is no animation; give {max(least, 2)} or more")
    if frames > MAX_CAMERAS:
        raise UserError(f"--frames {frames} is too many; give {MAX_CAMERAS} or fewer")


def _check_faces(options: Options) -> None:
    """Raise `UserError` where options of faces and frames contradict each other."""
    if options.latent is not None:
        check_latent(options)
    if options.mix_layer is not None and options.mix is None:
        raise UserError("--mix-layer is for --mix; leave it out, or say which seeds to mix")
    if options.frames is not None and not options.has_frames:
        raise UserError("--frames is for --trajectory or --interpolate; give one of them, or leave it out")
    if options.fps != Options.fps and not options.is_animation:
        raise UserError(f"--fps {options.fps:g} is for an animation, and --out {options.out} is none; leave it out")
    if options.mix is None:
        return
    if options.is_folder or options.is_arrays:
        kind = "a folder" if options.is_folder else "for numbers"
        raise UserError(f"--out {options.out} is {kind}, and --mix makes one table; give a name that ends in .png")
    if options.interpolate is not None:
        raise UserError("--mix and --interpolate cannot go together; leave one out")
    if options.is_animation:
        return
    if options.has_frames:
        raise UserError(f"--out {options.out} has no room for the frames of --mix; give a .mp4, .gif or .webp")
    for flag, angles in (("--yaw", options.yaw), ("--pitch", options.pitch)):
        if angles is not None and len(angles) > 1:
            raise UserError(f"{flag} {listed(angles)} is more than one view, which is all that --mix shows; give one")


def check_latent(options: Options) -> None:
    """Raise `UserError` for options of seeds beside latents, which take their place as they are."""
    if not options.latent:
        raise UserError("--latent names no file; give one or more that python -m cips3d.invert wrote")
    if options.seeds is not None:
        raise UserError("--latent takes the place of --seeds; leave one of them out")
    if options.truncation != 1 and options.mix is None:
        raise UserError("--truncation is for faces of seeds, and --latent gives others; leave it out")


def _check_out(options: Options) -> None:
    """Raise `UserError` where a file of this ending cannot hold what is shown, or cannot be written there."""
    if options.is_folder:
        pictures.check_folder(options.out)
        return
    if options.is_arrays:
        pictures.check_path(options.out, (ARRAYS_ENDING,), "what holds numbers")
        return
    ending = options.out.suffix.lower()
    moving_only = ending in animations.ANIMATION_ENDINGS and ending not in pictures.IMAGE_ENDINGS
    if moving_only and not options.has_frames:
        raise UserError(
            f"--out {options.out} is for what moves; add --trajectory or --interpolate, or give a .png, .webp or .jpg"
        )
    if options.is_animation:
        pictures.check_path(options.out, animations.ANIMATION_ENDINGS, "an animation")
        animations.check_fps(ending, options.fps)
        if ending == animations.VIDEO_ENDING:
            import_ffmpeg()
    else:
        moving = animations.ANIMATION_ENDINGS if options.has_frames else ()
        endings = (*pictures.IMAGE_ENDINGS, *moving, ARRAYS_ENDING)
        pictures.check_path(options.out, tuple(dict.fromkeys(endings)), "a picture")


def listed(angles: Sequence[float]) -> str:
    """Angles as they are given to a flag."""
    return " ".join(f"{angle:g}" for angle in angles)
