"""Which kernels a run's time goes to."""

from __future__ import annotations

from types import SimpleNamespace

import kernel_times
import pytest
from torch.profiler import DeviceType


def event(name: str, microseconds: int, device_type: DeviceType) -> SimpleNamespace:
    interval = SimpleNamespace(elapsed_us=lambda: microseconds)
    return SimpleNamespace(name=name, time_range=interval, device_type=device_type)


def test_the_longest_kernels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device alone, added up by name; the others together."""
    monkeypatch.setattr(kernel_times, "MOST", 2)
    launched = [("a", 1000), ("b", 3000), ("a", 4000), ("c", 500), ("d", 250)]
    events = [event(name, microseconds, DeviceType.CUDA) for name, microseconds in launched]
    events.append(event("host", 9000, DeviceType.CPU))
    assert kernel_times.longest(events) == {"a": 5.0, "b": 3.0, "others": 0.75}


def test_elsewhere_there_are_none() -> None:
    runs: list[int] = []
    assert kernel_times.kernel_times(lambda: runs.append(1)) == {} and runs == [1]
