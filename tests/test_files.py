"""Files that are whole or not there, whoever else writes them."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cips3d.files import TEMPORARY, atomic_file, is_left_over, only_writer, sync_folder, temporary_beside


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as first:
        first.write(b"first")
        with atomic_file(path) as second:
            second.write(b"second")
            assert len({file.name for file in tmp_path.iterdir()}) == 2
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="no such rights")
def test_rights_are_those_of_any_file(tmp_path: Path) -> None:
    """Also where many threads write at once."""

    def write(index: int) -> int:
        with atomic_file(tmp_path / str(index)) as file:
            file.write(b"some")
        return (tmp_path / str(index)).stat().st_mode & 0o777

    before = os.umask(0o027)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(write, range(200))) == {0o640}
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_what_is_left_over_is_recognised(tmp_path: Path) -> None:
    temporary = temporary_beside(tmp_path / "set.zip")
    assert temporary.parent == tmp_path and temporary != temporary_beside(tmp_path / "set.zip")
    assert not is_left_over(temporary)  # there is none
    temporary.touch()
    assert is_left_over(temporary) and is_left_over(temporary, "set.zip")
    for other in ("set", "set.zip.zip", "zip", ""):
        assert not is_left_over(temporary, other)
    for name in ("set.zip", ".set.zip.part", ".set.zip.partial", f"{temporary.name}ial"):
        assert TEMPORARY.fullmatch(name) is None


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "é" * 125 + ".png"])
def test_the_longest_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with atomic_file(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    temporary = temporary_beside(path)
    temporary.touch()
    assert is_left_over(temporary) and is_left_over(temporary, name)
    assert not is_left_over(temporary, f"b{name[1:]}")


@pytest.mark.skipif(os.name == "nt", reason="no such locks")
def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with only_writer(tmp_path) as first:
        assert first
        with only_writer(tmp_path) as second:
            assert not second
    with only_writer(tmp_path) as third:
        assert third
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no such processes")
def test_forked_processes_hold_no_locks(tmp_path: Path) -> None:
    """They may outlive the process that has been killed in the middle of its work."""
    with only_writer(tmp_path) as first:
        assert first
        processes = multiprocessing.get_context("fork")
        begun = processes.Event()
        forked = processes.Process(target=lambda: (begun.set(), time.sleep(60)), daemon=True)
        forked.start()
        assert begun.wait(timeout=20)
        with only_writer(tmp_path) as meanwhile:
            assert not meanwhile
    try:
        with only_writer(tmp_path) as second:
            assert second
    finally:
        forked.kill()
        forked.join()


@pytest.mark.skipif(os.name != "posix", reason="no folders are synced")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.ENOSPC, errno.EIO])
def test_folders_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Some file systems sync none; a disk that is full or broken is another matter."""

    def refuse(_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if number in (errno.ENOSPC, errno.EIO):
        with pytest.raises(OSError, match=os.strerror(number)):
            sync_folder(tmp_path)
    else:
        sync_folder(tmp_path)
