"""What is measured is kept, and what fails is noted."""

from __future__ import annotations

import pytest
from ops_speed import Result, Results


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
