"""Sets of pictures to compare: those of a source, and those that a generator makes when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from cips3d.cameras import Cameras
from cips3d.data.heads import SyntheticHeads
from cips3d.data.images import ImageFiles, ImageSource
from cips3d.data.loader import random_words
from cips3d.evaluation.views import seeds_of
from cips3d.models.view import View
from cips3d.pictures import to_uint8
from cips3d.rendering import LoadedGenerator, Look, render_pairs, styles_of_seeds

BLOCK = 16  # pictures rendered together: picture i depends on the seed and i alone, since blocks are always whole
SERIES_BATCH = 32  # pictures of a series rendered together
_POSES, _DRAWS = 1, 2  # what random words are for


class GeneratedImages(Dataset):
    """Pictures uint8 [3, R, R] of random faces from cameras of the training distribution, made on the fly.

    Picture i is a function of (seed, i). Rays are jittered, as they were for the discriminator. The last block is
    kept: going through the pictures in order renders every one of them once.

    Args:
        loaded: any generator.
        count: how many pictures.
        seed: chooses faces, poses and jitter.
        truncation: ψ.
        resolution: side; None: the model's.

    Raises:
        UserError: the model gives pictures that are not numbers.
    """

    def __init__(
        self,
        loaded: LoadedGenerator,
        count: int,
        *,
        seed: int = 0,
        truncation: float = 1.0,
        resolution: int | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.loaded = loaded
        self.count = count
        self.seed = seed
        self.truncation = truncation
        self.resolution = loaded.resolution if resolution is None else resolution
        self._block = -1
        self._images = torch.empty(0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.count:
            raise IndexError(f"picture {index} of {self.count}")
        block, place = divmod(index, BLOCK)
        if block != self._block:
            self._images, self._block = self._rendered(block), block
        return self._images[place]

    def _rendered(self, block: int) -> Tensor:
        """uint8 [BLOCK, 3, R, R]"""
        loaded = self.loaded
        seeds = seeds_of(self.seed, range(block * BLOCK, (block + 1) * BLOCK))
        styles = styles_of_seeds(loaded, seeds, self.truncation)
        pitch, yaw = loaded.poses.sample(BLOCK, generator=self._random(_POSES, block, "cpu"))
        shown = render_pairs(
            loaded,
            styles,
            Cameras.from_angles(pitch, yaw, loaded.fov_degrees),
            Look(self.resolution, jitter=True, batch_size=BLOCK),
            generator=self._random(_DRAWS, block, loaded.device),
        )
        return to_uint8(shown.image)

    def _random(self, purpose: int, block: int, device: torch.device | str) -> torch.Generator:
        word = int(random_words(self.seed, purpose, block)[0]) >> 1  # torch takes signed seeds
        return torch.Generator(device).manual_seed(word)


@torch.no_grad()
def generated_series(loaded: LoadedGenerator, count: int, *, seed: int) -> Iterator[Tensor]:
    """Batches [B, 3, R, R] in [-1, 1] of random faces from cameras of the training distribution, not rounded.

    Faces, poses and jitter come from one stream of random numbers on the CPU: a picture depends on all before it,
    and is the same on every device. `GeneratedImages` has pictures that do not depend on each other.

    Args:
        loaded: any generator.
        count: how many pictures in all.
        seed: of the stream.
    """
    random = torch.Generator().manual_seed(seed)
    for start in range(0, count, SERIES_BATCH):
        batch = min(SERIES_BATCH, count - start)
        z = loaded.generator.sample_z(batch, generator=random)
        pitch, yaw = loaded.poses.sample(batch, generator=random)
        cameras = Cameras.from_angles(pitch, yaw, loaded.fov_degrees).to(loaded.device)
        view = View(loaded.resolution, cameras, loaded.settings, generator=random)
        yield loaded.generator.render(loaded.generator.mapping(*z), view).image


class SourceImages(Dataset):
    """The pictures of a source, uint8 [3, R, R], as torch's data sets are."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        return self.source[index]


class WithProgress(Dataset):
    """A data set that moves a progress bar along as its pictures are taken in order."""

    def __init__(self, images: Dataset, bar: tqdm) -> None:
        self.images = images
        self.bar = bar

    def __len__(self) -> int:
        return size_of(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index]
        self.bar.update(index + 1 - self.bar.n)  # looking at the first one twice counts once
        return image


def size_of(images: Dataset) -> int:
    """How many pictures a data set holds."""
    return len(images)  # type: ignore[arg-type]  # torch leaves the length out of the type


def identity(source: ImageFiles | SyntheticHeads) -> str:
    """A name for the pictures of a source at its resolution: the same whenever and wherever the same set is opened.

    Files count by name, size and time of their last change, entries of a zip by name, size and checksum, as they were
    when the set was opened; synthetic heads by what they were made of. It can be part of a file's name.
    """
    if isinstance(source, SyntheticHeads):
        return source.folder.name
    digest = hashlib.sha256()
    for facts in zip(source.names, source.stamps, strict=True):
        digest.update(repr(facts).encode(errors="surrogateescape"))
    return f"images-{source.resolution}-{len(source)}-{digest.hexdigest()[:16]}"
