"""A script for sanitizers to watch: every op's kernels once. Takes the path of the compiled module."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from emulated_kernels import import_module
from emulation.sanitized import mark
from ops.sanitizer_cases import CASES

NEVER_CALLED = "never called"


class Recorder(ModuleType):
    """Passes on what is asked of a module, and remembers it."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__(module.__name__)
        self._module = module
        self._asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self._asked.add(name)
        return getattr(self._module, name)

    def never_asked(self) -> list[str]:
        """The functions of the module that nobody has asked for."""
        functions = {name for name, value in vars(self._module).items() if callable(value)}
        return sorted(name for name in functions - self._asked if not name.startswith("_"))


def main(library: Path) -> None:
    module = Recorder(import_module(library))
    module.set_schedule(1)
    for name, run in CASES.items():
        mark(name)
        try:
            run(module)
        except Exception:
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
    mark(NEVER_CALLED)
    print(*module.never_asked(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
