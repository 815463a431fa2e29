"""Timing on a CPU or a GPU, and the ceilings that a time is compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

FLUSH_BYTES = 512 << 20  # more than any L2: written between runs, so that every run reads its inputs from memory
COPY_BYTES = 2 << 30
PRODUCT_SIZE = 8192


@dataclass(frozen=True)
class Timing:
    """One function, timed."""

    ms: float
    """median of the runs"""
    peak_mb: float
    """what torch allocated at most during a run above what was there before, 10⁶ bytes"""


class Stopwatch:
    """Times functions on a device: warm, L2 flushed before every run, between CUDA events on a GPU."""

    def __init__(self, device: torch.device, *, repeats: int = 30, warm_up: int = 3) -> None:
        self.device = device
        self.repeats = repeats
        self.warm_up = warm_up
        self._flushed = torch.empty(FLUSH_BYTES if device.type == "cuda" else 0, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], object]) -> Timing:
        for _ in range(self.warm_up):
            run()
        peak = peak_allocated(run, self.device) / 1e6
        clock = self._device_ms if self.device.type == "cuda" else _wall_ms
        return Timing(statistics.median(clock(run) for _ in range(self.repeats)), peak)

    def _device_ms(self, run: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flushed.zero_()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end)


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


def _wall_ms(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)


@dataclass(frozen=True)
class Ceilings:
    """What the device does at most, measured."""

    bytes_per_second: float
    """a large copy, bytes read plus bytes written"""
    flops_per_second: dict[str, float]
    """a large matrix product, by dtype: "float32" (no TF32), "float16" """

    def floor_ms(self, moved_bytes: float, flops: float, dtype: str) -> float:
        """The shortest time in which bytes can move and operations be done, whichever takes longer."""
        return 1e3 * max(moved_bytes / self.bytes_per_second, flops / self.flops_per_second[dtype])


def measure_ceilings(stopwatch: Stopwatch) -> Ceilings:
    """Time a large copy and large matrix products. Random operands: zeros would run faster."""
    device, on_gpu = stopwatch.device, stopwatch.device.type == "cuda"
    source = torch.rand((COPY_BYTES if on_gpu else 1 << 28) // 4, device=device)
    target = torch.empty_like(source)
    copy = stopwatch(partial(target.copy_, source)).ms
    moved = 2 * source.numel() * source.element_size()
    size, rates = PRODUCT_SIZE if on_gpu else 512, {}
    for dtype in (torch.float32, torch.float16):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        ms = stopwatch(partial(torch.mm, a, b, out=torch.empty_like(a))).ms
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / (ms / 1e3)
    return Ceilings(moved / (copy / 1e3), rates)
