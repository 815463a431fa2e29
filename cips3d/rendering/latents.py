"""Latent files: the styles of one face and the camera it was seen by, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cips3d.checkpoints.tensor_files import (
    ENDING,
    FileKind,
    check_version,
    open_tensors,
    tensors_in,
    write_tensors,
)
from cips3d.errors import UserError
from cips3d.models.family import AnyGenerator
from cips3d.models.generator import styles_by_layer, styles_of
from cips3d.plain import from_plain, to_plain
from cips3d.rendering.loading import LoadedGenerator
from cips3d.rendering.style_paths import style_parts

FORMAT = "cips3d latent"  # key of the only entry of the file's metadata: several would come in any order
FORMAT_VERSION = 1
LATENT_NAME = f"latent{ENDING}"  # what `python -m cips3d.invert` calls it; its folder then tells faces apart
KIND = FileKind(
    "latent",
    source=f"the {LATENT_NAME} that python -m cips3d.invert wrote",
    renewal="invert the picture again",
    version=FORMAT_VERSION,
)


@dataclass(frozen=True)
class CameraAngles:
    """A camera on the unit sphere that looks at the origin (`Cameras.from_angles`)."""

    pitch: float
    """radians, π/2 is the horizon"""
    yaw: float
    """radians, π/2 is the front"""
    fov_degrees: float


@dataclass(frozen=True, eq=False)
class Latent:
    """One face as a generator knows it."""

    styles: dict[str, Tensor]
    """by the names that the generator gives them, each [1, ...]"""
    model: str
    """the generator's system: cips3d, pigan, cips or stylegan2"""
    camera: CameraAngles | None
    """what the face was seen by, of 3-D models"""


def write_latent(path: str | Path, latent: Latent) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: the place cannot be written, or the disk is full.
    """
    about = {"format_version": FORMAT_VERSION, "model": latent.model, "camera": to_plain(latent.camera)}
    write_tensors(Path(path), latent.styles, {FORMAT: json.dumps(about)})


def read_latent(path: str | Path) -> Latent:
    """Read a file that `write_latent` wrote.

    Raises:
        UserError: there is no such file, it is truncated, it is of another kind, or of a newer version.
    """
    with open_tensors(path, KIND) as file:
        metadata = file.metadata() or {}
        about = json.loads(metadata.get(FORMAT, "{}"))
        check_version(path, KIND, about["format_version"] if FORMAT in metadata else None)
        return _latent_of(about, tensors_in(file))


def _latent_of(about: Mapping[str, Any], styles: dict[str, Tensor]) -> Latent:
    camera = about["camera"]
    return Latent(styles, str(about["model"]), None if camera is None else from_plain(CameraAngles, camera))


def model_name(generator: AnyGenerator) -> str:
    """The system that a generator belongs to, as its configuration names it; of others, their class."""
    return str(getattr(getattr(generator, "config", None), "system", type(generator).__name__))


def latent_of(loaded: LoadedGenerator, styles: tuple[Tensor, ...], camera: CameraAngles | None) -> Latent:
    """The latent of one face's styles."""
    return Latent(dict(zip(style_parts(styles), styles, strict=True)), model_name(loaded.generator), camera)


@torch.no_grad()
def styles_of_latents(loaded: LoadedGenerator, paths: Sequence[str | Path]) -> tuple[Tensor, ...]:
    """Styles of the faces that latent files hold.

    Args:
        loaded: the generator that they were made with, or another of the same styles, such as a tuned one.
        paths: the files, one a face; they may hold a style for every layer where the mapping gives one for all.

    Returns:
        The generator's styles of len(paths) faces, on its device; by layer where one of them is.

    Raises:
        UserError: a file cannot be read, is of another system's model, or holds styles of other names or shapes, or
            what are no numbers.
    """
    if not paths:
        raise ValueError("paths must hold at least one file, got none")
    like = loaded.generator.mapping(*loaded.generator.sample_z(1, generator=torch.Generator().manual_seed(0)))
    wanted = {name: style.shape for name, style in zip(style_parts(like), like, strict=True)}
    layers = {name: len(weights) for name, weights in loaded.generator.style_weights().items()}
    by_layer = {name: (1, layers.get(name, 0), *shape[1:]) for name, shape in wanted.items()}
    faces = []
    for path in paths:
        latent = read_latent(path)
        if latent.model != model_name(loaded.generator):
            raise UserError(
                f"--latent {path} is of a {latent.model} model, and this one is {model_name(loaded.generator)}; give "
                "the model it was made with"
            )
        found = {name: style.shape for name, style in latent.styles.items()}
        if found.keys() != wanted.keys() or any(found[name] not in (wanted[name], by_layer[name]) for name in wanted):
            raise UserError(
                f"--latent {path} has styles of {_listed(found)} (a {latent.model} model), and this "
                f"{type(loaded.generator).__name__} needs {_listed(wanted)}; give the model it was made with"
            )
        if not all(style.is_floating_point() and torch.isfinite(style).all() for style in latent.styles.values()):
            raise UserError(f"--latent {path} holds what are no numbers; invert the picture again")
        faces.append(latent.styles)
    joined = []
    for name, own in zip(wanted, like, strict=True):
        styles = [face[name] for face in faces]
        if any(style.dim() > own.dim() for style in styles):
            styles = [styles_by_layer(style, layers[name]) for style in styles]
        joined.append(torch.cat(styles).to(own))
    return styles_of(like, joined)


def face_name(path: Path) -> str:
    """What a latent's face is called in pictures: the file's name, or its folder's where all files are called alike."""
    return path.resolve().parent.name if path.name == LATENT_NAME else path.stem


def _listed(shapes: Mapping[str, torch.Size]) -> str:
    return ", ".join(f"{name} {list(shape[1:])}" for name, shape in sorted(shapes.items())) or "nothing"
