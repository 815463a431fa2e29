"""What is measured is kept, and what fails is noted."""

from __future__ import annotations

import pytest
from figures import HEAD, PICTURE_HEAD, Result, Results, against_compiled, picture_row, result_of, row
from timing import Ceilings, Timing, Work


def test_every_line_is_kept_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[list[str]] = []
    results = Results(lambda found: kept.append(list(found)))
    results.add("a", Result(ms=1.5))
    results.add("b", Result(ms=2, ratio_vs_eager=3))
    assert kept == [["a"], ["a", "b"]]
    assert "| b | 2 | 3.00 |" in capsys.readouterr().out


def test_failures_are_noted_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[dict[str, str]] = []
    results = Results(lambda found: kept.append(dict(found.failures)))
    with results.reporting("first"):
        raise RuntimeError("no kernel image\nis available")
    with results.reporting("second"):
        results.add("c", Result(ms=1))
    assert kept == [{"first": "RuntimeError: no kernel image"}] * 2
    assert "Traceback" in capsys.readouterr().err


def test_rates_that_were_achieved() -> None:
    """Of two images in 4 ms: the limit counts three products, the rate one."""
    ceilings = Ceilings(4e9, {"float16": 6e12})
    work = Work(moved=8e6, flops=4e9, dtype="float16", passes=3)
    result = result_of(Timing(4.0, 12.0, 1.0), eager=Timing(10.0, 0.0), work=work, ceilings=ceilings, images=2)
    assert (result.ms, result.eager_ms, result.host_ms, result.peak_mb) == (2.0, 5.0, 0.5, 12.0)
    assert result.ratio_vs_eager == 2.5
    assert result.bytes_per_second == pytest.approx(2e9)
    assert result.flops_per_second == pytest.approx(1e12)
    assert result.fraction_of_limit == pytest.approx(0.5)
    assert row("a", result) == "| a | 2 | 2.50 |  | 50% | 2 | 1 | 12 |"
    assert picture_row("a", result) == "| a | 500 | 2 | 2.50 |  | 50% | 2 | 1 | 12 |"
    for head, line in ((HEAD, row("a", result)), (PICTURE_HEAD, picture_row("a", result))):
        assert {part.count("|") for part in head.splitlines()} == {line.count("|")}


def test_nothing_is_claimed_of_what_was_not_measured() -> None:
    result = result_of(Timing(4.0, 12.0))
    assert result == Result(ms=4.0, peak_mb=12.0)


def test_compiled_times_are_compared_side_by_side() -> None:
    """The ratio is of ours beside it; the line keeps what was found before."""
    results = Results(lambda _: None)
    results.add("a", Result(ms=3.0, ratio_vs_eager=7.0))
    beside, compiled = Timing(2.0, 0.0), Timing(8.0, 0.0)
    results.compared("a", against_compiled(result_of(beside), beside, compiled))
    results.compared("b", against_compiled(result_of(beside), beside, compiled))
    assert results["a"] == Result(ms=3.0, ratio_vs_eager=7.0, ratio_vs_compile=4.0, compile_ms=8.0)
    assert (results["b"].ms, results["b"].ratio_vs_compile) == (2.0, 4.0)
