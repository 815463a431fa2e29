"""The tests of the ops on a GPU, run before anything is measured."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from apart import run_limited
from readme import ROOT

from cips3d.errors import UserError

PROCESSES = 6  # at most, that share the tests
NAMED = 3  # failed tests in a sentence
SELECTS_NONE = 5  # pytest's exit code


@dataclass(frozen=True)
class Outcome:
    """Of a selection of tests."""

    wrong: str | None
    """what failed, in a phrase"""
    counts: dict[str, float]
    """how many passed, failed and were skipped, and how many seconds it took"""


def run_tests(selection: str, seconds: float, where: str = "tests/ops", *, processes: int | None = None) -> Outcome:
    """Run a selection of tests.

    Args:
        selection: of pytest's -k.
        seconds: until they are killed.
        where: a folder or file of the repository.
        processes: that share them; 0: one, which names each test before it runs it. Default: half of the processors.

    Raises:
        UserError: there is no pytest.
    """
    if importlib.util.find_spec("pytest") is None:
        raise UserError("pytest is not here to run the kernels' tests; pip install '.[test]', or give --no-tests")
    if processes is None:
        processes = max(2, min(PROCESSES, (os.cpu_count() or 2) // 2))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-v" if processes == 0 else "-q", "-r", "fE", "-n", str(processes)]
        command += [f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
        command += ["-k", selection, f"--junitxml={report}", str(ROOT / where)]
        started = time.monotonic()
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        # Not in the repository, whose sources Python would take for the package: they have no compiled kernels.
        code = run_limited(command, seconds, folder=Path(folder), environment=environment)
        counts = counted(report) | {"seconds": round(time.monotonic() - started, 1)}
        if code is None:
            wrong: str | None = f"the tests ({selection}) did not end within {seconds:.0f} s"
        elif code == SELECTS_NONE:
            wrong = f"there are no such tests ({selection})"
        elif code == 0:
            wrong = None if counts.get("passed") else f"the tests ({selection}) were all skipped"
        else:
            wrong = f"{failed(report)} ({selection})" if counts.get("failed") else f"pytest ended with exit code {code}"
        return Outcome(wrong, counts)


def counted(report: Path) -> dict[str, float]:
    """How many tests of a report of pytest's passed, failed and were skipped; {}: there is no report."""
    if not report.exists():
        return {}
    cases = list(ElementTree.parse(report).iter("testcase"))
    broken = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - broken - skipped, "failed": broken, "skipped": skipped}


def failed(report: Path) -> str:
    """Which tests of a report of pytest's failed, in a phrase."""
    cases = [
        case.get("name", "")
        for case in ElementTree.parse(report).iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    named = ", ".join(cases[:NAMED]) + (", ..." if len(cases) > NAMED else "")
    return f"{len(cases)} tests failed: {named}"
