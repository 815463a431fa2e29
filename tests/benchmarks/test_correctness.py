"""The kernels' tests come first, and what they find is noted."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import correctness
import pytest
import suite
import torch
from correctness import run_tests
from figures import Results

from cips3d.errors import UserError

TESTS = """
import time

def test_good_cuda(): pass
def test_wrong_cuda(): assert False
def test_slow_warpgroups(): time.sleep(600)
"""


@pytest.fixture
def tests(tmp_path: Path) -> str:
    (tmp_path / "test_some.py").write_text(TESTS)
    return str(tmp_path)


def test_outcomes(tests: str) -> None:
    assert run_tests("good", 120, tests) is None
    assert run_tests("cuda", 120, tests) == "1 tests failed: test_wrong_cuda (cuda)"
    assert run_tests("slow", 4, tests) == "the tests (slow) did not end within 4 s"
    with pytest.raises(UserError, match="nowhere"):
        run_tests("nowhere", 120, tests)


def test_tests_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pytest is not here"):
        run_tests("cuda", 1)


@pytest.mark.parametrize(
    ("wrong", "left"),
    [
        ([], "1"),
        (["render_rays"], "modulated_inr,render_rays_backward"),
        (["modulated_inr", "render_rays", "render_rays_backward"], "0"),
    ],
)
def test_without_warpgroups_where_they_fail(monkeypatch: pytest.MonkeyPatch, wrong: list[str], left: str) -> None:
    """The tests and figures after that have to do without the kernel; all the others are measured all the same."""
    monkeypatch.setenv(suite.VARIABLE, "1")
    seen: list[tuple[str, str | None]] = []

    def tests(selection: str, seconds: float, where: str = "") -> str | None:
        asked = os.environ.get(suite.VARIABLE)
        seen.append((selection, asked))
        return "it hangs" if asked in wrong and selection == "cuda and warpgroups" else None

    monkeypatch.setattr(suite, "run_tests", tests)
    monkeypatch.setattr(suite, "has_warpgroups", lambda device: True)
    results = Results(lambda _: None)
    device = torch.device("cuda")
    suite.test_first(device, results, 100)
    first = [("cuda and warpgroups", op) for op in ("modulated_inr", "render_rays", "render_rays_backward")]
    assert seen == [*first, ("cuda and not warpgroups", left)]
    assert results.failures == {f"warpgroup tests of {op}": "it hangs" for op in wrong}

    class Watch:
        device = torch.device("cuda")

    planned = suite.parts(Watch(), None, results, None, argparse.Namespace(repeats=1, no_compile=False))  # type: ignore[arg-type]
    names = [part.name for part in planned]
    assert ("warpgroups" in names) is (not wrong)
    assert names[-1] == suite.COMPILING
