"""Measurements with a limit on their time: parts of a run, and processes of their own for what may hang or break.

A GPU that has seen an illegal access, or a kernel that never ends, is lost to its process. So parts are measured in a
process apart from the one that keeps the record: where a part breaks it, another one goes on with the parts behind.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from conditions import about, keeping, prepared_device
from figures import Lines, Result, Results
from readme import ROOT
from timing import Ceilings, Stopwatch, measure_ceilings

from cips3d.errors import UserError

POLL_SECONDS = 0.5
END_SECONDS = 10.0  # until a killed process has ended
BROKEN = 75  # exit code of a process that can measure no more, though there are parts left
HANGS_AFTER = 4.0, 40.0  # times the seconds that a part takes, and seconds more


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

    @classmethod
    def of_lines(cls, results: Results, name: str, seconds: float, measure: Callable[[], Lines]) -> Part:
        """Its lines are added to the results as they come."""

        def add() -> None:
            for line, result in measure():
                results.add(line, result)

        return cls(name, seconds, add)


class DeviceLost(Exception):
    """The process can use its device no more."""


def measure_parts(parts: Sequence[Part], results: Results, budget: Budget) -> None:
    """One after the other, as far as there is time; `results.left_out` names the others, the one that is being measured
    first.

    A part on a GPU that takes many times as long as it should ends the process, with the exit code BROKEN.

    Raises:
        DeviceLost: after a failed part nothing else can run on the device.
    """
    results.left_out += [part.name for part in parts]
    results.keep(results)
    for part in parts:
        if budget.left < part.seconds:
            results.left_out.remove(part.name)
            results.left_out.append(part.name)
            results.keep(results)
            continue
        with results.reporting(part.name), _watched(part, results):
            part.measure()
        results.left_out.remove(part.name)
        results.keep(results)
        if torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError as error:
                raise DeviceLost(part.name) from error


@contextmanager
def _watched(part: Part, results: Results) -> Iterator[None]:
    """End the process where a part hangs: a thread that waits for a GPU can be told nothing."""
    factor, more = HANGS_AFTER
    limit = factor * part.seconds + more

    def end() -> None:
        results.left_out.remove(part.name)
        results.fail(part.name, f"it did not end within {limit:.0f} s")
        sys.stdout.flush()
        os._exit(BROKEN)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    if torch.cuda.is_available():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run_limited(
    command: Sequence[str],
    seconds: float,
    *,
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> int | None:
    """Run a command, by default in the repository; its exit code, or None where its time was up.

    It and the processes that it has started are then killed, and so they are by Ctrl-C.
    """
    until = time.monotonic() + seconds
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, start_new_session=True)
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
    name: str, script: str, arguments: Sequence[str], budget: Budget, results: Results, *, seconds: float | None = None
) -> None:
    """Let another script measure, in a process of its own; its lines are added as they come.

    What a process that breaks leaves over is measured by another one.

    Args:
        name: in the failures.
        script: beside this one; it calls `measure_for_another`.
        arguments: of the script.
        budget: when it is killed at the latest.
        results: where its lines, failures and what it leaves out are added.
        seconds: how long it may take; then being killed counts as a failure. None: it may use up the budget.
    """
    before = list(results.left_out)
    left: list[str] | None = None
    until = Budget(budget.left if seconds is None else min(seconds, budget.left))
    while left is None or (left and until.left > 0):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lines.json"
            merge = _merging(path, results, before)
            command = [sys.executable, str(Path(__file__).parent / script), *arguments]
            command += ["--seconds", f"{until.left:.0f}", "--json", str(path)]
            command += [] if left is None else ["--parts", *left]
            code = run_limited(command, until.left, stdout=subprocess.DEVNULL, meanwhile=merge)
            record = merge()
        if code is None:
            if seconds is not None or record is None:
                results.fail(name, "it did not end in time")
            return
        if record is None:
            results.fail(name, f"it ended with exit code {code} before it measured anything")
            return
        remaining = list(record["left_out"])
        if code in (0, 1) or remaining == left:
            return
        if code != BROKEN:  # killed, or aborted by a library
            results.fail(remaining[0] if remaining else name, f"it ended its process with exit code {code}")
            remaining = remaining[1:]
            results.left_out = before + remaining
            results.keep(results)
        left = remaining


def _merging(path: Path, results: Results, before: list[str]) -> Callable[[], dict[str, Any] | None]:
    """What adds the record that another process writes to a file, as far as it is there, and returns it."""
    seen: dict[str, Result] = {}
    texts = [""]
    records: list[dict[str, Any] | None] = [None]

    def merge() -> dict[str, Any] | None:
        text = path.read_text() if path.exists() else ""
        if text == texts[-1]:
            return records[-1]
        texts[:] = [text]
        records[:] = [record := json.loads(text)]
        results.failures |= record["failures"]
        results.kernels |= record["kernels"]
        results.left_out = before + record["left_out"]
        for line, values in record["results"].items():
            result = Result(**values)
            if seen.get(line) != result:
                seen[line] = result
                (results.add if result.compile_ms is None else results.compared)(line, result)
        results.keep(results)
        return record

    return merge


Measure = Callable[[Stopwatch, Ceilings, Results], Sequence[Part]]


def measure_for_another(description: str | None, parts: Measure) -> int:
    """The command of a script that `measured_apart` runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--repeats", type=int, default=20, help="runs that are timed")
    parser.add_argument("--seconds", type=float, default=3600, help="nothing is begun that takes longer than is left")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="all but these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    budget = Budget(arguments.seconds)
    device = prepared_device(arguments.device)
    stopwatch = Stopwatch(device, repeats=arguments.repeats)
    ceilings = measure_ceilings(stopwatch)
    results = Results(keeping(arguments.json, about(device, ceilings)))
    asked = parts(stopwatch, ceilings, results)
    names = [part.name for part in asked]
    for flag, given in (("--parts", arguments.parts or []), ("--without", arguments.without)):
        if unknown := sorted(set(given) - set(names)):
            raise UserError(f"{flag} {unknown[0]!r} is unknown; choose from {', '.join(map(repr, names))}")
    chosen = set(arguments.parts or names) - set(arguments.without)
    asked = [part for part in asked if part.name in chosen]
    try:
        measure_parts(asked, results, budget)
    except DeviceLost:
        sys.stdout.flush()
        os._exit(BROKEN)  # what ends with the interpreter would ask the device
    return 1 if results.failures else 0
