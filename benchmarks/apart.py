"""Measurements with a limit on their time: parts of a run, and processes of their own for what may hang or last."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from conditions import ROOT, about, keeping, prepared_device
from figures import Result, Results
from timing import Ceilings, Stopwatch, measure_ceilings

POLL_SECONDS = 0.5
END_SECONDS = 10.0  # until a killed process has ended


class Budget:
    """Seconds that may still be spent."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self.until - time.monotonic())


@dataclass(frozen=True)
class Part:
    """Something that is measured as a whole."""

    name: str
    seconds: float
    """how long it takes on a GPU, about; it is not begun with less left"""
    measure: Callable[[], object]


def measure_parts(parts: Sequence[Part], results: Results, budget: Budget) -> None:
    """One after the other, as far as there is time; `results.left_out` names the others."""
    results.left_out += [part.name for part in parts]
    results.keep(results)
    for part in parts:
        if budget.left < part.seconds:
            continue
        with results.reporting(part.name):
            part.measure()
        results.left_out.remove(part.name)
        results.keep(results)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run_limited(
    command: Sequence[str],
    seconds: float,
    *,
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> int | None:
    """Run a command in the repository; its exit code, or None where its time was up.

    It and the processes that it has started are then killed, and so they are by Ctrl-C.
    """
    until = time.monotonic() + seconds
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, start_new_session=True)
    try:
        while True:
            try:
                return process.wait(max(0.0, min(POLL_SECONDS, until - time.monotonic())))
            except subprocess.TimeoutExpired:
                meanwhile()
                if time.monotonic() >= until:
                    return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a driver may take its time with a kernel that hangs
                process.wait(END_SECONDS)


def measured_apart(
    name: str, script: str, arguments: Sequence[str], seconds: float, results: Results, *, must_end: bool
) -> None:
    """Let another script measure, in a process of its own; its lines are added as they come.

    Args:
        name: in the failures.
        script: beside this one; it calls `measure_for_another`.
        arguments: of the script.
        seconds: until it is killed.
        results: where its lines, failures and what it leaves out are added.
        must_end: being killed counts as a failure.
    """
    seen: dict[str, Result] = {}
    before = list(results.left_out)
    texts = [""]

    def merge() -> None:
        text = path.read_text() if path.exists() else ""
        if text == texts[-1]:
            return
        texts[:] = [text]
        record = json.loads(text)
        results.failures |= record["failures"]
        results.left_out = before + record["left_out"]
        for line, values in record["results"].items():
            result = Result(**values)
            if seen.get(line) != result:
                seen[line] = result
                (results.add if result.compile_ms is None else results.compared)(line, result)
        results.keep(results)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.json"
        command = [sys.executable, str(Path(__file__).parent / script), *arguments, "--json", str(path)]
        code = run_limited(command, seconds, stdout=subprocess.DEVNULL, meanwhile=merge)
        merge()
        began = path.exists()
    if code is None and (must_end or not began):
        results.fail(name, f"it did not end within {seconds:.0f} s")
    elif code not in (0, 1, None):
        results.fail(name, f"it ended with exit code {code}")


def measure_for_another(
    description: str | None, measure: Callable[[Stopwatch, Ceilings, Results, Budget], object]
) -> int:
    """The command of a script that `measured_apart` runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--repeats", type=int, default=20, help="runs that are timed")
    parser.add_argument("--seconds", type=float, default=3600, help="nothing is begun that takes longer than is left")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    budget = Budget(arguments.seconds)
    device = prepared_device(arguments.device)
    stopwatch = Stopwatch(device, repeats=arguments.repeats)
    ceilings = measure_ceilings(stopwatch)
    results = Results(keeping(arguments.json, about(device, ceilings)))
    measure(stopwatch, ceilings, results, budget)
    return 1 if results.failures else 0
