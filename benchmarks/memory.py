"""Peak memory and time of training with gradients through every ray, and of large pictures.

    python benchmarks/memory.py                 # on the GPU
    python benchmarks/memory.py --device cpu    # does it run? Small pictures

Training: forward and backward of the full generator on four 256² pictures, 12 + 12 samples a ray, without the
discriminators. Rendering: one picture without gradients. Peak memory is what torch allocated at most above what was
there before; the weights are not in it, pictures and gradients are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from conditions import about, keeping, prepared_device
from figures import HEAD, Result, Results, result_of
from picture_cases import Pictures
from timing import Stopwatch, Timing, measure_ceilings
from torch import Tensor

from cips3d.process.ending import exit_on_user_error

SIDES = (256, 512, 1024)


def fitting(name: str, stopwatch: Callable[[Callable[[], object]], Timing], run: Callable[[], object]) -> Timing | None:
    """The run, timed; None, with a line, where it needs more memory than the device has."""
    try:
        return stopwatch(run)
    except torch.cuda.OutOfMemoryError:
        print(f"{name} needs more memory than there is", flush=True)
        return None


def training(stopwatch: Stopwatch) -> Iterator[tuple[str, Result]]:
    """Forward and backward of four 256² pictures: with kernels, without, and in the published formulation."""
    on_gpu = stopwatch.device.type == "cuda"
    pictures = Pictures(stopwatch.device, *((4, 256) if on_gpu else (2, 8)))
    ways: dict[str, Callable[[], Tensor]] = {
        "published": pictures.published,
        "plain": pictures.plain,
        "highest": partial(pictures.ours, "highest"),
        "fast": partial(pictures.ours, "fast"),
    }
    few = partial(stopwatch, repeats=5, warm_up=2)
    published: Timing | None = None
    for way, render in ways.items():
        timing = fitting(way, few, partial(pictures.gradients, render))
        if way == "published":
            published = timing
        if timing is not None:
            yield f"generator_step_256_{way}", result_of(timing, eager=published)


def rendering(stopwatch: Stopwatch) -> Iterator[tuple[str, Result]]:
    """One picture of growing size, with "fast" products."""
    few = partial(stopwatch, repeats=5, warm_up=2)
    for side in SIDES if stopwatch.device.type == "cuda" else (16, 32):
        pictures = Pictures(stopwatch.device, 1, side)
        with torch.no_grad():
            timing = few(partial(pictures.ours, "fast"))
        yield f"picture_{side}", result_of(timing)


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda, cuda:N, auto, or cpu to see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    device = prepared_device(arguments.device)
    stopwatch = Stopwatch(device)
    print(HEAD, flush=True)
    results = Results(keeping(arguments.json, about(device, measure_ceilings(stopwatch))))
    for measure in (training, rendering):
        for name, result in measure(stopwatch):
            results.add(name, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
