"""The NeRF branch, the INR and whole pictures with the kernels for compute capability 9.0, and without them.

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
from nerf_speed import PRODUCTS, CIPS3DVolumes
from op_cases import inr_cases
from picture_cases import Pictures
from picture_speed import pictures_256, work_of
from timing import Ceilings, Stopwatch, Work

from cips3d.errors import exit_on_user_error
from cips3d.ops import kernels

VARIABLE = "CIPS3D_WGMMA"
KINDS = {"without_warpgroups": "0", "warpgroups": "1"}
"""the lines' names, and the variable that asks for the kernels"""


def has_warpgroups(device: torch.device) -> bool:
    """Whether the kernels could run on a device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


@contextmanager
def asked_for(value: str) -> Iterator[None]:
    """Inside, the environment says which kernels are wanted."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def check_chosen(pictures: Pictures, pixels: int, value: str) -> None:
    """Raise RuntimeError where other kernels are chosen than those whose names the lines will have."""
    device = pictures.cameras.device
    if device.type != "cuda":
        return
    module, index, settings = kernels.module_for(device), device.index or 0, pictures.settings
    found = {
        "modulated_inr": module.modulated_inr_warpgroups(index, 1, pixels, pictures.generator.config.inr_width, False),
        "render_rays": module.render_rays_warpgroups(index, settings.samples, settings.samples, False),
        "render_rays_backward": module.render_rays_backward_warpgroups(index, False, False),
    }
    for op, chosen in found.items():
        if bool(chosen) is not (value == "1"):
            raise RuntimeError(f"{VARIABLE}={value} does not decide on the kernel of {op}")


@torch.no_grad()
def warpgroup_lines(stopwatch: Stopwatch, ceilings: Ceilings) -> Iterator[tuple[str, Result]]:
    """Both kinds, one after the other."""
    device = stopwatch.device
    pictures, volumes = pictures_256(device), CIPS3DVolumes(device)
    volumes.set_precision("fast")
    (inr,) = (case for case in inr_cases(device, small=device.type != "cuda") if case.name == "modulated_inr_fast")
    for name, value in KINDS.items():
        with asked_for(value):
            check_chosen(pictures, inr.inputs[0].shape[1], value)
            alone = stopwatch(partial(inr.ours, *inr.inputs))
            yield f"modulated_inr_{name}_forward", result_of(alone, work=inr.forward, ceilings=ceilings)
            with torch.enable_grad():
                nerf = volumes.timed(volumes.ours, stopwatch)
            for direction, timing in (("forward", nerf.forward), ("backward", nerf.backward)):
                work = Work(flops=PRODUCTS[direction] * volumes.flops, dtype="float16")
                line = result_of(timing, work=work, ceilings=ceilings, images=volumes.images)
                yield f"nerf_{direction}_256_{name}", line
            whole = stopwatch(partial(pictures.ours, "fast"))
            work = work_of(pictures, "fast")
            yield f"render_256_{name}", result_of(whole, work=work, ceilings=ceilings, images=len(pictures.cameras))


def measure(stopwatch: Stopwatch, ceilings: Ceilings, results: Results, budget: Budget) -> None:
    with results.reporting("warpgroups"):
        for name, result in warpgroup_lines(stopwatch, ceilings):
            results.add(name, result)


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(lambda: measure_for_another(__doc__, measure)))
