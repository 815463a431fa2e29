"""Under which conditions figures were measured: device, driver, versions, commit and settings, for every record."""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from compiling import COMPILED
from figures import Results
from readme import ROOT
from timing import Ceilings

from cips3d.errors import UserError
from cips3d.files import atomic_file
from cips3d.ops import kernels
from cips3d.process.devices import choose_device
from cips3d.process.versions import processor

MEASURED = ("csrc", "cips3d", "benchmarks", ":(exclude)benchmarks/results")  # what figures depend on


def prepared_device(name: str) -> torch.device:
    """The device that `--device` names, made the current one.

    Raises:
        UserError: it is not here, or it is a GPU on which the kernels do not run: plain PyTorch would be compared with
            itself.
    """
    device = choose_device(name)
    if device.type == "cuda":
        reason = kernels.why_not_on(device)
        if reason is not None:
            raise UserError(f"nothing to be measured on {name}: {reason}")
        if device.index is not None:
            torch.cuda.set_device(device)
    return device


def commit() -> str | None:
    """The checked-out commit, with "+changes" where what is measured differs from it.

    Outside of a checkout it is what CIPS3D_COMMIT says, or None.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "--", *MEASURED) else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("CIPS3D_COMMIT")


def driver() -> str | None:
    """The GPU driver's version and the highest clock, or None where nvidia-smi cannot tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def triton_version() -> str | None:
    """None: not here."""
    try:
        return str(importlib.import_module("triton").__version__)
    except ImportError:
        return None


def versions() -> dict[str, str | int | None]:
    """Of everything that times depend on; None: not here."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton_version(),
    }


def about(device: torch.device, ceilings: Ceilings) -> dict[str, Any]:
    """What a record says besides its figures."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "driver": driver() if on_gpu else None,
        "versions": versions(),
        "settings": {
            "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
            "compile_mode": COMPILED,
        },
        "commit": commit(),
        "ceilings": asdict(ceilings),
    }


def described(ceilings: Ceilings) -> str:
    """The ceilings in a line."""
    rates = ", ".join(f"{dtype} products {r / 1e12:.3g} TFLOP/s" for dtype, r in ceilings.flops_per_second.items())
    return f"copy {ceilings.bytes_per_second / 1e9:.4g} GB/s, {rates}"


def keeping(path: Path | None, about: dict[str, Any]) -> Callable[[Results], None]:
    """Writes the record to a file, whole, whenever it is called; without a path it does nothing."""

    def keep(results: Results) -> None:
        if path is None:
            return
        lines = {name: asdict(result) for name, result in results.items()}
        record = about | {
            "results": lines,
            "failures": results.failures,
            "left_out": results.left_out,
            "tests": results.tests,
            "kernels": results.kernels,
        }
        with atomic_file(path) as file:
            file.write((json.dumps(record, indent=2) + "\n").encode())

    return keep
