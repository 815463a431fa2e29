"""What computes, for records of what it computed."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import numpy
import torch

import cips3d


def versions() -> dict[str, str]:
    """Versions, by name, of everything that results can depend on."""
    return {
        "cips3d": cips3d.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str, which a safe reader refuses
        "cuda": str(torch.version.cuda),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
    }


def processor() -> str:
    """The processor's name and the threads that PyTorch starts on it."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, threads of PyTorch: {torch.get_num_threads()}"
