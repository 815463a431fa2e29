"""The command that prepares photographs for training: `python -m cips3d.dataset`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cips3d.data.prepare import ImageFormat, prepare_dataset
from cips3d.files import printable
from cips3d.process.ending import exit_on_user_error

REASONS_SHOWN = 20
INTERRUPTED = "interrupted; run the same command again to go on where it ended"

DESCRIPTION = """\
Crop, resize and write photographs once, so that training reads small files only.

Example: python -m cips3d.dataset ~/photos ffhq256.zip --resolution 256

Unreadable files are named and skipped. After an interruption, the same command goes on where it ended.
"""


@dataclass(frozen=True)
class DatasetConfig:
    """What to prepare, and where to."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Folder (searched recursively) or zip of jpg, jpeg, png and webp files, or the word `heads` for synthetic
    heads (`./heads` is a folder of that name)."""
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DEST")]
    """New or empty folder, or a name that ends in .zip."""
    resolution: int = 256
    """Side of the pictures in pixels. The central square of each photograph is taken."""
    format: ImageFormat = "png"
    """png and webp keep every pixel as it is; jpg has quality 95."""
    workers: int = 0
    """Threads that decode and write; 0 takes one a processor core, 16 at most."""
    count: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """How many synthetic heads; 4096 unless given."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Seed of the synthetic heads; 0 unless given."""
    fov_degrees: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Angle of view of the cameras that see the synthetic heads; 12 unless given. Train on them with the same."""


def prepare(config: DatasetConfig) -> int:
    """Prepare a set, say what became of it and return the exit code."""
    prepared = prepare_dataset(
        config.source,
        config.destination,
        config.resolution,
        image_format=config.format,
        workers=config.workers,
        count=config.count,
        seed=config.seed,
        fov_degrees=config.fov_degrees,
    )
    size = f"{config.resolution} x {config.resolution}"
    state = "was complete already" if prepared.found_complete else "is complete"
    held = f"{prepared.images:,} image{'s' if prepared.images > 1 else ''}"
    print(f"{prepared.path} {state}: {held} of {size}, {config.format}")
    if prepared.reasons:
        print(f"{len(prepared.reasons):,} unreadable skipped:")
        for name, why in list(prepared.reasons.items())[:REASONS_SHOWN]:
            print(f"  {printable(name)}: {why}")
        if len(prepared.reasons) > REASONS_SHOWN:
            print(f"  and {len(prepared.reasons) - REASONS_SHOWN:,} more, listed in the set's dataset.json")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line (default: this process's), prepare and return the exit code."""

    def command() -> int:
        return prepare(tyro.cli(DatasetConfig, prog="python -m cips3d.dataset", description=DESCRIPTION, args=argv))

    return exit_on_user_error(command, INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
