"""What torch.compile makes of the ops, of the NeRF branch and of whole pictures, ours timed beside it.

    python benchmarks/compile_speed.py --seconds 240

What matters most comes first, and nothing is begun that takes longer than is left. `suite.py` runs it in a process of
its own, which it ends when its time is up.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from apart import Part, measure_for_another
from figures import Result, Results
from nerf_speed import compiled_nerf_256
from ops_speed import compile_group
from picture_speed import compiled_picture_lines, pictures_256
from timing import Ceilings, Stopwatch

from cips3d.process.ending import exit_on_user_error

# Ops in the order of their importance, and seconds on a GPU with sixteen cores. Layers of the INR one by one have the
# formulations of the whole INR.
FIRST = (("networks", "film_siren", 25.0),)
SECOND = (
    ("rays", "composite", 20.0),
    ("rays", "sample_importance", 15.0),
    ("rays", "sample_stratified", 20.0),
    ("discriminator", "fused_leaky_relu", 15.0),
    ("discriminator", "upfirdn2d", 20.0),
    ("networks", "film_siren_fast", 40.0),
    ("inr", "modulated_inr_fast", 60.0),
    ("discriminator", "upfirdn2d_down", 20.0),
    ("discriminator", "upfirdn2d_up", 20.0),
    ("discriminator", "fused_leaky_relu_fp16", 15.0),
    ("networks", "modulated_epilogue", 40.0),
    ("networks", "split_matmul", 20.0),
    ("inr", "modulated_inr", 60.0),
)
PICTURE_SECONDS, PUBLISHED_SECONDS, NERF_SECONDS = 100.0, 150.0, 60.0


def parts(stopwatch: Stopwatch, ceilings: Ceilings, results: Results) -> list[Part]:
    """What is measured, in this order."""
    small = stopwatch.device.type != "cuda"

    def ops(chosen: tuple[tuple[str, str, float], ...]) -> Iterator[Part]:
        for group, name, seconds in chosen:
            measure = partial(compile_group, group, results, stopwatch, small=small, names=[name])
            yield Part(f"{name}, compiled", seconds, measure)

    def add(lines: Iterator[tuple[str, Result]]) -> None:
        for name, result in lines:
            results.compared(name, result)
        torch.compiler.reset()

    def picture(way: Literal["best", "published"]) -> None:
        add(compiled_picture_lines(pictures_256(stopwatch.device), stopwatch, ceilings, "render_256", way))

    def nerf() -> None:
        add(compiled_nerf_256(stopwatch))

    return [
        *ops(FIRST),
        Part("render_256, compiled", PICTURE_SECONDS, partial(picture, "best")),
        Part("nerf_256, compiled", NERF_SECONDS, nerf),
        *ops(SECOND),
        Part("render_256_published, compiled", PUBLISHED_SECONDS, partial(picture, "published")),
    ]


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(lambda: measure_for_another(__doc__, parts)))
