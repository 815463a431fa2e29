"""The three ways to compute an op: plain PyTorch, the kernels emulated on a CPU, the kernels on a GPU."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import emulated_kernels
import pytest
import torch

from cips3d.ops import kernels

SCHEDULES = range(6)  # seeds of the order in which the emulation runs threads; 0: index order


@dataclass(frozen=True)
class Backend:
    """Where the tensors of a test live; the ops take it from there."""

    name: str
    device: torch.device
    module: ModuleType | None = None

    @property
    def uses_kernels(self) -> bool:
        return self.name != "reference"

    def schedules(self) -> Iterator[int]:
        """Sets one schedule after the other, where there is something to choose."""
        for seed in SCHEDULES if self.module is not None else [0]:
            if self.module is not None:
                self.module.set_schedule(seed)
            yield seed


def open_backend(name: str, test: str) -> Iterator[Backend]:
    """For fixtures: the backend `name` for as long as the test runs; each test has a schedule of its own."""
    if name == "reference":
        yield Backend(name, torch.device("cpu"))
    elif name == "emulated":
        module = emulated_kernels.load()
        module.set_schedule(zlib.crc32(test.encode()))
        with kernels.emulation(module):
            yield Backend(name, torch.device("cpu"), module)
    else:
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        reason = kernels.why_not_on(torch.device("cuda", torch.cuda.current_device()))
        assert reason is None, reason  # a GPU without kernels is a failure, not a reason to skip
        yield Backend(name, torch.device("cuda", torch.cuda.current_device()))


@contextmanager
def shared_limit(backend: Backend, kilobytes: int) -> Iterator[None]:
    """Inside, an emulated device has less shared memory."""
    assert backend.module is not None
    before = backend.module.shared_limit()
    backend.module.set_shared_limit(kilobytes << 10)
    try:
        yield
    finally:
        backend.module.set_shared_limit(before)
