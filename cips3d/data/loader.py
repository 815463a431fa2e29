"""The endless stream of training pictures, resumable at any position."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cips3d.data.images import ImageSource
from cips3d.errors import UserError
from cips3d.pictures.colors import from_uint8

# Splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). Written
# out, since checkpoints hold nothing but a position: the order must stay the same in every version of the
# libraries.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

PARENT_SECONDS = 1.0  # between two looks of a worker whether its parent is alive

_ORDER, _FLIP = 1, 2  # what random words are for: each purpose has its own


def random_words(*key: int | npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """64 random bits that are a pure function of the key's words (integers modulo 2^64, arrays broadcast)."""
    state = np.zeros(1, dtype=np.uint64)
    for word in key:
        if isinstance(word, int):
            word = np.array([word % 2**64], dtype=np.uint64)
        state = (state + _INCREMENT) ^ word
        state = (state ^ (state >> np.uint64(30))) * _MULTIPLIERS[0]
        state = (state ^ (state >> np.uint64(27))) * _MULTIPLIERS[1]
        state = state ^ (state >> np.uint64(31))
    return state


class TrainingOrder:
    """Which picture stands at which position of the endless stream, and whether it is mirrored.

    Position p lies in epoch e = p // count, which shows the pictures in a permutation drawn from (seed, e);
    the mirror bit is drawn from (seed, p). So any position is reached without going through those before it.

    Args:
        count: pictures in the set.
        seed: of the permutations and mirrorings.
        x_flip: mirror every other picture, on average, left to right.
    """

    def __init__(self, count: int, seed: int, x_flip: bool) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.count = count
        self.seed = seed
        self.x_flip = x_flip
        self._epoch = -1
        self._permutation = np.zeros(0, dtype=np.int64)

    def __call__(self, start: int, stop: int) -> list[tuple[int, bool]]:
        """Picture and mirror bit at the positions from `start` up to `stop`."""
        flips = [False] * (stop - start)
        if self.x_flip:
            positions = np.arange(start, stop, dtype=np.uint64)
            flips = ((random_words(self.seed, _FLIP, positions) >> np.uint64(63)) == 1).tolist()
        return [(self._picture(start + i), flip) for i, flip in enumerate(flips)]

    def _picture(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            keys = random_words(self.seed, _ORDER, epoch, np.arange(self.count, dtype=np.uint64))
            self._epoch, self._permutation = epoch, np.argsort(keys, kind="stable")
        return int(self._permutation[place])


class _Batches:
    """Endless sampler: the pictures of one process's batches, from a position on."""

    def __init__(self, order: TrainingOrder, batch_size: int, rank: int, world_size: int, position: int) -> None:
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.position = position

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        start = self.position + self.rank * self.batch_size
        while True:
            yield self.order(start, start + self.batch_size)
            start += self.world_size * self.batch_size


class _Pictures(Dataset):
    """Fetches a whole batch at once, as bytes: a quarter of what floats take in a worker's shared memory."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __getitem__(self, batch: list[tuple[int, bool]]) -> Tensor | UserError:
        """uint8 [B, 3, H, W], or the mistake as a value: raised in a worker, it would be a traceback."""
        try:
            pictures = [self.source[index].flip(-1) if flip else self.source[index] for index, flip in batch]
        except UserError as error:
            return error
        return torch.stack(pictures)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_method() -> str:
    """Of workers: Python's own, but for servers that fork (Python 3.14), which would not hold back what is below."""
    usual = multiprocessing.get_start_method()
    return "spawn" if usual == "forkserver" else usual


@contextmanager
def _termination_held_back() -> Iterator[None]:
    """Inside, processes are started of which no thread is open to SIGTERM, also none that libraries and Python's
    tidying up start before `_heed_the_parent_alone`."""
    if not hasattr(signal, "sigtimedwait"):
        yield
        return
    if _start_method() != "fork":
        resource_tracker.ensure_running()  # to start it inside would let SIGTERM in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heed_the_parent_alone(worker: int) -> None:
    """Signals reach all processes of a terminal or job; the training process ends the workers when it is ready."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if hasattr(signal, "sigtimedwait") and parent is not None:  # where the system tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """End this process, however busy, when its parent has ended or asks for it by SIGTERM, as torch does in need.

    What Python watches alone would not do: forked processes keep it open for each other.
    """
    forked_by = os.getppid()
    while os.getppid() == forked_by and parent.is_alive():
        asked = signal.sigtimedwait({signal.SIGTERM}, PARENT_SECONDS)
        if asked is not None and asked.si_pid == parent.pid:
            break
    os._exit(0)


class TrainingImages:
    """Endless batches of training pictures, exactly resumable.

    The pictures are a pure function of (seed, position): the same for any number of workers, and the ranks of
    one step together hold what a single process with `world_size` times the batch would. An epoch may end
    within a batch.

    Args:
        source: the pictures.
        batch_size: pictures a batch of this process.
        seed: of order and mirroring; the same on every rank.
        x_flip: mirror every other picture, on average, left to right.
        workers: processes that decode ahead; 0 decodes in this one.
        rank: of this process among `world_size`.
        world_size: how many processes train together.
        position: where to start, a former `position` of this class.
        device: where batches are handed out. The pictures' bytes go to a GPU, from pinned memory, beside other work.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        *,
        seed: int,
        x_flip: bool,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        position: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("workers", workers, 0),
            ("world_size", world_size, 1),
            ("position", position, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0 to world_size - 1 = {world_size - 1}, got {rank}")
        self._position = position
        self._step = batch_size * world_size
        self._device = torch.device(device)
        order = TrainingOrder(len(source), seed, x_flip)
        self._loader: DataLoader | None = DataLoader(
            _Pictures(source),
            batch_size=None,  # the sampler makes the batches
            sampler=_Batches(order, batch_size, rank, world_size, position),
            num_workers=workers,
            multiprocessing_context=_start_method() if workers > 0 else None,
            collate_fn=_as_it_is,
            persistent_workers=workers > 0,
            worker_init_fn=_heed_the_parent_alone,
            generator=torch.Generator(),  # the default would draw from the global generator
        )
        with _termination_held_back():
            self._batches: Iterator[Tensor | UserError] | None = iter(self._loader)

    @property
    def position(self) -> int:
        """Pictures handed out so far, over all ranks; what workers hold ready does not count."""
        return self._position

    def __iter__(self) -> TrainingImages:
        return self

    def __next__(self) -> Tensor:
        """The next batch, float32 [batch, 3, H, W] in [-1, 1] on the device.

        Raises:
            UserError: a picture has become unreadable.
            RuntimeError: a worker failed, or the stream is closed. Any error closes it.
        """
        if self._batches is None:
            raise RuntimeError("this TrainingImages is closed; make another one at its position to go on")
        pictures = None
        try:
            pictures = next(self._batches)
        except (ConnectionError, EOFError):
            pass  # a worker died while it handed over a batch; raised below, where no frame of torch keeps it alive
        except BaseException:
            self.close()
            raise
        if pictures is None:
            self.close()
            raise RuntimeError("a worker that reads pictures died; see the system's log, or use fewer --workers")
        try:
            if isinstance(pictures, UserError):
                raise pictures
            if self._device.type == "cuda":
                pictures = pictures.pin_memory()
            batch = from_uint8(pictures.to(self._device, non_blocking=True))
        except BaseException:  # a batch taken and not handed out would make `position` untrue from here on
            self.close()
            raise
        self._position += self._step
        return batch

    def close(self) -> None:
        """End the workers; closing twice does no harm."""
        self._batches = None  # the iterator ends its workers when its last reference goes
        self._loader = None
