"""The kernels' tests come first, and what they find is noted."""

from __future__ import annotations

import os
from pathlib import Path

import correctness
import pytest
import suite
import torch
from apart import Budget
from correctness import Outcome, run_tests
from eager_speed import LATER
from figures import Results
from warpgroup_speed import OPS, VARIABLE, part_of

from cips3d.errors import UserError

TESTS = """
import time
import pytest

def test_good_cuda(): pass
def test_wrong_cuda(): assert False
def test_slow_warpgroups(): time.sleep(600)
@pytest.mark.skip
def test_skipped(): pass
"""


@pytest.fixture
def tests(tmp_path: Path) -> str:
    (tmp_path / "test_some.py").write_text(TESTS)
    return str(tmp_path)


def test_outcomes(tests: str) -> None:
    assert run_tests("good", 120, tests).wrong is None
    several = run_tests("cuda or skipped", 120, tests)
    assert several.wrong == "1 tests failed: test_wrong_cuda (cuda or skipped)"
    assert several.counts.pop("seconds") > 0
    assert several.counts == {"passed": 1, "failed": 1, "skipped": 1}
    assert run_tests("slow", 4, tests).wrong == "the tests (slow) did not end within 4 s"


def test_no_outcomes(tests: str) -> None:
    """Tests that do not run say nothing."""
    assert run_tests("nowhere", 120, tests).wrong == "there are no such tests (nowhere)"
    assert run_tests("skipped", 120, tests, processes=0).wrong == "the tests (skipped) were all skipped"
    assert run_tests("good", 120, f"{tests}/elsewhere", processes=0).wrong == "pytest ended with exit code 4"


def test_each_test_is_named_before_it_runs(tests: str, capfd: pytest.CaptureFixture[str]) -> None:
    """So that it is known which one hangs."""
    run_tests("slow", 6, tests, processes=0)
    assert "test_some.py::test_slow_warpgroups" in capfd.readouterr().out


def test_tests_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pytest is not here"):
        run_tests("cuda", 1)


CASES = [
    ([], "1"),
    (["render_rays"], "modulated_inr,clusters,render_rays_backward,split_matmul,streamed_field"),
    (list(OPS), "0"),
]


@pytest.mark.parametrize(("wrong", "left"), CASES)
def test_without_warpgroups_where_their_tests_fail(
    monkeypatch: pytest.MonkeyPatch, wrong: list[str], left: str
) -> None:
    """What comes after has to do without the kernel."""
    monkeypatch.setenv(VARIABLE, "1")
    seen: list[tuple[str, str | None]] = []
    bad = [suite.WARPGROUP_TESTS[op] for op in wrong]

    def tests(selection: str, seconds: float, where: str = "", *, processes: int | None) -> Outcome:
        seen.append((selection, os.environ.get(VARIABLE)))
        return Outcome("it hangs" if where in bad else None, {"passed": 1})

    monkeypatch.setattr(suite, "run_tests", tests)
    monkeypatch.setattr(suite, "has_warpgroups", lambda device: True)
    results = Results(lambda _: None)
    suite.test_first(torch.device("cuda"), results, 100)
    assert seen == [("cuda and warpgroups", "1")] * len(OPS) + [("cuda and not warpgroups", left)]
    assert results.failures == {f"warpgroup tests of {op}": "it hangs" for op in wrong}
    assert results.tests["tests"] == {"passed": 1}


@pytest.mark.parametrize(("wrong", "left"), CASES)
def test_without_warpgroups_where_they_hang_or_give_something_else(
    monkeypatch: pytest.MonkeyPatch, wrong: list[str], left: str
) -> None:
    """In full sizes, on all multiprocessors, which the tests do not have."""
    monkeypatch.setenv(VARIABLE, "1")
    seen: list[tuple[str, str | None]] = []

    def apart(
        name: str, script: str, given: list[str], budget: Budget, results: Results, seconds: float | None = None
    ) -> None:
        seen.append((name, os.environ.get(VARIABLE)))
        if name == "warpgroups":
            results.failures |= {part_of(op): "it hangs" for op in wrong[:1]}
            results.left_out += [part_of(op) for op in wrong[1:]]

    monkeypatch.setattr(suite, "measured_apart", apart)
    results = Results(lambda _: None)
    suite.measure(torch.device("cpu"), results, Budget(100), repeats=1, compiling=True)
    assert seen == [("warpgroups", "1"), ("eager", left), (suite.COMPILING, left), ("the rest", left)]
    suite.measure(torch.device("cpu"), results, Budget(1), repeats=1, compiling=True)
    assert seen[-1][0] == "eager" and results.left_out[-4:] == [suite.COMPILING, *LATER]


def test_the_installed_package_is_tested(tmp_path: Path) -> None:
    """Not the sources beside the tests, which have no compiled kernels unless they are what is installed."""
    (tmp_path / "test_some.py").write_text(
        f"import sys\ndef test_path(): assert {str(correctness.ROOT)!r} not in sys.path and '' not in sys.path"
    )
    assert run_tests("path", 120, str(tmp_path), processes=0).wrong is None
