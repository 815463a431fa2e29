"""Prepared sets: going on after interruptions, and what another call finds in the place of a set."""

from __future__ import annotations

import errno
import os
import re
import zipfile
from pathlib import Path

import pytest
import torch
from data.preparation import contents, interrupt_after, run

from cips3d.data import open_images
from cips3d.data import prepare as prepare_module
from cips3d.data.decoding import decode_image
from cips3d.errors import UserError
from cips3d.files import temporary_beside


@pytest.mark.parametrize("destination", ["set", "set.zip"])
def test_a_complete_set_is_left_as_it_is(
    destination: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(photos, tmp_path / destination)
    monkeypatch.setattr(prepare_module, "decode_image", lambda *a: pytest.fail("decoded again"))
    second = run(photos, tmp_path / destination)
    assert second.found_complete
    assert (second.images, second.reasons) == (first.images, first.reasons)


@pytest.mark.parametrize("destination", ["set", "set.zip"])
@pytest.mark.parametrize("pictures", range(6))
def test_an_interrupted_set_is_gone_on_with(
    pictures: int, destination: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every file: what was written stays untouched, the rest follows, and the result is the same."""
    whole = run(photos, tmp_path / "whole")
    working = tmp_path / (destination if destination == "set" else "set.zip.partial")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(pictures, patch, KeyboardInterrupt())
        run(photos, tmp_path / destination, workers=1)
    earlier = {path: path.stat().st_mtime_ns for path in working.rglob("*.png")}
    assert len(earlier) == min(pictures, 5)
    assert not list(working.rglob(".*"))
    assert not (tmp_path / "set.zip").exists()
    with pytest.raises(UserError, match="unfinished"):
        open_images(working, 8)

    inodes = {path: path.stat().st_ino for path in earlier}
    if destination == "set.zip":  # the working folder is removed at the end: look before
        monkeypatch.setattr(prepare_module, "_pack", check_then(prepare_module._pack, inodes))
    again = run(photos, tmp_path / destination)
    if destination == "set":
        assert {path: path.stat().st_ino for path in inodes} == inodes
        assert contents(working) == contents(tmp_path / "whole")
    assert (again.images, again.reasons) == (whole.images, whole.reasons)
    assert not again.found_complete
    assert len(open_images(tmp_path / destination, 8)) == 5
    assert not (tmp_path / "set.zip.partial").exists()


def check_then(pack, inodes: dict[Path, int]):
    def checked(*arguments: object) -> None:
        assert {path: path.stat().st_ino for path in inodes} == inodes
        pack(*arguments)

    return checked


def test_an_interruption_while_packing_leaves_no_archive(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(6, patch, KeyboardInterrupt())  # 5 pictures and the manifest once more, then the archive
        run(photos, tmp_path / "set.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "set.zip.partial"]
    temporary_beside(tmp_path / "set.zip").write_bytes(b"half")  # of an earlier one that was killed
    another = temporary_beside(tmp_path / "set.zip.zip")  # of one that is no concern of ours
    another.write_bytes(b"half")
    monkeypatch.setattr(prepare_module, "decode_image", lambda *a: pytest.fail("decoded again"))
    assert run(photos, tmp_path / "set.zip").images == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == [another.name, "photos", "set.zip"]


def test_an_interruption_before_tidying_is_tidied_later(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module.shutil, "rmtree", lambda path: None)
        run(photos, tmp_path / "set.zip")
    assert (tmp_path / "set.zip.partial").exists()
    assert run(photos, tmp_path / "set.zip").found_complete
    assert not (tmp_path / "set.zip.partial").exists()
    (tmp_path / "set.zip.partial").mkdir()  # somebody else's
    assert run(photos, tmp_path / "set.zip").found_complete
    assert (tmp_path / "set.zip.partial").exists()


def test_what_a_killed_process_left_is_replaced(photos: Path, tmp_path: Path) -> None:
    """A killed process cannot remove its unfinished temporary files."""
    folder = tmp_path / "set"
    folder.mkdir()
    temporary_beside(folder / "dataset.json").write_bytes(b"half")
    run(photos, folder)
    whole = contents(folder)
    picture = folder / "00000" / "img00000002.png"
    picture.rename(temporary_beside(picture))
    assert len(open_images(folder, 8)) == 4  # the temporary name is no picture
    assert run(photos, folder).images == 5
    assert contents(folder) == whole


def test_deleted_pictures_are_made_again(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "set")
    whole = contents(tmp_path / "set")
    (tmp_path / "set" / "00000" / "img00000000.png").unlink()
    assert not run(photos, tmp_path / "set").found_complete
    assert contents(tmp_path / "set") == whole


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("destination", ["set", "set.zip"])
def test_a_full_disk_is_told_and_can_be_gone_on_from(
    destination: str, number: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
        interrupt_after(2, patch, OSError(number, os.strerror(number)))
        run(photos, tmp_path / destination)
    message = str(caught.value)
    assert str(tmp_path / destination) in message
    assert (os.strerror(number) if number == errno.EACCES else "the disk is full") in message
    assert re.search("run the (same )?command again", message)
    assert run(photos, tmp_path / destination).images == 5


@pytest.mark.skipif(os.name == "nt", reason="no such locks")
@pytest.mark.parametrize("destination", ["set", "set.zip"])
def test_two_at_once(destination: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another call, in the middle of the first, is told to wait and leaves the first alone."""
    refused = []

    def decode(data: bytes, resolution: int) -> torch.Tensor:
        if not refused:
            with pytest.raises(UserError, match=rf"DEST .*{destination} is being written by another process; wait"):
                run(photos, tmp_path / destination)
            refused.append(True)
        return decode_image(data, resolution)

    monkeypatch.setattr(prepare_module, "decode_image", decode)
    assert run(photos, tmp_path / destination, workers=1).images == 5
    assert refused
    assert run(photos, tmp_path / destination).found_complete


@pytest.mark.parametrize("destination", ["set", "set.zip"])
@pytest.mark.parametrize("finished", [True, False])
def test_another_job_in_the_same_place_is_refused(
    finished: bool, destination: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if finished:
        run(photos, tmp_path / destination)
    else:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(2, patch, KeyboardInterrupt())
            run(photos, tmp_path / destination)
    place = tmp_path / destination
    before = place.read_bytes() if place.is_file() else None
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes(next(photos.glob("*.jpg")).read_bytes())
    with pytest.raises(UserError, match=r"begun with resolution 8, not 16; remove it to start afresh"):
        run(photos, place, 16)
    with pytest.raises(UserError, match=r"begun with source .*photos, not .*other"):
        run(other, place)
    with pytest.raises(UserError, match=r"begun with format png, not webp"):
        run(photos, place, image_format="webp")
    (photos / "0a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"begun with other files in SOURCE"):
        run(photos, place)
    assert (place.read_bytes() if place.is_file() else None) == before


@pytest.mark.parametrize("zipped", [False, True])
def test_a_replaced_photograph_is_noticed(zipped: bool, photos: Path, tmp_path: Path) -> None:
    """Also where its name, and in a zip its time, are as before."""

    def source() -> Path:
        if not zipped:
            return photos
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for path in sorted(photos.rglob("*.*")):
                archive.writestr(zipfile.ZipInfo(path.relative_to(photos).as_posix()), path.read_bytes())
        return tmp_path / "photos.zip"

    run(source(), tmp_path / "set")
    assert run(source(), tmp_path / "set").found_complete
    (photos / "0.jpg").write_bytes((photos / "2.jpg").read_bytes())
    with pytest.raises(UserError, match="before one was replaced"):
        run(source(), tmp_path / "set")


def test_an_unfinished_set_is_no_source(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(2, patch, KeyboardInterrupt())
        run(photos, tmp_path / "set")
    with pytest.raises(UserError, match=r"SOURCE .*set is an unfinished prepared set"):
        run(tmp_path / "set", tmp_path / "set2")
