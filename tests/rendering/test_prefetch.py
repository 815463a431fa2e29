"""What is made while something else is in use."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from cips3d.rendering.prefetch import prefetched

GPU = torch.device("cuda")


def test_prefetched() -> None:
    """The next item is made while the last one is in use, and no other; mistakes come at their place."""
    made: list[int] = []

    def items() -> Iterator[int]:
        for k in range(3):
            made.append(k)
            yield k
        raise ValueError("no more")

    found = prefetched(items(), GPU)
    assert not made
    assert next(found) == 0
    until = time.monotonic() + 20
    while len(made) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert made == [0, 1]
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(found)
    assert list(prefetched(iter(range(5)), GPU)) == [0, 1, 2, 3, 4]
    left = prefetched(iter(range(5)), GPU)
    next(left)
    left.close()  # which returns


def test_a_cpu_makes_what_is_asked_for() -> None:
    items = iter(range(5))
    found = prefetched(items, torch.device("cpu"))
    assert [next(found), next(found), next(items)] == [0, 1, 2]
