"""torch.compile as the benchmarks use it: every choice measured, nothing printed about it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

COMPILED = "max-autotune-no-cudagraphs"  # CUDA graphs save launches, which are not what is compared
# Tables of autotuning would fill the output; gradients are taken of a graph that is kept, so its buffers stay.
SETTINGS = {
    "torch._inductor.config": ("autotune_num_choices_displayed", 0),
    "torch._functorch.config": ("donated_buffer", False),
}


def configure() -> None:
    """Set what there is to be set in this version of PyTorch."""
    for module, (name, value) in SETTINGS.items():
        config = importlib.import_module(module)
        if hasattr(config, name):
            setattr(config, name, value)


@functools.cache
def compiled_by_torch(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled with every choice measured; the first call takes long."""
    configure()
    return torch.compile(function, mode=COMPILED, dynamic=False)
