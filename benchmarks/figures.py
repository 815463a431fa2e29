"""The lines of the benchmarks' tables: what they hold, how they are shown, and that none is lost."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from timing import Ceilings, Timing, Work
from torch import Tensor

# From plain PyTorch, by relative L2. Gradients of 16 bits through many leaky ReLUs differ by up to 0.17; what has
# nothing to do with them by about 1.
MOST_DIFFERENT = 0.4
COLUMNS = ("ms", "× eager", "× compile", "of limit", "GB/s", "TFLOP/s", "peak MB")
PICTURE_COLUMNS = ("images/s", *COLUMNS)


@dataclass(frozen=True)
class Result:
    """One line of the table; None where nothing was measured."""

    ms: float
    ratio_vs_eager: float | None = None
    """time of plain PyTorch over ours"""
    ratio_vs_compile: float | None = None
    """the same of torch.compile, of two times that were taken one after the other"""
    fraction_of_limit: float | None = None
    """the shortest time that the device's rates allow over ours"""
    peak_mb: float | None = None
    eager_ms: float | None = None
    compile_ms: float | None = None
    bytes_per_second: float | None = None
    """achieved: the least bytes over the time"""
    flops_per_second: float | None = None
    """achieved: the FLOPs of the products, each counted once, over the time"""
    host_ms: float | None = None
    """what the host takes to launch it on a GPU"""
    difference: float | None = None
    """of the results that were timed from plain PyTorch's, by relative L2"""


Lines = Iterator[tuple[str, Result]]
"""names of lines and what they hold, as they are measured"""


def result_of(
    ours: Timing,
    *,
    eager: Timing | None = None,
    work: Work | None = None,
    ceilings: Ceilings | None = None,
    images: int = 1,
    difference: float | None = None,
) -> Result:
    """A line of what was measured.

    Args:
        ours: the time.
        eager: of plain PyTorch.
        work: what has to be done at least.
        ceilings: the device's rates, for the fraction of the limit.
        images: times are shown for one of so many.
        difference: of the results from plain PyTorch's.
    """
    work = work or Work()
    seconds = ours.ms / 1e3
    floor = ceilings.floor_ms(work) if ceilings is not None else 0.0
    return Result(
        ms=ours.ms / images,
        ratio_vs_eager=None if eager is None else eager.ms / ours.ms,
        fraction_of_limit=floor / ours.ms if floor > 0 else None,
        peak_mb=ours.peak_mb,
        eager_ms=None if eager is None else eager.ms / images,
        bytes_per_second=work.moved / seconds if work.moved > 0 else None,
        flops_per_second=work.flops / seconds if work.flops > 0 else None,
        host_ms=None if ours.host_ms is None else ours.host_ms / images,
        difference=difference,
    )


def relative_l2(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """‖found - expected‖ / ‖expected‖ over all tensors; NaN where a number is not finite."""
    total, error = (
        torch.stack([torch.linalg.vector_norm(x.double()) for x in tensors]).norm()
        for tensors in (expected, [a.double() - b.double() for a, b in zip(found, expected, strict=True)])
    )
    return float(error / total) if total > 0 else float(error)


def against_compiled(result: Result, ours: Timing, compiled: Timing, images: int = 1) -> Result:
    """The line with torch.compile's time, and its ratio to ours taken next to it."""
    return replace(result, ratio_vs_compile=compiled.ms / ours.ms, compile_ms=compiled.ms / images)


def shown(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value / scale, form)


def cells(line: Mapping[str, Any]) -> list[str]:
    """A `Result` as a mapping, as records keep it, in the order of `COLUMNS`; what it does not have stays empty."""
    return [
        f"{line['ms']:.3g}",
        shown(line.get("ratio_vs_eager"), ".2f"),
        shown(line.get("ratio_vs_compile"), ".2f"),
        shown(line.get("fraction_of_limit"), ".0%"),
        shown(line.get("bytes_per_second"), ".0f", 1e9),
        shown(line.get("flops_per_second"), ".3g", 1e12),
        shown(line.get("peak_mb"), ".0f"),
    ]


def picture_cells(line: Mapping[str, Any]) -> list[str]:
    """The same of a line whose milliseconds are an image's, in the order of `PICTURE_COLUMNS`."""
    return [f"{1e3 / line['ms']:.3g}", *cells(line)]


def row(name: str, result: Result) -> str:
    """Markdown."""
    return f"| {' | '.join([name, *cells(asdict(result))])} |"


def picture_row(name: str, result: Result) -> str:
    """Markdown of a line whose milliseconds are an image's."""
    return f"| {' | '.join([name, *picture_cells(asdict(result))])} |"


HEAD = f"| op | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}"
PICTURE_HEAD = f"| | {' | '.join(PICTURE_COLUMNS)} |\n|{'---|' * (len(PICTURE_COLUMNS) + 1)}"


class Results(dict[str, Result]):
    """Lines of the table by name. Every one is printed and kept at once: what is measured is not lost."""

    def __init__(self, keep: Callable[[Results], None], show: Callable[[str, Result], str] = row) -> None:
        self.keep = keep
        self.show = show
        self.failures: dict[str, str] = {}
        self.tests: dict[str, dict[str, float]] = {}
        """by selection: how many of the tests passed, failed and were skipped, and in how many seconds"""
        self.kernels: dict[str, dict[str, float]] = {}
        """milliseconds by kernel, of what is timed as a whole"""
        self.left_out: list[str] = []
        """parts that are still to be measured, or for which there was no time"""

    def add(self, name: str, result: Result) -> None:
        self[name] = result
        if result.difference is not None and not result.difference < MOST_DIFFERENT:
            self.failures[name] = f"its results are not those of plain PyTorch: {result.difference:.2g} away"
        print(self.show(name, result), flush=True)
        self.keep(self)

    def add_kernels(self, name: str, milliseconds: dict[str, float]) -> None:
        self.kernels[name] = milliseconds
        self.keep(self)

    def compared(self, name: str, result: Result) -> None:
        """A line with torch.compile's time: what has been found before stays, and its ratio is added."""
        if name in self:
            result = replace(self[name], ratio_vs_compile=result.ratio_vs_compile, compile_ms=result.compile_ms)
        self.add(name, result)

    @contextmanager
    def reporting(self, name: str) -> Iterator[None]:
        """Note what goes wrong inside, and go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.fail(name, f"{type(error).__name__}: {error}".splitlines()[0])

    def fail(self, name: str, why: str) -> None:
        self.failures[name] = why
        self.keep(self)
