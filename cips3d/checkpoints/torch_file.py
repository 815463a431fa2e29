"""Files of `torch.save`, in its zip format and in the one before, read without executing anything of theirs."""

from __future__ import annotations

import io
import math
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cips3d.checkpoints.restricted_pickle import Call, InertClass, RefusedPickle, load_restricted
from cips3d.errors import UserError

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES = 1 << 24  # names and shapes of 100,000 tensors; the numbers lie elsewhere
MAX_DIMENSIONS = 16  # of a tensor


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers that tensors are views of."""

    values: Tensor  # [numel]


@dataclass(frozen=True)
class StorageType:
    """A class of storages."""

    dtype: torch.dtype


def read_torch_file(path: Path, what: str = "file of torch.save", remedy: str = "get it once more") -> Any:
    """What `torch.save` wrote: plain values, tensors, and inert objects for modules that were saved whole.

    Parameters become tensors, ordered dictionaries dictionaries, devices None, shapes tuples. `torch.load` with
    weights_only=True would not do: before torch 2.10 files could make it execute code of theirs (CVE-2025-32434,
    CVE-2026-24747).

    Args:
        path: of the file.
        what: it should be, for messages.
        remedy: where it is truncated.

    Raises:
        UserError: it is missing, truncated or something else, or it asks for what no checkpoint needs.
    """
    try:
        with path.open("rb") as file:
            return _read_zip(file) if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC else _read_legacy(file)
    except RefusedPickle as refusal:
        raise UserError(f"{path} {refusal}") from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a checkpoint file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give a checkpoint file in it") from None
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory") from None
    except Exception as error:  # malformed pickles and archives end in many types of exception
        raise UserError(
            f"{path} is not a complete {what} ({type(error).__name__}); "
            f"it may be truncated or of another kind: {remedy}"
        ) from error


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise RefusedPickle("is a zip file, but not one of torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in archive.namelist():
            raise RefusedPickle("is a TorchScript program, not a checkpoint; give the file of torch.save")
        entries = _checked_entries(archive, file.seek(0, io.SEEK_END))
        if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != sys.byteorder.encode():
            raise RefusedPickle("was written on a machine with another order of bytes")
        if entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise RefusedPickle(f"was not read: its pickle has {entries[pickles[0]].file_size} bytes, which is absurd")
        loaded: dict[str, Storage] = {}

        def storage(key: str, dtype: torch.dtype, numel: int) -> Storage:
            if key not in loaded:
                entry = entries.get(f"{folder}data/{key}")
                if entry is None or entry.file_size != numel * dtype.itemsize:
                    raise RefusedPickle(
                        f"was not read: storage {key!r:.40} should have {numel * dtype.itemsize} bytes, "
                        f"but {'is missing' if entry is None else f'has {entry.file_size}'}"
                    )
                buffer = bytearray(entry.file_size)
                with archive.open(entry) as content:
                    _read_exactly(content, buffer)
                loaded[key] = _storage_of(buffer, dtype)
            return loaded[key]

        return load_restricted(io.BytesIO(archive.read(pickles[0])), TORCH_NAMES, _persistent(storage))


def _checked_entries(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    """All entries by name: uncompressed, as torch writes them, and together no larger than the file."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        parts = entry.filename.split("/")
        if ".." in parts or parts[0] == "" or "\\" in entry.filename or entry.filename in entries:
            raise RefusedPickle(f"was not read: its entry {entry.filename!r:.80} has no place in a file of torch.save")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise RefusedPickle(
                f"was not read: its entry {entry.filename!r:.80} is compressed, which torch.save never does"
            )
        entries[entry.filename] = entry
    if sum(entry.file_size for entry in entries.values()) > file_size:
        raise RefusedPickle("was not read: its entries overlap")
    return entries


def _read_legacy(file: BinaryIO) -> Any:
    file_size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if _next_pickle(file) != LEGACY_MAGIC:
        raise RefusedPickle("is a pickle, but not a file of torch.save")
    if _next_pickle(file) != LEGACY_PROTOCOL or _next_pickle(file)["little_endian"] != (sys.byteorder == "little"):
        raise RefusedPickle("was written by another version of torch.save or with another order of bytes")
    buffers: dict[str, tuple[bytearray, Storage]] = {}
    taken = 0

    def storage(key: str, dtype: torch.dtype, numel: int) -> Storage:
        """Space for a storage; the numbers come behind the pickles."""
        nonlocal taken
        if key not in buffers:
            taken += numel * dtype.itemsize
            if taken > file_size:
                raise RefusedPickle(f"is truncated: its tensors have more than its {file_size} bytes; get it once more")
            buffer = bytearray(numel * dtype.itemsize)
            buffers[key] = buffer, _storage_of(buffer, dtype)
        return buffers[key][1]

    content = _next_pickle(file, _persistent(storage))
    for key in _next_pickle(file):
        if not isinstance(key, str):
            raise ValueError("a storage without a name")
        buffer, space = buffers[key]
        if int.from_bytes(file.read(8), sys.byteorder) != space.values.numel():
            raise RefusedPickle(f"was not read: storage {key!r:.40} has another size than its pickle says")
        _read_exactly(file, buffer)
        del buffers[key]
    if buffers:
        raise RefusedPickle(f"is truncated: {len(buffers)} of its storages are missing; get it once more")
    return content


def _next_pickle(file: BinaryIO, persistent: Callable[[Any], Any] | None = None) -> Any:
    start = file.tell()
    head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    content = load_restricted(head, TORCH_NAMES, persistent)
    file.seek(start + head.tell())
    return content


def _read_exactly(source: Any, buffer: bytearray) -> None:
    """Fill the buffer; a source that ends before is truncated."""
    view, done = memoryview(buffer), 0
    while done < len(buffer):
        count = source.readinto(view[done:])
        if not count:
            raise EOFError("numbers are missing")
        done += count


def _storage_of(buffer: bytearray, dtype: torch.dtype) -> Storage:
    return Storage(torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype))


def _persistent(storage: Callable[[str, torch.dtype, int], Storage]) -> Callable[[Any], Any]:
    """What persistent ids stand for: storages, and classes of modules, which the older format saves with their source.

    Args:
        storage: gives the storage of a key, a type and a number of elements.
    """

    def value(reference: Any) -> Any:
        match reference:
            case ("module", InertClass() as kind, _, _):
                return kind
            case ("storage", StorageType(dtype), str(key), _, int(numel), *view):
                if numel < 0:
                    raise ValueError("a storage of negative size")
                return _viewed(storage(key, dtype, numel), dtype, *view)
            case _:
                raise RefusedPickle("was not read: it refers to something other than numbers and modules")

    return value


def _viewed(storage: Storage, dtype: torch.dtype, view: Any = None) -> Storage:
    """A part of a storage, which the older format may name as (key, offset, size)."""
    if storage.values.dtype != dtype:
        raise RefusedPickle("was not read: it takes the same numbers for those of two types")
    if view is None:
        return storage
    _, offset, size = view
    if not (0 <= offset <= offset + size <= storage.values.numel()):
        raise ValueError("a view beyond its storage")
    return Storage(storage.values[offset : offset + size])


def _tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    values = storage.values
    if len(size) > MAX_DIMENSIONS or not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)):
        raise ValueError("a tensor with a shape that is not one")
    if math.prod(size) > values.numel():  # a repeated view of few numbers would be as large as it likes
        raise RefusedPickle(f"was not read: it has a tensor of shape {list(size)} in {values.numel()} numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= values.numel():
        raise ValueError("a tensor beyond its storage")
    return values.as_strided(size, stride, values.storage_offset() + offset)  # a view's own numbers begin further on


def _parameter(data: Tensor, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter that is not a tensor")
    return data


def _tensor_with_attributes(rebuild: Call, _type: Any, arguments: tuple[Any, ...], _state: Any) -> Tensor:
    if rebuild is not TENSOR_V1 and rebuild is not TENSOR_V2:
        raise ValueError("a tensor built by something else")
    return _tensor(*arguments)


def _shape(size: tuple[int, ...]) -> tuple[int, ...]:
    return size


def _device(*_: Any) -> None:
    """Where tensors were; they are here now."""


STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
TENSOR_V1 = Call("torch._utils._rebuild_tensor", _tensor)
TENSOR_V2 = Call("torch._utils._rebuild_tensor_v2", _tensor)

# All that a published checkpoint names of torch, besides the modules that stay inert.
TORCH_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): TENSOR_V1,
    ("torch._utils", "_rebuild_tensor_v2"): TENSOR_V2,
    ("torch._utils", "_rebuild_parameter"): Call("torch._utils._rebuild_parameter", _parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Call("torch._utils._rebuild_parameter_with_state", _parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): Call("torch._tensor._rebuild_from_type_v2", _tensor_with_attributes),
    ("torch.nn.parameter", "Parameter"): InertClass("torch.nn.parameter", "Parameter"),
    ("torch", "Tensor"): InertClass("torch", "Tensor"),
    ("torch", "Size"): Call("torch.Size", _shape),
    ("torch", "device"): Call("torch.device", _device),
    **{("torch", f"{name}Storage"): StorageType(dtype) for name, dtype in STORAGES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in STORAGES.values()},
}
