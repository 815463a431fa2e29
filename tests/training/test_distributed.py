"""Several processes: the same weights everywhere, one writer, exact resume."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training.runs import after_steps, real_images

from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint
from cips3d.data.loader import TrainingImages
from cips3d.errors import UserError
from cips3d.process.devices import choose_device
from cips3d.training import distributed, loop, losses, report
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import TORCHRUN_SETS, Processes, join_processes
from cips3d.training.loop import train
from cips3d.training.objectives import StepReport
from cips3d.training.run_folder import METRICS_FILE
from cips3d.training.schedule import plan_at
from cips3d.training.state import TrainingState
from cips3d.training.step import TrainingStep

WORKER = """
import sys, torch
from pathlib import Path
from cips3d.training.config import TrainConfig
from cips3d.training.resolving import resolved
from cips3d.training.distributed import join_processes
from cips3d.training.loop import Training

torch.set_num_threads(1)
config = TrainConfig.from_json(Path(sys.argv[1]).read_text())
processes = join_processes(config.device)
with Training(resolved(config), processes) as training:
    assert training.run() == 0
    flat = torch.cat([p.detach().reshape(-1) for p in training.state.generator.parameters()])
    every = processes.gather(flat)
    assert all(torch.equal(flat, other) for other in every)
    draws = processes.gather(training.state.random.get_state())
    assert not torch.equal(draws[0], draws[1])
processes.leave()
"""


@dataclass(frozen=True)
class Twins(Processes):
    """This process and another that does the same, without one."""

    world_size: int = 2

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.mul_(2)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        pass

    def broadcast(self, module: nn.Module) -> None:
        pass

    def gather(self, value: Any) -> list[Any]:
        return [value, value]

    def from_first(self, value: Any) -> Any:
        return value


def run_two(config: TrainConfig, folder: Path) -> None:
    script, settings = folder / "worker.py", folder / "config.json"
    script.write_text(WORKER)
    settings.write_text(config.to_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*command, str(script), str(settings)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def start(rank: int, port: int, config: TrainConfig, folder: Path) -> subprocess.Popen[str]:
    """One of two processes, as the torchrun of its machine would start it."""
    numbers = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    settings = folder / f"{rank}.json"
    settings.write_text(config.to_json())
    code = (
        "import sys\nfrom pathlib import Path\nfrom cips3d.process.ending import exit_on_user_error\n"
        "from cips3d.training.config import TrainConfig\nfrom cips3d.training.loop import train\n"
        "config = TrainConfig.from_json(Path(sys.argv[1]).read_text())\n"
        "sys.exit(exit_on_user_error(lambda: train(config)[1]))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in numbers.items()}}
    command = [sys.executable, "-c", code, str(settings)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("mistake", ["flag", "other flag", "records"])
def test_mistakes_of_one_process_end_both(small_config: TrainConfig, tmp_path: Path, mistake: str) -> None:
    """With one sentence each, and soon, whichever of them meets the mistake."""
    config, words = (
        replace(small_config, steps=2),
        ("in process 1: --steps 0 trains nothing", "--steps 0 trains nothing"),
    )
    other = replace(config, steps=0)
    if mistake == "other flag":
        other, words = replace(config, seed=5), ("process 1 has other settings", "process 1 has other settings")
    if mistake == "records":  # which the first one alone reads
        folder, _ = train(config)
        (folder / METRICS_FILE).write_text("garbage\n")
        config = other = replace(config, out=None, resume=folder, steps=4)
        words = ("something else in line 1", "something else in line 1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [start(rank, port, one, tmp_path) for rank, one in enumerate((config, other))]
    for process, said in zip(pair, words, strict=True):
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2 and said in error and "Traceback" not in error, error
    assert mistake == "records" or not (tmp_path / "run").exists()


def test_the_end_of_another_process_is_no_bug(monkeypatch: pytest.MonkeyPatch, small_config: TrainConfig) -> None:
    """Of two that train, one is killed."""
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5423")
    assert not Processes().has_lost_another(lost) and not Twins().has_lost_another(RuntimeError("shapes differ"))
    monkeypatch.setattr(loop, "join_processes", lambda _: Twins())

    def fail() -> None:
        raise lost

    after_steps(monkeypatch, 2, fail)
    with pytest.raises(UserError, match="another process has ended; its message says why"):
        train(small_config)


def test_two_processes_train_one_model(small_config: TrainConfig, tmp_path: Path) -> None:
    """One run of two processes, stopped after 4 of 6 steps and resumed, against one without a stop."""
    small_config = replace(small_config, reports=replace(small_config.reports, metrics_interval=8, metrics_images=4))
    whole, part = replace(small_config, out=tmp_path / "whole"), replace(small_config, out=tmp_path / "part", steps=4)
    run_two(whole, tmp_path)
    run_two(part, tmp_path)
    run_two(replace(small_config, out=None, resume=tmp_path / "part"), tmp_path)
    a, b = (load_checkpoint(find_checkpoint(tmp_path / name)) for name in ("whole", "part"))
    assert a["step"] == b["step"] == 6
    assert a["position"] == 24  # 6 batches of 4 images over both processes
    assert len(a["random"]) == 2
    for name, value in a["generator_ema"].items():
        assert torch.equal(value, b["generator_ema"][name]), name
    measured = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "part")]
    assert [json.loads(line)["step"] for line in measured[0].splitlines()] == [0, 2, 4, 6]  # by one process
    assert measured[0] == measured[1]
    assert a["best"] == b["best"]
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["config"]["seed"] == 0


@pytest.mark.parametrize(("together", "saved"), [(True, [0, 2]), (False, [0])])
def test_several_processes_save_together_or_not_at_all(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, together: bool, saved: list[int]
) -> None:
    """All meet a picture that cannot be read at the same place; a bug may be one's alone, and who saves waits."""

    def fail(*_: object) -> None:
        raise UserError("photo.png cannot be read") if together else ZeroDivisionError

    monkeypatch.setattr(loop, "join_processes", lambda _: Twins())
    after_steps(
        monkeypatch, *((2, lambda: monkeypatch.setattr(TrainingImages, "__next__", fail)) if together else (3, fail))
    )
    with pytest.raises(UserError if together else ZeroDivisionError):
        train(replace(small_config, reports=replace(small_config.reports, checkpoint_every=100)))
    assert small_config.out is not None
    found = sorted((small_config.out / "checkpoints").glob("step-*.pt"))
    assert [load_checkpoint(path)["step"] for path in found] == saved


def test_several_processes_save_what_was_trained_where_curves_find_no_room(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process alone writes them, and all of them save."""

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop, "join_processes", lambda _: Twins())
    monkeypatch.setattr(report, "append_scalars", write)
    reports = replace(small_config.reports, checkpoint_every=100, scalars_every=3)
    with pytest.raises(UserError, match="the disk is full; free some space; go on with"):
        train(replace(small_config, reports=reports))
    assert small_config.out is not None
    found = sorted((small_config.out / "checkpoints").glob("step-*.pt"))
    assert [load_checkpoint(path)["step"] for path in found] == [0, 3]


def test_augmentation_counts_the_pictures_of_all_processes(small_config: TrainConfig) -> None:
    config = replace(small_config, ada_target=0.6, ada_kimg=0.1)
    state = TrainingState(config, Twins())
    report = StepReport(scalars={"d/real_sign": torch.tensor(0.7)})  # the same of both
    for _ in range(4):
        TrainingStep(state, config).adapt_augmentation(2, report)
    assert state.ada.p == pytest.approx(4 * 2 * 2 / 100)
    assert report.scalars["d/real_sign"] == torch.tensor(0.7)


def test_the_mean_path_length_is_that_of_all_processes(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1% of the way to lengths of 1 in this one, and 3% in the other."""
    monkeypatch.setattr(losses, "path_lengths", lambda images, *_: images.new_ones(len(images)))
    monkeypatch.setattr(Twins, "sum_", lambda _, tensor: tensor.add_(0.03))
    config = replace(small_config, path_length_weight=2.0)
    state = TrainingState(config, Twins())
    TrainingStep(state, config).path_length_loss(4, plan_at(config, 0), None, StepReport())
    assert state.path_length.mean.item() == pytest.approx(0.02)


def test_an_update_that_another_process_leaves_out_is_left_out(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Twins, "sum_", lambda _, tensor: tensor.add_(1))  # a loss there is no number
    state = TrainingState(small_config, Twins())
    before = [p.clone() for p in state.discriminator.parameters()]
    report = TrainingStep(state, small_config)(real_images(), plan_at(small_config, 0))
    assert not report.finite
    assert all(torch.equal(a, b) for a, b in zip(before, state.discriminator.parameters(), strict=True))


def test_random_numbers_of_several_processes(small_config: TrainConfig) -> None:
    """Each draws its own, also where a run goes on with more processes than before."""
    one = TrainingState(small_config, Processes())
    new = [TrainingState(small_config, Twins(rank)) for rank in range(3)]
    assert len({state.random.get_state().numpy().tobytes() for state in new}) == 3
    for rank, state in enumerate(new):
        before = state.random.get_state()
        state.load_state_dict({**one.state_dict(), "step": 4})
        assert torch.equal(state.random.get_state(), one.random.get_state()) == (rank == 0)
        assert rank == 0 or not torch.equal(state.random.get_state(), before)
    assert len({state.random.get_state().numpy().tobytes() for state in new}) == 3


@pytest.mark.parametrize("world_size", ["2", "x"])
def test_several_processes_that_torchrun_did_not_start(monkeypatch: pytest.MonkeyPatch, world_size: str) -> None:
    for name in TORCHRUN_SETS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(UserError, match=f"WORLD_SIZE {world_size} is set in the environment and RANK, .* not; start"):
        join_processes("cpu")


@pytest.mark.parametrize(("name", "starter"), [("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun")])
def test_several_processes_that_know_nothing_of_each_other(
    monkeypatch: pytest.MonkeyPatch, name: str, starter: str
) -> None:
    for each in ("WORLD_SIZE", *TORCHRUN_SETS):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "1")
    assert join_processes("cpu") == Processes()
    monkeypatch.setenv(name, "8")
    with pytest.raises(UserError, match=rf"^{starter} started this command 8 times \({name}\).* WORLD_SIZE=1 for as"):
        join_processes("cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join_processes("cpu") == Processes()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WORLD_SIZE", "x", "WORLD_SIZE x is set in the environment and no number from 1 to .*; start with torchrun"),
        ("WORLD_SIZE", "0", "WORLD_SIZE 0 is set"),
        ("RANK", "-1", "RANK -1 is set in the environment and no number from 0 to 1"),
        ("RANK", "2", "RANK 2 is set in the environment and no number from 0 to 1"),
        ("LOCAL_RANK", "2", "LOCAL_RANK 2 is set"),
        ("MASTER_PORT", "http", "MASTER_PORT http is set in the environment and no number from 1 to 65535"),
        ("MASTER_PORT", "65536", "MASTER_PORT 65536 is"),
        ("MASTER_PORT", "0", "MASTER_PORT 0 is"),
    ],
)
def test_numbers_that_torchrun_does_not_set(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    for each in ("WORLD_SIZE", *TORCHRUN_SETS):
        monkeypatch.setenv(each, "1" if "RANK" in each else "2")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        join_processes("cpu")


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        numbers = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**numbers, "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=r"cannot meet at MASTER_ADDR 127.*, MASTER_PORT \d+ \(.*a free port$"):
            join_processes("cpu")


@pytest.mark.parametrize(
    ("backend", "failed", "taken_down"),
    [("nccl", False, True), ("nccl", True, False), ("gloo", False, True), ("gloo", True, True)],
)
def test_a_failure_does_not_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch, backend: str, failed: bool, taken_down: bool
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_backend", lambda: backend)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: calls.append("destroyed"))
    Processes(world_size=2).leave(failed=failed)
    assert calls == ["destroyed"] * taken_down


def test_pinned_memory_is_for_gpus(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is CUDA, pinning takes a context, and memory, of a GPU that training on the CPU leaves to others."""

    def pin_memory(_: Tensor) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    train(replace(small_config, steps=1))


def test_one_gpu_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", *TORCHRUN_SETS):
        monkeypatch.setenv(name, "1" if "RANK" in name else "2")
    monkeypatch.setattr(distributed, "choose_device", torch.device)
    with pytest.raises(UserError, match=r"--device cuda:0 names one GPU, .* give --device cuda, and"):
        join_processes("cuda:0")


@pytest.mark.parametrize("name", ["gpu", "mps:x", "meta"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(UserError, match=f"--device {name}"):
        choose_device(name)


def test_absent_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")
