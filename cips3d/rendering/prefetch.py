"""Keeping a GPU busy while the CPU handles its last results."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import torch

T = TypeVar("T")

_END = object()


def prefetched(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """The same items; those of a GPU are made one ahead, by a thread, while the one before is in use.

    Args:
        items: nothing else may ask it for more.
        device: where most of their work is done. A CPU would make both at half the speed: there, nothing is made ahead.
    """
    if device.type == "cpu":
        yield from items
        return
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = maker.submit(next, items, _END)
            yield cast(T, item)
