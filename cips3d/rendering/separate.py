"""Every picture of a frame sequence in its own file, without labels or enlargement, as other programs read them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from cips3d import pictures
from cips3d.cameras import write_cameras
from cips3d.rendering.frame_sequence import FrameSequence
from cips3d.rendering.staging import Staging

ENDING, CAMERAS = ".png", "cameras.json"
WRITERS = 4  # threads that write files
MOST_WAITING = 16  # pictures that are written or wait for it


def save_separately(folder: Path, staging: Staging) -> int:
    """Write all pictures of what is staged into a folder; returns how many.

    They are called by face, view or frame, and kind, as far as there are several: `seed0003.png`,
    `seed0003_yaw-0.4_depth.png`, `frame0007.png`. `cameras.json` has the cameras of 3-D models, one a view or frame.
    Files of these names are replaced, others left alone.
    """
    sequence, count = staging.sequence, 0
    faces, views, kinds = _face_names(staging), _view_names(staging), sequence.look.kinds
    # Files take as long as pictures do, or longer: they are written while the next ones are rendered.
    writing: deque[Future[None]] = deque()
    with (
        tqdm(total=sequence.faces.numel(), desc="rendering", unit="picture", leave=False) as bar,
        ThreadPoolExecutor(WRITERS) as writers,
    ):
        for frame, face, shown in _one_by_one(sequence):
            for kind, picture in zip(kinds, shown, strict=True):
                parts = (faces[face], views[frame], "" if kinds == ("image",) else kind)
                path = folder / ("_".join(filter(None, parts)) + ENDING)
                if len(writing) == MOST_WAITING:
                    writing.popleft().result()
                writing.append(writers.submit(pictures.save_image, path, pictures.image_grid(picture[None], 1)))
                count += 1
            bar.update()
        for written in writing:
            written.result()
    if sequence.loaded.generator.is_3d:
        with pictures.reported(folder / CAMERAS):
            write_cameras(folder / CAMERAS, sequence.cameras)
    return count


def _one_by_one(sequence: FrameSequence) -> Iterator[tuple[int, int, Tensor]]:
    """(frame, face, [K, 3, R, R]); however many faces there are, no more are held than are rendered together."""
    for first in range(0, sequence.faces.shape[1], sequence.look.batch_size):
        some = replace(sequence, faces=sequence.faces[:, first : first + sequence.look.batch_size])
        for frame, shown in enumerate(some.frames()):
            for face, kinds in enumerate(shown, start=first):
                yield frame, face, kinds


def _face_names(staging: Staging) -> list[str]:
    """One a face; "" where a single face goes through all that were named."""
    faces = staging.faces
    if staging.sequence.faces.shape[1] != len(faces):
        return [""]
    if faces.seeds is not None:
        return [f"seed{seed:04d}" for seed in faces.seeds]
    return _told_apart([re.sub(r"[^\w.-]+", "-", name) for name in faces.names])


def _view_names(staging: Staging) -> list[str]:
    """One a frame; "" where there is but one view."""
    count = len(staging.sequence)
    if staging.has_frames:
        return [f"frame{frame:04d}" for frame in range(count)]
    if count == 1 or staging.column_labels is None:
        return [""] * count
    return _told_apart([re.sub(r" (?=[a-z])", "_", label).replace(" ", "") for label in staging.column_labels])


def _told_apart(names: list[str]) -> list[str]:
    """The names, with a number before each where some are the same: latents of two folders, nearly equal angles."""
    are_apart = len(set(names)) == len(names)
    return names if are_apart else [f"{index:04d}-{name}" for index, name in enumerate(names)]
