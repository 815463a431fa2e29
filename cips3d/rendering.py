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
from cips3d.models.family import AnyGenerator
from cips3d.models.generator import Picture, View, chosen, truncated
from cips3d.models.volume import VolumeSettings
from cips3d.training.networks import load_networks

BATCH_SIZE = 4  # pictures at a time: their weights and depths are held at once, 200 MB a picture of 1024²


@dataclass(frozen=True, eq=False)
class LoadedGenerator:
    """A generator and all else that its pictures depend on."""

    generator: AnyGenerator
    settings: VolumeSettings
    fov_degrees: float
    """the cameras' angle of view"""
    resolution: int
    """side of the pictures it was trained on last; it renders any other too"""
    poses: PoseDistribution
    """where the training cameras stood; their mean is the front"""
    step: int | None
    """training steps taken, where the file tells"""

    @property
    def device(self) -> torch.device:
        return self.generator.device

    @cached_property
    def mean_styles(self) -> tuple[Tensor, ...]:
        """The centre of truncation, computed when it is first needed."""
        return self.generator.mean_styles()


class Views(NamedTuple):
    """Pictures of S styles from V views, on the CPU."""

    image: Tensor  # [S, V, 3, H, W] in [-1, 1]
    aux_image: Tensor | None  # [S, V, 3, H, W] in [-1, 1]
    depth: Tensor | None  # [S, V, 1, H, W] scene units


def load_generator(path: str | Path, device: torch.device | str = "cpu") -> LoadedGenerator:
    """The averaged (EMA) generator of a training run or a converted checkpoint, ready to render.

    Args:
        path: a run folder (its newest checkpoint is taken), a checkpoint file, or a converted one.
        device: where it shall compute.

    Raises:
        UserError: nothing is there, or it is not a checkpoint that this package can use.
    """
    networks = load_networks(Path(path))
    return LoadedGenerator(
        networks.generator().to(device),
        networks.volume,
        networks.fov_degrees,
        networks.resolution,
        networks.poses,
        networks.step,
    )


@torch.no_grad()
def styles_of_seeds(loaded: LoadedGenerator, seeds: Sequence[int], truncation: float = 1.0) -> tuple[Tensor, ...]:
    """Styles of the faces that integers stand for.

    Every seed's z is drawn on the CPU by a random generator of its own, so that a seed means the same face on
    every device and whatever other seeds are asked for.

    Args:
        seeds: integers in [0, 2^63).
        truncation: ψ of mean + ψ (style - mean); 1 leaves styles as they are, 0 gives the mean face.

    Returns:
        The generator's styles of len(seeds) faces, on its device.
    """
    if not seeds:
        raise ValueError("seeds must hold at least one integer, got none")
    draws = [loaded.generator.sample_z(1, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    styles = loaded.generator.mapping(*(torch.cat(parts) for parts in zip(*draws, strict=True)))
    return styles if truncation == 1 else truncated(styles, loaded.mean_styles, truncation)


@torch.no_grad()
def render_views(
    loaded: LoadedGenerator,
    styles: tuple[Tensor, ...],
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
    """Render every style from every view; 2-D generators give the same picture from all.

    Depth is Σ w t + (1 - Σ w) t_far: the light that no sample takes comes from the far end, so that empty space
    looks far.

    Args:
        styles: of S faces.
        pitch: [V] radians, π/2 is the horizon; yaw: [V] radians, π/2 is the front.
        resolution: side of square pictures, or (height, width).
        aux: also give the NeRF's own pictures, of generators that have them.
        depth: also give depth maps, of 3-D generators.
        jitter: sample rays at random depths, as in training; False gives the same pictures every time.
        batch_size: pictures rendered at a time; smaller needs less memory.
        generator: source of the jitter, on the generator's device.
        progress: show a progress bar on stderr.

    Raises:
        UserError: the pictures are not numbers, since training diverged.
        ValueError: an argument does not fit, or the generator has no auxiliary pictures or depth.
    """
    if (aux and not loaded.generator.has_aux_image) or (depth and not loaded.generator.is_3d):
        raise ValueError(f"{type(loaded.generator).__name__} has no {'auxiliary picture' if aux else 'depth'}")
    if pitch.dim() != 1 or pitch.shape != yaw.shape or len(pitch) == 0:
        shapes = f"{list(pitch.shape)} and {list(yaw.shape)}"
        raise ValueError(f"pitch and yaw must both have shape [V] with V > 0, got {shapes}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    faces, views = len(styles[0]), len(pitch)
    cameras = Cameras.from_angles(pitch.float(), yaw.float(), loaded.fov_degrees).to(loaded.device)
    parts: list[list[Tensor]] = []  # a batch: [image, (aux image), (depth)]
    with tqdm(total=faces * views, desc="rendering", unit="picture", disable=not progress, leave=False) as bar:
        for pairs in torch.arange(faces * views, device=loaded.device).split(batch_size):
            face, view = pairs // views, pairs % views
            seen = View(resolution, cameras[view], loaded.settings, return_aux=aux, jitter=jitter, generator=generator)
            parts.append(_kept(loaded.generator.render(chosen(styles, face), seen), depth))
            bar.update(len(pairs))
    kept = [torch.cat(batches).unflatten(0, (faces, views)) for batches in zip(*parts, strict=True)]
    if not all(torch.isfinite(pictures).all() for pictures in kept):
        raise UserError(
            f"the model gives pictures that are not numbers at step {loaded.step}: its training diverged; "
            "give an earlier checkpoint"
        )
    return Views(kept[0], kept[1] if aux else None, kept[-1] if depth else None)


def _kept(picture: Picture, depth: bool) -> list[Tensor]:
    """What of a batch is asked for, on the CPU; the rest is let go."""
    kept = [picture.image.cpu()]
    if picture.aux_image is not None:
        kept.append(picture.aux_image.cpu())
    if depth and picture.depth is not None:
        kept.append(picture.depth.cpu())
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
