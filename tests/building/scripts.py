"""The scripts that compile the kernels and check how they were compiled, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


toolchain = load(ROOT / "toolchain.py")
build = load(ROOT / "build_kernels.py")  # which imports the one above
resources = load(ROOT / ".ci" / "check_resources.py")
matrix_registers = load(ROOT / ".ci" / "check_matrix_registers.py")


def architectures(*names: str) -> tuple[object, ...]:
    return tuple(toolchain.Architecture(int(name.removesuffix("+PTX")), name.endswith("+PTX")) for name in names)
