"""Print what every compiled kernel takes of a multiprocessor, and fail where one spills registers or waits needlessly.

python .ci/check_resources.py REPORT [--architectures 80 90]

REPORT is what a build writes to the file that CIPS3D_BUILD_REPORT names, or the folder of a build, where it is found
as report.txt.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Kernel:
    """One kernel, compiled for one architecture; sizes in bytes."""

    source: str
    symbol: str
    architecture: int
    registers: int | None = None
    shared: int = 0  # static; what a launch asks for comes on top
    stack: int = 0
    spill_stores: int | None = None
    spill_loads: int | None = None

    @property
    def spills(self) -> int:
        return (self.spill_stores or 0) + (self.spill_loads or 0)


def read_report(text: str) -> list[Kernel]:
    """The kernels of a report.

    Raises:
        ValueError: numbers of a kernel are missing; nothing may then be said about it.
    """
    kernels: list[Kernel] = []
    source = ""
    for line in text.splitlines():
        if line.startswith("# "):
            source = line[2:]
        elif found := re.search(r"Compiling entry function '(.+)' for 'sm_(\d+)[af]?'", line):
            kernels.append(Kernel(source, found[1], int(found[2])))
        elif not kernels:
            continue
        # Functions that are called, not inlined, have properties too: theirs follow the kernel's and count as its own.
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, found.groups())
            kernel = kernels[-1]
            kernel.stack = max(kernel.stack, stack)
            kernel.spill_stores = (kernel.spill_stores or 0) + stores
            kernel.spill_loads = (kernel.spill_loads or 0) + loads
        elif found := re.search(r"Used (\d+) registers", line):
            kernels[-1].registers = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[-1].shared = int(shared[1]) if shared else 0
    for kernel in kernels:
        if kernel.registers is None or kernel.spill_stores is None:
            raise ValueError(f"the report holds no numbers for {kernel.symbol} on sm_{kernel.architecture}")
    return kernels


def serialized(text: str) -> dict[str, str]:
    """Kernels whose asynchronous matrix instructions (wgmma) do not overlap, each with the compiler's reason."""
    found = re.findall(r"wgmma\.mma_async instructions are serialized due to (.+?) in (?:the )?function '(\S+)'", text)
    return {symbol: reason for reason, symbol in found}


def demangled(symbols: Sequence[str]) -> dict[str, str]:
    """Readable names, where cu++filt or c++filt is there to tell them."""
    filters = [program for program in map(shutil.which, ("cu++filt", "c++filt")) if program]
    if not filters or not symbols:
        return {symbol: symbol for symbol in symbols}
    names = subprocess.run(
        filters[0], input="\n".join(symbols) + "\n", capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {symbol: _shortened(name) for symbol, name in zip(symbols, names, strict=True)}


def _shortened(name: str) -> str:
    """The kernel's own name and its template arguments: no return type, parameters or namespaces."""
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|_GLOBAL__N_\w+::|cips3d::", "", name)
    name = re.sub(r"^void ", "", name)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        # A parenthesis outside the template arguments opens the parameters.
        if letter == "(" and depth == 0:
            return name[:i]
    return name


def table(kernels: Iterable[Kernel]) -> list[str]:
    """One line a kernel, under a heading."""
    kernels = list(kernels)
    names = demangled(sorted({kernel.symbol for kernel in kernels}))
    lines = ["  sm  registers  static shared  stack  spill stores  spill loads  kernel"]
    for kernel in sorted(kernels, key=lambda k: (k.source, names[k.symbol], k.architecture)):
        numbers = f"{kernel.architecture:4}  {kernel.registers:9}  {kernel.shared:13}  {kernel.stack:5}"
        spills = f"{kernel.spill_stores:12}  {kernel.spill_loads:11}"
        lines.append(f"{numbers}  {spills}  {kernel.source}: {names[kernel.symbol]}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="a build's report or folder")
    parser.add_argument(
        "--architectures", type=int, nargs="+", help="which to look at; each has to be there (default: all)"
    )
    options = parser.parse_args(arguments)
    reports = sorted(options.report.rglob("report.txt")) if options.report.is_dir() else [options.report]
    texts = [report.read_text() for report in reports]
    kernels = [kernel for text in texts for kernel in read_report(text)]
    for architecture in options.architectures or ():
        if all(kernel.architecture != architecture for kernel in kernels):
            print(f"{options.report} holds no kernel for sm_{architecture}", file=sys.stderr)
            return 1
    if not kernels:
        print(f"{options.report} holds no kernel", file=sys.stderr)
        return 1
    if options.architectures:
        kernels = [kernel for kernel in kernels if kernel.architecture in options.architectures]
    print("\n".join(table(kernels)))
    spilling = [kernel for kernel in kernels if kernel.spills > 0]
    if spilling:
        print(f"{len(spilling)} of {len(kernels)} kernels spill registers:", file=sys.stderr)
        print("\n".join(table(spilling)), file=sys.stderr)
    waiting = {symbol: reason for text in texts for symbol, reason in serialized(text).items()}
    for symbol, name in demangled(sorted(waiting)).items():
        print(f"matrix instructions of {name} do not overlap: {waiting[symbol]}", file=sys.stderr)
    return 1 if spilling or waiting else 0


if __name__ == "__main__":
    raise SystemExit(main())
