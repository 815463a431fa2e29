"""Check in machine code that nobody touches the registers of asynchronous matrix instructions (wgmma) in flight.

python .ci/check_matrix_registers.py MODULE

MODULE is the compiled cips3d/_cuda*.so; cuobjdump and nvdisasm have to be there. Sums and operands in registers belong
to the matrix instructions until they are waited for. The sources say so in the constraints of inline PTX, but some
compilers have moved an operand to other registers too early (ptxas before 13.3, reported with triton-lang/triton,
issue 9433), which no test is sure to see. Every path through a kernel is followed, loops twice.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ARCHITECTURE = "sm_90a"
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]+)\*/\s+(.+?)\s*;")
LABEL = re.compile(r"(\.L_x_\d+):")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")
MATRIX = re.compile(r"HGMMA\.64x(\d+)x16\S* R(\d+), (?:R(\d+), )?gdesc")
WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x([0-9a-f]+)")
STORES = ("ST", "RED", "UTMA", "BAR", "SYNCS")  # their first operand is no destination

KEPT_APART = 8  # groups; no wait leaves as many

Registers = frozenset[int]


@dataclass(frozen=True)
class Group:
    """Registers of the matrix instructions that are waited for together."""

    sums: Registers = frozenset()
    operands: Registers = frozenset()


@dataclass(frozen=True)
class Flight:
    """What is under way: groups that are closed, the oldest first, and the one that is open."""

    closed: tuple[Group, ...] = ()
    open: Group = Group()

    @property
    def groups(self) -> tuple[Group, ...]:
        return (*self.closed, self.open)

    @property
    def sums(self) -> Registers:
        return frozenset().union(*(group.sums for group in self.groups))

    @property
    def operands(self) -> Registers:
        return frozenset().union(*(group.operands for group in self.groups))


@dataclass
class Kernel:
    name: str
    addresses: list[str] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """where each stands among the instructions"""

    @property
    def matrix_instructions(self) -> int:
        return sum("HGMMA" in text for text in self.instructions)


def kernels_of(listing: str) -> Iterator[Kernel]:
    """The kernels of nvdisasm's listing."""
    kernel: Kernel | None = None
    for line in listing.splitlines():
        if found := re.match(r"\s*\.section\s+\.text\.(\S+?),", line):
            if kernel is not None:
                yield kernel
            kernel = Kernel(found[1])
        elif kernel is not None and (found := LABEL.match(line.strip())):
            kernel.labels[found[1]] = len(kernel.instructions)
        elif kernel is not None and (found := INSTRUCTION.match(line)):
            kernel.addresses.append(found[1])
            kernel.instructions.append(found[2])
    if kernel is not None:
        yield kernel


def without_predicate(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text)


def touched(text: str) -> tuple[Registers, Registers]:
    """Registers that an instruction may write, and all that it names."""
    body = without_predicate(text)
    opcode, _, rest = body.partition(" ")
    width = 4 if ".128" in opcode else 2 if ".64" in opcode or "WIDE" in opcode else 1
    if opcode.startswith("CS2R") and ".32" not in opcode:
        width = 2
    if opcode.startswith(("HMMA", "LDSM")):
        width = 4

    def registers(operands: str) -> Registers:
        found = re.findall(r"(?<![A-Z])R(\d+)(\.64)?", operands)
        return frozenset(int(r) + i for r, wide in found for i in range(max(width, 2 if wide else 1)))

    first = rest.partition(",")[0]
    written = frozenset[int]() if opcode.startswith(STORES) or "[" in first else registers(first)
    return written, registers(rest)


def _newest(*closed: Group) -> tuple[Group, ...]:
    """The groups with the oldest of many as one: all of them are waited for before any of the others."""
    oldest, newest = closed[: 1 - KEPT_APART], closed[1 - KEPT_APART :]
    if len(oldest) < 2:
        return closed
    both = (frozenset().union(*(g.sums for g in oldest)), frozenset().union(*(g.operands for g in oldest)))
    return (Group(*both), *newest)


def step(text: str, flight: Flight) -> tuple[Flight, str | None]:
    """What is under way after an instruction, and what is wrong with it."""
    if found := MATRIX.search(text):
        first = int(found[2])
        sums = frozenset(range(first, first + int(found[1]) // 2))
        operands = frozenset(range(int(found[3]), int(found[3]) + 4)) if found[3] else frozenset[int]()
        wrong = None
        if operands & flight.sums or sums & flight.operands:
            wrong = "an operand is a sum in flight"
        elif any(sums & group.sums not in (frozenset(), sums) for group in flight.groups):
            wrong = "sums overlap others in flight"  # added to the same ones, matrix instructions wait for each other
        group = Group(flight.open.sums | sums, flight.open.operands | operands)
        if "gsb0" in text:
            return Flight(_newest(*flight.closed, group), Group()), wrong
        return Flight(flight.closed, group), wrong
    if found := WAIT.search(text):
        left = int(found[1], 16)
        return Flight(flight.closed[len(flight.closed) - left :] if left else (), flight.open), None
    written, named = touched(text)
    if named & flight.sums:
        return flight, f"R{min(named & flight.sums)} is a sum in flight"
    if written & flight.operands:
        return flight, f"R{min(written & flight.operands)} is an operand in flight"
    return flight, None


def successors(kernel: Kernel, index: int) -> list[int]:
    """Where an instruction may go on."""
    text = kernel.instructions[index]
    body = without_predicate(text)
    conditional = text.startswith("@") or re.match(r"BRA\S*\s+!?U?P\d", body) is not None or "BRA.DIV" in body
    if body.startswith("BRX"):
        raise ValueError(f"{kernel.name}: a jump that is computed cannot be followed")
    following = [index + 1] if index + 1 < len(kernel.instructions) else []
    if body.startswith("BRA"):
        target = TARGET.search(body)
        if target is None:
            raise ValueError(f"{kernel.name}: no target in {text}")
        return [kernel.labels[target[1]], *(following if conditional else [])]
    if body.startswith(("EXIT", "RET", "BPT.TRAP")) and not conditional:
        return []
    return following


def hazards(kernel: Kernel) -> list[str]:
    """What is wrong in a kernel, one line an instruction."""
    found: dict[int, str] = {}
    seen: set[tuple[int, Flight]] = set()
    left: list[tuple[int, Flight]] = [(0, Flight())] if kernel.instructions else []
    while left:
        place = left.pop()
        if place in seen:
            continue
        seen.add(place)
        index, before = place
        after, wrong = step(kernel.instructions[index], before)
        if wrong is not None:
            found[index] = f"{kernel.name} at 0x{kernel.addresses[index]}: {kernel.instructions[index]}: {wrong}"
        left += [(next_index, after) for next_index in successors(kernel, index)]
    return [found[index] for index in sorted(found)]


def listings(module: Path) -> Iterator[str]:
    """nvdisasm's listing of every object for the architecture."""
    for program in ("cuobjdump", "nvdisasm"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is needed to look into {module}, and not on PATH")
    with tempfile.TemporaryDirectory() as folder:
        command = ["cuobjdump", "-arch", ARCHITECTURE, "-xelf", "all", str(module.resolve())]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for path in sorted(Path(folder).iterdir()):
            yield subprocess.run(["nvdisasm", "-c", str(path)], check=True, capture_output=True, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path, help="the compiled module")
    checked = 0
    wrong: list[str] = []
    for listing in listings(parser.parse_args().module):
        for kernel in kernels_of(listing):
            if kernel.matrix_instructions:
                checked += kernel.matrix_instructions
                wrong += hazards(kernel)
    print("\n".join([*wrong, f"{checked} matrix instructions, {len(wrong)} hazards"]))
    return 1 if wrong or not checked else 0


if __name__ == "__main__":
    raise SystemExit(main())
