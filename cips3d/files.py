"""Files that are written whole or not at all, and folders that one process writes at a time."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cips3d.errors import UserError

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.part")  # what `temporary_beside` makes of a name
LONGEST_NAME = 200  # bytes, of the 255 that file systems allow, with room for what is added
_locks: set[int] = set()  # descriptors by which this process holds folders


def _let_go_of_locks() -> None:
    """In a forked process: otherwise a folder would stay locked until the last of its parent's processes has ended."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_locks)


def temporary_beside(path: Path) -> Path:
    """A name in the same folder for what is to become `path`: hidden, and of this call alone."""
    return path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(6)}.part")


def _shortened(name: str) -> str:
    """The name or, of a long one, its hash."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST_NAME else hashlib.sha256(encoded).hexdigest()


def is_left_over(path: Path, name: str | None = None) -> bool:
    """Whether a killed process has left this file of `atomic_file`, for the file `name` or, without one, for any."""
    found = TEMPORARY.fullmatch(path.name)
    if found is None or (name is not None and found["name"] != _shortened(name)):
        return False
    return path.is_file()


def printable(text: str) -> str:
    """Escape what cannot be printed on one line, such as file names that are not valid text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8, which systems do not ask for."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name when it is complete, or not at all.

    Until then it is hidden under a name that no other writer of the same file has.

    Raises:
        UserError: the disk is full; nothing that was there before is lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise UserError(
                f"the disk is full: {path} was not written; free some space and run the command again"
            ) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """True for a write that failed for want of space, also where torch wrapped the error in its own."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    of_torch = ("PytorchStreamWriter failed", "unexpected pos")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in of_torch)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system and the folder's rights allow it.

    Raises:
        OSError: the disk is full or broken.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:  # a network's file system that syncs no folders, or a folder that may not be listed
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise


@contextmanager
def only_writer(folder: Path) -> Iterator[bool]:
    """Keep others that ask for it from writing a folder, where the system can; false: another process writes it.

    It ends with the process, however that ends and whatever it has forked, and leaves nothing behind.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _locks.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a network's file system that knows no such locks
            pass
        yield folder.exists()  # who has just ended may have removed it
    finally:
        if descriptor in _locks:  # not in a forked process
            _locks.remove(descriptor)
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
