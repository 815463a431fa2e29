"""Compiles the CUDA sources with a C++ compiler against the emulation in csrc/emulation, and imports the result."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest

Sanitizer = Literal["address", "thread"]

CSRC = Path(__file__).resolve().parents[1] / "csrc"

WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi", "-Wno-maybe-uninitialized")
LANGUAGE = ("-std=c++17", "-g", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-DCIPS3D_EMULATED")
SANITIZERS: dict[Sanitizer, tuple[str, ...]] = {
    "address": ("-fsanitize=address,alignment", "-fno-sanitize-recover=alignment"),
    "thread": ("-fsanitize=thread",),
}


def compiler() -> str | None:
    """The C++ compiler: $CXX, else g++; None where there is none."""
    command = os.environ.get("CXX") or "g++"
    return command if shutil.which(shlex.split(command)[0]) else None


def build(sanitizer: Sanitizer | None = None, sources: Sequence[Path] | None = None) -> Path:
    """Compile the kernels, as far as they have changed, and return the path of the Python module.

    Args:
        sanitizer: what to compile the kernels with besides.
        sources: what to compile beside the emulation; by default all of csrc/*.cu and csrc/bindings.cpp.

    Raises:
        RuntimeError: there is no compiler, or it reports an error (its text is in the message).
    """
    sources = [*sorted(CSRC.glob("*.cu")), CSRC / "bindings.cpp"] if sources is None else list(sources)
    folder = _folder(sanitizer, sources)
    with _locked(folder):
        return _compile(folder, sanitizer, sources)


def load(sanitizer: Sanitizer | None = None, sources: Sequence[Path] | None = None) -> ModuleType:
    """Build and import; skips the test where there is no C++ compiler."""
    if compiler() is None:
        pytest.skip("no C++ compiler")
    return _load(sanitizer, None if sources is None else tuple(sources))


@functools.cache
def _load(sanitizer: Sanitizer | None, sources: tuple[Path, ...] | None) -> ModuleType:
    return import_module(build(sanitizer, sources))


def import_module(path: Path) -> ModuleType:
    """Import a module that `build` has made."""
    spec = importlib.util.spec_from_file_location(path.name.split(".")[0], path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(folder: Path, sanitizer: Sanitizer | None, sources: Sequence[Path]) -> Path:
    command = compiler()
    if command is None:
        raise RuntimeError("compiling the kernels for a CPU needs g++ 11 or newer, or another C++ compiler in CXX")
    name = f"cips3d_emulated_{folder.name.replace('-', '_')}"
    module = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    instrument = SANITIZERS[sanitizer] if sanitizer else ()
    flags = [*LANGUAGE, *WARNINGS, *_processor_flags(), "-O1" if sanitizer else "-O2", f"-I{CSRC}", *_include_flags()]
    flags += [f"-DCIPS3D_MODULE={name}"]
    flags += [f"-DCIPS3D_{sanitizer.upper()}_SANITIZER"] if sanitizer else []
    lines = [
        "rule compile",
        f"  command = {command} {_shell(flags)} $instrument -MD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {command} -shared {_shell(instrument)} $in -o $out",
    ]
    objects = []
    for source in [*sources, *sorted((CSRC / "emulation").glob("*.cpp"))]:
        objects.append(f"{source.name}.o")
        lines.append(f"build {objects[-1]}: compile {_ninja(str(source))}")
        # Only the kernels: what the emulation does between them is none of the sanitizers' business.
        lines.append(f"  instrument = {_shell(instrument) if source.suffix == '.cu' else ''}")
    lines.append(f"build {_ninja(module.name)}: link {' '.join(objects)}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    result = subprocess.run([_ninja_program(), "-C", str(folder)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"the kernels do not compile for a CPU:\n{result.stdout[-8000:]}{result.stderr[-2000:]}")
    return module


def _folder(sanitizer: Sanitizer | None, sources: Sequence[Path]) -> Path:
    key = hashlib.sha1("\n".join(map(str, [CSRC, *sources])).encode()).hexdigest()[:12]
    if os.environ.get("CIPS3D_CACHE"):
        cache = Path(os.environ["CIPS3D_CACHE"])
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cips3d"
    folder = cache / "emulated_kernels" / f"{sanitizer or 'plain'}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"cips3d-{os.getuid()}" / folder.name
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        yield


def _processor_flags() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    features = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return ["-mavx2", "-mfma"] if {"avx2", "fma"} <= features else []


def _include_flags() -> list[str]:
    import pybind11

    return [f"-isystem{sysconfig.get_path('include')}", f"-isystem{pybind11.get_include()}"]


def _ninja_program() -> str:
    beside_python = Path(sys.executable).parent / "ninja"
    program = str(beside_python) if beside_python.exists() else shutil.which("ninja")
    if program is None:
        raise RuntimeError("compiling the kernels for a CPU needs ninja (pip install ninja)")
    return program


def _shell(words: Sequence[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _ninja(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
