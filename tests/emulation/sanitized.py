"""Runs Python scripts under AddressSanitizer or ThreadSanitizer and sorts their reports by what was running."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import emulated_kernels
import pytest
from emulated_kernels import Sanitizer

MARK = "@@ now running: "
REPORTS = ("ERROR: AddressSanitizer", "WARNING: ThreadSanitizer", "runtime error:")

LIBRARIES: dict[Sanitizer, tuple[str, ...]] = {
    # libstdc++ too: without it AddressSanitizer cannot intercept the first exception.
    "address": ("libasan.so", "libstdc++.so"),
    "thread": ("libtsan.so",),
}
# Python itself leaks on purpose. Shared memory has the same addresses in one kernel after the other.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=0:suppress_equal_addresses=0:atexit_sleep_ms=0:exitcode=0",
}


def mark(label: str) -> None:
    """For scripts: reports from here on belong to `label`."""
    os.write(2, f"{MARK}{label}\n".encode())


def run(sanitizer: Sanitizer, script: Path, *arguments: str | Path) -> dict[str, str]:
    """Run a script; returns what it and the sanitizer wrote after each `mark`."""
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": " ".join(_libraries(sanitizer))}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # its threads are not ours to judge
    environment["PYTHONPATH"] = str(Path(emulated_kernels.__file__).parent)
    result = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert result.returncode == 0, f"{script.name} ended with {result.returncode}:\n{result.stdout[-4000:]}"
    before, *sections = result.stdout.split(MARK)
    assert not has_report(before), before
    return dict(section.split("\n", 1) for section in sections)


def has_report(text: str) -> bool:
    """Whether a sanitizer has found something."""
    return any(report in text for report in REPORTS)


def skip_without(sanitizer: Sanitizer) -> None:
    """Skips the test where kernels cannot be compiled with a sanitizer."""
    command = emulated_kernels.compiler()
    if command is None:
        pytest.skip(emulated_kernels.NO_COMPILER)
    asked = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True, check=True)
    if "clang" in asked.stdout:
        pytest.skip("clang has libraries of its own for its sanitizers, and names g++'s when it is asked")
    for path in map(Path, _libraries(sanitizer)):
        if not path.is_absolute():
            pytest.skip(f"no {path} beside the C++ compiler")


def _libraries(sanitizer: Sanitizer) -> list[str]:
    """Where the sanitizer's libraries are; the mere name of one that is missing."""
    command = shlex.split(emulated_kernels.compiler() or "")
    asked = [[*command, f"-print-file-name={name}"] for name in LIBRARIES[sanitizer]]
    return [subprocess.run(a, capture_output=True, text=True, check=True).stdout.strip() for a in asked]
