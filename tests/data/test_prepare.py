"""Prepared sets: what is written, what is refused, and what others made left alone."""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path

import pytest
import torch
from data.preparation import contents, run
from PIL import Image

from cips3d.data import open_images, prepare_dataset
from cips3d.data import prepare as prepare_module
from cips3d.errors import UserError
from cips3d.files import only_writer


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


def test_manifests_that_say_something_else(photos: Path, tmp_path: Path) -> None:
    """Of a set that was packed by hand before it was whole, of other programs, or damaged."""
    run(photos, tmp_path / "set")
    whole = json.loads((tmp_path / "set" / "dataset.json").read_bytes())
    for name, text, message in (
        ("unfinished", json.dumps({"cips3d": {**whole["cips3d"], "complete": False}}), "is an unfinished prepared set"),
        ("deep", "[" * 100_000, "was not made by this command"),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("dataset.json", text)
        with pytest.raises(UserError, match=f"{name}.zip .*{message}"):
            run(photos, tmp_path / f"{name}.zip")
    with zipfile.ZipFile(tmp_path / "damaged.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dataset.json", json.dumps(whole))
    data = bytearray((tmp_path / "damaged.zip").read_bytes())
    data[60:90] = bytes(255 - byte for byte in data[60:90])
    (tmp_path / "damaged.zip").write_bytes(data)
    with pytest.raises(UserError, match="was not made by this command"):
        run(photos, tmp_path / "damaged.zip")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="deep holds files that this command did not make"):
        run(photos, tmp_path / "deep")
    del whole["cips3d"]["unreadable"]
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(whole))
    assert run(photos, tmp_path / "set").images == 5  # looked at once more


def test_a_folder_is_left_to_its_writer(photos: Path, tmp_path: Path) -> None:
    """The archive is there, and who has packed it is about to remove what it was packed from."""
    fcntl = pytest.importorskip("fcntl", reason="no locks on this system")
    run(photos, tmp_path / "set.zip")
    folder = tmp_path / "set.zip.partial"
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        archive.extractall(folder)
    with only_writer(folder) as alone:
        assert alone and fcntl
        assert run(photos, tmp_path / "set.zip").found_complete
        assert folder.exists()
    assert run(photos, tmp_path / "set.zip").found_complete
    assert not folder.exists()


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
        ({"count": 3}, "--count, --seed and --fov-degrees are for SOURCE heads"),
        ({"seed": 0}, "--count, --seed and --fov-degrees are for SOURCE heads"),
        ({"fov_degrees": 12.0}, "--count, --seed and --fov-degrees are for SOURCE heads"),
        ({"source": "heads", "fov_degrees": 200.0}, "--fov-degrees 200"),
        ({"source": "heads", "fov_degrees": float("nan")}, "--fov-degrees nan"),
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


class FakeHeads:
    def __init__(self, resolution: int, count: int, *, seed: int, fov_degrees: float) -> None:
        self.count, self.resolution, self.seed, self.fov_degrees = count, resolution, seed, fov_degrees

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        level = 10 * self.seed + index + int(self.fov_degrees - 12)
        return torch.full((3, self.resolution, self.resolution), level, dtype=torch.uint8)


def test_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "load_heads", FakeHeads)
    assert run("heads", tmp_path / "set", count=4, seed=2).images == 4
    source = open_images(tmp_path / "set", 8)
    assert [int(source[i][0, 0, 0]) for i in range(4)] == [20, 21, 22, 23]
    assert run("heads", tmp_path / "set", count=4, seed=2).found_complete
    with pytest.raises(UserError, match="begun with source 4 heads of seed 2, not 4 heads of seed 0"):
        run("heads", tmp_path / "set", count=4)
    with pytest.raises(UserError, match="begun with source 4 heads of seed 2, not 5 heads of seed 2"):
        run("heads", tmp_path / "set", count=5, seed=2)
    assert run("heads", tmp_path / "wide", count=4, seed=2, fov_degrees=20.0).images == 4
    source = open_images(tmp_path / "wide", 8)
    assert [int(source[i][0, 0, 0]) for i in range(4)] == [28, 29, 30, 31]
    with pytest.raises(UserError, match="begun with source 4 heads of seed 2 at 20 degrees, not 4 heads of seed 2;"):
        run("heads", tmp_path / "wide", count=4, seed=2)


def test_errors_in_rendering_heads_are_not_taken_for_unreadable_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(FakeHeads):
        def __getitem__(self, index: int) -> torch.Tensor:
            raise ValueError("a bug")

    monkeypatch.setattr(prepare_module, "load_heads", Broken)
    with pytest.raises(ValueError, match="a bug"):
        run("heads", tmp_path / "set", count=2)
