"""Prepared sets: photographs cropped, resized and written once, so that training decodes small files only.

A prepared set is a folder in the layout that StyleGAN's tools write and read (`00000/img00000000.png`), or a
zip of one with uncompressed entries. The number in a name is the place of the picture among the source's
sorted names, so unreadable files leave gaps. `dataset.json` records where the set comes from and whether it
is complete.

Interruptions lose nothing: a picture appears under its name only when it is whole on the disk, and the same
call goes on with those that are missing. A zip is collected as a folder beside its destination
(`NAME.zip.partial`) which is packed in the end, so it goes on as well; while it is packed, the disk holds the
set twice. One process at a time writes a destination.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, get_args

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cips3d.cameras.camera import TRAINING_FOV
from cips3d.data.decoding import UNREADABLE_ERRORS, check_resolution, decode_image, describe
from cips3d.data.heads import load_heads
from cips3d.data.heads.dataset import FOV_DEGREES
from cips3d.data.images import (
    MANIFEST,
    MANIFEST_KEY,
    ImageFolder,
    ImageSource,
    ImageZip,
    find_images,
    in_threads,
    read_manifest,
)
from cips3d.data.source import HEADS, HEADS_COUNT
from cips3d.errors import UserError, require_range
from cips3d.files import atomic_file, is_left_over, only_writer, printable

ImageFormat = Literal["png", "webp", "jpg"]

SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
FILES_DIGEST = "source_files_sha256"  # in the manifest
OTHER_ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")  # whoever names one expects no folder
ZIP_ENTRY_MODE = 0o644 << 16  # without it, unpacking makes files that nobody may read
ZIP_ENTRY_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest there is: equal sets make equal archives
PICTURES_PER_FOLDER = 1000


@dataclass(frozen=True)
class PreparedSet:
    """What `prepare_dataset` made or found."""

    path: Path
    images: int
    reasons: dict[str, str] = field(default_factory=dict)
    """Unreadable file of the source: why."""
    found_complete: bool = False
    """Nothing had to be done."""


@dataclass(frozen=True)
class _Job:
    """One source and how its pictures are to be written."""

    source: str  # as the manifest records it
    names: list[str]
    digest: str  # of the names and, where they are files, of what changes when one is replaced
    picture: Callable[[int], Tensor]  # uint8 [3, H, W]
    unreadable: tuple[type[Exception], ...]  # what `picture` raises for a damaged file
    resolution: int
    image_format: str

    def identity(self) -> dict[str, object]:
        """The settings that must agree before a call goes on with pictures written by an earlier one."""
        return {
            "source": self.source,
            "resolution": self.resolution,
            "format": self.image_format,
            FILES_DIGEST: self.digest,
        }

    def file_name(self, index: int) -> str:
        return f"{index // PICTURES_PER_FOLDER:05d}/img{index:08d}.{self.image_format}"


def prepare_dataset(
    source: str | Path,
    destination: str | Path,
    resolution: int,
    *,
    image_format: ImageFormat = "png",
    workers: int = 0,
    count: int | None = None,
    seed: int | None = None,
    fov_degrees: float | None = None,
) -> PreparedSet:
    """Write a source's pictures as squares of one resolution, or go on where an earlier call was interrupted.

    Args:
        source: folder, zip, or the word "heads" for synthetic heads ("./heads" is a folder of that name).
        destination: folder, or zip by its ending; new, empty, or begun by the same call.
        resolution: side of the pictures in pixels.
        image_format: png and webp are lossless, jpg is written at quality 95.
        workers: threads; 0 takes one a processor core, 16 at most.
        count: number of heads, 4096 unless given.
        seed: of the heads, 0 unless given.
        fov_degrees: angle of view of the cameras that see the heads, 12 unless given.

    Raises:
        UserError: an argument is wrong, the destination holds something else or another process writes it, nothing
            is readable, or writing failed.
    """
    destination = Path(destination)
    check_resolution(resolution)
    if image_format not in get_args(ImageFormat):
        formats = ", ".join(get_args(ImageFormat))
        raise UserError(f"--format {image_format} is unknown; choose one of {formats}")
    if workers < 0:
        raise UserError(f"--workers {workers} is negative; give a number of threads, or 0 for every core")
    if destination.suffix.lower() in OTHER_ARCHIVES:
        raise UserError(f"DEST {destination} is no kind of archive that is written here; give a folder or a .zip")
    if source == HEADS:  # a Path is never the word
        fov_degrees = FOV_DEGREES if fov_degrees is None else fov_degrees
        job = _heads_job(HEADS_COUNT if count is None else count, seed or 0, fov_degrees, resolution, image_format)
    elif not (count is None and seed is None and fov_degrees is None):
        raise UserError(f"--count, --seed and --fov-degrees are for SOURCE heads, but it is {source}; leave them out")
    else:
        job = _files_job(source, destination, resolution, image_format)
    write = _write_zip if destination.suffix.lower() == ".zip" else _write_alone
    try:
        return write(job, destination, workers)
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or destination}"
        raise UserError(
            f"DEST {destination} cannot be written ({reason}); make room or change its permissions, then run the same "
            f"command again to go on"
        ) from error


def _files_job(source: str | Path, destination: Path, resolution: int, image_format: str) -> _Job:
    files, names = find_images(source, "SOURCE")
    place = files.path.resolve()
    if place.is_dir() and destination.resolve().is_relative_to(place):
        raise UserError(f"DEST {destination} lies within SOURCE {source}; choose a place outside of it")

    def picture(index: int) -> Tensor:
        return decode_image(files.read(names[index]), resolution)

    digest = _digest(f"{name} {files.stamp(name)}" for name in names)
    return _Job(str(place), names, digest, picture, UNREADABLE_ERRORS, resolution, image_format)


def _heads_job(count: int, seed: int, fov_degrees: float, resolution: int, image_format: str) -> _Job:
    if count < 1:
        raise UserError(f"--count {count} is not a number of heads; give 1 or more")
    require_range("--fov-degrees", fov_degrees, *TRAINING_FOV)
    heads: ImageSource = load_heads(resolution, count, seed=seed, fov_degrees=fov_degrees)
    names = [str(index) for index in range(count)]
    lens = "" if fov_degrees == FOV_DEGREES else f" at {fov_degrees:g} degrees"
    source = f"{count} heads of seed {seed}{lens}"
    return _Job(source, names, _digest(names), heads.__getitem__, (), resolution, image_format)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _write_alone(job: _Job, folder: Path, workers: int) -> PreparedSet:
    with _alone_in(folder, folder):
        return _write_folder(job, folder, workers)


@contextmanager
def _alone_in(folder: Path, destination: Path) -> Iterator[None]:
    """Make the folder where there is none, and be its only writer.

    The first of several to end would delete what the others are writing.

    Raises:
        UserError: it is a file, or another process writes it.
    """
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        raise UserError(f"DEST {folder} is a file; give a folder or a name that ends in .zip")
    with only_writer(folder) as alone:
        if not alone:
            raise UserError(
                f"DEST {destination} is being written by another process; wait for its end, or choose another DEST"
            )
        yield


def _write_folder(job: _Job, folder: Path, workers: int) -> PreparedSet:
    """Write all pictures that `folder` does not hold yet."""
    manifest = _manifest_of_folder(job, folder)
    missing = [index for index in range(len(job.names)) if not (folder / job.file_name(index)).exists()]
    recorded = _recorded(manifest)
    if recorded is not None and {job.names[index] for index in missing} == recorded[1].keys():
        return PreparedSet(folder, *recorded, found_complete=True)
    _write_manifest(folder, job, {"complete": False})
    done = len(job.names) - len(missing)
    with tqdm(desc=f"preparing {folder}", total=len(job.names), initial=done) as bar:
        failures = in_threads(partial(_write_picture, job, folder), missing, bar, threads=workers)
    reasons = {job.names[i]: why for i, why in zip(missing, failures, strict=True) if why is not None}
    images = len(job.names) - len(reasons)
    if images == 0:
        first, why = next(iter(reasons.items()))
        raise UserError(
            f"SOURCE {job.source}: none of its {len(reasons):,} files could be read, the first, "
            f"{printable(first)}, because of {why}; give a folder or zip of sound images"
        )
    for path in filter(is_left_over, list(folder.rglob("*"))):
        path.unlink()
    _write_manifest(folder, job, {"complete": True, "images": images, "unreadable": reasons})
    return PreparedSet(folder, images, reasons)


def _manifest_of_folder(job: _Job, folder: Path) -> dict[str, Any]:
    """What an earlier call recorded in `folder`, {} when it is empty.

    Raises:
        UserError: the folder holds anything else, which is left as it is.
    """
    manifest = read_manifest(ImageFolder(folder))
    if manifest is not None:
        _refuse_other(job, manifest, folder)
        return manifest
    if any(not is_left_over(entry, MANIFEST) for entry in folder.iterdir()):  # such as a call killed at once leaves
        raise UserError(f"DEST {folder} holds files that this command did not make; give an empty folder")
    return {}


def _recorded(manifest: dict[str, Any]) -> tuple[int, dict[str, str]] | None:
    """How many pictures a complete set holds, and which files could not be read; None where it is not complete."""
    images, unreadable = manifest.get("images"), manifest.get("unreadable")
    if not manifest.get("complete") or not isinstance(images, int) or not isinstance(unreadable, dict):
        return None
    return images, unreadable


def _difference(job: _Job, manifest: dict[str, Any]) -> str | None:
    """How the job of an earlier call, which wrote this manifest, differs from this one; None if it does not."""
    for key, value in job.identity().items():
        if manifest.get(key) != value:
            return (
                "other files in SOURCE, or before one was replaced"
                if key == FILES_DIGEST
                else f"{key} {manifest.get(key)}, not {value}"
            )
    return None


def _refuse_other(job: _Job, manifest: dict[str, Any], path: Path) -> None:
    difference = _difference(job, manifest)
    if difference is not None:
        raise UserError(f"DEST {path} was begun with {difference}; remove it to start afresh, or choose another DEST")


def _write_picture(job: _Job, folder: Path, index: int) -> str | None:
    """Write one picture; returns why its file is unreadable, None when all went well."""
    try:
        picture = job.picture(index)
    except job.unreadable as error:
        return describe(error)
    encoded = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(encoded, **SAVE_OPTIONS[job.image_format])
    with atomic_file(folder / job.file_name(index)) as file:
        file.write(encoded.getvalue())
    return None


def _write_manifest(folder: Path, job: _Job, state: dict[str, object]) -> None:
    """`labels` is what StyleGAN's tools look for in this file."""
    manifest = {"labels": None, MANIFEST_KEY: {**job.identity(), **state}}
    with atomic_file(folder / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1).encode())


def _write_zip(job: _Job, archive: Path, workers: int) -> PreparedSet:
    """Collect a folder beside the archive, pack it, rename the archive into place and remove the folder."""
    folder = archive.with_name(f"{archive.name}.partial")
    if archive.exists():
        manifest = _manifest_of_zip(archive)
        _refuse_other(job, manifest, archive)
        recorded = _recorded(manifest)
        if recorded is None:
            raise UserError(f"DEST {archive} is an unfinished prepared set; remove it, or choose another DEST")
        _tidy_up(job, folder)
        return PreparedSet(archive, *recorded, found_complete=True)
    with _alone_in(folder, archive):
        prepared = _write_folder(job, folder, workers)
        with atomic_file(archive) as file:
            _pack(folder, file)
        shutil.rmtree(folder)
        for path in list(archive.parent.iterdir()):
            if is_left_over(path, archive.name):
                path.unlink()
    return PreparedSet(archive, prepared.images, prepared.reasons)


def _tidy_up(job: _Job, folder: Path) -> None:
    """Remove the folder of a call that was interrupted before it could; one whose writer lives does so itself."""
    with suppress(FileNotFoundError), only_writer(folder) as alone:  # that writer may just have done it
        left = read_manifest(ImageFolder(folder)) if alone else None
        if left is not None and _difference(job, left) is None:
            shutil.rmtree(folder)


def _manifest_of_zip(archive: Path) -> dict[str, Any]:
    try:
        manifest = read_manifest(ImageZip(archive))
    except OSError:
        raise
    except UNREADABLE_ERRORS:
        manifest = None
    if manifest is None:
        raise UserError(f"DEST {archive} exists and was not made by this command; choose another DEST")
    return manifest


def _pack(folder: Path, file: IO[bytes]) -> None:
    names = [MANIFEST, *ImageFolder(folder).names()]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in tqdm(names, desc=f"packing {folder}"):
            entry = zipfile.ZipInfo(name, ZIP_ENTRY_DATE)
            entry.external_attr = ZIP_ENTRY_MODE
            archive.writestr(entry, (folder / name).read_bytes())
