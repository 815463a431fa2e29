"""Which plain formulation an op is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ops_speed
import pytest
import torch
from figures import MOST_DIFFERENT, Results
from op_cases import Case, Formulation
from ops_speed import compared, directions, fastest, forward_run, measured
from timing import Ceilings, Timing, Work
from torch import Tensor

CEILINGS = Ceilings(1e9, {"float32": 1e9})


def slow(x: Tensor) -> Tensor:
    return 2 * x


def quick(x: Tensor) -> Tensor:
    return x + x


def refused(x: Tensor) -> Tensor:
    raise RuntimeError("no such thing")


def case(*plain: Formulation, backward: Work | None = None) -> Case:
    x = torch.ones(3, requires_grad=True)
    return Case("double", torch.add, plain, [x], Work(24.0), backward)


def by_order(*milliseconds: float) -> Any:
    """A stopwatch whose times are given; it runs what it times."""
    given = iter(milliseconds)

    def time(run: Callable[[], object]) -> Timing:
        run()
        return Timing(next(given), 0.0)

    return time


def test_the_fastest_formulation_counts() -> None:
    both = case(Formulation(slow), Formulation(quick))
    assert fastest(both, forward_run, by_order(3.0, 2.0)).ms == 2.0


def test_what_does_not_run_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    both = case(Formulation(refused), Formulation(quick))
    assert fastest(both, forward_run, by_order(2.0)).ms == 2.0
    assert "a formulation of double does not run: RuntimeError" in capsys.readouterr().err
    none = case(Formulation(refused))
    with pytest.raises(RuntimeError, match="no such thing"):
        fastest(none, forward_run, by_order())


def test_results_are_compared() -> None:
    """With the first formulation in full precision; what has nothing to do with it is a failure."""

    def close(x: Tensor) -> Tensor:
        return 2.02 * x

    x = torch.ones(3, requires_grad=True)
    for wrong, plain in (
        (close, (Formulation(refused, tf32=True), Formulation(slow))),
        (torch.neg, (Formulation(slow),)),
    ):
        found = Case("double", wrong, plain, [x], Work(24.0), Work(24.0))
        results = Results(lambda _: None)
        for name, line in measured(found, by_order(1.0, 2.0, 1.0, 2.0), CEILINGS):
            results.add(name, line)
        assert [line.difference for line in results.values()] == pytest.approx([0.01 if wrong is close else 1.5] * 2)
        assert set(results.failures) == (set() if wrong is close else {"double_forward", "double_backward"})
    assert MOST_DIFFERENT < 1


def test_tf32_is_for_what_asks_for_it() -> None:
    """Forward and backward."""
    seen: list[bool] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return grad

    rounded = case(Formulation(Watched.apply, tf32=True), Formulation(Watched.apply), backward=Work(24.0))
    for _, prepare, _ in directions(rounded):
        fastest(rounded, prepare, by_order(1.0, 1.0))
    assert seen == [True, False, True, True, False, False]


def test_at_most_two_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """And ours is timed beside them."""
    made: list[object] = []

    def compiled_by_torch(function: Callable[..., object]) -> Callable[..., object]:
        made.append(function)
        return function

    monkeypatch.setattr(ops_speed, "compiled_by_torch", compiled_by_torch)
    many = case(Formulation(refused, for_compiler=False), *map(Formulation, (slow, quick, refused)))
    many = Case(many.name, quick, many.plain, many.inputs, many.forward, None)
    ((name, result),) = compared(many, by_order(8.0, 6.0, 2.0))
    assert made == [slow, quick]
    assert (name, result.ms, result.compile_ms, result.ratio_vs_compile) == ("double", 2.0, 6.0, 3.0)


def test_measured_against_eager() -> None:
    both = case(Formulation(slow), Formulation(quick))
    both = Case(both.name, quick, both.plain, both.inputs, both.forward, Work(12.0))
    lines = dict(measured(both, by_order(1.0, 5.0, 4.0, 2.0, 3.0, 6.0), CEILINGS))
    assert list(lines) == ["double_forward", "double_backward"]
    assert [line.ratio_vs_eager for line in lines.values()] == [4.0, 1.5]
    assert [line.bytes_per_second for line in lines.values()] == pytest.approx([24e3, 6e3])
