"""Where training pictures come from: the user's files, or synthetic heads."""

from __future__ import annotations

import hashlib

from cips3d.cameras import PoseDistribution
from cips3d.data.heads import SyntheticHeads, load_heads
from cips3d.data.heads.dataset import FOV_DEGREES
from cips3d.data.images import ImageFiles, open_images

HEADS = "heads"  # the word for synthetic heads where a folder or zip could be named ("./heads" is such a folder)
HEADS_COUNT = 4096  # made where nobody says how many


def open_training_source(
    data: str | None,
    resolution: int,
    *,
    heads: int = HEADS_COUNT,
    poses: PoseDistribution | None = None,
    fov_degrees: float = FOV_DEGREES,
) -> ImageFiles | SyntheticHeads:
    """The pictures of a folder or zip, or synthetic heads where no data are named.

    Args:
        data: folder or zip of images, or None.
        resolution: side that pictures are resized to.
        heads: how many synthetic heads there shall be.
        poses: distribution of the cameras that see the synthetic heads.
        fov_degrees: their angle of view.

    Raises:
        UserError: the data cannot be read, or hold no image.
    """
    if data is None:
        return load_heads(resolution, heads, poses=poses, fov_degrees=fov_degrees)
    return open_images(data, resolution)


def contents_of(source: ImageFiles | SyntheticHeads) -> tuple[int, str]:
    """How many pictures, and a digest of their names: with a seed, all that their order depends on."""
    names = source.names if isinstance(source, ImageFiles) else []
    return len(source), hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]
