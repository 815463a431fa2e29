"""Every op, the NeRF branch, whole pictures, a training step and their memory, against eager PyTorch.

    python benchmarks/eager_speed.py --seconds 240
    python benchmarks/eager_speed.py --parts rays render_256

What the targets are about comes first. `suite.py` runs it in a process of its own.
"""

from __future__ import annotations

from functools import partial

import memory
import warpgroup_speed
from apart import Part, measure_for_another
from figures import Lines, Results
from kernel_times import kernels_of_steps
from nerf_speed import nerf_256, pigan_64
from op_cases import GROUPS
from ops_speed import run_group
from picture_speed import picture_lines, pictures_256, render_64
from step_speed import train_step_256
from timing import Ceilings, Stopwatch

from cips3d.process.ending import exit_on_user_error

LATER = ("picture", "nerf_wide_256", "kernels")
"""what may wait until the compiler has had its time"""


def parts(stopwatch: Stopwatch, ceilings: Ceilings, results: Results) -> list[Part]:
    """What is measured, in this order, with seconds on an H100."""
    small = stopwatch.device.type != "cuda"
    part = partial(Part.of_lines, results)

    def ops(group: str, seconds: float) -> Part:
        return Part(group, seconds, partial(run_group, group, results, stopwatch, ceilings, small=small))

    def pictures() -> Lines:
        return picture_lines(pictures_256(stopwatch.device), stopwatch, ceilings, "render_256")

    with_warpgroups = part("render_256 with warpgroups", 5, partial(warpgroup_speed.picture_lines, stopwatch, ceilings))
    return [
        *(ops(group, 10) for group in GROUPS),
        part("nerf_256", 8, partial(nerf_256, stopwatch, ceilings)),
        part("render_256", 15, pictures),
        *([with_warpgroups] if warpgroup_speed.are_compared(stopwatch.device) else []),
        part("render_64", 5, partial(render_64, stopwatch)),
        part("train_step_256", 45, partial(train_step_256, stopwatch, ceilings)),
        part("generator_step_256", 15, partial(memory.training, stopwatch)),
        part("pigan_64", 8, partial(pigan_64, stopwatch, ceilings)),
        part("picture", 10, partial(memory.rendering, stopwatch)),
        part("nerf_wide_256", 10, partial(nerf_256, stopwatch, ceilings, "nerf_wide", 256)),
        Part("kernels", 10, partial(kernels_of_steps, stopwatch.device, results)),
    ]


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(lambda: measure_for_another(__doc__, parts)))
