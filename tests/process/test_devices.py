"""What becomes of errors about memory."""

from __future__ import annotations

import pytest
import torch

from cips3d.errors import UserError
from cips3d.process.devices import memory_explained

OUT_OF_MEMORY = (
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    MemoryError("Unable to allocate 8.00 GiB"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_too_little_memory_becomes_a_sentence(error: Exception) -> None:
    with pytest.raises(UserError, match=r"^give a smaller one$") as raised, memory_explained("give a smaller one"):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("not a number")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, memory_explained("give a smaller one"):
        raise error
    assert raised.value is error
