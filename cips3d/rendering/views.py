"""Pictures of styles from cameras, a few at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from cips3d.cameras import TRAINING_DISTANCE, Cameras, sides
from cips3d.errors import UserError
from cips3d.models.generator import chosen
from cips3d.models.view import Picture, View
from cips3d.models.volume import VolumeSettings
from cips3d.rendering.loading import LoadedGenerator

BATCH_SIZE = 4  # pictures at a time
VISIBLE_SIDE = 128  # smaller pictures are enlarged by the whole factor that brings them nearest below it
VIEW_YAWS = (-0.4, 0.0, 0.4)  # radians from the front, where nothing else is asked for
PIXELS_AT_ONCE = 2**20  # fewer pictures at a time where they have more: weights and depths take 200 bytes a pixel

DISTANCE_STEP = 1e-4  # scene units; cameras at distances that differ by less share one range of rays
NEAREST = 0.01  # scene units; rays of cameras within the volume begin here

PictureKind = Literal["image", "aux", "depth", "normals"]


@dataclass(frozen=True)
class Look:
    """What pictures of every face and view are made: their size, kinds and noise."""

    resolution: int | tuple[int, int]
    """side of square pictures, or (height, width)"""
    kinds: tuple[PictureKind, ...] = ("image",)
    """the picture, the NeRF's own ("aux"), depth, surface normals"""
    jitter: bool = False
    """sample rays at random depths, as in training; False gives the same pictures every time"""
    batch_size: int = BATCH_SIZE
    """pictures rendered at a time, fewer where they are large; smaller needs less memory"""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return sides(self.resolution)

    @property
    def pixels(self) -> int:
        """Of a picture."""
        height, width = self.size
        return height * width

    @property
    def has_depth(self) -> bool:
        """Depth maps are shown, or normals, which are made of them."""
        return not {"depth", "normals"}.isdisjoint(self.kinds)

    @property
    def pictures_at_once(self) -> int:
        """How many pictures are rendered together: `batch_size`, or fewer where they are large."""
        return max(1, min(self.batch_size, PIXELS_AT_ONCE // self.pixels))


class RenderedViews(NamedTuple):
    """Pictures on the CPU: [S, V, ...] of S styles from V views each, or [N, ...] of N pairs of style and camera.

    Attributes:
        image: [..., 3, H, W] in [-1, 1].
        aux_image: [..., 3, H, W] in [-1, 1].
        depth: [..., 1, H, W] scene units.
    """

    image: Tensor
    aux_image: Tensor | None
    depth: Tensor | None


def volume_at(settings: VolumeSettings, distance: float) -> VolumeSettings:
    """The settings with rays that hold the same ball around the origin from another distance.

    t_near' = max(d - (1 - t_near), 0.01), t_far' = d + (t_far - 1); training cameras stand at distance 1.

    Args:
        settings: for distance 1.
        distance: d, of the camera from the origin, in scene units.
    """
    t_near = max(distance - (TRAINING_DISTANCE - settings.t_near), NEAREST)
    t_far = max(distance + (settings.t_far - TRAINING_DISTANCE), t_near + DISTANCE_STEP)
    return replace(settings, t_near=t_near, t_far=t_far)


def volumes_of(settings: VolumeSettings, cameras: Cameras) -> list[VolumeSettings]:
    """`volume_at` of every camera; those at the same distance, to within 1e-4, have the same."""
    steps = (cameras.distance.double() / DISTANCE_STEP).round().long().tolist()
    training = round(TRAINING_DISTANCE / DISTANCE_STEP)
    return [settings if step == training else volume_at(settings, step * DISTANCE_STEP) for step in steps]


@torch.no_grad()
def render_pairs(
    loaded: LoadedGenerator,
    styles: tuple[Tensor, ...],
    cameras: Cameras,
    look: Look,
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> RenderedViews:
    """Render every style from its own camera; 2-D generators do not look at the cameras.

    Rays begin and end where the volume around the origin does, seen from the camera (`volume_at`). Depth is
    Σ w t + (1 - Σ w) t_far: the light that no sample takes comes from the far end, so that empty space looks far.

    Args:
        styles: of N faces.
        cameras: N cameras.
        look: what and how. Images come with all kinds; "aux", of generators that have it, adds the NeRF's own
            pictures, "depth" and "normals", of 3-D generators, add depth maps.
        generator: source of the jitter; one on the CPU gives the same on every device.
        progress: show a progress bar on stderr.

    Returns:
        `RenderedViews` with N pictures.

    Raises:
        UserError: the pictures are not numbers, since training diverged.
        ValueError: an argument does not fit, or the generator has no auxiliary pictures or depth.
    """
    aux, depth = "aux" in look.kinds, look.has_depth
    if (aux and not loaded.generator.has_aux_image) or (depth and not loaded.generator.is_3d):
        raise ValueError(f"{type(loaded.generator).__name__} has no {'auxiliary picture' if aux else 'depth'}")
    count = len(cameras)
    if len(styles[0]) != count or count == 0:
        raise ValueError(f"styles and cameras must be as many, and at least one, got {len(styles[0])} and {count}")
    if look.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {look.batch_size}")
    cameras = cameras.to(dtype=loaded.generator.dtype)
    groups: dict[VolumeSettings, list[int]] = {}
    for index, volume in enumerate(volumes_of(loaded.settings, cameras)):
        groups.setdefault(volume, []).append(index)
    cameras = cameras.to(loaded.device)
    parts: list[list[Tensor]] = []  # a batch: [image, (aux image), (depth)]
    with tqdm(total=count, desc="rendering", unit="picture", disable=not progress, leave=False) as bar:
        for volume, members in groups.items():
            for pairs in torch.tensor(members, device=loaded.device).split(look.pictures_at_once):
                seen = View(
                    look.resolution,
                    cameras[pairs],
                    volume,
                    return_aux=aux,
                    lock_view=loaded.lock_view,
                    jitter=look.jitter,
                    generator=generator,
                )
                parts.append(_kept(loaded.generator.render(chosen(styles, pairs), seen), depth))
                bar.update(len(pairs))
    kept = [torch.cat(batches) for batches in zip(*parts, strict=True)]
    if len(groups) > 1:  # else they are in order, and the memory for another copy of all can be spared
        order = torch.tensor([index for members in groups.values() for index in members]).argsort()
        kept = [pictures[order] for pictures in kept]
    if not all(torch.isfinite(pictures).all() for pictures in kept):
        raise UserError(
            f"the model gives pictures that are not numbers{loaded.at_step}: its training diverged; "
            "give an earlier checkpoint"
        )
    return RenderedViews(kept[0], kept[1] if aux else None, kept[-1] if depth else None)


def render_views(
    loaded: LoadedGenerator,
    styles: tuple[Tensor, ...],
    pitch: Tensor,
    yaw: Tensor,
    look: Look,
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> RenderedViews:
    """Render every style from every view; 2-D generators give the same picture from all.

    Args:
        styles: of S faces.
        pitch: [V] radians, π/2 is the horizon; yaw: [V] radians, π/2 is the front.
        look, generator, progress: see `render_pairs`.

    Returns:
        `RenderedViews` with S times V pictures.

    Raises:
        UserError: the pictures are not numbers, since training diverged.
        ValueError: an argument does not fit, or the generator has no auxiliary pictures or depth.
    """
    if pitch.dim() != 1 or pitch.shape != yaw.shape or len(pitch) == 0:
        shapes = f"{list(pitch.shape)} and {list(yaw.shape)}"
        raise ValueError(f"pitch and yaw must both have shape [V] with V > 0, got {shapes}")
    faces, views = len(styles[0]), len(pitch)
    dtype = loaded.generator.dtype
    cameras = Cameras.from_angles(pitch.to(dtype), yaw.to(dtype), loaded.fov_degrees).to(loaded.device)
    pairs = torch.arange(faces * views, device=loaded.device)
    shown = render_pairs(
        loaded, chosen(styles, pairs // views), cameras[pairs % views], look, generator=generator, progress=progress
    )

    def by_face(pictures: Tensor | None) -> Tensor | None:
        return None if pictures is None else pictures.unflatten(0, (faces, views))

    return RenderedViews(shown.image.unflatten(0, (faces, views)), by_face(shown.aux_image), by_face(shown.depth))


def _kept(picture: Picture, depth: bool) -> list[Tensor]:
    """The tensors of a batch that were asked for, on the CPU; the others are dropped."""
    kept = [picture.image.cpu()]
    if picture.aux_image is not None:
        kept.append(picture.aux_image.cpu())
    if depth and picture.depth is not None:
        kept.append(picture.depth.cpu())
    return kept
