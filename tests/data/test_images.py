"""Folders and zips of images: what is listed, in which order, what is skipped and how mistakes are told."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cips3d.data import ImageFiles, open_images
from cips3d.data import images as images_module
from cips3d.data.images import ImageFolder, ImageZip
from cips3d.errors import UserError


def grey(value: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("L", (6, 6), value).save(stream, kind)
    return stream.getvalue()


def values(source: ImageFiles) -> list[int]:
    return [int(source[i].float().mean().round()) for i in range(len(source))]


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make(container: str, folder: Path, files: dict[str, bytes]) -> Path:
    return write_files(folder / "set", files) if container == "folder" else write_zip(folder / "set.zip", files)


TREE = {
    "b/2.PNG": grey(20),
    "b/10.Jpg": grey(10, "JPEG"),
    "a.jpeg": grey(30, "JPEG"),
    "Z.webp": grey(40, "WEBP"),
    "a/deep/er/x.png": grey(50),
    "notes.txt": b"not an image",
    "dataset.json": b'{"labels": [["b/2.PNG", 1]]}',
    "c.gif": grey(60, "GIF"),
    "__MACOSX/b/._2.PNG": b"shadow",
    ".thumbnails/a.png": grey(70),
    "b/._2.PNG": b"shadow",
}
ORDER = ["Z.webp", "a.jpeg", "a/deep/er/x.png", "b/10.Jpg", "b/2.PNG"]


@pytest.mark.parametrize("container", ["folder", "zip"])
@pytest.mark.parametrize("limit", [0, 2**20])
def test_images_are_found_and_sorted(container: str, limit: int, tmp_path: Path) -> None:
    source = open_images(make(container, tmp_path, TREE), 4, decoded_limit=limit)
    assert source.names == ORDER
    assert values(source) == [40, 30, 50, 10, 20]
    assert source[0].shape == (3, 4, 4)
    assert source[0].dtype == torch.uint8
    assert source.resolution == 4
    assert source.unreadable == []
    assert source.report() == f"5 images from {source.path}"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_could_unpack_to_anything_is_skipped(method: int, tmp_path: Path) -> None:
    """A kilobyte of these becomes gigabytes before the first byte is there."""
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", grey(1))
        archive.writestr("b.png", grey(2), method)
        archive.writestr("dataset.json", json.dumps({"cips3d": {"complete": False}}), method)
    source = open_images(path, 4)
    assert len(source) == 1 and source.reasons == {"b.png": "OSError: its entry is neither stored nor deflated"}


def test_damaged_entries_of_zips_are_skipped(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path, content = tmp_path / "photos.zip", io.BytesIO()
    Image.fromarray(random).save(content, "PNG")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.png", "b.png"):
            archive.writestr(name, content.getvalue())
        start = archive.getinfo("b.png").header_offset + 100
    data = bytearray(path.read_bytes())
    data[start : start + 60] = bytes(255 - byte for byte in data[start : start + 60])
    path.write_bytes(data)
    source = open_images(path, 4)
    assert len(source) == 1 and source.unreadable == ["b.png"]


def test_folders_whose_names_are_no_text(tmp_path: Path) -> None:
    """What is told of them can be written down."""
    source = open_images(write_files(tmp_path / "ph\udce9otos", {"a.png": grey(1)}), 4)
    assert source.report().encode().endswith(b"ph\\udce9otos")


@pytest.mark.parametrize("container", ["folder", "zip"])
@pytest.mark.parametrize("limit", [0, 2**20])
def test_unreadable_files_are_named_counted_and_skipped(container: str, limit: int, tmp_path: Path) -> None:
    broken = {f"broken{i}.png": grey(0)[:40] for i in range(4)} | {"empty.jpg": b""}
    path = make(container, tmp_path, {"a.png": grey(1), "z.png": grey(2), **broken})
    source = open_images(path, 4, decoded_limit=limit)
    assert values(source) == [1, 2]
    assert source.unreadable == ["broken0.png", "broken1.png", "broken2.png", "broken3.png", "empty.jpg"]
    assert source.reasons["empty.jpg"] == "no JPEG, PNG, WEBP, GIF, BMP, TIFF content"
    assert source.report() == (
        f"2 images from {path} (5 unreadable skipped: broken0.png, broken1.png, broken2.png, ...)"
    )


def test_keeping_decoded_pictures_does_not_change_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(random.integers(0, 256, (20, 31, 3), dtype=np.uint8)).save(tmp_path / f"{i}.jpg")
    kept, read_again = open_images(tmp_path, 8), open_images(tmp_path, 8, decoded_limit=0)
    for i in range(3):
        assert torch.equal(kept[i], read_again[i])
    kept[0].zero_()  # what is handed out belongs to the caller
    assert torch.equal(kept[0], read_again[0])


def test_kept_pictures_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {f"{i}.png": grey(i) for i in range(5)})
    decoded = []
    original = images_module.decode_image
    monkeypatch.setattr(images_module, "decode_image", lambda *a: decoded.append(1) or original(*a))
    source = open_images(tmp_path, 4)
    assert values(source) == values(source) == [0, 1, 2, 3, 4]
    assert len(decoded) == 5


@pytest.mark.parametrize("container", ["folder", "zip"])
@pytest.mark.parametrize("recorded", [1, 2])
def test_prepared_sets_are_not_decoded_to_look_at_them(
    container: str, recorded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where there are as many pictures as were made."""
    looked_at: list[bytes] = []
    monkeypatch.setattr(images_module, "read_rgb", lambda data, **_: looked_at.append(data))
    manifest = json.dumps({"cips3d": {"complete": True, "images": recorded}}).encode()
    path = make(container, tmp_path, {"a.png": grey(1), "b.png": grey(2), "dataset.json": manifest})
    source = open_images(path, 4, decoded_limit=0)
    assert source.names == ["a.png", "b.png"]
    assert len(looked_at) == (0 if recorded == 2 else 2)


def test_as_many_are_kept_decoded_as_the_limit_holds(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{i}.png": grey(i) for i in range(3)})
    size = 3 * 3 * 4**2
    kept, too_many = open_images(tmp_path, 4, decoded_limit=size), open_images(tmp_path, 4, decoded_limit=size - 1)
    (tmp_path / "0.png").unlink()
    assert values(kept) == [0, 1, 2]
    with pytest.raises(UserError, match="no longer is"):
        too_many[0]


@pytest.mark.parametrize("index", [3, -4])
@pytest.mark.parametrize("limit", [0, 2**20])
def test_an_index_beyond_the_set_ends_iteration(index: int, limit: int, tmp_path: Path) -> None:
    source = open_images(write_files(tmp_path, {f"{i}.png": grey(i) for i in range(3)}), 4, decoded_limit=limit)
    with pytest.raises(IndexError):
        source[index]


def test_a_file_lost_later_is_an_error_that_names_it(tmp_path: Path) -> None:
    source = open_images(write_files(tmp_path, {"a.png": grey(1), "b.png": grey(2)}), 4, decoded_limit=0)
    (tmp_path / "b.png").write_bytes(b"")
    assert int(source[0].float().mean()) == 1
    with pytest.raises(UserError, match=r"b\.png in .* no longer"):
        source[1]


def test_names_in_a_zip_never_become_paths(tmp_path: Path) -> None:
    """Absolute names and names with .. are read in place like any others."""
    home = tmp_path / "home"
    home.mkdir()
    files = {"/abs.png": grey(1), "../outside.png": grey(2), "C:\\drive.png": grey(3), "in.png": grey(4)}
    source = open_images(write_zip(home / "set.zip", files), 4, decoded_limit=0)
    assert sorted(values(source)) == [1, 2, 3, 4]
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "set.zip"]


def test_compressed_zips_and_doubled_names(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": grey(1), "b.png": grey(2)}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.png", grey(9))
    assert values(open_images(path, 4)) == [9, 2]


def test_damaged_and_oversized_zip_entries_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = grey(3) + b"\0" * 5000
    path = write_zip(tmp_path / "a.zip", {"a.png": grey(1), "b.png": grey(2), "large.png": large})
    data = path.read_bytes()
    path.write_bytes(data.replace(grey(2), grey(2)[:-1] + b"!", 1))  # the checksum no longer fits
    monkeypatch.setattr(images_module, "MAX_FILE_BYTES", 4000)
    source = open_images(path, 4)
    assert values(source) == [1]
    assert source.reasons["b.png"].startswith("BadZipFile")
    assert "5," in source.reasons["large.png"]


def test_entries_that_claim_to_be_small_are_not_inflated(tmp_path: Path) -> None:
    """The central directory says 1000 bytes of what would fill 64 MiB."""
    path = write_zip(tmp_path / "a.zip", {"a.png": bytes(64 << 20), "b.png": grey(2)}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, 1000)
    path.write_bytes(data)
    tracemalloc.start()
    source = open_images(path, 4, decoded_limit=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "a.png" in source.reasons
    assert peak < 16 << 20


def _mean_in_child(source: ImageFiles, answers: multiprocessing.Queue) -> None:
    answers.put([int(source[i].float().mean()) for i in range(len(source))])


def test_every_process_opens_the_zip_for_itself(tmp_path: Path) -> None:
    """A forked child that shared the parent's handle would move the parent's place in the file."""
    files = {f"{i:02}.png": grey(i) for i in range(20)}
    source = open_images(write_zip(tmp_path / "a.zip", files), 4, decoded_limit=0)
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue = context.Queue()
    children = [context.Process(target=_mean_in_child, args=(source, answers)) for _ in range(2)]
    for child in children:
        child.start()
    assert values(source) == list(range(20))
    for child in children:
        assert answers.get(timeout=30) == list(range(20))
        child.join()


def test_an_inherited_handle_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ImageZip(write_zip(tmp_path / "a.zip", {"a.png": grey(1)}))
    assert files.read("a.png") == grey(1)
    inherited = files._opened[1]
    monkeypatch.setattr(os, "getpid", lambda: -1)  # what a child sees: another process id
    monkeypatch.setattr(inherited, "read", lambda *a: pytest.fail("read through the parent's handle"))
    assert files.read("a.png") == grey(1)


@pytest.mark.parametrize("container", ["folder", "zip"])
@pytest.mark.parametrize("limit", [0, 2**20])
def test_sources_can_be_pickled(container: str, limit: int, tmp_path: Path) -> None:
    source = open_images(make(container, tmp_path, {"a.png": grey(7), "b.png": b""}), 4, decoded_limit=limit)
    copy = pickle.loads(pickle.dumps(source))
    assert values(copy) == [7]
    assert copy.report() == source.report()


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_files(tmp_path / "elsewhere", {"a.png": grey(1)})
    write_files(tmp_path / "set", {"b/own.png": grey(2)})
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "b" / "circle").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    source = open_images(tmp_path / "set", 4)
    assert source.names == ["b/own.png", "linked/a.png"]
    assert source.unreadable == ["dangling.png"]


def test_links_to_what_the_set_lies_in_are_not_followed(tmp_path: Path) -> None:
    write_files(tmp_path, {"beside.png": grey(1), "set/own.png": grey(2)})
    (tmp_path / "set" / "up").symlink_to(tmp_path)
    assert ImageFolder(tmp_path / "set").names() == ["own.png"]


def test_links_into_each_other_s_folders_show_every_picture_once_a_way(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/1.png": grey(1), "b/2.png": grey(2)})
    (tmp_path / "a" / "x").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "y").symlink_to(tmp_path / "a")
    assert ImageFolder(tmp_path).names() == ["a/1.png", "a/x/2.png", "b/2.png", "b/y/1.png"]


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert open_images(write_files(tmp_path, {"a.png": grey(1)}), 4).unreadable == ["pipe.png"]


def test_names_that_are_no_text_can_be_reported(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": grey(1)})
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.png")).write_bytes(b"")
    line = open_images(tmp_path, 4).report()
    assert "\\udcff\\n.png" in line
    line.encode()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: p / "nowhere", r"--data .*nowhere does not exist; give a folder or a zip"),
        (lambda p: "", r'--data "" names nothing; give a folder or a zip'),
        (lambda p: p, r"--data .* holds no images; .*\.jpg, \.jpeg, \.png, \.webp"),
        (lambda p: write_zip(p / "empty.zip", {"a.txt": b""}), r"--data .*empty\.zip holds no images"),
        (
            lambda p: write_files(p, {"a.zip": b"no"}) / "a.zip",
            r"--data .*a\.zip is no complete zip; it may be damaged",
        ),
        (lambda p: write_files(p, {"a.tar": b"no"}) / "a.tar", r"--data .*a\.tar is neither a folder nor a zip"),
        (lambda p: write_files(p, {"a.png": grey(1)}) / "a.png", r"--data .*a\.png is neither"),
        (
            lambda p: write_files(p, {"a.png": b"", "b.jpg": b"no"}),
            r"none of its 2 files \(endings \.jpg.*\) could be read, the first, a\.png, because of no JPEG",
        ),
        (
            lambda p: write_files(p, {"dataset.json": json.dumps({"cips3d": {"complete": False}}).encode()}),
            r"unfinished prepared set; run the `cips3d\.dataset` command",
        ),
    ],
)
def test_mistakes_are_told_in_a_sentence(prepare, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_images(prepare(tmp_path), 4)
    assert "\n" not in str(caught.value)


def test_a_zip_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": grey(1)})
    monkeypatch.setattr(os, "access", lambda *_: False)  # a superuser may read all
    with pytest.raises(UserError, match=r"a\.zip cannot be read; check its rights"):
        open_images(path, 4)


def test_a_damaged_zip_is_to_be_copied_again(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": grey(1)})
    path.write_bytes(path.read_bytes().replace(b"PK\1\2", b"PK\0\0"))  # its directory
    with pytest.raises(UserError, match=r"--data .*a\.zip cannot be read \(BadZipFile: .*copy it again") as caught:
        open_images(path, 4)
    assert "rights" not in str(caught.value)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: ImageFolder) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))

    monkeypatch.setattr(ImageFolder, "names", forbidden)
    with pytest.raises(UserError, match=r"cannot be read \(PermissionError: .*; check its rights"):
        open_images(tmp_path, 4)


@pytest.mark.parametrize("resolution", [0, 13378, 10**9])
def test_a_resolution_of_nothing_or_too_much_is_refused(tmp_path: Path, resolution: int) -> None:
    with pytest.raises(UserError, match=f"--resolution {resolution} is"):
        open_images(tmp_path, resolution)


@pytest.mark.parametrize("content", [b"no json", b"[]", b'{"cips3d": 3}', b'{"labels": null}', b"\xff"])
def test_other_programs_manifests_are_ignored(content: bytes, tmp_path: Path) -> None:
    assert values(open_images(write_files(tmp_path, {"dataset.json": content, "a.png": grey(1)}), 4)) == [1]
