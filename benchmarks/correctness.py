"""The tests of the ops on a GPU, run before anything is measured."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from apart import run_limited
from conditions import ROOT

from cips3d.errors import UserError

NOT_STARTED = (2, 3, 4, 5)  # pytest's exit codes where it could not collect, does not know a flag, or found no test
PROCESSES = 6  # at most, that share the tests
NAMED = 3  # failed tests in a sentence


def run_tests(selection: str, seconds: float, where: str = "tests/ops") -> str | None:
    """Run a selection of tests; what failed, in a phrase, or None.

    Raises:
        UserError: they cannot even start.
    """
    if importlib.util.find_spec("pytest") is None:
        raise UserError("pytest is not here to run the kernels' tests; pip install '.[test]', or give --no-tests")
    processes = max(2, min(PROCESSES, (os.cpu_count() or 2) // 2))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-r", "fE", "-n", str(processes), "-k", selection]
        command += [f"--junitxml={report}", str(ROOT / where)]
        code = run_limited(command, seconds, environment=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
        if code is None:
            return f"the tests ({selection}) did not end within {seconds:.0f} s"
        if code in NOT_STARTED:
            raise UserError(f"the kernels' tests ({selection}) cannot be run, as shown above; or give --no-tests")
        return None if code == 0 else f"{failed(report)} ({selection})"


def failed(report: Path) -> str:
    """Which tests of a report of pytest's failed, in a phrase."""
    if not report.exists():
        return "the tests ended without a report"
    cases = [
        case.get("name", "")
        for case in ElementTree.parse(report).iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    named = ", ".join(cases[:NAMED]) + (", ..." if len(cases) > NAMED else "")
    return f"{len(cases)} tests failed: {named}"
