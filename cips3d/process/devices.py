"""Devices that commands compute on, and what happens where their memory is too small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cips3d.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; "auto" is a GPU where there is one.

    Raises:
        UserError: the name is not a device, or that device is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not a device; give auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported; give auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name} asks for a GPU and none is usable here; give --device cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UserError(
                f"--device {name} does not exist; {torch.cuda.device_count()} GPU(s) are here, counted from cuda:0"
            )
    return device


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for torch's complaints about memory; those of the CPU and of CUDA itself have no type of their own."""
    untyped = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in untyped)


@contextmanager
def memory_explained(sentence: str) -> Iterator[None]:
    """Inside, running out of memory is a mistake that the user can mend.

    Args:
        sentence: what the error says: which device, what did not fit, and the remedy.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        raise UserError(sentence) from error
