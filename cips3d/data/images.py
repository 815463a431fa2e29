"""Folders and zips of photographs as sources of training pictures."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from cips3d.data.decoding import UNREADABLE_ERRORS, check_resolution, decode_image, describe, read_rgb
from cips3d.errors import UserError
from cips3d.files import printable

PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
MAX_FILE_BYTES = 2**30  # of one file unpacked from a zip: guards against archives made to fill memory
DECODED_LIMIT = 512 * 2**20  # bytes; sets that fit are kept decoded in memory
BAR_DELAY = 2.0  # seconds; a check that takes longer shows a progress bar
MANIFEST = "dataset.json"  # what a prepared set says about itself, under MANIFEST_KEY
MANIFEST_KEY = "cips3d"
NAMES_IN_REPORT = 3

Result = TypeVar("Result")


class ImageSource(Protocol):
    """Anything that hands out square pictures by index; the same index always gives the same picture."""

    @property
    def resolution(self) -> int:
        """Side of the pictures in pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor:
        """uint8 [3, resolution, resolution]."""


class ImageFolder:
    """The image files below a folder, sub-folders included, links followed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Paths relative to the folder with forward slashes, sorted by code point."""
        found = []
        for folder, subfolders, files in os.walk(self.path, onerror=_raise, followlinks=True):
            here = Path(folder)
            subfolders[:] = [name for name in subfolders if not _leads_back(here / name, self.path)]
            found += [(here / name).relative_to(self.path).as_posix() for name in files]
        return sorted(filter(_is_image_name, found))

    def read(self, name: str) -> bytes:
        path = self.path / name
        if not path.is_file():  # reading a pipe would wait forever
            raise FileNotFoundError(f"{name} is no regular file")
        return path.read_bytes()

    def stamp(self, name: str) -> str:
        """What changes when the file is replaced, without reading it: its size and its time."""
        try:
            state = (self.path / name).stat()
        except OSError:  # a link to nowhere, which reading reports
            return ""
        return f"{state.st_size} {state.st_mtime_ns}"

    def manifest(self) -> object:
        """What `dataset.json` holds, None where there is none."""
        path = self.path / MANIFEST
        return _parsed(path.read_bytes()) if path.is_file() else None


class ImageZip:
    """The image files in a zip, read in place: nothing is extracted, no name of an entry becomes a path.

    Every process opens its own handle on first use, so the object may be pickled and may live through a fork.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None  # process id and that process's handle
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[type[ImageZip], tuple[Path]]:
        return ImageZip, (self.path,)

    def _archive(self) -> zipfile.ZipFile:
        with self._opening:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), zipfile.ZipFile(self.path))
            return self._opened[1]

    def names(self) -> list[str]:
        """Entry names, sorted by code point."""
        return sorted(filter(_is_image_name, set(self._archive().namelist())))

    def read(self, name: str) -> bytes:
        entry = self._archive().getinfo(name)
        if entry.file_size > MAX_FILE_BYTES:
            raise OSError(f"{name} unpacks to {entry.file_size:,} bytes")
        if not _is_bounded(entry):
            raise OSError("its entry is neither stored nor deflated")
        with self._archive().open(entry) as file:  # not read(), which inflates all there is, whatever the entry claims
            return file.read(entry.file_size + 1)

    def stamp(self, name: str) -> str:
        """What changes when the entry is replaced, without reading it: its size and its checksum."""
        entry = self._archive().getinfo(name)
        return f"{entry.file_size} {entry.CRC}"

    def manifest(self) -> object:
        """What `dataset.json` holds, None where there is none."""
        archive = self._archive()
        is_read = MANIFEST in archive.namelist() and _is_bounded(archive.getinfo(MANIFEST))
        return _parsed(self.read(MANIFEST)) if is_read else None


def _raise(error: OSError) -> None:
    raise error


def _is_bounded(entry: zipfile.ZipInfo) -> bool:
    """Whether no more is unpacked of an entry than is asked for: of bzip2 and LZMA, a kilobyte becomes gigabytes."""
    return entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def _leads_back(folder: Path, top: Path) -> bool:
    """Whether a folder is a link to one that it lies in, or that holds such a one: following it would never end.

    It lies in all folders on the way from `top`, where other links may have led elsewhere.
    """
    if not folder.is_symlink():
        return False
    target = folder.resolve()
    on_the_way = [parent for parent in folder.parents if parent.is_relative_to(top)]
    return any(parent.resolve().is_relative_to(target) for parent in on_the_way)


def _is_image_name(name: str) -> bool:
    """Ending of an image, and neither hidden nor a shadow copy of macOS (`__MACOSX/`, `._name`)."""
    parts = name.split("/")
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return name.lower().endswith(PHOTO_ENDINGS) and not hidden and "__MACOSX" not in parts


def _parsed(data: bytes) -> object:
    """The JSON in a file, None where it is none: other programs' `dataset.json` is no concern of ours."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def read_manifest(files: ImageFolder | ImageZip) -> dict[str, Any] | None:
    """What a prepared set says about itself (see `cips3d.data.prepare`); None for any other folder or zip."""
    whole = files.manifest()
    entry = whole.get(MANIFEST_KEY) if isinstance(whole, dict) else None
    return entry if isinstance(entry, dict) else None


def find_images(path: str | Path, argument: str = "--data") -> tuple[ImageFolder | ImageZip, list[str]]:
    """List the images of a folder or zip without decoding any.

    Args:
        path: folder or zip.
        argument: what the user calls it, for messages.

    Returns:
        the container and the sorted names of its images, at least one.

    Raises:
        UserError: no name, nothing there, neither folder nor zip, cannot be listed, no file with an image's ending,
            or a prepared set that is unfinished.
    """
    if path == "":  # as a path it would be the folder where the command was started
        raise UserError(f'{argument} "" names nothing; give a folder or a zip of images')
    path = Path(path)
    files: ImageFolder | ImageZip
    if path.is_dir():
        files = ImageFolder(path)
    elif not path.exists():
        raise UserError(f"{argument} {path} does not exist; give a folder or a zip of images")
    elif path.is_file() and not os.access(path, os.R_OK):
        raise UserError(f"{argument} {path} cannot be read; check its rights")
    elif path.is_file() and zipfile.is_zipfile(path):  # reading a pipe would wait forever
        files = ImageZip(path)
    elif path.is_file() and path.suffix.lower() == ".zip":
        raise UserError(f"{argument} {path} is no complete zip; it may be damaged, so copy it again")
    else:
        raise UserError(f"{argument} {path} is neither a folder nor a zip; give a folder or a zip of images")
    try:
        names, manifest = files.names(), read_manifest(files)
    except UNREADABLE_ERRORS as error:
        remedy = "check its rights" if isinstance(error, PermissionError) else "it may be damaged, so copy it again"
        raise UserError(f"{argument} {path} cannot be read ({describe(error)}); {remedy}") from error
    if manifest is not None and not manifest.get("complete"):
        raise UserError(
            f"{argument} {path} is an unfinished prepared set; run the `cips3d.dataset` command that began it once more"
        )
    if not names:
        endings = ", ".join(PHOTO_ENDINGS)
        raise UserError(f"{argument} {path} holds no images; give a folder or zip with {endings} files")
    return files, names


class ImageFiles:
    """The readable images of a folder or zip as squares of one resolution; made by `open_images`."""

    def __init__(
        self,
        files: ImageFolder | ImageZip,
        names: list[str],
        resolution: int,
        *,
        stamps: list[str],
        reasons: dict[str, str] | None = None,
        decoded: Tensor | None = None,
    ) -> None:
        self.path = files.path
        self.names = names  # names[i] is the file of picture i; sorted
        self.stamps = stamps  # stamps[i] changes when that file is replaced
        self.resolution = resolution
        self.reasons = dict(reasons or {})  # unreadable file: why
        self._files = files
        self._decoded = decoded  # uint8 [N, 3, H, W]

    @property
    def unreadable(self) -> list[str]:
        """Names of the files that were skipped."""
        return list(self.reasons)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Picture `index`, uint8 [3, H, W]."""
        if self._decoded is not None:
            return self._decoded[index].clone()
        name = self.names[index]
        try:
            return decode_image(self._files.read(name), self.resolution)
        except UNREADABLE_ERRORS as error:
            raise UserError(
                f"{printable(name)} in {self.path} was readable when the set was made or opened and no longer is "
                f"({describe(error)}); restore the file or restart without it"
            ) from error

    def report(self) -> str:
        """One line: how many images, and which files were skipped."""
        line = f"{len(self):,} image{'s' if len(self) != 1 else ''} from {printable(str(self.path))}"
        if not self.reasons:
            return line
        some = ", ".join(printable(name) for name in self.unreadable[:NAMES_IN_REPORT])
        more = ", ..." if len(self.reasons) > NAMES_IN_REPORT else ""
        return f"{line} ({len(self.reasons):,} unreadable skipped: {some}{more})"


def open_images(
    path: str | Path, resolution: int, *, decoded_limit: int = DECODED_LIMIT, argument: str = "--data"
) -> ImageFiles:
    """Open a folder or zip of photographs as a training set.

    Every file is decoded once here, in parallel, so that unreadable ones (damaged, truncated, unreasonably
    large) are known and skipped from the start, and picture i is the same for the whole training. Sets that
    fit into `decoded_limit` are kept in memory and never decoded again; of larger ones, those that
    `cips3d.data.prepare` has made are not decoded here, since all of their pictures were whole. Transparency is
    composited onto white, and pictures that are not square lose their margins. `cips3d.data.decoding` describes the
    rest of the decoding.

    Args:
        path: folder (searched recursively) or zip; jpg, jpeg, png and webp, in any letter case.
        resolution: side of the pictures in pixels.
        decoded_limit: bytes of decoded pictures that may be kept in memory; 0 keeps none.
        argument: what the user calls the path, for messages.

    Raises:
        UserError: no such folder or zip, or nothing readable in it.
    """
    check_resolution(resolution)
    files, names = find_images(path, argument)
    stamps = [files.stamp(name) for name in names]  # before decoding: later ones may be of other pictures
    decoded = None
    if len(names) * 3 * resolution**2 <= decoded_limit:
        decoded = torch.empty(len(names), 3, resolution, resolution, dtype=torch.uint8)
    elif (read_manifest(files) or {}).get("images") == len(names):
        return ImageFiles(files, names, resolution, stamps=stamps)

    def failure(index: int) -> str | None:
        try:
            data = files.read(names[index])
            if decoded is None:
                read_rgb(data, smallest=True)
            else:
                decoded[index] = decode_image(data, resolution)
        except UNREADABLE_ERRORS as error:
            return describe(error)
        return None

    with tqdm(desc=f"checking {path}", total=len(names), delay=BAR_DELAY) as bar:
        failures = in_threads(failure, range(len(names)), bar)
    reasons = {name: why for name, why in zip(names, failures, strict=True) if why is not None}
    readable = [index for index, why in enumerate(failures) if why is None]
    if not readable:
        first, why = next(iter(reasons.items()))
        raise UserError(
            f"{argument} {path}: none of its {len(names):,} files (endings {', '.join(PHOTO_ENDINGS)}) could be "
            f"read, the first, {printable(first)}, because of {why}; give a folder or zip of sound images"
        )
    if decoded is not None and reasons:
        decoded = decoded[readable]
    names, stamps = [names[i] for i in readable], [stamps[i] for i in readable]
    return ImageFiles(files, names, resolution, stamps=stamps, reasons=reasons, decoded=decoded)


def in_threads(work: Callable[[int], Result], items: Sequence[int], bar: tqdm, *, threads: int = 0) -> list[Result]:
    """`[work(item) for item in items]` in parallel threads (Pillow decodes and encodes without the GIL).

    Args:
        work: called once an item; its first exception drops the items not yet begun and is raised.
        items: what to call it with.
        bar: moves on by one an item.
        threads: how many; 0 takes one a processor core, 16 at most.
    """
    pool = ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1))
    try:
        results = []
        for result in pool.map(work, items):
            results.append(result)
            bar.update()
        return results
    finally:
        pool.shutdown(cancel_futures=True)
