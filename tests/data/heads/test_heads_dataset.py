"""The cache of synthetic heads: what is made, what is trusted, and what is left after an accident."""

import json
import math
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cips3d.cameras import PoseDistribution
from cips3d.data.heads import SyntheticHeads, dataset, load_heads
from cips3d.data.source import open_training_source
from cips3d.errors import UserError

SIZE = 8


def load(cache: Path, count: int = 10, seed: int = 0, **options: object) -> SyntheticHeads:
    return load_heads(SIZE, count, seed, cache=cache, progress=False, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return load(tmp_path_factory.mktemp("heads"), count=70)


def test_a_set_is_a_sequence_of_pictures_with_their_truth(made):
    assert len(made) == 70 and made.resolution == SIZE
    assert made.images.shape == (70, 3, SIZE, SIZE) and isinstance(made.images, np.memmap)
    assert made[3].dtype == torch.uint8 and made[3].shape == (3, SIZE, SIZE)
    assert torch.equal(made[3], torch.from_numpy(np.array(made.images[3])))
    depth, mask = made.depth(3), made.mask(3)
    assert depth.shape == mask.shape == (SIZE, SIZE) and depth.dtype == mask.dtype == torch.float32
    assert torch.equal(depth > 0, mask > 0) and mask.max() == 1
    assert made.pitch.shape == made.yaw.shape == (70,)
    assert 0.15 < float(made.yaw.std()) < 0.45 and abs(float(made.yaw.mean()) - math.pi / 2) < 0.15
    assert "70 synthetic heads of 8 x 8" in made.report()
    with pytest.raises(IndexError):
        made[70]


def test_the_same_seed_makes_the_same_heads_and_another_one_others(made, tmp_path):
    again, other = load(tmp_path, count=70), load(tmp_path, count=70, seed=1)
    assert np.array_equal(made.images, again.images) and torch.equal(made.yaw, again.yaw)
    assert (np.asarray(made.images) != other.images).mean() > 0.5


def test_a_larger_set_begins_with_the_smaller_one(made, tmp_path):
    for count in (1, 65):
        small = load(tmp_path, count=count)
        assert np.array_equal(small.images, made.images[:count])
        assert torch.equal(small.pitch, made.pitch[:count])
        assert torch.equal(small.depth(count - 1), made.depth(count - 1))


def test_the_number_of_threads_does_not_matter(made, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        other = load(tmp_path, count=10)
    finally:
        torch.set_num_threads(threads)
    difference = np.abs(np.asarray(other.images, dtype=int) - made.images[:10])
    assert difference.mean() < 0.01  # levels: float rounding decides some edges


def test_poses_are_those_of_the_distribution(tmp_path):
    fixed = load(tmp_path, poses=PoseDistribution(kind="fixed"))
    assert torch.allclose(fixed.yaw, torch.full((10,), math.pi / 2))
    wide = load(tmp_path, poses=PoseDistribution(kind="uniform", yaw_std=1.0))
    assert fixed.folder != wide.folder
    assert wide.yaw.std() > 0.3


def test_a_wider_lens_sees_the_same_heads_smaller(tmp_path):
    """A picture of twice the side, whose pixels lie as close, shows in its middle what the narrower one shows."""
    half = math.tan(math.radians(6)) * (2 * SIZE - 1) / (SIZE - 1)
    narrow = load(tmp_path)
    wide = load_heads(2 * SIZE, 10, cache=tmp_path, progress=False, fov_degrees=2 * math.degrees(math.atan(half)))
    assert torch.equal(wide.yaw, narrow.yaw)
    middle = slice(SIZE // 2, -SIZE // 2)
    for index in range(10):
        mask, inner = narrow.mask(index), wide.mask(index)[middle, middle]
        assert (inner - mask).abs().mean() < 0.02  # a ray or two at an edge
        difference = (wide.depth(index)[middle, middle] - narrow.depth(index)).abs()[(inner == 1) & (mask == 1)]
        assert difference.mean() < 1e-3
        assert wide.mask(index)[: SIZE // 4].max() == 0  # nothing above the head


def test_sets_of_the_usual_lens_keep_their_names(tmp_path):
    usual, other = load(tmp_path), load(tmp_path, fov_degrees=20)
    assert load(tmp_path, fov_degrees=12).folder == usual.folder != other.folder
    assert "fov_degrees" not in json.loads((usual.folder / "heads.json").read_bytes())
    assert json.loads((other.folder / "heads.json").read_bytes())["fov_degrees"] == 20
    assert load(tmp_path, fov_degrees=20.0).folder == other.folder
    assert other.images.mean() != usual.images.mean()


def test_a_made_set_is_not_made_again(tmp_path, monkeypatch):
    first = load(tmp_path)
    monkeypatch.setattr(dataset, "render_block", lambda *_: pytest.fail("rendered again"))
    assert np.array_equal(load(tmp_path).images, first.images)


def cut_images(folder: Path) -> None:
    (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes()[:-100])


def lose_description(folder: Path) -> None:
    (folder / "heads.json").unlink()


def lose_depth(folder: Path) -> None:
    (folder / "depth.npy").unlink()


def empty_description(folder: Path) -> None:
    (folder / "heads.json").write_bytes(b"")


def swap_type(folder: Path) -> None:
    np.save(folder / "mask.npy", np.zeros((10, SIZE, SIZE), dtype=np.float64))


@pytest.mark.parametrize("damage", [cut_images, lose_description, lose_depth, empty_description, swap_type])
def test_a_damaged_set_is_made_anew(tmp_path, damage):
    first = load(tmp_path)
    expected = np.array(first.images)
    damage(first.folder)
    mended = load(tmp_path)
    assert np.array_equal(mended.images, expected) and mended.mask(0).max() == 1
    assert [path.name for path in tmp_path.iterdir()] == [first.folder.name]


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    render = dataset.render_block

    def interrupted(resolution: int, seed: int, block: int, *cameras: object) -> dict[str, torch.Tensor]:
        if block == 1:
            raise KeyboardInterrupt
        return render(resolution, seed, block, *cameras)

    monkeypatch.setattr(dataset, "render_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, count=70)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(load(tmp_path, count=70)) == 70


def test_an_unfinished_folder_of_a_killed_process_is_not_trusted(tmp_path):
    first = load(tmp_path)
    killed = first.folder.with_name(f".{first.folder.name}.123456.part")
    first.folder.rename(killed)
    assert len(load(tmp_path)) == 10


@pytest.mark.parametrize("hours", [1, 25])
def test_what_killed_processes_have_left_goes_after_a_day(tmp_path, hours):
    left = tmp_path / ".heads-16-70-seed0-0123456789ab.0123456789ab.part"
    left.mkdir()
    (left / "images.npy").write_bytes(b"half of them")
    for path in (left / "images.npy", left):
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    load(tmp_path)
    assert left.exists() == (hours == 1)


def test_two_at_once_both_succeed(tmp_path, monkeypatch):
    """Both look for the set before either has made it, and finish one after the other."""
    both_started, sets = threading.Barrier(2, timeout=60), []
    render = dataset.render_block

    def together(*arguments: object) -> dict[str, torch.Tensor]:
        both_started.wait()
        return render(*arguments)

    monkeypatch.setattr(dataset, "render_block", together)
    threads = [threading.Thread(target=lambda: sets.append(load(tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sets) == 2 and np.array_equal(sets[0].images, sets[1].images)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "own"))
    assert dataset.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("CIPS3D_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert dataset.cache_folder() == tmp_path / "xdg" / "cips3d"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert dataset.cache_folder() == Path.home() / ".cache" / "cips3d"


def test_heads_are_what_is_trained_on_when_nothing_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "here"))
    assert isinstance(open_training_source(None, SIZE, heads=4), SyntheticHeads)
    assert len(list((tmp_path / "here").iterdir())) == 1
    wide = open_training_source(None, SIZE, heads=4, fov_degrees=30.0)
    assert wide.folder == load(tmp_path / "here", 4, fov_degrees=30.0).folder


def test_a_folder_that_cannot_be_written_is_a_users_mistake(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"file/cache.*CIPS3D_CACHE"):
        load_heads(SIZE, 3, progress=False)


def test_a_full_disk_is_a_users_mistake_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        load(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("resolution", "count", "name"), [(SIZE, 0, "--heads 0"), (1, 5, "--resolution 1")])
def test_sizes_that_make_no_heads_are_users_mistakes(tmp_path, resolution, count, name):
    with pytest.raises(UserError, match=name):
        load_heads(resolution, count, cache=tmp_path, progress=False)


def test_a_set_is_pickled_as_its_folder(made):
    pickled = pickle.dumps(made)
    assert len(pickled) < 1000
    assert torch.equal(pickle.loads(pickled)[5], made[5])


def test_progress_is_shown_on_stderr_when_asked_for(tmp_path, capsys):
    load_heads(SIZE, 3, cache=tmp_path, progress=True)
    captured = capsys.readouterr()
    assert "synthetic heads" in captured.err and captured.out == ""
    load_heads(SIZE, 4, cache=tmp_path, progress=False)
    assert capsys.readouterr().err == ""
