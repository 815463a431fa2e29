"""Timing on a CPU or a GPU, and the ceilings that a time is compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

FLUSH_BYTES = 512 << 20  # more than any L2: read between runs, so that every run reads its inputs from memory
COPY_BYTES = 2 << 30
PRODUCT_SIZE = 8192
WAKING_READS = 300  # of the flush buffer, about 50 ms: idle clocks are a fraction of those under load
ENOUGH_SECONDS, LEAST_REPEATS = 1.0, 5
HEAD_START = 1.5  # of a GPU's wait over the host's time for a run
LONGEST_LAUNCH_MS = 25.0  # a host that takes longer waits for the GPU itself, or is what is timed
TRIAL_CYCLES = 10_000_000


@dataclass(frozen=True)
class Timing:
    """One function, timed."""

    ms: float
    """median of the runs"""
    peak_mb: float
    """what torch allocated at most during a run above what was there before, 10⁶ bytes"""
    host_ms: float | None = None
    """how long the host takes until it has launched a run on a GPU"""


class Stopwatch:
    """Times functions on a device: warm, L2 flushed before every run, between CUDA events on a GPU.

    A GPU's clocks fall while the host compiles, so it is kept busy for a moment first. Where the host takes longer to
    launch a run than the flush lasts, the GPU waits as well before a run begins: kernels are timed, not launches. After
    a second of runs, and five of them, no more are made.
    """

    def __init__(self, device: torch.device, *, repeats: int = 30, warm_up: int = 3) -> None:
        self.device = device
        self.repeats = repeats
        self.warm_up = warm_up
        self._flushed = torch.zeros(FLUSH_BYTES // 4 if device.type == "cuda" else 0, device=device)
        self._flush_ms = self._cycles_per_ms = 0.0
        if device.type == "cuda":
            self._wake()
            self._flush_ms = statistics.median(self._between_events(self._flush) for _ in range(LEAST_REPEATS))
            sleep = partial(torch.cuda._sleep, TRIAL_CYCLES)
            sleep()  # the first launch loads it
            self._cycles_per_ms = TRIAL_CYCLES / self._between_events(sleep)

    def __call__(
        self,
        run: Callable[[], object],
        *,
        repeats: int | None = None,
        warm_up: int | None = None,
        hide_launches: bool = True,
    ) -> Timing:
        """Time a function.

        Args:
            run: returns when its work is launched; it may return earlier than that is done.
            repeats, warm_up: default: the stopwatch's own.
            hide_launches: False where they belong to what is measured: the GPU then waits for each of them.
        """
        for _ in range(self.warm_up if warm_up is None else warm_up):
            run()
        peak = peak_allocated(run, self.device) / 1e6
        count = self.repeats if repeats is None else repeats
        if self.device.type != "cuda":
            return Timing(statistics.median(repeated(partial(_wall_ms, run), count)), peak)
        torch.cuda.synchronize(self.device)
        host_ms = _wall_ms(run)
        self._wake()
        head_start = head_start_ms(host_ms, self._flush_ms) if hide_launches else None
        return Timing(statistics.median(repeated(partial(self._device_ms, run, head_start), count)), peak, host_ms)

    def _device_ms(self, run: Callable[[], object], head_start: float | None) -> float:
        """Between events; the GPU waits so long before the first of them, None: not even until the flush is done."""
        self._flush()
        if head_start is None:
            torch.cuda.synchronize(self.device)
        elif head_start > 0:
            torch.cuda._sleep(round(head_start * self._cycles_per_ms))
        return self._between_events(run)

    def _between_events(self, run: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end)

    def _flush(self) -> None:
        self._flushed.sum()  # lines that were written instead would go back to memory during the run

    def _wake(self) -> None:
        for _ in range(WAKING_READS):
            self._flush()


def head_start_ms(host_ms: float, flush_ms: float) -> float:
    """How long a GPU waits before a run, so that the host is ahead of it; 0 where the flush is long enough."""
    wait = HEAD_START * host_ms
    return wait if wait > flush_ms and host_ms <= LONGEST_LAUNCH_MS else 0.0


def repeated(
    measure: Callable[[], float], repeats: int, now: Callable[[], float] = time.perf_counter
) -> Iterator[float]:
    """`repeats` measurements, or fewer, at least five, once they have taken a second."""
    began = now()
    for done in range(repeats):
        if done >= LEAST_REPEATS and now() - began > ENOUGH_SECONDS:
            return
        yield measure()


def peak_allocated(run: Callable[[], object], device: torch.device) -> int:
    """What torch allocates at most while a function runs, above what was there before, in bytes.

    What the function returns counts. On a CPU the profiler tells of every allocation, on a GPU the allocator of its
    peak.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        returned = run()
    del returned
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    allocated = accumulate((event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())), initial=0)
    return max(allocated)


def resident_peak() -> float:
    """Largest resident set of this process so far, MiB (Linux counts in KiB)."""
    import resource  # not on Windows, where everything else here runs

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _wall_ms(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)


@dataclass(frozen=True)
class Work:
    """The least that any implementation has to move and to multiply."""

    moved: float = 0.0
    """bytes: every input read once, every output written once"""
    flops: float = 0.0
    """of the products, each counted once"""
    dtype: str = "float32"
    """of the products (`Ceilings.flops_per_second`)"""
    passes: int = 1
    """products of `dtype` that stand for one: three of float16 for one as accurate as float32's"""


@dataclass(frozen=True)
class Ceilings:
    """What the device does at most, measured."""

    bytes_per_second: float
    """a large copy, bytes read plus bytes written"""
    flops_per_second: dict[str, float]
    """a large matrix product, by dtype: "float32" (no TF32), "tfloat32", "float16" """

    def floor_ms(self, *works: Work) -> float:
        """The shortest time for works one after the other; each takes its bytes or its products, what is longer."""
        return 1e3 * sum(
            max(work.moved / self.bytes_per_second, work.passes * work.flops / self.flops_per_second[work.dtype])
            for work in works
        )


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, products of float32 matrices on a GPU may round their operands to TF32, or must not."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def measure_ceilings(stopwatch: Stopwatch) -> Ceilings:
    """Time a large copy and large matrix products. Random operands: zeros would run faster."""
    device, on_gpu = stopwatch.device, stopwatch.device.type == "cuda"
    source = torch.rand((COPY_BYTES if on_gpu else 1 << 28) // 4, device=device)
    target = torch.empty_like(source)
    copy = stopwatch(partial(target.copy_, source)).ms
    moved = 2 * source.numel() * source.element_size()
    size, rates = PRODUCT_SIZE if on_gpu else 512, {}
    for name, dtype in (("float32", torch.float32), ("tfloat32", torch.float32), ("float16", torch.float16)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        with tf32(name == "tfloat32"):
            ms = stopwatch(partial(torch.mm, a, b, out=torch.empty_like(a))).ms
        rates[name] = 2 * size**3 / (ms / 1e3)
    return Ceilings(moved / (copy / 1e3), rates)
