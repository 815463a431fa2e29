"""Signals: collected between two steps, raised where work can be left, deadly while nothing else hears them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from cips3d.process.signals import Interrupted, ended_by_signals, stop_on_signals


def test_a_signal_is_collected() -> None:
    with stop_on_signals() as stop:
        assert not stop and stop.exit_code == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop and stop.exit_code == 128 + signal.SIGTERM


def test_work_that_can_be_left_is_left_at_once() -> None:
    reached = []
    with stop_on_signals() as stop:
        with stop.interrupting():
            reached.append("before")
        with pytest.raises(Interrupted), stop.interrupting():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("behind it")
        os.kill(os.getpid(), signal.SIGTERM)  # outside, nothing is raised
        with pytest.raises(Interrupted), stop.interrupting():
            reached.append("after a signal")
    assert reached == ["before"]
    assert not issubclass(Interrupted, Exception)  # libraries that go on after errors do not go on after it


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with ended_by_signals():
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ended_by_signals():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before[1])


@pytest.mark.parametrize("rank", [0, 1])
def test_waiting_for_processes_that_do_not_come_can_be_ended(rank: int) -> None:
    environment = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(20_000 + os.getpid() % 10_000 + rank)
    code = (
        "import sys\nfrom cips3d.process.ending import exit_on_user_error\n"
        "from cips3d.training.distributed import join_processes\n"
        "print('waiting', flush=True)\nexit_on_user_error(lambda: join_processes('cpu') and 0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"waiting\n"
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == -signal.SIGTERM
