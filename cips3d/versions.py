"""Versions of what computes, for records of what it computed."""

from __future__ import annotations

import platform

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
