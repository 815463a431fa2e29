"""Several processes, started by torchrun: who this one is, and what it does together with the others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from cips3d.errors import UserError
from cips3d.files import is_disk_full
from cips3d.process.devices import choose_device
from cips3d.process.ending import refused_name
from cips3d.process.signals import ended_by_signals

PATIENCE = timedelta(hours=3)  # all others wait while the first process makes data, measures and draws pictures
MEETING = timedelta(minutes=10)  # for all processes to come: one that has met a mistake before never does

TORCHRUN_SETS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # with WORLD_SIZE, for every process
# Of others that start a command several times: where they say how often. They set none of torchrun's variables.
STARTED_BY = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec"}
LARGEST_PORT, MOST_PROCESSES = 65_535, 2**20

T = TypeVar("T")


class SharedError(UserError):
    """A mistake that all processes have been told of: they end at the same place."""


@dataclass(frozen=True)
class Processes:
    """This process among all that train together; one alone needs no process group."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files and talks."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean_(self, tensor: Tensor) -> Tensor:
        """Average a tensor over all processes, in place."""
        return self.sum_(tensor).div_(self.world_size) if self.world_size > 1 else tensor

    def any_of(self, *votes: bool) -> list[bool]:
        """For each vote, whether any process casts it; the same in all, which may hear a signal at different steps."""
        if self.world_size == 1:
            return list(votes)
        counts = torch.tensor([float(vote) for vote in votes], device=self.device)
        return [count > 0 for count in self.sum_(counts).tolist()]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes, in one transfer.

        Every process must have the same parameters with gradients; which those are depends on the stage alone.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.world_size == 1 or not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def broadcast(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.world_size > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_first(self, value: Any) -> Any:
        """The first process's value."""
        if self.world_size == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=0)
        return holder[0]

    def by_first(self, work: Callable[[], T]) -> T:
        """The result of work that the first process does alone, in all of them.

        Raises:
            SharedError: in all, after a `UserError` of the first one.
        """
        made, failure = _tried(work) if self.is_first else (None, None)
        made, failed = self.from_first((made, None if failure is None else str(failure)))
        if failed is not None:
            raise SharedError(failed) from (failure and failure.__cause__)
        return cast(T, made)

    def by_all(self, work: Callable[[], T]) -> T:
        """The result of work that every process does for itself.

        Raises:
            SharedError: in all, after a `UserError` of any.
        """
        made, failure = _tried(work)
        for rank, failed in enumerate(self.gather(None if failure is None else str(failure))):
            if failed is not None:
                said = failed if rank == 0 else f"in process {rank}: {failed}"
                raise SharedError(said) from (failure and failure.__cause__)
        return cast(T, made)

    def agree(self, value: T, difference: Callable[[T, T], str]) -> None:
        """Make sure that all processes have the same value.

        Args:
            value: what is compared.
            difference: the rest of a sentence that begins with "process 3", from its value and the first one's.

        Raises:
            SharedError: in all, where one has another value than the first.
        """
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise SharedError(f"process {rank} {difference(other, values[0])}")

    def has_lost_another(self, error: BaseException) -> bool:
        """Whether an error means that another process has ended, which says why by itself."""
        return self.world_size > 1 and (isinstance(error, dist.DistBackendError) or "gloo/transport" in str(error))

    def leave(self, *, failed: bool = False) -> None:
        """Take the process group down.

        After a failure NCCL's is left as it is: it would wait for work of the others, who wait for this process. They
        end, by torchrun or since they have lost it, as soon as this one has said why and ended.
        """
        if self.world_size > 1 and dist.is_initialized():
            if failed and dist.get_backend() != "gloo":
                return
            if dist.get_backend() == "gloo":
                # Its threads need the interpreter to drop the last tensors. PyTorch before 2.8 lets them have it no
                # more while it waits for their end.
                time.sleep(0.1)
            dist.destroy_process_group()


def _tried(work: Callable[[], T]) -> tuple[T | None, UserError | None]:
    """What work makes, or the mistake that it meets: errors of the system that a user can mend are mistakes too."""
    try:
        return work(), None
    except UserError as error:
        return None, error
    except OSError as error:
        said = "the disk is full" if is_disk_full(error) else refused_name(error)
        if said is None:
            raise
        mistake = UserError(said)
        mistake.__cause__ = error
        return None, mistake


def join_processes(device_name: str) -> Processes:
    """Join the processes that torchrun started (NCCL on GPUs, gloo on CPUs), or be one alone.

    Raises:
        UserError: there is no such device, or one for all processes, there are fewer GPUs than processes, WORLD_SIZE
            is set without torchrun's other variables, one of them makes no sense, or the processes cannot meet; or
            this is one of several that would know nothing of each other.
    """
    world_size = os.environ.get("WORLD_SIZE", "")
    if not world_size:
        _refuse_strangers()
        world_size = "1"
    device = choose_device(device_name)
    if world_size == "1":
        return Processes(device=device)
    if missing := [name for name in TORCHRUN_SETS if not os.environ.get(name, "")]:
        raise UserError(
            f"WORLD_SIZE {world_size} is set in the environment and {', '.join(missing)} not; start several processes "
            "with torchrun, or take WORLD_SIZE away (unset WORLD_SIZE)"
        )
    last = _number("WORLD_SIZE", 1, MOST_PROCESSES) - 1
    _number("RANK", 0, last)
    local = _number("LOCAL_RANK", 0, last)
    _number("MASTER_PORT", 1, LARGEST_PORT)  # 0 is no port: who is told to take any cannot tell the others which
    if device.type == "cuda":
        if device.index is not None:
            raise UserError(
                f"--device {device_name} names one GPU, and torchrun gives every process one of its own; "
                "give --device cuda, and CUDA_VISIBLE_DEVICES to choose among them"
            )
        if local >= torch.cuda.device_count():
            raise UserError(
                f"--nproc-per-node of torchrun asks for more processes than the {torch.cuda.device_count()} GPUs here; "
                "start one a GPU, or give --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    with ended_by_signals():  # for as long as others do not come
        try:
            store, rank, size = next(rendezvous("env://", timeout=MEETING))
            store.set(f"cips3d/here/{rank}", "")
            store.wait([f"cips3d/here/{other}" for other in range(size)], MEETING)
            store.set_timeout(PATIENCE)
        except RuntimeError as error:  # of old PyTorch, where a port is taken; DistError of others is one too
            raise UserError(
                f"the processes cannot meet at MASTER_ADDR {os.environ['MASTER_ADDR']}, MASTER_PORT "
                f"{os.environ['MASTER_PORT']} ({str(error).splitlines()[0]}); see what the others say, or give the "
                "first one's address and a free port"
            ) from None
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return Processes(dist.get_rank(), dist.get_world_size(), device)


def _refuse_strangers() -> None:
    """Raise `UserError` where the same command was started several times, and each would train a run of its own."""
    for name, starter in STARTED_BY.items():
        if (count := os.environ.get(name, "1")) != "1":
            raise UserError(
                f"{starter} started this command {count} times ({name}), without torchrun's variables; let it start "
                "one torchrun a machine, or set WORLD_SIZE=1 for as many runs that have nothing to do with each other"
            )


def _number(name: str, least: int, most: int) -> int:
    """The value of one of torchrun's variables."""
    value = os.environ[name]
    if not value.isdecimal() or not least <= int(value) <= most:
        raise UserError(
            f"{name} {value} is set in the environment and no number from {least} to {most}; start with torchrun"
        )
    return int(value)
