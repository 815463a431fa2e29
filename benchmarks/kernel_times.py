"""Which kernels the time goes to: of a picture, of the NeRF branch's gradients, and of a training step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from figures import Results
from nerf_speed import CIPS3DVolumes
from picture_speed import pictures_256
from step_speed import KINDS, Steps, config_256
from torch.profiler import DeviceType, ProfilerActivity, profile

MOST = 12  # kernels that are named; the others are added up
NAME_LENGTH = 120


def kernel_times(run: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of device time of one run by kernel, the longest first; {} without a GPU."""
    if not torch.cuda.is_available():
        run()
        return {}
    run()  # warm
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return longest(profiler.events() or [])


def longest(events: Any) -> dict[str, float]:
    """The events of a device, added up by name."""
    times: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if event.device_type == DeviceType.CUDA:
            times[event.name[:NAME_LENGTH]] += event.time_range.elapsed_us() / 1e3
    ordered = sorted(times.items(), key=lambda item: -item[1])
    others = sum(ms for _, ms in ordered[MOST:])
    return dict(ordered[:MOST]) | ({"others": others} if others else {})


def kernels_of_steps(device: torch.device, results: Results) -> None:
    """Add them to the record: 16 pictures of 256², a step of four NeRF images, an ordinary training step of four."""
    pictures = pictures_256(device)
    with torch.no_grad():
        results.add_kernels("render_256", kernel_times(partial(pictures.ours, "fast")))
    del pictures
    volumes = CIPS3DVolumes(device)
    volumes.set_precision("fast")
    nerf = kernel_times(lambda: torch.autograd.grad(volumes.ours(), volumes.trained(), volumes.upstream))
    results.add_kernels("nerf_step_256", nerf)
    for name, (precision, amp) in KINDS.items():
        steps = Steps(config_256(precision, amp, on_gpu=device.type == "cuda"), device)
        results.add_kernels(name, kernel_times(partial(steps.run, regularised=False)))
