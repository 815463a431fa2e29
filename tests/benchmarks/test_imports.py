"""The benchmarks run where the packages that only commands need are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))
COMMANDS_ONLY = ("tyro", "viser", "trimesh", "selenium")
NEED_COMMANDS = {"gallery.py", "learning.py", "train_speed.py", "viewer_picture.py"}  # they run them


@pytest.mark.skipif(sys.platform == "win32", reason="starts a process for each of them")
def test_benchmarks_need_no_package_of_commands() -> None:
    names = [path.stem for path in SCRIPTS if path.name not in NEED_COMMANDS]
    assert {"suite", "render_speed", "ops_speed", "memory"} <= set(names)
    script = f"""
import sys
sys.path.insert(0, {str(SCRIPTS[0].parent)!r})
for name in {COMMANDS_ONLY!r}:
    sys.modules[name] = None
for name in {names!r}:
    __import__(name)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
