"""The INR and whole pictures with the kernel for compute capability 9.0, and without it.

    python benchmarks/warpgroup_speed.py

`suite.py` runs it in a process of its own: where a copy goes astray, threads would wait for it for ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from apart import Budget, measure_for_another
from figures import Result, Results, result_of
from op_cases import inr_cases
from picture_speed import pictures_256, work_of
from timing import Ceilings, Stopwatch

from cips3d.errors import exit_on_user_error
from cips3d.ops import kernels

VARIABLE = "CIPS3D_WGMMA"
KINDS = {"without_warpgroups": "0", "warpgroups": "1"}
"""the lines' names, and the variable that asks for the kernel"""


def has_warpgroups(device: torch.device) -> bool:
    """Whether the kernel could run on a device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


@contextmanager
def asked_for(value: str) -> Iterator[None]:
    """Inside, the environment says whether the kernel is wanted."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def check_chosen(device: torch.device, images: int, pixels: int, width: int, value: str) -> None:
    """Raise RuntimeError where a size gets another kernel than the one whose name its line will have."""
    if device.type != "cuda":
        return
    chosen = kernels.module_for(device).modulated_inr_warpgroups(device.index or 0, images, pixels, width, False)
    if bool(chosen) is not (value == "1"):
        raise RuntimeError(f"{VARIABLE}={value} does not decide on the kernel of {images} x {pixels} pixels")


@torch.no_grad()
def warpgroup_lines(stopwatch: Stopwatch, ceilings: Ceilings) -> Iterator[tuple[str, Result]]:
    """Both kinds, one after the other."""
    device = stopwatch.device
    pictures = pictures_256(device)
    (inr,) = (case for case in inr_cases(device, small=device.type != "cuda") if case.name == "modulated_inr_fast")
    images, width = len(pictures.cameras), pictures.generator.config.inr_width
    for name, value in KINDS.items():
        with asked_for(value):
            check_chosen(device, 1, inr.inputs[0].shape[1], width, value)
            alone = stopwatch(partial(inr.ours, *inr.inputs))
            yield f"modulated_inr_{name}_forward", result_of(alone, work=inr.forward, ceilings=ceilings)
            whole = stopwatch(partial(pictures.ours, "fast"))
            work = work_of(pictures, "fast")
            yield f"render_256_{name}", result_of(whole, work=work, ceilings=ceilings, images=images)


def measure(stopwatch: Stopwatch, ceilings: Ceilings, results: Results, budget: Budget) -> None:
    with results.reporting("warpgroups"):
        for name, result in warpgroup_lines(stopwatch, ceilings):
            results.add(name, result)


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(lambda: measure_for_another(__doc__, measure)))
