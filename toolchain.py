"""What nvcc compiles the kernels with and for: the compilers that are found, and the architectures they know.

Reads the environment variables that build_kernels.py lists.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_ARCHITECTURES = (80, 86, 89, 90, 100, 120)
OLDEST_ARCHITECTURE = 80  # the first with cp.async and bfloat16 tensor cores
WARPGROUP_ARCHITECTURE = 90  # compiled for sm_90a it may have wgmma, and still runs on all of 9.0
WARPGROUP_RELEASE = 12  # of the toolkit, the first that knows sm_90a; 11.8 crashes on film_siren.cu for sm_90
USUAL_FOLDERS = (Path("/usr/local"), Path("/opt"))  # each may hold cuda/ and cuda-<version>/
CXX_COMPILERS = ("g++", "clang++", "c++")
NVCC_VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")
COMPILER_LAUNCHERS = ("ccache", "sccache", "distcc")  # come before the compiler's name in CXX


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
