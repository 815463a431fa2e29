"""How runs are timed, and what times are held against."""

from __future__ import annotations

import pytest
import timing
import torch
from timing import Ceilings, Stopwatch, Work, head_start_ms, repeated, tf32


@pytest.mark.parametrize(("seconds", "runs"), [(0.01, 20), (0.125, 9), (3.0, 5)])
def test_a_second_of_runs_is_enough(seconds: float, runs: int) -> None:
    """But five are the least."""
    done: list[float] = []

    def measure() -> float:
        done.append(seconds)
        return 1.0

    assert len(list(repeated(measure, 20, lambda: sum(done)))) == runs


def test_fewer_than_five_where_fewer_are_asked_for() -> None:
    assert list(repeated(iter([1.0, 2.0, 3.0]).__next__, 2)) == [1.0, 2.0]


def test_head_start_of_the_host() -> None:
    """Where the flush is shorter than what the host does; none where the host itself is what is timed."""
    assert head_start_ms(0.1, flush_ms=0.2) == 0
    assert head_start_ms(2.0, flush_ms=0.2) == 3.0
    assert head_start_ms(300.0, flush_ms=0.2) == 0


def test_cpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "peak_allocated", lambda run, device: 0)
    calls: list[int] = []
    found = Stopwatch(torch.device("cpu"), repeats=30)(lambda: calls.append(0), repeats=3, warm_up=2)
    assert len(calls) == 2 + 3
    assert found.host_ms is None


class Device:
    """Notes what a GPU would be told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                device.told.append("event")

            def elapsed_time(self, end: object) -> float:
                return 2.0

        class Buffer:
            def sum(self) -> None:
                device.told.append("flush")

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.told.append("wait"))
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.told.append(f"sleep {cycles / 5e6:.0f} ms"))
        monkeypatch.setattr(torch, "zeros", lambda *_, **__: Buffer())
        monkeypatch.setattr(timing, "peak_allocated", lambda run, device: 0)
        self.stopwatch = Stopwatch(torch.device("cuda"), repeats=2, warm_up=1)

    def measure(self, monkeypatch: pytest.MonkeyPatch, host_ms: float, **how: bool) -> list[str]:
        """What the device is told while something is timed that the host launches in so long."""
        monkeypatch.setattr(timing, "_wall_ms", lambda run: host_ms)
        self.told.clear()
        found = self.stopwatch(lambda: self.told.append("run"), **how)
        assert (found.ms, found.host_ms) == (2.0, host_ms)
        assert self.told[:2] == ["run", "wait"]  # warm
        assert self.told[2 : 2 + timing.WAKING_READS] == ["flush"] * timing.WAKING_READS
        runs = self.told[2 + timing.WAKING_READS :]
        one = runs[: len(runs) // 2]
        assert runs == 2 * one
        return one


def test_gpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 ms between events of 10⁷ cycles are 5·10⁶ a millisecond; the flush takes 2 ms too."""
    device = Device(monkeypatch)
    around = ["event", "run", "event", "wait"]
    assert device.measure(monkeypatch, host_ms=1.0) == ["flush", *around]
    assert device.measure(monkeypatch, host_ms=10.0) == ["flush", "sleep 15 ms", *around]
    assert device.measure(monkeypatch, host_ms=10.0, hide_launches=False) == ["flush", "wait", *around]


def test_floors() -> None:
    """The longer of bytes and products, each of a work; works one after the other."""
    ceilings = Ceilings(1e9, {"float32": 1e10, "float16": 1e12})
    assert ceilings.floor_ms(Work(moved=2e6)) == pytest.approx(2)
    assert ceilings.floor_ms(Work(moved=2e6, flops=3e9, dtype="float16")) == pytest.approx(3)
    assert ceilings.floor_ms(Work(flops=3e9, dtype="float16", passes=3)) == pytest.approx(9)
    assert ceilings.floor_ms(Work(moved=2e6), Work(flops=1e7)) == pytest.approx(2 + 1)


def test_tf32_is_set_back() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    with pytest.raises(RuntimeError), tf32(not before):
        assert matmul.allow_tf32 is not before
        raise RuntimeError
    assert matmul.allow_tf32 is before
