"""Faces from view to view or from frame to frame, as pictures of several kinds, arranged in grids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from cips3d import pictures
from cips3d.cameras import Cameras
from cips3d.models.generator import Generator, chosen, styles_of, with_same_layers
from cips3d.rendering.loading import LoadedGenerator
from cips3d.rendering.normals import normals_from_depth
from cips3d.rendering.prefetch import prefetched
from cips3d.rendering.style_paths import Part, interpolated_styles, mixed_styles
from cips3d.rendering.views import Look, PictureKind, render_pairs, volumes_of

EMPTY = -1  # in `FrameSequence.faces`: nothing is shown there
BLANK = 1.0  # what an empty place shows: the white of the grids' gaps
BACKGROUND_SHARE = 0.15  # of the rays' range; what is nearer to its end than this counts as background


@dataclass(frozen=True, eq=False)
class FrameSequence:
    """Which faces are seen from where, frame by frame; the views of a still are its frames too."""

    loaded: LoadedGenerator
    styles: tuple[Tensor, ...]
    """of all faces that appear"""
    faces: Tensor
    """[F, N] which of them each frame shows, on the CPU; `EMPTY`: none"""
    cameras: Cameras
    """F, one a frame"""
    look: Look
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    """of the jitter"""

    def __len__(self) -> int:
        return len(self.faces)

    def part(self, start: int, stop: int, *, progress: bool = False) -> Tensor:
        """Pictures [frames, N, K, 3, R, R] in [-1, 1] of some frames, a picture a face and kind."""
        faces = self.faces[start:stop]
        frame, place = (faces != EMPTY).nonzero(as_tuple=True)
        styles = chosen(self.styles, faces[frame, place].to(self.loaded.device))
        taken = take_pictures(
            self.loaded, styles, self.cameras[start:stop][frame], self.look, self.random, progress=progress
        )
        shown = taken.new_full((*faces.shape, *taken.shape[1:]), BLANK)
        shown[frame, place] = taken
        return shown

    def frames(self) -> Iterator[Tensor]:
        """One frame after the other [N, K, 3, R, R]; no more are held than are rendered together.

        A GPU goes on with the frames behind them meanwhile.
        """
        at_once = max(1, self.look.batch_size // self.faces.shape[1])
        parts = (self.part(start, start + at_once) for start in range(0, len(self), at_once))
        for frames in prefetched(parts, self.loaded.device):
            yield from frames


def every_face(loaded: LoadedGenerator, styles: tuple[Tensor, ...], cameras: Cameras, look: Look) -> FrameSequence:
    """All faces in every frame."""
    faces = torch.arange(len(styles[0])).expand(len(cameras), -1)
    return FrameSequence(loaded, styles, faces, cameras, look)


def interpolation(
    loaded: LoadedGenerator, styles: tuple[Tensor, ...], cameras: Cameras, look: Look, part: Part = "both"
) -> FrameSequence:
    """One face that turns into all others and back (`interpolated_styles`), while the camera goes its way."""
    frames = len(cameras)
    return FrameSequence(
        loaded, interpolated_styles(styles, frames, part), torch.arange(frames)[:, None], cameras, look
    )


def mixing(
    loaded: LoadedGenerator,
    first: tuple[Tensor, ...],
    second: tuple[Tensor, ...],
    layer: int,
    cameras: Cameras,
    look: Look,
) -> FrameSequence:
    """A table in every frame: `second` in its first row, `first` in its first column, and their mixtures.

    Its first place is empty. Arguments as in `mixed_styles`.
    """
    first, second = with_same_layers(first, second)
    rows, columns = len(first[0]), len(second[0])
    mixed = loaded.generator.mixed
    tables = (mixed(first, first, layer), mixed(second, second, layer), mixed_styles(loaded, first, second, layer))
    pool = styles_of(tables[0], [torch.cat(parts) for parts in zip(*tables, strict=True)])
    faces = torch.full((rows + 1, columns + 1), EMPTY)
    faces[1:, 0] = torch.arange(rows)
    faces[0, 1:] = rows + torch.arange(columns)
    faces[1:, 1:] = rows + columns + torch.arange(rows * columns).view(rows, columns)
    return FrameSequence(loaded, pool, faces.flatten().expand(len(cameras), -1), cameras, look)


@dataclass(frozen=True)
class Layout:
    """How the faces of a frame are arranged."""

    columns: int
    """faces a row"""
    row_labels: tuple[str, ...] | None = None
    column_labels: tuple[str, ...] | None = None
    """one a face of a row"""
    enlarge: int = 1
    """whole factor by which pixels are repeated"""


def kinds_of(generator: Generator) -> tuple[PictureKind, ...]:
    """The kinds of pictures that a generator has."""
    kinds: list[PictureKind] = ["image"]
    if generator.has_aux_image:
        kinds.append("aux")
    if generator.is_3d:
        kinds += ["depth", "normals"]
    return tuple(kinds)


def take_pictures(
    loaded: LoadedGenerator,
    styles: tuple[Tensor, ...],
    cameras: Cameras,
    look: Look,
    random: torch.Generator | None = None,
    *,
    progress: bool = False,
) -> Tensor:
    """Every style from its own camera, in every kind: [N, K, 3, R, R] in [-1, 1].

    Depth is bright where near, over the range of the rays; normals n in the camera's axes have the colour (n + 1) / 2,
    grey in empty space: red faces right, green up, blue the camera.

    Args:
        styles: of N faces.
        cameras: N cameras.
        look: what and how.
        random: source of the jitter.
        progress: show a bar on stderr.
    """
    shown = render_pairs(loaded, styles, cameras, look, generator=random, progress=progress)
    by_kind = {"image": shown.image}
    if shown.aux_image is not None:
        by_kind["aux"] = shown.aux_image
    if shown.depth is not None:
        by_kind |= _pictures_of_depth(loaded, shown.depth, cameras, look)
    return torch.stack([by_kind[kind] for kind in look.kinds], dim=1)


def _pictures_of_depth(loaded: LoadedGenerator, depth: Tensor, cameras: Cameras, look: Look) -> dict[str, Tensor]:
    """Pictures of the kinds that a depth map shows, on the CPU; a GPU makes a few of them at a time."""
    device, count = loaded.device, len(depth)
    near, far = _ends_of_rays(loaded, cameras)
    made: dict[str, list[Tensor]] = {kind: [] for kind in ("depth", "normals") if kind in look.kinds}
    at_once = count if device.type == "cpu" else look.pictures_at_once
    for start in range(0, count, at_once):
        some = slice(start, start + at_once)
        t, begin, end = (x[some].to(device) for x in (depth, near, far))
        if "depth" in made:
            made["depth"].append(pictures.depth_image(t, begin, end).cpu())
        if "normals" in made:
            made["normals"].append(_visible_normals(t, cameras[some].to(device), begin, end).cpu())
    return {kind: torch.cat(parts) for kind, parts in made.items()}


def visible_normals(loaded: LoadedGenerator, depth: Tensor, cameras: Cameras) -> Tensor:
    """Normals [N, 3, R, R] of the surfaces that N cameras see (`normals_from_depth`), 0 in empty space.

    Args:
        loaded: the model that was seen.
        depth: [N, 1, R, R] scene units, on the cameras' device.
        cameras: N.
    """
    near, far = _ends_of_rays(loaded, cameras)
    return _visible_normals(depth, cameras, near.to(depth), far.to(depth))


def _visible_normals(depth: Tensor, cameras: Cameras, near: Tensor, far: Tensor) -> Tensor:
    empty = depth > (far - BACKGROUND_SHARE * (far - near)).view(-1, 1, 1, 1)
    return normals_from_depth(depth, cameras).masked_fill(empty, 0)


def _ends_of_rays(loaded: LoadedGenerator, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Where rays begin and end [N] of every camera, on the CPU."""
    volumes = volumes_of(loaded.settings, cameras)
    return torch.tensor([v.t_near for v in volumes]), torch.tensor([v.t_far for v in volumes])


def strip(
    sequence: FrameSequence, row_labels: Sequence[str] | None, column_labels: Sequence[str] | None, enlarge: int
) -> Image.Image:
    """All frames of a sequence in one picture: a row a face and kind, a column a frame."""
    shown = sequence.part(0, len(sequence), progress=True)  # [F, N, K, 3, R, R]
    rows = shown.permute(1, 2, 0, 3, 4, 5).flatten(0, 2)
    return pictures.image_grid(rows, len(sequence), row_labels=row_labels, column_labels=column_labels, enlarge=enlarge)


def arranged(frame: Tensor, layout: Layout) -> Image.Image:
    """One frame [N, K, 3, R, R]: faces in rows, the kinds of a face side by side."""
    kinds = frame.shape[1]
    return pictures.image_grid(
        frame.flatten(0, 1),
        layout.columns * kinds,
        row_labels=layout.row_labels,
        column_labels=_of_kinds(layout.column_labels, kinds),
        enlarge=layout.enlarge,
    )


def arranged_size(faces: int, look: Look, layout: Layout) -> tuple[int, int]:
    """(width, height) in pixels of `arranged`."""
    kinds = len(look.kinds)
    return pictures.grid_size(
        faces * kinds,
        layout.columns * kinds,
        *look.size,
        layout.enlarge,
        row_labels=layout.row_labels,
        column_labels=_of_kinds(layout.column_labels, kinds),
    )


def _of_kinds(labels: Sequence[str] | None, kinds: int) -> list[str] | None:
    """Labels of faces, once for each kind of picture."""
    return None if labels is None else [label for label in labels for _ in range(kinds)]
