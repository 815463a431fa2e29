"""The stream of training batches: order, mirroring, resuming, ranks, workers and errors."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from data.numbered import Numbered
from torch import Tensor

from cips3d.data import TrainingImages
from cips3d.data.loader import TrainingOrder, random_words
from cips3d.errors import UserError


def decode(batch: Tensor) -> list[tuple[int, bool]]:
    """Which pictures a batch holds, and which of them are mirrored."""
    pixels = ((batch + 1) * 127.5).round().int()
    return [(int(p[0, 0, 1]), bool(p[0, 0, -1] == 255)) for p in pixels]


def stream(count: int, batch: int, batches: int, **options: object) -> list[tuple[int, bool]]:
    images = TrainingImages(Numbered(count), batch, **{"seed": 3, "x_flip": True, **options})
    try:
        return [item for _ in range(batches) for item in decode(next(images))]
    finally:
        images.close()


def test_batches_are_floats_between_minus_one_and_one() -> None:
    batch = next(TrainingImages(Numbered(1), 2, seed=0, x_flip=False))
    assert batch.shape == (2, 3, 4, 4)
    assert batch.dtype == torch.float32
    assert batch[0, 0, 0].tolist() == [1, -1, -1, -1]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_every_epoch_shows_every_picture_once(count: int) -> None:
    """Also where the batch is larger than the set, and where epochs end within a batch."""
    pictures = [picture for picture, _ in stream(count, 5, count)]  # 5 epochs
    for epoch in range(5):
        assert sorted(pictures[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ() -> None:
    epochs = {tuple(p for p, _ in stream(20, 20, 1, position=20 * epoch)) for epoch in range(4)}
    seeds = {tuple(p for p, _ in stream(20, 20, 1, seed=seed)) for seed in (-1, 0, 1, 2**40)}
    assert len(epochs) == len(seeds) == 4


def test_permutations_are_uniform() -> None:
    """Each of the 6 orders of 3 pictures has a share of 1/6 within 5 standard errors."""
    order = TrainingOrder(3, seed=0, x_flip=False)
    epochs = 3000
    pictures = [picture for picture, _ in order(0, 3 * epochs)]
    seen = Counter(tuple(pictures[3 * e : 3 * e + 3]) for e in range(epochs))
    assert len(seen) == 6
    assert max(abs(times / epochs - 1 / 6) for times in seen.values()) < 5 * (5 / 36 / epochs) ** 0.5


def test_half_of_the_pictures_are_mirrored() -> None:
    flips = np.array([flip for _, flip in TrainingOrder(7, seed=5, x_flip=True)(0, 10_000)], dtype=float)
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / 100  # 5 standard errors
    assert abs(np.corrcoef(flips[:-1], flips[1:])[0, 1]) < 0.05
    assert not any(flip for _, flip in TrainingOrder(7, seed=5, x_flip=False)(0, 100))


def test_mirroring_does_not_change_the_order() -> None:
    assert [p for p, _ in stream(5, 4, 5)] == [p for p, _ in stream(5, 4, 5, x_flip=False)]


def test_mirrored_pictures_are_turned_left_to_right() -> None:
    assert stream(8, 4, 4) == TrainingOrder(8, seed=3, x_flip=True)(0, 16)  # by the mark on the left or right edge


def test_the_order_never_changes() -> None:
    """Checkpoints hold a position only: other values here would make every one of them go on differently."""
    assert int(random_words(0)[0]) == 0xE220A8397B1DCDAF  # splitmix64's published first output for the state 0
    order = TrainingOrder(8, seed=1, x_flip=True)
    assert order(6, 12) == [(0, False), (6, True), (3, False), (5, False), (7, True), (1, False)]


def test_resuming_at_every_position_goes_on_exactly() -> None:
    count, batch = 5, 3
    whole = stream(count, 1, 4 * count)
    for position in range(2 * count):
        assert stream(count, batch, 3, position=position) == whole[position : position + 3 * batch]


def test_the_position_counts_what_was_handed_out() -> None:
    images = TrainingImages(Numbered(5), 2, seed=0, x_flip=True, workers=1, rank=1, world_size=3, position=4)
    assert images.position == 4  # although the worker has begun to read ahead
    for _ in range(4):
        next(images)
    assert images.position == 4 + 4 * 2 * 3
    following = decode(next(images))
    images.close()
    again = TrainingImages(Numbered(5), 2, seed=0, x_flip=True, rank=1, world_size=3, position=4 + 4 * 2 * 3)
    assert decode(next(again)) == following


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    assert stream(7, 3, 12, workers=workers, position=2) == stream(7, 3, 12, position=2)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_what_one_process_would_show(world_size: int) -> None:
    ranks = [stream(5, 2, 6, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = [item for step in range(6) for shown in ranks for item in shown[2 * step : 2 * step + 2]]
    assert together == stream(5, 2 * world_size, 6)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    stream(5, 2, 3)
    stream(5, 2, 3, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_became_unreadable_is_told_in_its_sentence(workers: int) -> None:
    source = Numbered(4, fails_at=2, error=UserError("a.png is gone; restore it"))
    images = TrainingImages(source, 4, seed=0, x_flip=False, workers=workers)
    with pytest.raises(UserError) as caught:
        next(images)
    assert str(caught.value) == "a.png is gone; restore it"
    assert images.position == 0
    with pytest.raises(RuntimeError, match="closed"):
        next(images)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_program_surface(workers: int) -> None:
    source = Numbered(4, fails_at=2, error=KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        next(TrainingImages(source, 4, seed=0, x_flip=False, workers=workers))


def test_an_error_of_the_program_closes_the_stream() -> None:
    images = TrainingImages(Numbered(4, fails_at=2, error=KeyError("a bug")), 4, seed=0, x_flip=False)
    for error, words in ((KeyError, "a bug"), (RuntimeError, "closed")):
        with pytest.raises(error, match=words):
            next(images)
    assert images.position == 0


def new_workers(before: list[BaseProcess]) -> list[BaseProcess]:
    """Processes that were not there before; those of earlier tests may take a moment to end."""
    return [process for process in multiprocessing.active_children() if process not in before]


def test_a_killed_worker_surfaces() -> None:
    before = multiprocessing.active_children()
    images = TrainingImages(Numbered(4), 2, seed=0, x_flip=False, workers=1)
    next(images)
    (worker,) = new_workers(before)
    os.kill(worker.pid or 0, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker"):
        for _ in range(10):  # what it had read ahead is still handed out
            next(images)


def test_closing_ends_the_workers() -> None:
    before = multiprocessing.active_children()
    images = TrainingImages(Numbered(4), 2, seed=0, x_flip=False, workers=2)
    next(images)
    workers = new_workers(before)
    assert len(workers) == 2
    gc.disable()  # closing must not wait for the garbage collector
    try:
        images.close()
        for worker in workers:
            worker.join(timeout=10)
        assert not any(worker.is_alive() for worker in workers)
    finally:
        gc.enable()
    images.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(images)


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="who sent a signal is not told")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_workers_leave_signals_to_the_training_process(name: str) -> None:
    before = multiprocessing.active_children()
    images = TrainingImages(Numbered(4), 2, seed=0, x_flip=False, workers=1)
    next(images)
    for worker in new_workers(before):  # by another process: a terminal, a job's manager
        subprocess.run(["kill", f"-{name.removeprefix('SIG')}", str(worker.pid)], check=True)
    for _ in range(10):
        next(images)
    images.close()


def test_a_stuck_worker_ends_when_its_parent_asks() -> None:
    """As torch and Python ask the workers that they cannot wait for."""
    before = multiprocessing.active_children()
    images = TrainingImages(Numbered(4, delay=60.0), 2, seed=0, x_flip=False, workers=1)
    (worker,) = new_workers(before)
    time.sleep(0.2)  # it is on its way
    worker.terminate()
    worker.join(timeout=10)
    assert not worker.is_alive()
    images.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_no_forks(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A server's are Python's own choice from 3.14 on. Threads of libraries are none that would take a signal."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "4")
    before, usual = multiprocessing.active_children(), multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        images = TrainingImages(Numbered(4), 2, seed=0, x_flip=False, workers=1)
        found = [next(images) for _ in range(3)]
        (worker,) = new_workers(before)
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        found += [next(images) for _ in range(7)]
        worker.terminate()
        worker.join(timeout=10)
        assert not worker.is_alive()
        images.close()
    finally:
        multiprocessing.set_start_method(usual, force=True)
    expected = TrainingImages(Numbered(4), 2, seed=0, x_flip=False)
    assert all(torch.equal(batch, next(expected)) for batch in found)


ORPHAN = """
import multiprocessing, sys, time
from cips3d.data import TrainingImages

class Stuck:
    resolution = 4
    def __len__(self):
        return 4
    def __getitem__(self, index):
        print("reading", flush=True)
        time.sleep(60)

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1], force=True)
    images = TrainingImages(Stuck(), 2, seed=0, x_flip=False, workers=2)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="workers look for their parents when they are idle")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_end_with_their_parent(tmp_path: Path, method: str) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with subprocess.Popen([sys.executable, str(script), method], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert [parent.stdout.readline() for _ in range(2)] == ["reading\n"] * 2
        parent.kill()
        parent.communicate(timeout=20)  # until the worker, which holds the pipe's other end, has ended


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": -1}, "workers"),
        ({"world_size": 0}, "world_size"),
        ({"position": -1}, "position"),
        ({"rank": 2, "world_size": 2}, "rank must be in 0 to world_size - 1 = 1, got 2"),
        ({"source": Numbered(0)}, "count must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, object], message: str) -> None:
    valid = {"source": Numbered(2), "batch_size": 2, "seed": 0, "x_flip": False}
    with pytest.raises(ValueError, match=message):
        TrainingImages(**{**valid, **options})
