"""Rendering with a trained generator: load it, take the faces of seeds, look at them from chosen sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.errors import UserError
from cips3d.models.generator import Generator, Rendering, Styles
from cips3d.models.volume import VolumeSettings
from cips3d.training.checkpoint import find_checkpoint, load_checkpoint
from cips3d.training.config import TrainConfig

BATCH_SIZE = 4  # pictures at a time: their weights and depths are held at once, 200 MB a picture of 1024²


@dataclass(frozen=True, eq=False)
class LoadedGenerator:
    """A generator and all else that its pictures depend on."""

    generator: Generator
    settings: VolumeSettings
    fov_degrees: float
    """the cameras' angle of view"""
    resolution: int
    """side of the pictures it was trained on last; it renders any other too"""
    poses: PoseDistribution
    """where the training cameras stood; their mean is the front"""
    step: int
    """training steps taken"""

    @property
    def device(self) -> torch.device:
        return self.generator.device

    @cached_property
    def mean_styles(self) -> Styles:
        """The centre of truncation, computed when it is first needed."""
        return self.generator.mean_styles()


class Views(NamedTuple):
    """Pictures of S styles from V views, on the CPU."""

    image: Tensor  # [S, V, 3, H, W] in [-1, 1]
    aux_image: Tensor | None  # [S, V, 3, H, W] in [-1, 1]
    depth: Tensor | None  # [S, V, 1, H, W] scene units


def load_generator(path: str | Path, device: torch.device | str = "cpu") -> LoadedGenerator:
    """The averaged (EMA) generator of a training run, ready to render.

    Args:
        path: a run folder (its newest checkpoint is taken) or a checkpoint file.
        device: where it shall compute.

    Raises:
        UserError: nothing is there, or it is not a checkpoint that this package can use.
    """
    file = find_checkpoint(Path(path))
    state = load_checkpoint(file)
    try:
        config = TrainConfig.from_json(state["config"])
        resolution = config.stages[-1].resolution
        weights, step = state["generator_ema"], int(state["step"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} does not describe a model of this version ({error}); "
            "render it with the version of cips3d that trained it"
        ) from error
    generator = Generator(config.generator)
    try:
        generator.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"the weights in {file} do not fit the networks it describes; try another checkpoint of the run"
        ) from error
    generator.requires_grad_(False).eval().to(device)
    return LoadedGenerator(generator, config.volume, config.fov_degrees, resolution, config.poses, step)


@torch.no_grad()
def styles_of_seeds(loaded: LoadedGenerator, seeds: Sequence[int], truncation: float = 1.0) -> Styles:
    """Styles of the faces that integers stand for.

    Every seed's z is drawn on the CPU by a random generator of its own, so that a seed means the same face on
    every device and whatever other seeds are asked for.

    Args:
        seeds: integers in [0, 2^63).
        truncation: ψ of mean + ψ (style - mean); 1 leaves styles as they are, 0 gives the mean face.

    Returns:
        `Styles` of len(seeds) faces, on the generator's device.
    """
    if not seeds:
        raise ValueError("seeds must hold at least one integer, got none")
    draws = [loaded.generator.sample_z(1, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    z_shape, z_appearance = (torch.cat(parts) for parts in zip(*draws, strict=True))
    styles = loaded.generator.mapping(z_shape, z_appearance)
    return styles if truncation == 1 else styles.truncate(loaded.mean_styles, truncation)


@torch.no_grad()
def render_views(
    loaded: LoadedGenerator,
    styles: Styles,
    pitch: Tensor,
    yaw: Tensor,
    resolution: int | tuple[int, int],
    *,
    aux: bool = False,
    depth: bool = False,
    jitter: bool = False,
    batch_size: int = BATCH_SIZE,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Views:
    """Render every style from every view.

    Depth is Σ w t + (1 - Σ w) t_far: the light that no sample takes comes from the far end, so that empty space
    looks far.

    Args:
        styles: of S faces.
        pitch: [V] radians, π/2 is the horizon; yaw: [V] radians, π/2 is the front.
        resolution: side of square pictures, or (height, width).
        aux: also give the NeRF's own pictures.
        depth: also give depth maps.
        jitter: sample rays at random depths, as in training; False gives the same pictures every time.
        batch_size: pictures rendered at a time; smaller needs less memory.
        generator: source of the jitter, on the generator's device.
        progress: show a progress bar on stderr.

    Raises:
        UserError: the pictures are not numbers, since training diverged.
    """
    if pitch.dim() != 1 or pitch.shape != yaw.shape or len(pitch) == 0:
        shapes = f"{list(pitch.shape)} and {list(yaw.shape)}"
        raise ValueError(f"pitch and yaw must both have shape [V] with V > 0, got {shapes}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    faces, views = len(styles.shape), len(pitch)
    cameras = Cameras.from_angles(pitch.float(), yaw.float(), loaded.fov_degrees).to(loaded.device)
    parts: list[list[Tensor]] = []  # a batch: [image, (aux image), (depth)]
    with tqdm(total=faces * views, desc="rendering", unit="picture", disable=not progress, leave=False) as bar:
        for pairs in torch.arange(faces * views, device=loaded.device).split(batch_size):
            face, view = pairs // views, pairs % views
            rendering = loaded.generator.synthesis(
                Styles(styles.shape[face], styles.appearance[face]),
                cameras[view],
                loaded.settings,
                resolution=resolution,
                return_aux=aux,
                jitter=jitter,
                generator=generator,
            )
            parts.append(_kept(rendering, loaded.settings, depth))
            bar.update(len(pairs))
    kept = [torch.cat(batches).unflatten(0, (faces, views)) for batches in zip(*parts, strict=True)]
    if not all(torch.isfinite(pictures).all() for pictures in kept):
        raise UserError(
            f"the model gives pictures that are not numbers at step {loaded.step}: its training diverged; "
            "give an earlier checkpoint"
        )
    return Views(kept[0], kept[1] if aux else None, kept[-1] if depth else None)


def _kept(rendering: Rendering, settings: VolumeSettings, depth: bool) -> list[Tensor]:
    """What of a batch is asked for, on the CPU; the rest, many times as large, is let go."""
    kept = [rendering.image.cpu()]
    if rendering.aux_image is not None:
        kept.append(rendering.aux_image.cpu())
    if depth:
        kept.append(rendering.filled_depth(settings.t_far).cpu())
    return kept


def yaw_sweep(yaw_range: tuple[float, float], frames: int) -> Tensor:
    """A swing from the middle of a range to its end, to its beginning and back, to be shown over and over.

    yaw_k = middle + half · sin(2πk / frames): slow where it turns round.

    Args:
        yaw_range: where it turns round, in radians.
        frames: how many views.

    Returns:
        [frames] radians.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    low, high = yaw_range
    phase = torch.arange(frames, dtype=torch.float64) * (2 * math.pi / frames)
    return ((low + high) / 2 + (high - low) / 2 * torch.sin(phase)).float()
