"""The three ways to compute an op: plain PyTorch, the kernels emulated on a CPU, the kernels on a GPU."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import emulated_kernels
import pytest
import torch

from cips3d.ops import kernels

MOST_SHARED = 227  # KB of shared memory that a block may have where that is most: compute capability 9.0 and 10.0
FEW_MULTIPROCESSORS = 2  # those of the emulation
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

    @property
    def shared(self) -> int:
        """KB of shared memory that a block of a kernel may have: of the device, and of the code that it runs."""
        return int(kernels.module_for(self.device).shared_memory(self.device.index or 0)) >> 10

    def schedules(self) -> Iterator[int]:
        """Sets one schedule after the other; on a GPU, which has one of its own every time, a test just goes on."""
        for seed in SCHEDULES:
            if self.module is not None:
                self.module.set_schedule(seed)
            yield seed


@contextmanager
def memory_of_nan() -> Iterator[None]:
    """Inside, new memory is NaN until it is written, not the zeros that a CPU's often happens to be.

    What a kernel forgets to write shows then, as it does on a GPU, whose memory PyTorch uses again and again.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills what torch.empty gives
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned_only)


@contextmanager
def multiprocessors(module: ModuleType, count: int) -> Iterator[None]:
    """Inside, launchers cut their work as for so many multiprocessors; 0: as many as there are."""
    module.pretend_multiprocessors(count)
    try:
        yield
    finally:
        module.pretend_multiprocessors(0)


def open_backend(name: str, test: str, *, few_multiprocessors: bool = True) -> Iterator[Backend]:
    """For fixtures: the backend `name` for as long as the test runs; each test has a schedule of its own.

    On a GPU work is cut as in the emulation: with all of its multiprocessors, a block would hardly ever have a second
    tile of a small test, and pictures would be too small for the kernels of large ones.
    """
    if name == "reference":
        yield Backend(name, torch.device("cpu"))
    elif name == "emulated":
        module = emulated_kernels.load()
        module.set_schedule(zlib.crc32(test.encode()))
        with kernels.emulation(module), memory_of_nan():
            yield Backend(name, torch.device("cpu"), module)
    else:
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        device = torch.device("cuda", torch.cuda.current_device())
        reason = kernels.why_not_on(device)
        assert reason is None, reason  # a GPU without kernels is a failure, not a reason to skip
        with multiprocessors(kernels.module_for(device), FEW_MULTIPROCESSORS if few_multiprocessors else 0):
            yield Backend(name, device)


@contextmanager
def shared_limit(backend: Backend, kilobytes: int) -> Iterator[None]:
    """Inside, a block may have that much shared memory. Skips the test where the device has less.

    The emulation then refuses more; a GPU would not, whose launchers only choose their kernels by it.
    """
    before = backend.shared
    if before < kilobytes:
        pytest.skip(f"the device has less shared memory: {before} KB")
    if backend.module is None:
        pretend = kernels.module_for(backend.device).pretend_shared_memory
        pretend(kilobytes << 10)
        try:
            yield
        finally:
            pretend(0)
        return
    backend.module.set_shared_limit(kilobytes << 10)
    try:
        yield
    finally:
        backend.module.set_shared_limit(before << 10)


def has_room(backend: Backend, why_not: Callable[[], str | None]) -> bool:
    """Whether shared memory has room for an op's kernel; where it has none, `why_not` gives the op's own reason.

    Another reason is a failure, and so is any on a device that has the most.
    """
    reason = why_not() if backend.uses_kernels else None
    assert reason is None or ("shared memory" in reason and backend.shared < MOST_SHARED), reason
    return reason is None


def require_room(backend: Backend, why_not: Callable[[], str | None], call: Callable[[], object] | None = None) -> None:
    """Skips the test where shared memory has no room, once a direct `call` of the op has been refused for that."""
    if has_room(backend, why_not):
        return
    if call is not None:
        with pytest.raises(RuntimeError, match="do not fit into shared memory"):
            call()
    pytest.skip(f"the device has less shared memory: {backend.shared} KB")


def require_warpgroups(backend: Backend, chosen: bool) -> None:
    """Skips the test where another kernel is chosen than that for compute capability 9.0, as only other devices may."""
    if chosen:
        return
    on_cuda = backend.device.type == "cuda"
    capability = torch.cuda.get_device_capability(backend.device) if on_cuda else emulated_kernels.capability()
    assert capability != (9, 0) or backend.shared < MOST_SHARED
    pytest.skip("for compute capability 9.0")
