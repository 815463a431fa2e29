"""Every op, forward and backward, against eager PyTorch and torch.compile on the best plain formulation.

    python benchmarks/ops_speed.py                       # on the GPU
    python benchmarks/ops_speed.py --groups rays --no-compile
    python benchmarks/ops_speed.py --device cpu --small  # does it run? On a CPU both sides are plain PyTorch

All in one run: warm, L2 flushed before every run, medians. "of limit" is the shortest time in which the op's bytes can
move and its products be done at the rates of a large copy and a large matrix product on the same device, over the
time it took.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from op_cases import GROUPS, Case
from timing import Ceilings, Stopwatch, Timing, measure_ceilings
from torch import Tensor

from cips3d.errors import UserError, exit_on_user_error
from cips3d.files import atomic_file
from cips3d.training.distributed import choose_device


@dataclass(frozen=True)
class Result:
    """One line of the table; None where nothing was measured."""

    ms: float
    ratio_vs_eager: float | None = None
    ratio_vs_compile: float | None = None
    fraction_of_limit: float | None = None
    peak_mb: float | None = None


def tensors_of(outputs: object) -> list[Tensor]:
    """The floating-point tensors of an op's result that can be differentiated."""
    everything = [outputs] if isinstance(outputs, Tensor) else list(outputs)  # type: ignore[call-overload]
    return [t for t in everything if isinstance(t, Tensor) and t.requires_grad]


def forward_run(function: Callable[..., object], case: Case) -> Callable[[], object]:
    """The op alone, no gradient recorded."""

    def run() -> object:
        with torch.no_grad():
            return function(*case.inputs)

    return run


def backward_run(function: Callable[..., object], case: Case) -> Callable[[], object]:
    """The gradients alone: the graph is built once and kept."""
    outputs = tensors_of(function(*case.inputs))
    wanted = [t for t in case.inputs if t.requires_grad]
    upstream = [torch.randn_like(t) for t in outputs]
    return lambda: torch.autograd.grad(outputs, wanted, upstream, retain_graph=True)


def measured(case: Case, stopwatch: Stopwatch, ceilings: Ceilings, *, compile: bool) -> Iterator[tuple[str, Result]]:
    """The case's forward and, where it has one, backward."""
    compiled = torch.compile(case.baseline, mode="max-autotune-no-cudagraphs", dynamic=False) if compile else None
    directions = [("forward", forward_run, case.forward_bytes, case.forward_flops)]
    if case.backward_bytes is not None:
        directions.append(("backward", backward_run, case.backward_bytes, case.backward_flops))
    for direction, prepare, moved, flops in directions:
        ours = stopwatch(prepare(case.ours, case))
        eager = stopwatch(prepare(case.baseline, case))
        best = stopwatch(prepare(compiled, case)) if compiled is not None else None
        floor = ceilings.floor_ms(moved, flops, case.dtype)
        yield f"{case.name}_{direction}", compared(ours, eager, best, floor)


def compared(ours: Timing, eager: Timing, compiled: Timing | None, floor_ms: float) -> Result:
    return Result(
        ms=ours.ms,
        ratio_vs_eager=eager.ms / ours.ms,
        ratio_vs_compile=None if compiled is None else compiled.ms / ours.ms,
        fraction_of_limit=floor_ms / ours.ms,
        peak_mb=ours.peak_mb,
    )


def row(name: str, result: Result) -> str:
    """Markdown."""

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        f"| {name} | {result.ms:.4g} | {shown(result.ratio_vs_eager, '.2f')} | {shown(result.ratio_vs_compile, '.2f')} "
        f"| {shown(result.fraction_of_limit, '.0%')} | {shown(result.peak_mb, '.0f')} |"
    )


HEAD = "| op | ms | × eager | × compile | of limit | peak MB |\n|---|---|---|---|---|---|"


def run_groups(
    groups: list[str],
    stopwatch: Stopwatch,
    ceilings: Ceilings,
    *,
    small: bool,
    compile: bool,
    compile_until: float = float("inf"),
) -> dict[str, Result]:
    """Time all cases of some groups, printing a row each.

    Args:
        compile_until: `time.monotonic()` after which torch.compile is left out (compiling takes most of the time).
    """
    results: dict[str, Result] = {}
    for group in groups:
        for case in GROUPS[group](stopwatch.device, small=small):
            in_time = time.monotonic() < compile_until
            for name, result in measured(case, stopwatch, ceilings, compile=compile and in_time):
                results[name] = result
                print(row(name, result), flush=True)
    return results


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--repeats", type=int, default=30, help="runs that are timed")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        raise UserError(f"--repeats must be at least 1, got {arguments.repeats}")
    device = choose_device(arguments.device)
    stopwatch = Stopwatch(device, repeats=arguments.repeats)
    ceilings = measure_ceilings(stopwatch)
    rates = ", ".join(f"{dtype} products {r / 1e12:.3g} TFLOP/s" for dtype, r in ceilings.flops_per_second.items())
    print(f"copy {ceilings.bytes_per_second / 1e9:.4g} GB/s, {rates}\n\n{HEAD}", flush=True)
    results = run_groups(arguments.groups, stopwatch, ceilings, small=arguments.small, compile=not arguments.no_compile)
    if arguments.json:
        content = {"ceilings": asdict(ceilings), "results": {name: asdict(r) for name, r in results.items()}}
        with atomic_file(arguments.json) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
