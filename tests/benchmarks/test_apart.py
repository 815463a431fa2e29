"""What hangs or has no time left does not cost the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import suite
import torch
from apart import Budget, DeviceLost, Part, measure_parts, measured_apart, run_limited
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


def test_a_lost_device_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal access nothing else runs; what is left is known."""

    def synchronize() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    found = results()
    with pytest.raises(DeviceLost):
        measure_parts([Part("a", 1, lambda: None), Part("b", 1, lambda: None)], found, Budget(60))
    assert found.left_out == ["b"]


SCRIPT = """
import os, sys, time
import apart, torch
from figures import Result

def parts(stopwatch, ceilings, results):
    def add(name):
        results.add(name, Result(ms=len(results) + 1.0))

    def broken():
        os._exit(apart.BROKEN)

    def wrong():
        raise ValueError("no")

    measures = {"first": lambda: add("first"), "wrong": wrong, "hangs": hang, "last": lambda: add("last")}
    return [apart.Part(name, 1e6 if name == "long" else 0.0, measure) for name, measure in measures.items()]

def hang():
    torch.cuda.is_available = lambda: False  # no device to ask
    time.sleep(600)

torch.cuda.is_available = lambda: True
torch.cuda.synchronize = torch.cuda.empty_cache = lambda: None
apart.HANGS_AFTER = 0.0, 1.0
apart.measure_ceilings = lambda stopwatch: apart.Ceilings(1.0, {})
apart.about = lambda device, ceilings: {}
raise SystemExit(apart.measure_for_another("", parts))
"""


def test_what_a_hanging_part_leaves_over_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another process; nothing is measured twice."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(Path(suite.__file__).parent))
    found = results()
    found.left_out = ["later"]
    measured_apart("apart", str(script), ["--device", "cpu"], Budget(120), found)
    assert {name: line.ms for name, line in found.items()} == {"first": 1.0, "last": 1.0}
    assert found.failures == {"wrong": "ValueError: no", "hangs": "it did not end within 1 s"}
    assert found.left_out == ["later"]


def test_parts_are_asked_for_by_name(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folder = str(Path(suite.__file__).parent)
    for given, error in (
        (["--parts", "last"], ""),
        (["--without", "first", "wrong", "hangs"], ""),
        (["--parts", "lst"], "--parts 'lst' is unknown; choose from 'first', 'wrong'"),
        (["--without", "lst"], "--without 'lst' is unknown; choose from 'first', 'wrong'"),
    ):
        command = [sys.executable, str(script), "--device", "cpu", *given]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": folder})
        assert ("| last |" in done.stdout) is (not error) and "| first |" not in done.stdout
        assert error in done.stderr


RECORD = """
import json, sys, time
from pathlib import Path
none = dict.fromkeys(["ratio_vs_eager", "fraction_of_limit", "peak_mb"])
lines = {"a": none | {"ms": 2.0, "ratio_vs_compile": 4.0, "compile_ms": 8.0}, "b": none | {"ms": 5.0}}
record = {"results": lines, "failures": {"c": "broken"}, "left_out": ["d"], "kernels": {"a": {"sine": 1.0}}}
path = Path(sys.argv[sys.argv.index("--json") + 1])
path.with_suffix(".part").write_text(json.dumps(record))
path.with_suffix(".part").replace(path)
"""


@pytest.mark.parametrize("seconds", [None, 3])
def test_lines_of_another_process_are_kept_when_it_hangs(tmp_path: Path, seconds: float | None) -> None:
    script = tmp_path / "script.py"
    script.write_text(RECORD + "time.sleep(600)\n")
    found = results()
    found.left_out = ["apart", "later"]
    found.add("a", Result(ms=3.0, ratio_vs_eager=7.0))
    measured_apart("apart", str(script), [], Budget(3 if seconds is None else 60), found, seconds=seconds)
    assert found["a"] == Result(ms=3.0, ratio_vs_eager=7.0, ratio_vs_compile=4.0, compile_ms=8.0)
    assert found["b"] == Result(ms=5.0)
    assert found.left_out == ["apart", "later", "d"]
    assert found.failures == {"c": "broken"} | ({} if seconds is None else {"apart": "it did not end in time"})
    assert found.kernels == {"a": {"sine": 1.0}}


def test_another_process_that_breaks_is_noted(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(7)")
    found = results()
    measured_apart("apart", str(script), [], Budget(60), found)
    assert found.failures == {"apart": "it ended with exit code 7 before it measured anything"}
    script.write_text("raise RuntimeError('CUDA error: out of memory')")  # 1 is the code of failures that are recorded
    measured_apart("ceilings", str(script), [], Budget(60), found)
    assert found.failures["ceilings"] == "it ended with exit code 1 before it measured anything"


def test_a_part_that_kills_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind it is measured by another one; what had not fitted into the time is not blamed."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace('"wrong": wrong, "hangs": hang', '"long": hang, "dies": os.abort'))
    monkeypatch.setenv("PYTHONPATH", str(Path(suite.__file__).parent))
    found = results()
    measured_apart("apart", str(script), ["--device", "cpu"], Budget(120), found)
    assert list(found) == ["first", "last"]
    assert found.failures == {"dies": "it ended its process with exit code -6"}
    assert found.left_out == ["long"]
