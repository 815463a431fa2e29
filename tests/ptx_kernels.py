"""What nvcc makes of the kernels, as PTX, for tests/ptx to run.

    CIPS3D_PTX=90 python -m pytest -k emulated tests/ops

runs the tests of the emulated kernels on what nvcc has compiled for compute capability 9.0; with `-p stand_in_gpu` it
is the tests of a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from emulated_kernels import CSRC, ROOT, cache_folder, locked, ninja, to_ninja, to_shell

sys.path.insert(0, str(ROOT))
import toolchain

# Kilobytes of shared memory that code for a generation may take (csrc/runtime.h).
SHARED = {"80": 163, "90": 227, "100": 227, "120": 99}


def nvcc() -> str | None:
    """The compiler that builds the package; None where there is none."""
    try:
        return toolchain.find_nvcc(os.environ)[0]
    except toolchain.Unavailable:
        return None


def compile_for(architecture: str) -> list[Path]:
    """The PTX of csrc/*.cu for an architecture of `SHARED`; only what has changed is compiled.

    Raises:
        RuntimeError: there is no nvcc, or it reports an error (its text is in the message).
    """
    return compile_files(architecture, sorted(CSRC.glob("*.cu")))


def compile_files(architecture: str, sources: list[Path]) -> list[Path]:
    """The same of any sources."""
    program = nvcc()
    if program is None:
        raise RuntimeError("running PTX needs nvcc, which was not found")
    virtual = "compute_90a" if architecture == "90" else f"compute_{architecture}"  # as the build does
    flags = ["-std=c++17", "-O3", "-lineinfo", f"-I{CSRC}", "-ptx", f"-arch={virtual}"]
    folder = cache_folder()
    results = [folder / f"ptx-{architecture}" / f"{source.stem}.ptx" for source in sources]
    pairs = zip(results, sources, strict=True)
    steps = [f"build {to_ninja(str(out))}: compile {to_ninja(str(source))}" for out, source in pairs]
    lines = [
        "rule compile",
        f"  command = {to_shell([program, *toolchain.find_host_compiler(os.environ), *flags])} "
        "-MD -MF $out.d $in -o $out",
        "  depfile = $out.d",
        *steps,
    ]
    manifest = folder / f"ptx-{architecture}-{sources[0].stem}.ninja"
    with locked(folder):
        manifest.write_text("\n".join(lines) + "\n")
        result = subprocess.run([ninja(), "-C", str(folder), "-f", manifest.name], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"nvcc does not compile the kernels:\n{result.stdout[-8000:]}{result.stderr[-2000:]}")
    return results
