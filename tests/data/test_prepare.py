"""Prepared sets: what is written, going on after interruptions, and refusing to touch what others made."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cips3d.data.heads
from cips3d.data import PreparedSet, open_images, prepare_dataset
from cips3d.data import prepare as prepare_module
from cips3d.data.decoding import decode_image
from cips3d.errors import UserError
from cips3d.files import temporary_beside


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photographs, one of them broken."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(5):
        picture = Image.fromarray(random.integers(0, 256, (20 + i, 31, 3), dtype=np.uint8))
        picture.save(folder / ("sub" if i % 2 else "") / f"{i}.jpg")
    (folder / "4b.png").write_bytes(b"broken")
    return folder


def run(source: Path | str, destination: Path, resolution: int = 8, **options: object) -> PreparedSet:
    return prepare_dataset(source, destination, resolution, **{"workers": 2, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def interrupt_after(pictures: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let a number of pictures be written, then raise in the middle of writing the next file."""
    written = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # folders are synchronised, too
            written.append(descriptor)
        if len(written) > 1 + pictures:  # the first is the manifest
            raise error
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("destination", ["set", "set.zip", "new/folders/set.ZIP"])
def test_a_prepared_set_holds_the_pictures_that_training_would_see(
    destination: str, photos: Path, tmp_path: Path
) -> None:
    prepared = run(photos, tmp_path / destination)
    direct, through = open_images(photos, 8), open_images(tmp_path / destination, 8)
    assert (prepared.images, list(prepared.reasons)) == (5, ["4b.png"])
    assert not prepared.found_complete
    assert len(direct) == len(through) == 5
    for i in range(5):
        assert torch.equal(direct[i], through[i])


@pytest.mark.parametrize(("kind", "tolerance"), [("png", 0), ("webp", 0), ("jpg", 20)])
def test_formats(kind: str, tolerance: int, photos: Path, tmp_path: Path) -> None:
    """png and webp are lossless; quality 95 changes noise, the worst case, by some steps of quantisation."""
    run(photos, tmp_path / "set", image_format=kind)
    direct, through = open_images(photos, 8), open_images(tmp_path / "set", 8)
    assert through.names[0] == f"00000/img00000000.{kind}"
    assert max(int((direct[i].int() - through[i].int()).abs().max()) for i in range(5)) <= tolerance


def test_the_layout_is_stylegans(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "set")
    names = [f"00000/img{i:08d}.png" for i in (0, 1, 2, 4, 5)]  # without 4b.png
    manifest = json.loads((tmp_path / "set" / "dataset.json").read_bytes())
    assert sorted(contents(tmp_path / "set")) == [*names, "dataset.json"]
    assert manifest["labels"] is None
    assert manifest["cips3d"]["unreadable"].keys() == {"4b.png"}
    with Image.open(tmp_path / "set" / names[0]) as image:
        assert (image.mode, image.size) == ("RGB", (8, 8))


def test_a_thousand_pictures_a_folder(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(prepare_module, "PICTURES_PER_FOLDER", 2)
    run(photos, tmp_path / "set")
    assert {Path(name).parent.name for name in contents(tmp_path / "set")} == {"", "00000", "00001", "00002"}


def test_zips_are_uncompressed_readable_when_unpacked_and_reproducible(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "a.zip", workers=1)
    run(photos, tmp_path / "b.zip", workers=3)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert stat.S_IMODE(entry.external_attr >> 16) == 0o644
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip", "photos"]  # nothing is left behind


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


def test_links_to_nowhere_are_unreadable_files(photos: Path, tmp_path: Path) -> None:
    (photos / "5.jpg").symlink_to(tmp_path / "gone.jpg")
    assert sorted(run(photos, tmp_path / "set").reasons) == ["4b.png", "5.jpg"]


def test_what_others_made_is_not_touched(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "not.zip").write_text("precious")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "precious")
    for name, message in (
        ("mine", "holds files that this command did not make"),
        ("file", "is a file"),
        ("not.zip", "was not made by this command"),
        ("other.zip", "was not made by this command"),
        ("mine/notes.txt/set", "cannot be written"),
    ):
        before = contents(tmp_path)
        with pytest.raises(UserError, match=message) as caught:
            run(photos, tmp_path / name)
        assert name in str(caught.value)
        assert contents(tmp_path) == before


def test_a_folder_named_heads_is_a_folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos.rename("heads")
    assert run("./heads", tmp_path / "a").images == 5
    assert run(Path("heads"), tmp_path / "b").images == 5


def test_a_destination_within_the_source_is_refused(photos: Path) -> None:
    for name in ("set", "sub/set.zip", "."):
        with pytest.raises(UserError, match="lies within SOURCE"):
            run(photos, photos / name)


def test_a_zip_is_not_prepared_onto_itself(photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(photos / "0.jpg", "a.jpg")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="was not made by this command"):
        run(tmp_path / "set.zip", tmp_path / "set.zip")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 0}, "--resolution 0"),
        ({"resolution": 13378}, "--resolution 13378 is too large for a picture; give 13377 or less"),
        ({"workers": -1}, "--workers -1"),
        ({"image_format": "gif"}, "--format gif is unknown; choose one of png, webp, jpg"),
        ({"count": 3}, "--count and --seed are for SOURCE heads"),
        ({"seed": 0}, "--count and --seed are for SOURCE heads"),
        ({"source": "heads", "count": 0}, "--count 0"),
        ({"source": ""}, 'SOURCE "" names nothing'),
        ({"source": "nowhere"}, "SOURCE nowhere does not exist"),
        ({"destination": Path("set.tar")}, "DEST set.tar is no kind of archive"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, object], message: str, photos: Path, tmp_path: Path) -> None:
    arguments = {"source": photos, "destination": tmp_path / "set", "resolution": 8, **options}
    with pytest.raises(UserError, match=message):
        prepare_dataset(**arguments)
    assert not (tmp_path / "set").exists()


def test_a_source_with_nothing_readable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"none of its 1 files could be read, the first, a\.png, because of"):
        run(tmp_path / "photos", tmp_path / "set")


def test_an_unfinished_set_is_no_source(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(2, patch, KeyboardInterrupt())
        run(photos, tmp_path / "set")
    with pytest.raises(UserError, match=r"SOURCE .*set is an unfinished prepared set"):
        run(tmp_path / "set", tmp_path / "set2")


class FakeHeads:
    def __init__(self, resolution: int, count: int, *, seed: int) -> None:
        self.count, self.resolution, self.seed = count, resolution, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((3, self.resolution, self.resolution), 10 * self.seed + index, dtype=torch.uint8)


def test_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cips3d.data.heads, "load_heads", FakeHeads, raising=False)
    assert run("heads", tmp_path / "set", count=4, seed=2).images == 4
    source = open_images(tmp_path / "set", 8)
    assert [int(source[i][0, 0, 0]) for i in range(4)] == [20, 21, 22, 23]
    assert run("heads", tmp_path / "set", count=4, seed=2).found_complete
    with pytest.raises(UserError, match="begun with source 4 heads of seed 2, not 4 heads of seed 0"):
        run("heads", tmp_path / "set", count=4)
    with pytest.raises(UserError, match="begun with source 4 heads of seed 2, not 5 heads of seed 2"):
        run("heads", tmp_path / "set", count=5, seed=2)


def test_errors_in_rendering_heads_are_not_taken_for_unreadable_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(FakeHeads):
        def __getitem__(self, index: int) -> torch.Tensor:
            raise ValueError("a bug")

    monkeypatch.setattr(cips3d.data.heads, "load_heads", Broken, raising=False)
    with pytest.raises(ValueError, match="a bug"):
        run("heads", tmp_path / "set", count=2)
