"""Every op, forward and backward, against eager PyTorch and torch.compile on the best plain formulation.

    python benchmarks/ops_speed.py                       # on the GPU
    python benchmarks/ops_speed.py --groups rays --no-compile
    python benchmarks/ops_speed.py --device cpu --small  # does it run? On a CPU both sides are plain PyTorch

All in one run: warm, L2 flushed before every run, medians. Of several plain formulations the fastest counts. GB/s and
TFLOP/s are the op's least bytes and its products, each counted once, over the time it took; "of limit" is the shortest
time in which these bytes can move and these products be done at the rates of a large copy and a large matrix product on
the same device (three float16 products for one as accurate as float32's), over the time it took.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from compiling import compiled_by_torch
from conditions import about, described, keeping, prepared_device
from figures import HEAD, Result, Results, against_compiled, relative_l2, result_of
from op_cases import GROUPS, Case
from timing import Ceilings, Stopwatch, Timing, Work, measure_ceilings, tf32
from torch import Tensor

from cips3d.errors import UserError
from cips3d.process.ending import exit_on_user_error

COMPILED_FORMULATIONS = 2  # at most, of an op


def forward_run(function: Callable[..., object], case: Case) -> Callable[[], object]:
    """The op alone, no gradient recorded."""

    def run() -> object:
        with torch.no_grad():
            return function(*case.inputs)

    return run


def backward_run(function: Callable[..., object], case: Case) -> Callable[[], object]:
    """The gradients alone, of the same random ones every time: the graph is built once and kept.

    They are drawn for all outputs: which of them can be differentiated is the formulation's own.
    """
    everything = tensors_of(function(*case.inputs))
    wanted = [t for t in case.inputs if t.requires_grad]
    random = torch.Generator(everything[0].device).manual_seed(0)
    drawn = [torch.randn(t.shape, generator=random, device=t.device).to(t.dtype) for t in everything]
    outputs = [t for t in everything if t.requires_grad]
    upstream = [grad for grad, t in zip(drawn, everything, strict=True) if t.requires_grad]
    return lambda: torch.autograd.grad(outputs, wanted, upstream, retain_graph=True)


Prepare = Callable[[Callable[..., object], Case], Callable[[], object]]


def directions(case: Case) -> Iterator[tuple[str, Prepare, Work]]:
    """Names, preparations and work of the case's forward and backward, or of what has no backward."""
    if case.backward is None:
        yield case.name, forward_run, case.forward
        return
    yield f"{case.name}_forward", forward_run, case.forward
    yield f"{case.name}_backward", backward_run, case.backward


def fastest(case: Case, prepare: Prepare, stopwatch: Stopwatch, *, compiled: bool = False) -> Timing:
    """The best time of the plain formulations, eager or compiled; one that does not run does not count."""
    timings, refused = [], None
    tried = [f for f in case.plain if f.for_compiler][:COMPILED_FORMULATIONS] if compiled else case.plain
    for formulation in tried:
        function = compiled_by_torch(formulation.function) if compiled else formulation.function
        around: AbstractContextManager[None] = tf32(True) if formulation.tf32 else nullcontext()
        try:
            with around:  # the products of the backward too
                timings.append(stopwatch(prepare(function, case)))
        except Exception as error:
            print(f"a formulation of {case.name} does not run: {type(error).__name__}", file=sys.stderr)
            refused = error
    if not timings and refused is not None:
        raise refused
    return min(timings, key=lambda timing: timing.ms)


def difference(case: Case, prepare: Prepare) -> float | None:
    """Of the case's results from those of its first formulation in full precision; None: it has none.

    Indices are left out: they are of samples that stand in another order.
    """
    exact = next((formulation for formulation in case.plain if not formulation.tf32), None)
    if exact is None:
        return None
    found, expected = (tensors_of(prepare(function, case)()) for function in (case.ours, exact.function))
    return relative_l2(found, expected)


def tensors_of(outputs: object) -> list[Tensor]:
    """Those with numbers among them."""
    everything = [outputs] if isinstance(outputs, Tensor) else list(outputs)  # type: ignore[call-overload]
    return [t for t in everything if isinstance(t, Tensor) and t.is_floating_point()]


def measured(case: Case, stopwatch: Stopwatch, ceilings: Ceilings) -> Iterator[tuple[str, Result]]:
    """The case against eager PyTorch."""
    for name, prepare, work in directions(case):
        ours = stopwatch(prepare(case.ours, case))
        eager = fastest(case, prepare, stopwatch)
        apart = difference(case, prepare)
        yield name, result_of(ours, eager=eager, work=work, ceilings=ceilings, difference=apart)


def compared(case: Case, stopwatch: Stopwatch) -> Iterator[tuple[str, Result]]:
    """The case against torch.compile, every choice measured; ours is timed once more beside it."""
    for name, prepare, work in directions(case):
        compiled = fastest(case, prepare, stopwatch, compiled=True)
        ours = stopwatch(prepare(case.ours, case))
        yield name, against_compiled(result_of(ours, work=work), ours, compiled)


def run_group(group: str, results: Results, stopwatch: Stopwatch, ceilings: Ceilings, *, small: bool) -> None:
    """Time all cases of a group against eager PyTorch."""
    with results.reporting(group):
        for case in GROUPS[group](stopwatch.device, small=small):
            with results.reporting(case.name):
                for name, result in measured(case, stopwatch, ceilings):
                    results.add(name, result)


def compile_group(
    group: str, results: Results, stopwatch: Stopwatch, *, small: bool, names: Collection[str] | None = None
) -> None:
    """Compare cases of a group with torch.compile; default: all of them."""
    with results.reporting(f"{group}, compiled"):
        for case in GROUPS[group](stopwatch.device, small=small):
            if names is not None and case.name not in names:
                continue
            with results.reporting(f"{case.name}, compiled"):
                for name, result in compared(case, stopwatch):
                    results.compared(name, result)
            torch.compiler.reset()  # so that what one function has been compiled for does not add up to its limit


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
    device = prepared_device(arguments.device)
    stopwatch = Stopwatch(device, repeats=arguments.repeats)
    ceilings = measure_ceilings(stopwatch)
    print(f"{described(ceilings)}\n\n{HEAD}", flush=True)
    results = Results(keeping(arguments.json, about(device, ceilings)))
    for group in arguments.groups:
        run_group(group, results, stopwatch, ceilings, small=arguments.small)
    for group in () if arguments.no_compile else arguments.groups:
        compile_group(group, results, stopwatch, small=arguments.small)
    return 1 if results.failures else 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
