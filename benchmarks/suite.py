"""Everything that is measured on a GPU, in one command: correctness first, then ops, rendering and training.

    python benchmarks/suite.py --json benchmarks/results/suite_h200.json

Runs the kernels' tests on the GPU, then times every op against eager PyTorch, whole 256² pictures against the published
formulation, a training step at 256² and the memory that it takes, and last what torch.compile makes of them, for as
long as there is time (`--minutes`, all in all). The file is written anew after every line. What fails is noted there,
under "failures", and the rest goes on; what there was no time for stands under "left_out". What was compiled before the
time was up is found in torch.compile's cache by the next run.

Outside of a checkout, CIPS3D_COMMIT says what is measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from apart import Budget, measured_apart
from conditions import about, described, keeping, prepared_device
from correctness import run_tests
from eager_speed import LATER
from figures import HEAD, Results
from timing import Stopwatch, measure_ceilings
from warpgroup_speed import OPS, VARIABLE, allowed, are_compared, has_warpgroups, part_of

from cips3d.errors import UserError
from cips3d.process.ending import exit_on_user_error

MINUTES = 7.75
COMPILING = "torch.compile"
COMPILING_SECONDS = 40.0  # with less left it is not begun
LATER_SECONDS = 20.0  # the same for what comes last
WARPGROUP_TEST_SECONDS, WARPGROUP_SECONDS = 40.0, 150.0  # until something hangs there

WARPGROUP_TESTS = dict(
    zip(
        OPS,
        (
            "tests/ops/test_modulated_inr_kernels.py",
            "tests/ops/test_clusters.py",
            "tests/ops/test_render_rays_warpgroups.py",
            "tests/ops/test_render_rays_backward_warpgroups.py",
            "tests/ops/test_split_matmul_warpgroups.py",
            "tests/ops/test_streamed_field_warpgroups.py",
        ),
        strict=True,
    )
)


def do_without(wrong: list[str]) -> None:
    """Everything after is done without these ops' kernels of warpgroups."""
    if wrong:
        os.environ[VARIABLE] = ",".join(op for op in allowed() if op not in wrong) or "0"


def test_first(device: torch.device, results: Results, seconds: float) -> None:
    """The kernels' tests, those of the warpgroups' kernels before all others, which may use them.

    Where one of these fails or hangs, everything after is done without it.
    """
    if has_warpgroups(device):
        wrong = []
        for op, where in WARPGROUP_TESTS.items():
            limit = min(seconds, WARPGROUP_TEST_SECONDS)
            if not tested(f"warpgroup tests of {op}", "cuda and warpgroups", limit, results, where, processes=0):
                wrong.append(op)
        do_without(wrong)
    tested("tests", "cuda and not warpgroups", seconds, results)


def tested(
    name: str, selection: str, seconds: float, results: Results, where: str = "tests/ops", processes: int | None = None
) -> bool:
    """Whether the tests pass; what they find is added to the record."""
    outcome = run_tests(selection, seconds, where, processes=processes)
    results.tests[name] = outcome.counts
    if outcome.wrong is not None:
        results.fail(name, outcome.wrong)
    results.keep(results)
    return outcome.wrong is None


def measure(device: torch.device, results: Results, budget: Budget, *, repeats: int, compiling: bool) -> None:
    """Each stage in a process of its own; the kernels of warpgroups first, and not again where they hang."""
    given = ["--device", str(device), "--repeats", str(repeats)]
    if are_compared(device):
        asked = allowed()
        measured_apart("warpgroups", "warpgroup_speed.py", given, budget, results, seconds=WARPGROUP_SECONDS)
        do_without([op for op in asked if part_of(op) in {*results.failures, *results.left_out}])
    measured_apart("eager", "eager_speed.py", [*given, "--without", *LATER], budget, results)
    if compiling and budget.left > COMPILING_SECONDS:
        measured_apart(COMPILING, "compile_speed.py", given, budget, results)
    elif compiling:
        results.left_out.append(COMPILING)
    if budget.left > LATER_SECONDS:
        measured_apart("the rest", "eager_speed.py", [*given, "--parts", *LATER], budget, results)
    else:
        results.left_out += LATER
    results.keep(results)


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda, cuda:N, auto, or cpu to see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that all of it may take")
    parser.add_argument("--test-seconds", type=float, default=150, help="that the kernels' tests may take")
    parser.add_argument("--repeats", type=int, default=20, help="runs of every op that are timed")
    parser.add_argument("--no-tests", action="store_true", help="measure without testing first")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    for name in ("minutes", "test_seconds", "repeats"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be more than 0, got {getattr(arguments, name)}")
    started, budget = time.monotonic(), Budget(60 * arguments.minutes)
    device = prepared_device(arguments.device)
    ceilings = measure_ceilings(Stopwatch(device, repeats=arguments.repeats))
    torch.cuda.empty_cache()  # what others will measure needs the memory
    results = Results(keeping(arguments.json, about(device, ceilings)))
    results.keep(results)
    if device.type == "cuda" and not arguments.no_tests:
        test_first(device, results, arguments.test_seconds)
    print(f"{described(ceilings)}\n\n{HEAD}", flush=True)
    measure(device, results, budget, repeats=arguments.repeats, compiling=not arguments.no_compile)
    print(f"{time.monotonic() - started:.0f} s")
    if results.left_out:
        print(f"no time for {'; '.join(results.left_out)}")
    for name, why in results.failures.items():
        print(f"{name} failed: {why}", file=sys.stderr)
    return 1 if results.failures else 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
