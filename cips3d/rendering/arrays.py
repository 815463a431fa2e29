"""What is rendered as numbers instead of pictures, in one file of NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cips3d.errors import UserError
from cips3d.files import atomic_file
from cips3d.models.generator import chosen
from cips3d.pictures import reported
from cips3d.rendering.frame_sequence import FrameSequence, visible_normals
from cips3d.rendering.views import Look, render_pairs

NUMBERS = {"image": 3, "aux": 3, "depth": 1, "normals": 3}  # a pixel
MOST_NUMBERS = 2**29  # that are held, 2 GiB; while they are put together, twice that
NORMALS_AT_ONCE = 2**20  # pixels


def check_count(out: Path, faces: int, views: int, look: Look) -> None:
    """Raise `UserError` for more numbers than memory should hold."""
    held = {"image", *look.kinds} | ({"depth"} if "normals" in look.kinds else set())  # images come with all else
    count = faces * views * look.pixels * sum(NUMBERS[kind] for kind in held)
    if count > MOST_NUMBERS:
        raise UserError(
            f"--out {out} takes {count / 1e9:.1f} billion numbers in memory, and {MOST_NUMBERS / 1e9:.1f} is the "
            "limit; give fewer faces or views, or a lower --resolution"
        )


def save_arrays(path: Path, sequence: FrameSequence, names: Sequence[str]) -> None:
    """Write all that a sequence shows into one file for `numpy.load`.

    With S faces (1 where one changes from frame to frame) and V views or frames, float32 arrays:

    - `image` [S, V, 3, R, R] in [-1, 1], and `aux_image`, the NeRF's own picture;
    - `depth` [S, V, 1, R, R] distance along the ray, scene units; the light that no sample takes comes from the rays'
      end;
    - `normals` [S, V, 3, R, R] right, up and towards the camera, 0 in empty space;
    - `camera_to_world` [V, 4, 4], whose columns are the camera's right, up and backward axes and its position, and
      `fov_degrees` [V], of 3-D models;
    - `faces` [S], their names, unless one changes.

    Args:
        path: ends in .npz.
        sequence: what is shown, without empty places.
        names: of the faces, such as "seed 3".

    Raises:
        UserError: the file cannot be written, or the model gives no numbers.
    """
    look, loaded = sequence.look, sequence.loaded
    views, faces = sequence.faces.shape
    view = torch.arange(views).repeat(faces)  # of every picture, all of a face's one after the other
    cameras = sequence.cameras[view]
    styles = chosen(sequence.styles, sequence.faces.T.flatten().to(loaded.device))
    shown = render_pairs(loaded, styles, cameras, look, generator=sequence.random, progress=True)
    made: dict[str, Tensor | None] = {"image": shown.image if "image" in look.kinds else None}
    made["aux_image"] = shown.aux_image
    made["depth"] = shown.depth if "depth" in look.kinds else None
    if "normals" in look.kinds and shown.depth is not None:
        some = torch.arange(len(view)).split(max(1, NORMALS_AT_ONCE // look.pixels))
        parts = [visible_normals(loaded, shown.depth[pictures], cameras[pictures]) for pictures in some]
        made["normals"] = torch.cat(parts)
    arrays = {name: x.float().unflatten(0, (faces, views)).numpy() for name, x in made.items() if x is not None}
    if loaded.generator.is_3d:
        arrays["camera_to_world"] = sequence.cameras.camera_to_world.float().numpy()
        arrays["fov_degrees"] = sequence.cameras.fov_degrees.float().numpy()
    if faces == len(names):
        arrays["faces"] = np.array(names)
    with reported(path), atomic_file(path) as file:
        np.savez(file, **arrays)
