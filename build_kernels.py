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

import hashlib
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent
MODULE = "cips3d._cuda"
DIGEST = Path("cips3d", "ops", "kernel_sources.py")  # run as a file: importing it would take torch

DEFAULT_ARCHITECTURES = (80, 86, 89, 90, 100, 120)
OLDEST_ARCHITECTURE = 80  # the first with cp.async and bfloat16 tensor cores
WARPGROUP_ARCHITECTURE = 90  # compiled for sm_90a it may have wgmma, and still runs on all of 9.0
WARPGROUP_RELEASE = 12  # of the toolkit, the first that knows sm_90a; 11.8 crashes on film_siren.cu for sm_90
USUAL_FOLDERS = (Path("/usr/local"), Path("/opt"))  # each may hold cuda/ and cuda-<version>/
CXX_COMPILERS = ("g++", "clang++", "c++")
NVCC_VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")
COMPILER_LAUNCHERS = ("ccache", "sccache", "distcc")  # come before the compiler's name in CXX

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


class BuildError(Exception):
    """A build that cannot go on; the message is one sentence with the remedy."""


class Unavailable(Exception):
    """The kernels cannot be compiled here: why, and what its user can do about it."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.why, self.remedy = why, remedy


# What to compile for.


@dataclass(frozen=True, order=True)
class Architecture:
    """A compute capability times ten, as machine code, and as PTX for newer devices besides."""

    number: int
    ptx: bool = False

    def __str__(self) -> str:
        return f"{self.number}+PTX" if self.ptx else str(self.number)


def parse_architectures(text: str) -> tuple[Architecture, ...]:
    """The architectures that "80;90+PTX" names, in ascending order.

    Raises:
        BuildError: a word is no architecture, or one that the kernels do not run on.
    """
    found: dict[int, bool] = {}
    for word in filter(None, re.split(r"[;,\s]+", text)):
        match = re.fullmatch(r"(\d{2,3})(\+PTX)?", word)
        if match is None:
            raise BuildError(f'CIPS3D_CUDA_ARCHS lists architectures such as "80;90+PTX", which {word!r} is not')
        number = int(match[1])
        if number < OLDEST_ARCHITECTURE:
            raise BuildError(f"CIPS3D_CUDA_ARCHS names {number}, but the kernels need {OLDEST_ARCHITECTURE} or newer")
        found[number] = found.get(number, False) or match[2] is not None
    if not found:
        raise BuildError('CIPS3D_CUDA_ARCHS names no architecture; list them as in "80;90+PTX"')
    return tuple(Architecture(number, ptx) for number, ptx in sorted(found.items()))


def choose_architectures(asked: str, nvcc: str, known: Sequence[int]) -> tuple[Architecture, ...]:
    """What was asked for; else the default ones that nvcc knows, with PTX of the newest.

    Args:
        asked: CIPS3D_CUDA_ARCHS, or "".
        nvcc: the compiler, for messages.
        known: what it compiles for.

    Raises:
        BuildError: `asked` is wrong, or unknown to nvcc.
        Unavailable: nvcc knows none of the default ones.
    """
    if asked:
        architectures = parse_architectures(asked)
        for architecture in architectures:
            if architecture.number not in known:
                knows = ", ".join(str(number) for number in sorted(known) if number >= OLDEST_ARCHITECTURE)
                names = f"CIPS3D_CUDA_ARCHS names {architecture.number}"
                raise BuildError(f"{names}, but {nvcc} compiles the kernels only for {knows}")
        return architectures
    numbers = [number for number in DEFAULT_ARCHITECTURES if number in known]
    if not numbers:
        raise Unavailable(f"{nvcc} knows no architecture of {DEFAULT_ARCHITECTURES}", "install another CUDA toolkit")
    return tuple(Architecture(number, ptx=number == numbers[-1]) for number in numbers)


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


# What to compile with.


@dataclass(frozen=True)
class Toolchain:
    """A CUDA compiler that answers, and what it is to compile for."""

    nvcc: str
    architectures: tuple[Architecture, ...]
    host_flags: tuple[str, ...] = ()  # which C++ compiler it is to use
    variables: tuple[str, ...] = ()  # of the environment, that nvcc reads: NAME=value
    identity: str = field(default="", compare=False)  # of what answers by these names: another one may come to do so


def find_toolchain(environ: Mapping[str, str]) -> Toolchain:
    """Find all that compiling takes.

    Raises:
        BuildError: CIPS3D_CUDA_ARCHS is wrong.
        Unavailable: something is not there.
    """
    if sys.platform != "linux":
        raise Unavailable(f"they are compiled on Linux only and this is {sys.platform}", "use Linux")
    nvcc, known = find_nvcc(environ)
    host_flags = find_host_compiler(environ)
    if not any((Path(sysconfig.get_path(name)) / "Python.h").exists() for name in ("include", "platinclude")):
        raise Unavailable("Python's own headers (Python.h) are not there", "install them (python3-dev)")
    architectures = choose_architectures(environ.get("CIPS3D_CUDA_ARCHS", "").strip(), nvcc, known)
    variables = tuple(f"{name}={environ[name]}" for name in NVCC_VARIABLES if environ.get(name))
    return Toolchain(
        nvcc, architectures, host_flags, variables, _identity(nvcc, *(host_flags[1:] or CXX_COMPILERS[:1]))
    )


def _identity(*programs: str) -> str:
    """A short hash of what compilers say of their versions."""
    found = hashlib.sha256()
    for program in programs:
        with suppress(OSError, subprocess.TimeoutExpired):
            found.update(subprocess.run([program, "--version"], capture_output=True, timeout=60).stdout)
    return found.hexdigest()[:12]


def find_nvcc(environ: Mapping[str, str]) -> tuple[str, list[int]]:
    """The first nvcc that answers, and the architectures that it compiles the kernels for.

    Raises:
        Unavailable: there is none.
    """
    silent = []
    for path in dict.fromkeys(_nvcc_places(environ)):
        if not path.exists():
            continue
        # nvcc looks for its parts beside the name it is called by: a link has to be followed. Scripts and launchers
        # (ccache) that go by nvcc's name are called by that name.
        program = str(path.resolve() if path.resolve().name == path.name else path)
        known = _known_architectures(program)
        if known:
            return program, known
        silent.append(program)
    remedy = "install the CUDA toolkit or set CUDA_HOME"
    if silent:
        raise Unavailable(f"no nvcc was found that works ({', '.join(silent)} does not)", remedy)
    raise Unavailable("no nvcc was found (in CUDA_HOME, CUDA_PATH, PATH, CONDA_PREFIX, /usr/local/cuda*)", remedy)


def _nvcc_places(environ: Mapping[str, str]) -> Iterator[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(variable):
            yield Path(environ[variable], "bin", "nvcc")
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    if on_path:
        yield Path(on_path)
    if environ.get("CONDA_PREFIX"):
        yield Path(environ["CONDA_PREFIX"], "bin", "nvcc")
    for folder in USUAL_FOLDERS:
        yield folder / "cuda" / "bin" / "nvcc"
        versions = [(list(map(int, re.findall(r"\d+", path.name))), path) for path in folder.glob("cuda-*")]
        for _, path in sorted(versions, reverse=True):
            yield path / "bin" / "nvcc"


def _known_architectures(nvcc: str) -> list[int]:
    try:
        answer = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    known = {int(number) for number in re.findall(r"\bsm_(\d+)\b", answer.stdout)}
    if _release(nvcc) < WARPGROUP_RELEASE:
        known.discard(WARPGROUP_ARCHITECTURE)
    return sorted(known)


def _release(nvcc: str) -> int:
    """The toolkit's major version; 0 where nvcc does not tell."""
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60)
    found = re.search(r"\brelease (\d+)\.", answer.stdout)
    return int(found[1]) if found else 0


def find_host_compiler(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Flags that tell nvcc its C++ compiler; none where its own choice is right.

    Raises:
        Unavailable: there is no C++ compiler.
    """
    prepended, appended, chosen = (environ.get(name, "") for name in NVCC_VARIABLES)
    if chosen or any(option in prepended + appended for option in ("-ccbin", "-compiler-bindir")):
        return ()
    asked = [word for word in shlex.split(environ.get("CXX", "")) if Path(word).name not in COMPILER_LAUNCHERS]
    for name in asked[:1] or CXX_COMPILERS:
        if shutil.which(name, path=environ.get("PATH", "")):
            return () if name == "g++" else ("-ccbin", name)
    missing = f"the C++ compiler {asked[0]} that CXX names was not found" if asked else "no C++ compiler was found"
    raise Unavailable(missing, "install g++ or set CXX")


def plan(environ: Mapping[str, str]) -> Toolchain | str:
    """What to compile the kernels with; or, where they are left out, a sentence that says why and how to get them.

    Raises:
        BuildError: a variable is wrong, or the kernels are asked for and cannot be compiled.
    """
    wanted = environ.get("CIPS3D_CUDA", "").strip()
    if wanted not in ("", "0", "1"):
        raise BuildError(f"CIPS3D_CUDA is 0 or 1, not {wanted!r}")
    if wanted == "0":
        return "cips3d is installed without CUDA kernels, because CIPS3D_CUDA=0 asks for that"
    try:
        return find_toolchain(environ)
    except Unavailable as error:
        if wanted == "1":
            raise BuildError(f"CIPS3D_CUDA=1 asks for CUDA kernels, but {error.why}; {error.remedy}") from None
        return (
            f"cips3d is installed without CUDA kernels, because {error.why}; "
            f"to have them, {error.remedy} and install again (pip install --force-reinstall --no-deps)"
        )


# How to compile.


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
