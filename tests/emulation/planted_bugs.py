"""The kernels of planted_bugs.cu; as a script: all of them, right and wrong, for a sanitizer to watch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCE = Path(__file__).with_suffix(".cu")
HEADER = SOURCE.with_name("planted_warpgroup_bugs.h")


class PlantedBugs:
    """The compiled kernels.

    Args:
        library: what was compiled from SOURCE.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.case_name.restype = ctypes.c_char_p
        self.names: list[str] = []
        while (name := self._library.case_name(len(self.names))) is not None:
            self.names.append(name.decode())

    def run(self, name: str, bug: bool, seed: int = 0) -> NDArray[np.float32]:
        """What a kernel computes with a schedule. Raises RuntimeError with what the emulation says."""
        # Arrays of their own: a sanitizer sees what is read or written beside them.
        values = np.random.default_rng(0).uniform(1, 2, 256).astype(np.float32)
        out = np.zeros(512, np.float32)
        error = ctypes.create_string_buffer(512)
        arguments = (ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(out.ctypes.data), error)
        self._library.run_case(self.names.index(name), int(bug), ctypes.c_uint64(seed), *arguments)
        if error.value:
            raise RuntimeError(error.value.decode())
        return out

    def schedules_that_show(self, name: str, seeds: Iterable[int]) -> set[int]:
        """Those of `seeds` with which the wrong kernel computes something else than the right one."""
        right = self.run(name, bug=False)
        assert np.isfinite(right).all()
        return {seed for seed in seeds if not np.array_equal(self.run(name, bug=True, seed=seed), right)}

    def error_of(self, name: str, seed: int) -> str | None:
        """What is said of the wrong kernel with a schedule, if anything."""
        try:
            self.run(name, bug=True, seed=seed)
        except RuntimeError as error:
            return str(error)
        return None

    def load_ptx(self, path: Path) -> None:
        """What nvcc has made of SOURCE, where the library runs that."""
        self._library.load_ptx(str(path).encode())

    def launch_nothing(self, grid: Sequence[int], block: Sequence[int], shared: int, cluster: int = 1) -> None:
        """A launch of an empty kernel. Raises RuntimeError where it is refused."""
        error = ctypes.create_string_buffer(512)
        sizes = [(ctypes.c_uint * 3)(*size) for size in (grid, block)]
        self._library.run_configuration(*sizes, cluster, ctypes.c_uint64(shared), error)
        if error.value:
            raise RuntimeError(error.value.decode())


def line_of(name: str) -> str:
    """Where the source is marked with a case's name, as reports write it: planted_bugs.cu:123."""
    (place,) = [
        f"{path.name}:{number}"
        for path in (SOURCE, HEADER)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith(f"// {name}")
    ]
    return place


def main(library: Path) -> None:
    """Runs everything once with each of a few schedules."""
    from emulation.sanitized import mark

    planted = PlantedBugs(library)
    for name in planted.names:
        for bug in (False, True):
            mark(f"{name} {'wrong' if bug else 'right'}")
            for seed in (0, 1):
                try:
                    planted.run(name, bug, seed)
                except RuntimeError as error:
                    print(error, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
