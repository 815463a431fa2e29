"""Making synthetic heads once and keeping them in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

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
from cips3d.files import TEMPORARY, atomic_file, sync_folder, temporary_beside
from cips3d.plain import to_plain

FORMAT = 2  # of the cache; counted up whenever a head would look different
BLOCK = 64  # heads drawn and rendered together: head i depends on (seed, i) alone, since blocks are always whole
DESCRIPTION = "heads.json"  # written last: a folder without it is not complete
MASK_LEVELS = 255
FOV_DEGREES = 12.0  # angle of view where nobody asks for another
ABANDONED = 24 * 3600  # seconds without a write, of a set in the making


class SyntheticHeads:
    """Heads with their poses, depths and masks; `heads[i]` is picture i, uint8 [3, H, W].

    The arrays are mapped into memory, not read: a large set costs what is looked at.

    Raises:
        OSError: a file is missing.
        ValueError: a file does not hold what the description says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        made = json.loads((folder / DESCRIPTION).read_bytes())
        layout = _layout(made["resolution"], made["count"])
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in layout}
        if any((arrays[name].dtype, arrays[name].shape) != kind for name, kind in layout.items()):
            raise ValueError(f"{folder} does not hold what its {DESCRIPTION} says")
        self.images: npt.NDArray[np.uint8] = arrays["images"]  # [N, 3, H, W]
        self._depth, self._mask = arrays["depth"], arrays["mask"]
        self.pitch, self.yaw = torch.from_numpy(np.array(arrays["poses"])).unbind(1)  # [N] radians
        self.resolution: int = made["resolution"]

    def __reduce__(self) -> tuple[type[SyntheticHeads], tuple[Path]]:
        """Pickled as its folder, so that the workers of a loader map the same files."""
        return SyntheticHeads, (self.folder,)

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


def described_fov(fov_degrees: float) -> dict[str, float]:
    """What a cached thing's description says of the angle of view of its heads.

    Nothing where it is `FOV_DEGREES`: what was made before there were others is found as before.
    """
    return {} if fov_degrees == FOV_DEGREES else {"fov_degrees": float(fov_degrees)}


def load_heads(
    resolution: int,
    count: int,
    seed: int = 0,
    cache: Path | None = None,
    poses: PoseDistribution | None = None,
    progress: bool = True,
    fov_degrees: float = FOV_DEGREES,
) -> SyntheticHeads:
    """Synthetic heads, rendered at the first use and taken from the cache from then on.

    Head i depends on the seed, i, the resolution and the cameras only: a larger set begins with the smaller one.

    Args:
        resolution: side of the pictures in pixels.
        count: how many heads.
        seed: of heads and poses.
        cache: folder to keep them in; default: `cache_folder()`.
        poses: distribution of the cameras; default: that of training.
        progress: show a bar on stderr while heads are made.
        fov_degrees: the cameras' angle of view. They stay where they are: in a wider one heads are smaller.

    Raises:
        UserError: nothing can be made of these numbers, or the cache cannot be written.
    """
    if count < 1:
        raise UserError(f"--heads {count} makes no head; give 1 or more")
    if resolution < 2:
        raise UserError(f"--resolution {resolution} is too small for heads; give 2 or more")
    poses = poses or PoseDistribution()
    cache = cache or cache_folder()
    made = {
        "format": FORMAT,
        "resolution": resolution,
        "count": count,
        "seed": seed,
        "poses": to_plain(poses),
        **described_fov(fov_degrees),
    }
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / f"heads-{resolution}-{count}-seed{seed}-{digest}"
    heads = _open(folder)
    if heads is None:
        try:
            _make(folder, made, poses, fov_degrees, progress)
        except OSError as error:
            raise UserError(
                f"synthetic heads cannot be kept in {cache} ({error.strerror}); set CIPS3D_CACHE to a folder with "
                "space that can be written"
            ) from error
        heads = SyntheticHeads(folder)
    return heads


def _open(folder: Path) -> SyntheticHeads | None:
    """The set in a folder, or None where there is none or only a part of one."""
    try:
        return SyntheticHeads(folder)
    except (OSError, ValueError, KeyError, EOFError):  # missing, cut short, or not what we wrote
        return None


def _make(folder: Path, made: dict[str, Any], poses: PoseDistribution, fov_degrees: float, progress: bool) -> None:
    """Render into a temporary folder and give it its name when complete; whoever comes second keeps the first's."""
    _remove_left_overs(folder.parent)
    temporary = temporary_beside(folder)
    temporary.mkdir(parents=True)
    try:
        _render_into(temporary, made, poses, fov_degrees, progress)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_left_overs(cache: Path) -> None:
    """What killed processes have left of sets in the making; those that live write something every few seconds."""
    for path in cache.glob(".heads-*"):
        with suppress(OSError):  # another process was quicker
            if TEMPORARY.fullmatch(path.name) and time.time() - _newest(path) > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def _newest(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def _publish(temporary: Path, folder: Path) -> None:
    if folder.exists() and _open(folder) is None:  # somebody deleted or cut files
        broken = temporary.with_suffix(".broken")
        with suppress(FileNotFoundError):  # another process was quicker
            folder.rename(broken)
        shutil.rmtree(broken, ignore_errors=True)
    try:
        temporary.rename(folder)
    except OSError:
        if _open(folder) is None:
            raise
        return  # another process was quicker: the same heads
    sync_folder(folder.parent)


def _layout(resolution: int, count: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of the arrays in a folder."""
    square = (resolution, resolution)
    return {
        "images": (np.dtype(np.uint8), (count, 3, *square)),
        "depth": (np.dtype(np.float32), (count, *square)),
        "mask": (np.dtype(np.uint8), (count, *square)),
        "poses": (np.dtype(np.float32), (count, 2)),
    }


def _render_into(
    folder: Path, made: dict[str, Any], poses: PoseDistribution, fov_degrees: float, progress: bool
) -> None:
    """Write the arrays block by block (not through a memory map, for which a full disk is a crash)."""
    resolution, count = made["resolution"], made["count"]
    title = f"making synthetic heads ({resolution}²)"
    with ExitStack() as stack:
        files = {}
        for name, (dtype, shape) in _layout(resolution, count).items():
            files[name] = stack.enter_context((folder / f"{name}.npy").open("wb"))
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)
        bar = stack.enter_context(tqdm(total=count, desc=title, unit="head", disable=not progress))
        for start in range(0, count, BLOCK):
            length = min(BLOCK, count - start)
            block = render_block(resolution, made["seed"], start // BLOCK, poses, fov_degrees)
            for name, values in block.items():
                files[name].write(np.ascontiguousarray(values[:length].numpy()).data)
            bar.update(length)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    with atomic_file(folder / DESCRIPTION) as description:
        description.write(json.dumps(made, indent=2).encode())


def render_block(
    resolution: int, seed: int, block: int, poses: PoseDistribution, fov_degrees: float
) -> dict[str, Tensor]:
    """The heads BLOCK·block, ..., of a seed: images, depth, mask (in levels of 1/255) and poses (pitch, yaw)."""
    word = int(random_words(seed, block)[0] >> np.uint64(32))  # torch's generator takes 32 bits of a seed
    generator = torch.Generator().manual_seed(word)
    heads = sample_heads(BLOCK, generator)
    pitch, yaw = poses.sample(BLOCK, generator=generator)
    rendered = render_heads(heads, Cameras.from_angles(pitch, yaw, fov_degrees), resolution)
    return {
        "images": rendered.images,
        "depth": rendered.depth,
        "mask": (rendered.mask * MASK_LEVELS).round().to(torch.uint8),
        "poses": torch.stack([pitch, yaw], dim=1),
    }
