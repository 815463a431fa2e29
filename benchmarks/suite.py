"""Everything that is measured on a GPU, in one command: correctness first, then ops, rendering and training.

    python benchmarks/suite.py --json benchmarks/results/suite_h200.json

Runs the kernels' tests on the GPU, then times every op against eager PyTorch, whole 256² pictures against the published
formulation, a training step at 256² and the memory that it takes, and last what torch.compile makes of them, for as
long as there is time (`--minutes`, all in all). The file is written anew after every line. What fails is noted there,
under "failures", and the rest goes on; what there was no time for stands under "left_out". What was compiled before the
time was up is found in torch.compile's cache by the next run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import memory
import torch
from apart import Budget, Part, measure_parts, measured_apart
from conditions import about, described, keeping, prepared_device
from correctness import run_tests
from figures import HEAD, Result, Results
from nerf_speed import nerf_256, pigan_64
from op_cases import GROUPS
from ops_speed import run_group
from picture_speed import picture_lines, pictures_256, render_64
from step_speed import train_step_256
from timing import Ceilings, Stopwatch, measure_ceilings
from warpgroup_speed import VARIABLE, asked_for, has_warpgroups

from cips3d.errors import UserError, exit_on_user_error

MINUTES = 7.5
COMPILING = "torch.compile"
COMPILING_SECONDS = 40.0  # with less left it is not begun
WARPGROUP_TEST_SECONDS, WARPGROUP_SECONDS = 60.0, 60.0  # until something hangs there

WARPGROUP_TESTS = {
    "modulated_inr": "tests/ops/test_modulated_inr_kernels.py",
    "render_rays": "tests/ops/test_render_rays_warpgroups.py",
    "render_rays_backward": "tests/ops/test_render_rays_backward_warpgroups.py",
}

Lines = Mapping[str, Result] | Iterable[tuple[str, Result]]


def test_first(device: torch.device, results: Results, seconds: float) -> None:
    """The kernels' tests, those of the warpgroups' kernels before all others, which may use them.

    Where one of these fails or hangs, everything after is done without it.
    """
    if has_warpgroups(device):
        right = []
        for op, where in WARPGROUP_TESTS.items():
            with asked_for(op):
                wrong = run_tests("cuda and warpgroups", min(seconds, WARPGROUP_TEST_SECONDS), where)
            if wrong is None:
                right.append(op)
            else:
                results.fail(f"warpgroup tests of {op}", wrong)
        if len(right) < len(WARPGROUP_TESTS):
            os.environ[VARIABLE] = ",".join(right) or "0"
    wrong = run_tests("cuda and not warpgroups", seconds)
    if wrong is not None:
        results.fail("tests", wrong)


def parts(
    stopwatch: Stopwatch, ceilings: Ceilings, results: Results, budget: Budget, arguments: argparse.Namespace
) -> list[Part]:
    """What is measured, in this order, with seconds on an H100."""
    device = stopwatch.device
    small = device.type != "cuda"

    def part(name: str, seconds: float, measure: Callable[[], Lines]) -> Part:
        def add() -> None:
            found = measure()
            for line, result in found.items() if isinstance(found, Mapping) else found:
                results.add(line, result)

        return Part(name, seconds, add)

    def ops(group: str, seconds: float) -> Part:
        return Part(group, seconds, partial(run_group, group, results, stopwatch, ceilings, small=small))

    def apart(name: str, script: str, seconds: float, *, must_end: bool) -> None:
        given = ["--device", str(device), "--repeats", str(arguments.repeats), "--seconds", f"{seconds:.0f}"]
        measured_apart(name, script, given, seconds, results, must_end=must_end)

    def pictures() -> Lines:
        return picture_lines(pictures_256(device), stopwatch, ceilings, "render_256")

    def warpgroups() -> None:
        apart("warpgroups", "warpgroup_speed.py", WARPGROUP_SECONDS, must_end=True)

    def compiling() -> None:
        torch.cuda.empty_cache()
        apart(COMPILING, "compile_speed.py", budget.left, must_end=False)

    made = [
        *(ops(group, 10) for group in GROUPS),
        part("nerf_256", 8, partial(nerf_256, stopwatch, ceilings)),
        part("render_256", 15, pictures),
        part("render_64", 5, partial(render_64, stopwatch)),
        part("train_step_256", 45, partial(train_step_256, stopwatch, ceilings)),
    ]
    all_right = not any(f"warpgroup tests of {op}" in results.failures for op in WARPGROUP_TESTS)
    if small or (has_warpgroups(device) and all_right):
        made.append(Part("warpgroups", 20, warpgroups))
    made += [
        part("generator_step_256", 15, partial(memory.training, stopwatch)),
        part("picture", 10, partial(memory.rendering, stopwatch)),
        part("pigan_64", 8, partial(pigan_64, stopwatch, ceilings)),
        part("nerf_wide_256", 10, partial(nerf_256, stopwatch, ceilings, "nerf_wide", 256)),
    ]
    if not arguments.no_compile:
        made.append(Part(COMPILING, COMPILING_SECONDS, compiling))
    return made


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda, cuda:N, auto, or cpu to see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that all of it may take")
    parser.add_argument("--test-seconds", type=float, default=180, help="that the kernels' tests may take")
    parser.add_argument("--repeats", type=int, default=20, help="runs of every op that are timed")
    parser.add_argument("--no-tests", action="store_true", help="measure without testing first")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--commit", help="written into the record; default: asked of git")
    arguments = parser.parse_args()
    for name in ("minutes", "test_seconds", "repeats"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be more than 0, got {getattr(arguments, name)}")
    started, budget = time.monotonic(), Budget(60 * arguments.minutes)
    device = prepared_device(arguments.device)
    stopwatch = Stopwatch(device, repeats=arguments.repeats)
    ceilings = measure_ceilings(stopwatch)
    results = Results(keeping(arguments.json, about(device, ceilings, arguments.commit)))
    if device.type == "cuda" and not arguments.no_tests:
        test_first(device, results, arguments.test_seconds)
    print(f"{described(ceilings)}\n\n{HEAD}", flush=True)
    measure_parts(parts(stopwatch, ceilings, results, budget, arguments), results, budget)
    print(f"{time.monotonic() - started:.0f} s")
    if results.left_out:
        print(f"no time for {'; '.join(results.left_out)}")
    for name, why in results.failures.items():
        print(f"{name} failed: {why}", file=sys.stderr)
    return 1 if results.failures else 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
