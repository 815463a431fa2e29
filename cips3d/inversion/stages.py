"""From a photograph to a face of a generator: camera, styles and, by choice, weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cips3d.inversion.descent import Round, descend
from cips3d.inversion.losses import Perceptual, perceptual_distance, psnr
from cips3d.inversion.objective import Candidates, Objective, Record
from cips3d.inversion.search import search
from cips3d.inversion.style_space import StyleSpace
from cips3d.inversion.tuning import Pivot, tune
from cips3d.ops.checks import check_tensor
from cips3d.rendering import LoadedGenerator
from cips3d.rendering.latents import CameraAngles

# Of the steps, the first goes to all starts in small pictures, the second to the best few, the rest to the best one.
SHARES = (1 / 6, 1 / 6)
FEW = 3
LARGEST_SEARCH, SMALLEST_SEARCH = 32, 8  # sides of the small pictures
COORDINATE_RATES = (0.05, 0.05, 0.04)  # standard deviations
ANGLE_RATES = (0.015, 0.01, 0.006)  # radians


@dataclass(frozen=True)
class InversionSettings:
    """How a photograph is inverted."""

    steps: int = 600
    """of gradient descent of camera and styles, all rounds together"""
    tune_steps: int = 0
    """of pivotal tuning; 0: weights stay as they are"""
    pose: tuple[float, float] | None = None
    """(pitch, yaw) in radians of the camera, where it is known: it stays there; None: it is found"""
    starts: int = 8
    """cameras (of 2-D models and where the pose is known, faces) that are refined"""
    perceptual: Perceptual = "pyramid"
    """see `perceptual_distance`"""
    perceptual_weight: float = 0.1
    """its weight beside the pixels' differences"""
    prior: float = 1e-4
    """weight of the term that pulls styles to the mean"""
    seed: int = 0
    """of everything random"""


@dataclass(frozen=True, eq=False)
class Inversion:
    """The face, the camera and, where they were asked for, the tuned weights of a photograph."""

    styles: tuple[Tensor, ...]
    """of one face"""
    camera: CameraAngles | None
    """None of 2-D models"""
    picture: Tensor
    """[1, 3, R, R] in [-1, 1] of these styles from this camera, by the generator as it was"""
    psnr: float
    """of that picture, decibels"""
    tuned: LoadedGenerator | None
    """where weights were tuned"""
    tuned_picture: Tensor | None
    """the same picture by the tuned generator"""
    tuned_psnr: float | None
    records: tuple[Record, ...]
    """losses, step by step"""
    complete: bool
    """False: stopped before the end"""


def invert(
    loaded: LoadedGenerator,
    photo: Tensor,
    settings: InversionSettings | None = None,
    *,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Inversion:
    """Find the face and the camera whose picture is nearest to a photograph.

    1. Pose: a grid of cameras and a few faces in small pictures (`search`), then descent of the best of them.
    2. Latent: descent of styles and camera at full size (`Objective`), from the best few, then from the best.
    3. Weights, where asked for: pivotal tuning (`tune`).

    Args:
        loaded: any generator; of 2-D ones there is no camera to be found.
        photo: [3, R, R] in [-1, 1], R a side that the generator renders; of a file, `decode_image` of `cips3d.data`
            with that R gives it as bytes: x / 127.5 - 1.
        settings: how.
        progress: show bars with losses on stderr.
        stop: asked before every step; where it is true, what there is then is returned.

    Raises:
        UserError: the perceptual distance is not to be had, or the model's pictures are not numbers.
        ValueError: an argument does not fit; it is named.

    Source: pivotal tuning (arXiv 2106.05744); pi-GAN (arXiv 2012.00926), its inverse rendering, for camera and styles.
    """
    settings = settings or InversionSettings()
    _check(loaded, photo, settings)
    perceptual = perceptual_distance(settings.perceptual, loaded.device)
    objective = Objective(
        loaded,
        StyleSpace.of(loaded.generator),
        photo[None].to(loaded.device),
        perceptual,
        settings.perceptual_weight,
        settings.prior,
    )
    small = search_resolution(loaded, objective.resolution)
    found = search(objective, settings.pose, settings.starts, small, settings.seed)
    for plan in rounds(loaded, settings, objective.resolution):
        found = descend(objective, found, plan, progress=progress, stop=stop)
    best = found.chosen(torch.arange(1))
    pivot = Pivot(objective.space.styles(best.coordinates), best.pitch, best.yaw)
    tuned = None
    if settings.tune_steps > 0 and not stop():
        tuned = tune(objective, pivot, steps=settings.tune_steps, seed=settings.seed, progress=progress, stop=stop)
    return _result(objective, best, pivot, tuned, complete=not stop())


def search_resolution(loaded: LoadedGenerator, resolution: int) -> int:
    """Side of the small pictures: half, at least 8 and at most 32, of generators that render any size."""
    if loaded.generator.fixed_resolution is not None:
        return resolution
    return min(resolution, LARGEST_SEARCH, max(resolution // 2, SMALLEST_SEARCH))


def rounds(loaded: LoadedGenerator, settings: InversionSettings, resolution: int) -> tuple[Round, ...]:
    """The rounds of descent."""
    first, second = (round(share * settings.steps) for share in SHARES)
    steps = (first, second, settings.steps - first - second)
    sides = (search_resolution(loaded, resolution), resolution, resolution)
    moving = loaded.generator.is_3d and settings.pose is None
    stages = ("pose", "latent", "latent") if moving else ("faces", "latent", "latent")
    keep = (min(FEW, settings.starts), 1, 1)
    angles = ANGLE_RATES if moving else (0.0, 0.0, 0.0)
    parts = zip(stages, sides, steps, keep, COORDINATE_RATES, angles, strict=True)
    return tuple(Round(*part) for part in parts)


def _result(
    objective: Objective, best: Candidates, pivot: Pivot, tuned: LoadedGenerator | None, *, complete: bool
) -> Inversion:
    loaded = objective.loaded

    @torch.no_grad()
    def picture(by: LoadedGenerator) -> Tensor:
        return pivot.picture(by, objective.resolution)

    shown, shown_tuned = picture(loaded), None if tuned is None else picture(tuned)
    camera = CameraAngles(float(best.pitch), float(best.yaw), loaded.fov_degrees) if loaded.generator.is_3d else None
    return Inversion(
        pivot.styles,
        camera,
        shown,
        psnr(shown, objective.photo),
        tuned,
        shown_tuned,
        None if shown_tuned is None else psnr(shown_tuned, objective.photo),
        tuple(objective.records),
        complete,
    )


def _check(loaded: LoadedGenerator, photo: Tensor, settings: InversionSettings) -> None:
    check_tensor("photo", photo)
    if photo.dim() != 3 or photo.shape[0] != 3 or photo.shape[1] != photo.shape[2]:
        raise ValueError(f"photo must have shape [3, R, R], got {list(photo.shape)}")
    fixed = loaded.generator.fixed_resolution
    if fixed not in (None, photo.shape[-1]):
        raise ValueError(f"photo must have the side {fixed} that the generator renders, got {photo.shape[-1]}")
    if settings.pose is not None and not loaded.generator.is_3d:
        raise ValueError(f"pose must be None: {type(loaded.generator).__name__} is a 2-D model and has no camera")
    if not photo.isfinite().all():
        raise ValueError("photo must hold finite numbers, got others")
    for name, least in (("steps", 1), ("starts", 1), ("tune_steps", 0)):
        if getattr(settings, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(settings, name)}")
    for name in ("perceptual_weight", "prior"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise ValueError(f"{name} must be a number from 0 on, got {getattr(settings, name)}")
    if settings.pose is not None and not (0 < settings.pose[0] < math.pi and math.isfinite(settings.pose[1])):
        raise ValueError(f"pose must be a pitch between 0 and π and a yaw, got {settings.pose}")
