"""Peak memory and time of training with gradients through every ray, and of large pictures.

    python benchmarks/memory.py                 # on the GPU
    python benchmarks/memory.py --device cpu    # does it run? Small pictures

Training: forward and backward of the full generator on four 256² pictures, 12 + 12 samples a ray, without the
discriminators. Rendering: one picture without gradients. Peak memory is what torch allocated at most above what was
there before; the weights are not in it, pictures and gradients are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from conditions import prepared_device
from figures import HEAD, Result, result_of, row
from picture_cases import Pictures
from timing import Stopwatch, Timing
from torch import Tensor

from cips3d.errors import exit_on_user_error
from cips3d.files import atomic_file

SIDES = (256, 512, 1024)


def fitting(name: str, stopwatch: Callable[[Callable[[], object]], Timing], run: Callable[[], object]) -> Timing | None:
    """The run, timed; None, with a line, where it needs more memory than the device has."""
    try:
        return stopwatch(run)
    except torch.cuda.OutOfMemoryError:
        print(f"{name} needs more memory than there is", flush=True)
        return None


def training(stopwatch: Stopwatch) -> dict[str, Result]:
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
    timings = {way: fitting(way, few, partial(pictures.gradients, render)) for way, render in ways.items()}
    published = timings["published"]
    return {
        f"generator_step_256_{way}": result_of(timing, eager=published)
        for way, timing in timings.items()
        if timing is not None
    }


def rendering(stopwatch: Stopwatch) -> dict[str, Result]:
    """One picture of growing size, with "fast" products."""
    results: dict[str, Result] = {}
    few = partial(stopwatch, repeats=5, warm_up=2)
    for side in SIDES if stopwatch.device.type == "cuda" else (16, 32):
        pictures = Pictures(stopwatch.device, 1, side)
        with torch.no_grad():
            timing = few(partial(pictures.ours, "fast"))
        results[f"picture_{side}"] = result_of(timing)
    return results


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda, cuda:N, auto, or cpu to see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    stopwatch = Stopwatch(prepared_device(arguments.device))
    print(HEAD, flush=True)
    results: dict[str, Result] = {}
    for measure in (training, rendering):
        found = measure(stopwatch)
        results |= found
        for name, result in found.items():
            print(row(name, result), flush=True)
    if arguments.json:
        with atomic_file(arguments.json) as file:
            file.write((json.dumps({name: asdict(r) for name, r in results.items()}, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
