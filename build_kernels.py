"""How nvcc compiles csrc/ into `cips3d._cuda` while the package is built. Neither torch nor a GPU takes part.

Environment variables, all optional:

    CIPS3D_CUDA          0 leaves the kernels out; 1 ends the build where they cannot be compiled; otherwise they are
                         compiled where nvcc and a C++ compiler are found, and left out with a notice elsewhere
    CIPS3D_CUDA_ARCHS    architectures, such as "80;90+PTX" (separated by ; , or spaces)
    CIPS3D_BUILD_REPORT  file to write with registers, spills and shared memory of every kernel, as ptxas reports them
    CUDA_HOME, CUDA_PATH the toolkit's folder, where it is not the one of the nvcc on PATH; CONDA_PREFIX is looked into
    CXX, NVCC_CCBIN      the C++ compiler behind nvcc
    NVCC_PREPEND_FLAGS, NVCC_APPEND_FLAGS  further flags (read by nvcc itself)
    MAX_JOBS             compilers that run at once; one a processor core by default
"""

from __future__ import annotations

import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolchain import WARPGROUP_ARCHITECTURE, Architecture, BuildError, Toolchain

ROOT = Path(__file__).resolve().parent
MODULE = "cips3d._cuda"
DIGEST = Path("cips3d", "ops", "kernel_sources.py")  # run as a file: importing it would take torch

# Clang minds that nobody uses all functions of CUDA's headers.
HOST_WARNINGS = "-Wall,-Wno-unused-function"
HOST_FLAGS = ("-std=c++17", "-Werror", "all-warnings", "-Xcompiler", f"{HOST_WARNINGS},-fPIC,-fvisibility=hidden")
KERNEL_FLAGS = (
    "-O3",
    *("-Xptxas", "-v"),  # the report
    *("-Xfatbin", "-compress-all"),  # a seventh of the size
    "-Wno-deprecated-gpu-targets",  # an architecture that the next toolkit drops is no error in this one
)
BINDING_FLAGS = ("-O2", "-x", "cu")  # nvcc, for the CUDA headers' sake; there is no device code in it


def gencode_flags(architectures: Sequence[Architecture]) -> list[str]:
    """nvcc's flags for architectures in ascending order.

    Those of one generation (the same tens) share the PTX of its oldest: the slowest part of the compiler runs once a
    generation, and ptxas still makes machine code for each of them. Machine code for 9.0 is sm_90a's, with warpgroups;
    its PTX is for no newer device, so PTX is sm_90's.
    """
    oldest: dict[int, int] = {}
    codes: dict[str, list[str]] = {}
    for architecture in architectures:
        number = architecture.number
        first = oldest.setdefault(number // 10, number)
        if number == WARPGROUP_ARCHITECTURE:
            codes[f"{number}a"] = [f"sm_{number}a"]
        else:
            codes.setdefault(str(number if architecture.ptx else first), []).append(f"sm_{number}")
        if architecture.ptx:
            codes.setdefault(str(number), []).append(f"compute_{number}")
    return [f"-gencode=arch=compute_{virtual},code=[{','.join(code)}]" for virtual, code in codes.items()]


def ninja_file(
    toolchain: Toolchain, sources: Sequence[str], folder: Path, module: Path, include: Sequence[str], jobs: int
) -> str:
    """Ninja's instructions, to be followed in the project's folder.

    Args:
        toolchain: what to compile with.
        sources: csrc/*.cu and csrc/bindings.cpp.
        folder: for objects, and beside each its log: ptxas's report.
        module: the Python module to make.
        include: folders with the headers of Python and pybind11.
        jobs: compilers that will run at once.
    """
    # As a part of the command, a variable or compiler that has changed makes ninja compile again.
    nvcc = ["env", f"CIPS3D_TOOLCHAIN={toolchain.identity}", *toolchain.variables, toolchain.nvcc]
    nvcc += toolchain.host_flags
    architectures = toolchain.architectures
    # Where cores outnumber files, nvcc compiles for several architectures at once.
    threads = min(len(architectures), math.ceil(jobs / len(sources)))
    kernel = [*nvcc, *HOST_FLAGS, *KERNEL_FLAGS, *gencode_flags(architectures)]
    kernel += ["--threads", str(threads)] if threads > 1 else []
    if not re.search(r"[= ](-G|--device-debug)\b", " ".join(toolchain.variables)):  # which have lines of their own
        kernel.append("-lineinfo")
    names = ";".join(map(str, architectures))
    bindings = [*nvcc, *HOST_FLAGS, *BINDING_FLAGS, *gencode_flags([Architecture(architectures[0].number)])]
    bindings += [word for path in include for word in ("-isystem", path)]
    digest = runpy.run_path(str(ROOT / DIGEST))["digest"](ROOT / "csrc")
    bindings += [f'-DCIPS3D_ARCHITECTURES="{names}"', f'-DCIPS3D_SOURCES="{digest}"']
    # The runtime is linked in, and PyInit is all that other libraries of the process see.
    link = [*nvcc, "-shared", "-cudart", "static", "-Xlinker", f"--version-script={folder / 'exports.map'}"]
    lines = [f"builddir = {_ninja(folder)}"]
    for name, command in (("kernel", kernel), ("bindings", bindings)):
        lines += [
            f"rule {name}",
            f"  command = {_shell(command)} -MD -MF $out.d -c $in -o $out 2> $out.log || {{ cat $out.log; exit 1; }}",
            f"  description = compiling {'$in' if name == 'kernel' else '$in, the Python module'}",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
    lines += ["rule link", f"  command = {_shell(link)} $in -o $out", "  description = linking $out"]
    objects = [_object(folder, source) for source in sources]
    for source, path in zip(sources, objects, strict=True):
        rule = "kernel" if source.endswith(".cu") else "bindings"
        lines.append(f"build {_ninja(path)} | {_ninja(_log(path))}: {rule} {_ninja(Path(source))}")
    lines.append(f"build {_ninja(module)}: link {' '.join(map(_ninja, objects))}")
    return "\n".join(lines) + "\n"


def compile_kernels(toolchain: Toolchain, sources: Sequence[str], folder: Path, module: Path) -> None:
    """Compile `sources` into `module`, as far as they have changed since `folder` was filled; write the report.

    Raises:
        BuildError: a tool of the build is missing, or a compiler reports an error (it has printed it).
    """
    jobs = parallel_jobs(os.environ)
    sources = sorted(sources, key=lambda source: -(ROOT / source).stat().st_size)  # the long ones first
    folder, module = folder.resolve(), module.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    module.parent.mkdir(parents=True, exist_ok=True)
    (folder / "exports.map").write_text(f"{{ global: PyInit_{MODULE.rpartition('.')[2]}; local: *; }};\n")
    instructions = folder / "build.ninja"
    paths = _from_root(folder), _from_root(module)
    instructions.write_text(ninja_file(toolchain, sources, *paths, _include_folders(), jobs))
    architectures = ";".join(map(str, toolchain.architectures))
    print(f"compiling {len(sources)} files for {architectures} with {toolchain.nvcc}", flush=True)
    command = [_ninja_program(), "-f", str(instructions), "-j", str(jobs)]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise BuildError("the CUDA kernels do not compile, as shown above; CIPS3D_CUDA=0 installs without them")
    kernels = [source for source in sorted(sources) if source.endswith(".cu")]
    report = "".join(f"# {source}\n{_log(_object(folder, source)).read_text()}" for source in kernels)
    (folder / "report.txt").write_text(report)
    if os.environ.get("CIPS3D_BUILD_REPORT"):
        copy = Path(os.environ["CIPS3D_BUILD_REPORT"])
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(report)


def parallel_jobs(environ: Mapping[str, str]) -> int:
    """MAX_JOBS, or the number of processor cores that this process may use."""
    text = environ.get("MAX_JOBS", "").strip()
    if not text:
        return len(os.sched_getaffinity(0))
    if not text.isdecimal() or int(text) < 1:
        raise BuildError(f"MAX_JOBS is a number of at least 1, not {text!r}")
    return int(text)


def _from_root(path: Path) -> Path:
    """The path as seen from the project's folder: what stands above it may hold characters that compilers mistake."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _object(folder: Path, source: str) -> Path:
    return folder / f"{Path(source).name}.o"


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}.log")


def _include_folders() -> list[str]:
    try:
        import pybind11
    except ImportError:
        raise BuildError("compiling the CUDA kernels needs pybind11 (pip install pybind11)") from None
    pythons = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    return [*sorted(pythons), pybind11.get_include()]


def _ninja_program() -> str:
    try:
        import ninja
    except ImportError:
        program = shutil.which("ninja")
    else:
        program = str(Path(ninja.BIN_DIR, "ninja"))
    if program is None:
        raise BuildError("compiling the CUDA kernels needs ninja (pip install ninja)")
    return program


def _shell(words: Sequence[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _ninja(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
