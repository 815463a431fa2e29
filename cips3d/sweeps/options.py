"""The options that commands with a strength share, and checks of everything that needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from cips3d import pictures
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
    TruncationFlag,
)
from cips3d.rendering.options import Options as RenderOptions
from cips3d.rendering.options import check_frames, listed
from cips3d.rendering.options import check_options as check_render_options
from cips3d.rendering.views import BATCH_SIZE


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Which faces, and how they are looked at; commands add what changes them."""

    default_seeds: ClassVar[str]
    """what --seeds are where neither they nor --latent are given"""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """file to write: .png, .webp or .jpg, a column each of --strengths; .gif, .mp4 or (with --trajectory or --frames)
    a moving .webp, where strengths come and go or the camera moves"""
    seeds: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="(default: 0-3)")] = None
    """which faces, a row each: integers and ranges, such as 3 or 0-7 or 1,5,9-12"""
    latent: LatentsFlag = None
    yaw: Annotated[
        tuple[float, ...] | None, tyro.conf.arg(metavar="RAD [RAD]", help_behavior_hint="(default: 0, the front)")
    ] = None
    """where the camera stands to the side: an offset from the front in radians, positive looks from the left; with
    --trajectory, the ends of its way"""
    pitch: Annotated[
        tuple[float, ...] | None, tyro.conf.arg(metavar="RAD [RAD]", help_behavior_hint="(default: 0, the horizon)")
    ] = None
    """how low the camera stands: an offset from the front in radians, positive looks from below; with --trajectory,
    the ends of its way"""
    trajectory: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: none)")] = None
    """a moving camera, as python -m cips3d.render has them; every frame shows all strengths"""
    frames: Annotated[int | None, tyro.conf.arg(metavar="COUNT", help_behavior_hint="(default: 48)")] = None
    """frames of an animation"""
    fps: FpsFlag = 24.0
    truncation: TruncationFlag = 1.0
    resolution: ResolutionFlag = None
    fov: FovFlag = None
    kind: Literal["image", "aux", "depth", "normals"] = "image"
    """the picture, the NeRF's own picture (auxiliary), the depth, or the surface normals"""
    device: DeviceFlag = "auto"
    precision: PrecisionFlag = None
    batch_size: BatchSizeFlag = BATCH_SIZE

    @property
    def is_animation(self) -> bool:
        """Frames follow each other in time."""
        ending = self.out.suffix.lower()
        may_move, may_stand = ending in animations.ANIMATION_ENDINGS, ending in pictures.IMAGE_ENDINGS
        return may_move and (not may_stand or self.trajectory is not None or self.frames is not None)


def check_options(options: SweepOptions, endings: Sequence[str] = ()) -> None:
    """Raise `UserError` for what can be known to be wrong before a model is loaded.

    Args:
        options: of the command.
        endings: of files that the command writes besides pictures and animations.
    """
    every = dict.fromkeys((*pictures.IMAGE_ENDINGS, *animations.ANIMATION_ENDINGS, *endings))
    pictures.check_path(options.out, tuple(every), "what is written")
    fps = None if options.fps == SweepOptions.fps else f"{options.fps:g}"
    for flag, given in (("--trajectory", options.trajectory), ("--frames", options.frames), ("--fps", fps)):
        if given is not None and not options.is_animation:
            raise UserError(
                f"{flag} {given} is for what moves; give a .webp, .gif or .mp4 as --out, or leave {flag} out"
            )
    if options.trajectory is None:
        for flag, angles in (("--yaw", options.yaw), ("--pitch", options.pitch)):
            if angles is not None and len(angles) > 1:
                raise UserError(f"{flag} {listed(angles)} is more than one view; give one, or a --trajectory")
        if options.is_animation:
            _check_still_animation(options)
    if options.out.suffix.lower() not in endings:
        check_render_options(render_options(options))


def check_no_picture(options: SweepOptions, instead: str) -> None:
    """Raise `UserError` for flags of pictures where none is made.

    Args:
        options: of the command.
        instead: what a file has that is written in its place, in a clause.
    """
    for flag, is_given in (
        ("--yaw", options.yaw is not None),
        ("--pitch", options.pitch is not None),
        ("--resolution", options.resolution is not None),
        ("--fov", options.fov is not None),
        ("--kind", options.kind != SweepOptions.kind),
        ("--batch-size", options.batch_size != SweepOptions.batch_size),
    ):
        if is_given:
            raise UserError(f"{flag} is for pictures, and {instead}; leave it out")


def _check_still_animation(options: SweepOptions) -> None:
    """An animation in which strengths change while the camera stands still."""
    ending = options.out.suffix.lower()
    animations.check_fps(ending, options.fps)
    if options.frames is not None:
        check_frames(options.frames)
    if ending == animations.VIDEO_ENDING:
        import_ffmpeg()


def render_options(options: SweepOptions, *, one_view: bool = False) -> RenderOptions:
    """The options of `python -m cips3d.render` that show the same faces from the same cameras.

    Args:
        options: of the command.
        one_view: a still camera stands in front unless the options say otherwise; only for 3-D models, which have one.
    """
    moves = options.trajectory is not None
    yaw = (0.0,) if one_view and not moves and options.yaw is None else options.yaw
    return RenderOptions(
        run=Path(),
        # The camera of an animated sweep may stand still; what these options describe is then a picture.
        out=options.out if moves or not options.is_animation else options.out.with_suffix(".png"),
        seeds=options.seeds or (options.default_seeds if options.latent is None else None),
        latent=options.latent,
        yaw=yaw,
        pitch=options.pitch,
        trajectory=options.trajectory,
        frames=options.frames if moves else None,
        fps=options.fps if moves else RenderOptions.fps,
        truncation=options.truncation,
        resolution=options.resolution,
        fov=options.fov,
        kind=options.kind,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
    )


def check_strengths(strengths: Sequence[float]) -> None:
    """Raise `UserError` unless there is one or more, none beyond what networks compute with."""
    if not strengths or not all(abs(strength) <= LARGEST_NUMBER for strength in strengths):
        raise UserError(
            f"--strengths {listed(strengths)} must be one or more numbers from -{LARGEST_NUMBER:g} to "
            f"{LARGEST_NUMBER:g}; give some such as 0 0.5 1"
        )
