"""What there is: `cips3d`, or `python -m cips3d`, lists the commands; `cips3d train` is `python -m cips3d.train`."""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from cips3d import __version__
from cips3d.errors import UserError
from cips3d.process.ending import exit_on_user_error

PROGRAM = "python -m cips3d"
COMMAND = re.compile(rf'"""The command that (?P<does>.+): `{PROGRAM}\.(?P<name>\w+)`\."""\n')  # a module's first line


def commands() -> dict[str, str]:
    """What every command does, as its module says, which is read without being run: imports of torch take seconds."""
    found = {}
    for file in Path(__file__).parent.rglob("*.py"):
        with file.open(encoding="utf-8") as lines:
            said = COMMAND.fullmatch(lines.readline())
        if said is not None:
            found[said["name"]] = said["does"]
    return dict(sorted(found.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, list them, or say the version."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0] in commands():
        sys.argv = [f"{PROGRAM}.{given[0]}", *given[1:]]
        runpy.run_module(f"cips3d.{given[0]}", run_name="__main__", alter_sys=True)
        return 0
    width = len(PROGRAM) + 1 + max(map(len, commands()))
    listed = "\n".join(f"  {f'{PROGRAM}.{name}':{width}}  {does}" for name, does in commands().items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=f"Commands, each with a --help of its own:\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cips3d {__version__}")

    def command() -> int:
        _, others = parser.parse_known_args(given)
        if others:
            raise UserError(f"{others[0]} is nothing that {PROGRAM} knows; give a command such as train")
        parser.print_help()
        return 0

    return exit_on_user_error(command)


if __name__ == "__main__":
    raise SystemExit(main())
