"""Compiles the CUDA sources with a C++ compiler against the emulation in csrc/emulation, and imports the result."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest

Sanitizer = Literal["address", "thread"]
Variant = Literal["plain", "address", "thread", "ptx"]  # ptx: launches run what nvcc has made (tests/ptx)

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PTX = ROOT / "tests" / "ptx"
MODULE = "emulated_kernels"

# Not what nvcc is silent about (#pragma unroll, threadIdx.x < n), and not what depends on the optimiser. The second
# line is for clang; g++ takes no notice of what it does not know to be left out.
SILENT = (
    *("-Wno-unknown-pragmas", "-Wno-sign-compare", "-Wno-maybe-uninitialized", "-Wno-psabi"),
    *("-Wno-pass-failed", "-Wno-unknown-attributes", "-Wno-unused-const-variable", "-Wno-unused-private-field"),
    "-Wno-unknown-warning-option",
)
WARNINGS = ("-Wall", "-Wextra", "-Werror", *SILENT)
FLAGS = ("-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", f"-I{CSRC}", "-DCIPS3D_EMULATED")
# Reports do not end the program: a run finds everything there is to find.
SANITIZE: dict[Variant, tuple[str, ...]] = {
    # Checks that are calls compile in half the time.
    "address": (
        *("-fsanitize=address,alignment", "-fsanitize-recover=address,alignment"),
        "--param=asan-instrumentation-with-call-threshold=0",
    ),
    "thread": ("-fsanitize=thread",),
}
NO_COMPILER = "no C++ compiler of Linux on x86-64 or AArch64"
PTX_FLAGS = ("-DCIPS3D_PTX", f"-I{ROOT / 'tests'}")


def compiler() -> str | None:
    """The C++ compiler: $CXX, else g++; None where there is none, or the emulation knows nothing of the machine."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return None
    command = os.environ.get("CXX") or "g++"
    return command if shutil.which(shlex.split(command)[0]) else None


@functools.cache
def initialises_locals(command: str) -> bool:
    """Whether the compiler can fill variables that a kernel forgets to initialise with huge numbers: g++ 12 can."""
    asked = subprocess.run([*shlex.split(command), "-dumpversion"], capture_output=True, text=True, check=True)
    return int(asked.stdout.split(".")[0]) >= 12


def build(variant: Variant = "plain", sources: Sequence[Path] | None = None) -> Path:
    """Compile what has changed and return the path of the shared library.

    Args:
        variant: what to instrument the kernels with, or that their PTX is run.
        sources: what to compile beside the emulation. By default all of csrc/*.cu and csrc/bindings.cpp, which make a
            Python module.

    Raises:
        RuntimeError: there is no compiler, or it reports an error (its text is in the message).
    """
    command = compiler()
    if command is None:
        raise RuntimeError(
            "compiling the kernels for a CPU needs Linux on x86-64 or AArch64, and g++ 11 or newer or another C++ "
            "compiler in CXX"
        )
    name = MODULE if sources is None else sources[0].stem
    sources = [*sorted(CSRC.glob("*.cu")), CSRC / "bindings.cpp"] if sources is None else sources
    sources = [*sources, *sorted((CSRC / "emulation").glob("*.cpp"))]
    if variant == "ptx":
        sources += sorted(PTX.glob("*.cpp"))
    library = f"{variant}/{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    folder = cache_folder()
    manifest = folder / f"{variant}-{name}.ninja"
    with locked(folder):
        manifest.write_text(_manifest(command, library, sources, variant))
        command_line = [ninja(), "-C", str(folder), "-f", manifest.name]
        result = subprocess.run(command_line, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"the kernels do not compile for a CPU:\n{result.stdout[-8000:]}{result.stderr[-2000:]}")
    return folder / library


def build_ahead() -> None:
    """Start to build, beside the first tests, what later ones ask `build` for. Those that ask are told of errors."""

    def work() -> None:
        for variant in ("plain", *SANITIZE):
            with suppress(RuntimeError):
                build(variant)
            time.sleep(1)  # whoever waits for a library that is there comes first

    if compiler() is not None:
        threading.Thread(target=work, name="build_ahead", daemon=True).start()


@functools.cache
def load() -> ModuleType:
    """Build the kernels and import them; skips the test where there is no C++ compiler.

    With CIPS3D_PTX=ARCHITECTURE in the environment, launches run what nvcc makes of them for it (tests/ptx).
    """
    if compiler() is None:
        pytest.skip(NO_COMPILER)
    architecture = os.environ.get("CIPS3D_PTX")
    if architecture is None:
        return import_module(build())
    import ptx_kernels

    module = import_module(build("ptx"))
    for path in ptx_kernels.compile_for(architecture):
        module.load_ptx(str(path))
    module.set_shared_limit(ptx_kernels.SHARED[architecture] << 10)
    return module


def capability() -> tuple[int, int]:
    """The compute capability of the device that the loaded kernels stand for."""
    return divmod(int(os.environ.get("CIPS3D_PTX", "90")), 10)


def import_module(path: Path) -> ModuleType:
    """Import the Python module that `build` has made."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _manifest(command: str, library: str, sources: Sequence[Path], variant: Variant) -> str:
    """What ninja reads. Objects that are the same in several libraries are compiled once."""
    sanitize = SANITIZE.get(variant, ())
    common = [*FLAGS, *WARNINGS, *_processor_flags()]
    lines = [
        "rule compile",
        f"  command = {command} {to_shell(common)} $flags -MD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "rule link",
        f"  command = {command} -shared {to_shell(sanitize)} $in -o $out",
    ]
    objects = []
    for source in sources:
        folder: str = variant
        if source.suffix == ".cu":
            flags = ["-Og", *sanitize] if sanitize else ["-O1"]
            if not sanitize and initialises_locals(command):
                flags.append("-ftrivial-auto-var-init=pattern")
            if variant == "ptx":
                flags = ["-O0", *PTX_FLAGS]  # the kernels' C++ is not run
        elif source.parent == PTX:
            flags = ["-O2", "-std=c++20", "-ffp-contract=off", *PTX_FLAGS]
        elif source.parent == CSRC / "emulation":
            # Not instrumented: what it does between the kernels' accesses is not theirs.
            flags = ["-O2", *([f"-DCIPS3D_{variant.upper()}_SANITIZER"] if sanitize else [])]
            folder = variant if sanitize else "plain"
        else:
            folder = variant if variant == "ptx" else "plain"
            flags = ["-O1", f"-DCIPS3D_MODULE={MODULE}", *_python_flags(), *(PTX_FLAGS if variant == "ptx" else [])]
        objects.append(f"{folder}/{_relative(source)}.o")
        lines += [f"build {to_ninja(objects[-1])}: compile {to_ninja(str(source))}", f"  flags = {to_shell(flags)}"]
    lines.append(f"build {to_ninja(library)}: link {' '.join(map(to_ninja, objects))}")
    return "\n".join(lines) + "\n"


def cache_folder() -> Path:
    """Where the sources of this tree are compiled to: below CIPS3D_CACHE, or the user's cache folder."""
    name = f"emulated-kernels-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]}"
    if os.environ.get("CIPS3D_CACHE"):
        folder = Path(os.environ["CIPS3D_CACHE"]) / name
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cips3d" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"cips3d-{os.getuid()}" / name
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps two test processes from compiling into one folder at once."""
    import fcntl  # which Windows does not have

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        yield


def _processor_flags() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    features = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return ["-mavx2", "-mfma"] if {"avx2", "fma"} <= features else []


def _python_flags() -> list[str]:
    import pybind11

    return [f"-isystem{sysconfig.get_path('include')}", f"-isystem{pybind11.get_include()}"]


def ninja() -> str:
    """The program."""
    beside_python = Path(sys.executable).parent / "ninja"
    program = str(beside_python) if beside_python.exists() else shutil.which("ninja")
    if program is None:
        raise RuntimeError("compiling the kernels for a CPU needs ninja (pip install ninja)")
    return program


def _relative(source: Path) -> str:
    return str(source.relative_to(ROOT)) if source.is_relative_to(ROOT) else source.name


def to_shell(words: Sequence[str]) -> str:
    """A command of a manifest."""
    return shlex.join(words).replace("$", "$$")


def to_ninja(path: str) -> str:
    """A path of a manifest."""
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
