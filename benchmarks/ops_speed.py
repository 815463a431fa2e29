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
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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


Run = Callable[[], object]


def directions(case: Case) -> Iterator[tuple[str, Callable[[Callable[..., object], Case], Run], float, float]]:
    """Names, preparations, bytes and FLOPs of the case's forward and, where it has one, backward."""
    yield f"{case.name}_forward", forward_run, case.forward_bytes, case.forward_flops
    if case.backward_bytes is not None:
        yield f"{case.name}_backward", backward_run, case.backward_bytes, case.backward_flops


def measured(case: Case, stopwatch: Stopwatch, ceilings: Ceilings) -> Iterator[tuple[str, Result]]:
    """The case against eager PyTorch."""
    for name, prepare, moved, flops in directions(case):
        ours, eager = stopwatch(prepare(case.ours, case)), stopwatch(prepare(case.baseline, case))
        yield name, compared(ours, eager, None, ceilings.floor_ms(moved, flops, case.dtype))


def compiled(case: Case, stopwatch: Stopwatch) -> Iterator[tuple[str, Timing]]:
    """The case as torch.compile does it, every choice measured."""
    function = torch.compile(case.baseline, mode="max-autotune-no-cudagraphs", dynamic=False)
    for name, prepare, _, _ in directions(case):
        yield name, stopwatch(prepare(function, case))


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


class Results(dict[str, Result]):
    """Lines of the table by name. Every one is printed and kept at once: what is measured is not lost."""

    def __init__(self, keep: Callable[[Results], None]) -> None:
        self.keep = keep
        self.failures: dict[str, str] = {}

    def add(self, name: str, result: Result) -> None:
        self[name] = result
        print(row(name, result), flush=True)
        self.keep(self)

    @contextmanager
    def reporting(self, name: str) -> Iterator[None]:
        """Note what goes wrong inside, and go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            self.keep(self)


def run_groups(
    groups: Sequence[str], results: Results, stopwatch: Stopwatch, ceilings: Ceilings, *, small: bool
) -> None:
    """Time all cases of some groups against eager PyTorch."""
    for group in groups:
        with results.reporting(group):
            for case in GROUPS[group](stopwatch.device, small=small):
                with results.reporting(case.name):
                    for name, result in measured(case, stopwatch, ceilings):
                        results.add(name, result)


def compile_groups(
    groups: Sequence[str], results: Results, stopwatch: Stopwatch, *, small: bool, until: float = math.inf
) -> None:
    """Compare what `run_groups` has found with torch.compile, while `time.monotonic()` is before `until`."""
    for group in groups:
        with results.reporting(group):
            for case in GROUPS[group](stopwatch.device, small=small):
                if time.monotonic() > until:
                    return
                with results.reporting(f"{case.name}, compiled"):
                    for name, timing in compiled(case, stopwatch):
                        if name in results:
                            ratio = timing.ms / results[name].ms
                            results.add(name, replace(results[name], ratio_vs_compile=ratio))


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

    def keep(results: Results) -> None:
        if arguments.json:
            content = {"ceilings": asdict(ceilings), "results": {name: asdict(r) for name, r in results.items()}}
            with atomic_file(arguments.json) as file:
                file.write((json.dumps(content, indent=2) + "\n").encode())

    results = Results(keep)
    run_groups(arguments.groups, results, stopwatch, ceilings, small=arguments.small)
    if not arguments.no_compile:
        compile_groups(arguments.groups, results, stopwatch, small=arguments.small)
    return 1 if results.failures else 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
