"""What hangs or has no time left does not cost the rest."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from apart import Budget, Part, measure_parts, measured_apart, run_limited
from figures import Result, Results


def results() -> Results:
    return Results(lambda _: None)


def test_exit_codes() -> None:
    assert run_limited([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3


def test_all_processes_end_when_time_is_up(tmp_path: Path) -> None:
    """Those that the command has started too."""
    note = tmp_path / "pid"
    child = "import time; time.sleep(600)"
    script = f"""
import subprocess, sys, time
from pathlib import Path
process = subprocess.Popen([sys.executable, "-c", {child!r}])
Path({str(note)!r}).write_text(str(process.pid))
time.sleep(600)
"""
    looks: list[bool] = []
    started = time.monotonic()
    assert run_limited([sys.executable, "-c", script], 3, meanwhile=lambda: looks.append(note.exists())) is None
    assert time.monotonic() - started < 60
    assert looks[-1]
    until = time.monotonic() + 30
    while runs(int(note.read_text())) and time.monotonic() < until:
        time.sleep(0.05)
    assert not runs(int(note.read_text()))


def runs(pid: int) -> bool:
    """Whether a process does anything; one that nobody has asked about is dead all the same."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_parts_that_do_not_fit_are_left_out() -> None:
    found, measured = results(), []

    def broken() -> None:
        measured.append("broken")
        assert found.left_out == ["broken", "long", "short"]
        raise RuntimeError("no")

    parts = [Part("broken", 1, broken), Part("long", 1e6, lambda: measured.append("long"))]
    measure_parts([*parts, Part("short", 1, lambda: measured.append("short"))], found, Budget(60))
    assert measured == ["broken", "short"]
    assert found.left_out == ["long"]
    assert found.failures == {"broken": "RuntimeError: no"}


RECORD = """
import json, sys, time
from pathlib import Path
none = dict.fromkeys(["ratio_vs_eager", "fraction_of_limit", "peak_mb"])
lines = {"a": none | {"ms": 2.0, "ratio_vs_compile": 4.0, "compile_ms": 8.0}, "b": none | {"ms": 5.0}}
record = {"results": lines, "failures": {"c": "broken"}, "left_out": ["d"]}
path = Path(sys.argv[sys.argv.index("--json") + 1])
path.with_suffix(".part").write_text(json.dumps(record))
path.with_suffix(".part").replace(path)
"""


@pytest.mark.parametrize("must_end", [False, True])
def test_lines_of_another_process_are_kept_when_it_hangs(tmp_path: Path, must_end: bool) -> None:
    script = tmp_path / "script.py"
    script.write_text(RECORD + "time.sleep(600)\n")
    found = results()
    found.left_out = ["apart", "later"]
    found.add("a", Result(ms=3.0, ratio_vs_eager=7.0))
    measured_apart("apart", str(script), [], 3, found, must_end=must_end)
    assert found["a"] == Result(ms=3.0, ratio_vs_eager=7.0, ratio_vs_compile=4.0, compile_ms=8.0)
    assert found["b"] == Result(ms=5.0)
    assert found.left_out == ["apart", "later", "d"]
    assert found.failures == {"c": "broken"} | ({"apart": "it did not end within 3 s"} if must_end else {})


def test_another_process_that_breaks_is_noted(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(7)")
    found = results()
    measured_apart("apart", str(script), [], 60, found, must_end=False)
    assert found.failures == {"apart": "it ended with exit code 7"}
