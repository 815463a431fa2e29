"""Making synthetic heads once and keeping them in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.data.heads.parameters import sample_heads
from cips3d.data.heads.render import render_heads
from cips3d.data.loader import random_words
from cips3d.errors import UserError
from cips3d.files import atomic_file, sync_folder
from cips3d.plain import to_plain

FORMAT = 1  # of the cache; counted up whenever a head would look different
BLOCK = 64  # heads drawn and rendered together: head i depends on (seed, i) alone, since blocks are always whole
DESCRIPTION = "heads.json"  # written last: a folder without it is not complete
MASK_LEVELS = 255


class SyntheticHeads:
    """Heads with their poses, depths and masks; `heads[i]` is picture i, uint8 [3, H, W].

    The arrays are mapped into memory, not read: a large set costs what is looked at.
    """

    def __init__(self, folder: Path, count: int) -> None:
        def mapped(name: str) -> npt.NDArray[np.generic]:
            return np.load(folder / f"{name}.npy", mmap_mode="r")[:count]

        self.folder = folder
        self.images = mapped("images")  # uint8 [N, 3, H, W]
        self._depth, self._mask = mapped("depth"), mapped("mask")
        poses = torch.from_numpy(np.array(mapped("poses")))
        self.pitch, self.yaw = poses.unbind(1)  # [N] radians
        self.resolution: int = self.images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Tensor:
        return torch.from_numpy(np.array(self.images[index]))

    def depth(self, index: int) -> Tensor:
        """[H, W] distance along the ray in scene units, 0 where background."""
        return torch.from_numpy(np.array(self._depth[index]))

    def mask(self, index: int) -> Tensor:
        """[H, W] share of the pixel that the head covers."""
        return torch.from_numpy(np.array(self._mask[index])).float() / MASK_LEVELS

    def report(self) -> str:
        """One line: what this is."""
        return f"{len(self):,} synthetic heads of {self.resolution} x {self.resolution} from {self.folder}"


def cache_folder() -> Path:
    """Where made data are kept: CIPS3D_CACHE, or cips3d in the user's cache folder."""
    if os.environ.get("CIPS3D_CACHE"):
        return Path(os.environ["CIPS3D_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cips3d"


def load_heads(
    resolution: int,
    count: int,
    seed: int = 0,
    cache: Path | None = None,
    poses: PoseDistribution | None = None,
    progress: bool = True,
) -> SyntheticHeads:
    """Synthetic heads, rendered at the first use and taken from the cache from then on.

    Head i depends on the seed, i, the resolution and the poses only: a larger set begins with the smaller one.

    Args:
        resolution: side of the pictures in pixels.
        count: how many heads.
        seed: of heads and poses.
        cache: folder to keep them in; default: `cache_folder()`.
        poses: distribution of the cameras; default: that of training.
        progress: show a bar on stderr while heads are made.

    Raises:
        UserError: nothing can be made of these numbers, or the cache cannot be written.
    """
    if count < 1:
        raise UserError(f"--heads {count} makes no head; give 1 or more")
    if resolution < 2:
        raise UserError(f"--resolution {resolution} is too small for heads; give 2 or more")
    poses = poses or PoseDistribution()
    cache = cache or cache_folder()
    key = json.dumps([FORMAT, resolution, count, seed, to_plain(poses)])
    name = f"heads-{resolution}-{count}-seed{seed}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder = cache / name
    try:
        if not (folder / DESCRIPTION).is_file():
            _make(folder, resolution, count, seed, poses, progress)
    except OSError as error:
        raise UserError(
            f"synthetic heads cannot be kept in {cache} ({error.strerror}); set CIPS3D_CACHE to a folder with space "
            "that can be written"
        ) from error
    return SyntheticHeads(folder, count)


def _make(folder: Path, resolution: int, count: int, seed: int, poses: PoseDistribution, progress: bool) -> None:
    """Render into a temporary folder and give it its name when complete; whoever comes second keeps the first's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _render_into(temporary, resolution, count, seed, poses, progress)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    if folder.is_dir() and not (folder / DESCRIPTION).is_file():
        shutil.rmtree(folder)  # a folder of this name that is not complete: somebody deleted files
    try:
        temporary.rename(folder)
    except OSError:
        if not (folder / DESCRIPTION).is_file():
            raise
        return  # another process was quicker: the same heads
    sync_folder(folder.parent)


def _render_into(folder: Path, resolution: int, count: int, seed: int, poses: PoseDistribution, progress: bool) -> None:
    square = (resolution, resolution)
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        "images": ("uint8", (count, 3, *square)),
        "depth": ("float32", (count, *square)),
        "mask": ("uint8", (count, *square)),
        "poses": ("float32", (count, 2)),
    }
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, (dtype, shape) in layout.items()
    }
    with tqdm(total=count, desc=f"making synthetic heads ({resolution}²)", unit="head", disable=not progress) as bar:
        for start in range(0, count, BLOCK):
            block = slice(start, min(start + BLOCK, count))
            for name, values in render_block(resolution, seed, start // BLOCK, poses).items():
                arrays[name][block] = values[: block.stop - block.start].numpy()
            bar.update(block.stop - block.start)
    for array in arrays.values():
        array.flush()
    with atomic_file(folder / DESCRIPTION) as file:
        content = {"format": FORMAT, "resolution": resolution, "count": count, "seed": seed, "poses": to_plain(poses)}
        file.write(json.dumps(content, indent=2).encode())


def render_block(resolution: int, seed: int, block: int, poses: PoseDistribution) -> dict[str, Tensor]:
    """The heads BLOCK·block, ..., of a seed: images, depth, mask (in levels of 1/255) and poses (pitch, yaw)."""
    word = int(random_words(seed, block)[0] >> np.uint64(32))  # torch's generator takes 32 bits of a seed
    generator = torch.Generator().manual_seed(word)
    heads = sample_heads(BLOCK, generator)
    pitch, yaw = poses.sample(BLOCK, generator=generator)
    rendered = render_heads(heads, Cameras.from_angles(pitch, yaw), resolution)
    return {
        "images": rendered.images,
        "depth": rendered.depth,
        "mask": (rendered.mask * MASK_LEVELS).round().to(torch.uint8),
        "poses": torch.stack([pitch, yaw], dim=1),
    }
