"""What processes that train together must have in common; on other machines, other files may lie at the same place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cips3d.checkpoints.networks import Networks, load_networks
from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint
from cips3d.data.heads import SyntheticHeads
from cips3d.data.images import ImageFiles
from cips3d.data.source import contents_of, open_training_source
from cips3d.files import sha256_of
from cips3d.plain import to_plain
from cips3d.process.signals import Interrupted, StopRequest
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes


def check_settings(config: TrainConfig, processes: Processes) -> None:
    """Raise `SharedError` in all processes where one has other settings than the first."""

    def difference(own: dict[str, Any], first: dict[str, Any]) -> str:
        flag = next(flag for flag in {**first, **own} if own.get(flag) != first.get(flag))
        return (
            f"has other settings than the first one ({flag} is {own.get(flag)}, and not {first.get(flag)}); start all "
            "with the same command, on machines of one kind"
        )

    processes.agree(dict(_flags(to_plain(config))), difference)


def _flags(plain: Any, name: str = "-") -> Iterator[tuple[str, Any]]:
    """Every value of a plain configuration under the name of its flag."""
    if isinstance(plain, list) and any(isinstance(item, dict) for item in plain):
        plain = {str(k): item for k, item in enumerate(plain)}
    if not isinstance(plain, dict):
        yield name, plain
        return
    for key, value in plain.items():
        yield from _flags(value, f"{name}{'-' if name == '-' else '.'}{key.replace('_', '-')}")


def checkpoint_of_all(resumed: Path, processes: Processes) -> tuple[Path, dict[str, Any]]:
    """The file that a run goes on from, and the checkpoint in it, the same in all processes.

    The first one looks for it: on a shared disk, others may not see the newest file yet.

    Raises:
        SharedError: there is none, or others read another file at its place.
    """
    path = processes.by_first(lambda: find_checkpoint(resumed))
    checkpoint = processes.by_all(lambda: load_checkpoint(path))
    _check_file(path, processes)
    return path, checkpoint


def networks_of_all(trained: Path, processes: Processes) -> Networks:
    """The networks that a run starts from, the same in all processes.

    Raises:
        SharedError: there are none, or others read another file at their place.
    """
    path = processes.by_first(lambda: find_checkpoint(trained))
    networks = processes.by_all(lambda: load_networks(path))
    _check_file(path, processes)
    return networks


def _check_file(path: Path, processes: Processes) -> None:
    if processes.world_size > 1:
        processes.agree(
            sha256_of(path), lambda *_: f"reads another file at {path} than the first one; give all of them the same"
        )


def pictures_of_all(
    config: TrainConfig, resolution: int, processes: Processes, stop: StopRequest
) -> ImageFiles | SyntheticHeads | None:
    """The pictures that a run trains on at a resolution, the same in all processes: else their orders would differ.

    The first one prepares what is then read by all. It is asked to stop at once, since heads may take minutes to make:
    then there are none, None in all processes.

    Raises:
        SharedError: there are none, or others find other pictures.
    """
    opened: list[ImageFiles | SyntheticHeads] = []

    def open_pictures() -> None:
        if not opened:
            source = open_training_source(
                config.data, resolution, heads=config.heads, poses=config.poses, fov_degrees=config.fov_degrees
            )
            opened.append(source)

    def prepare() -> bool:
        try:
            with stop.interrupting():
                open_pictures()
        except Interrupted:
            return False
        return True

    def difference(own: tuple[int, str], first: tuple[int, str]) -> str:
        counts = f"{own[0]:,} pictures" if own[0] != first[0] else "pictures of other names"
        return f"finds {counts} in --data where the first one finds {first[0]:,}; give all of them the same files"

    if not processes.by_first(prepare):
        return None
    processes.by_all(open_pictures)
    processes.agree(contents_of(opened[0]), difference)
    return opened[0]
