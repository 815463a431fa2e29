"""What processes that train together must have in common; on other machines, other files may lie at the same place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint
from cips3d.data.heads import SyntheticHeads
from cips3d.data.images import ImageFiles
from cips3d.data.source import contents_of
from cips3d.plain import to_plain
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes


def check_settings(config: TrainConfig, processes: Processes) -> None:
    """Raise `SharedError` in all processes where one has other settings than the first."""

    def difference(own: dict[str, Any], first: dict[str, Any]) -> str:
        name = next(name for name in first if own.get(name) != first[name])
        return (
            f"has other settings than the first one ({name} is {own.get(name)}, and not {first[name]}); start all with "
            "the same command, on machines of one kind"
        )

    processes.agree(to_plain(config), difference)


def checkpoint_of_all(resumed: Path, processes: Processes) -> dict[str, Any]:
    """The checkpoint that a run goes on from, the same in all processes.

    The first one looks for it: on a shared disk, others may not see the newest file yet.

    Raises:
        SharedError: there is none, or others read another file at its place.
    """
    path = processes.by_first(lambda: find_checkpoint(resumed))
    checkpoint = processes.by_all(lambda: load_checkpoint(path))
    processes.agree(
        checkpoint.get("step"),
        lambda own, first: f"reads {path} of step {own}, and the first one of step {first}; give all the same file",
    )
    return checkpoint


def changed_pictures(before: tuple[int, str] | None, now: tuple[int, str], step: int) -> str | None:
    """A sentence where a run goes on from `step` with other contents of its data than before, or None."""
    if before is None or before == now:
        return None
    return (
        f"these are not the pictures of the first {step} steps ({before[0]:,} then, {now[0]:,} now): from here on they "
        "come in an order of their own"
    )


def check_pictures(source: ImageFiles | SyntheticHeads, processes: Processes) -> None:
    """Raise `SharedError` in all processes where one reads other pictures than the first: their orders would differ."""

    def difference(own: tuple[int, str], first: tuple[int, str]) -> str:
        counts = f"{own[0]:,} pictures" if own[0] != first[0] else "pictures of other names"
        return f"finds {counts} in --data where the first one finds {first[0]:,}; give all of them the same files"

    processes.agree(contents_of(source), difference)
