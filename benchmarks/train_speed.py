"""Steps a second and peak memory of a preset's training step, data loading left out.

    python benchmarks/train_speed.py                              # preset tiny on the CPU
    python benchmarks/train_speed.py --preset ffhq --device cuda --stage 2 --batch-size 4

Peak memory is what torch allocated at most (GPU), or the growth of the process's resident set over the state before
the first step (CPU).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from timing import resident_peak

from cips3d.process.devices import choose_device
from cips3d.process.ending import exit_on_user_error
from cips3d.process.versions import processor
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.presets import preset
from cips3d.training.resolving import resolved
from cips3d.training.schedule import plan_at
from cips3d.training.state import TrainingState
from cips3d.training.step import TrainingStep

MIB = 2**20


def measure(config: TrainConfig, stage: int, steps: int, device: torch.device) -> dict[str, float]:
    """Time `steps` steps of a stage, one after the other, after a warm-up of a whole R1 interval."""
    state = TrainingState(config, Processes(device=device))
    first = sum(s.steps for s in config.stages[:stage])
    now = plan_at(config, first)
    state.enter_stage(now.stage_index, now.stage)
    step = TrainingStep(state, config)
    size = (now.stage.batch_size, 3, now.stage.resolution, now.stage.resolution)
    real = torch.rand(size, device=device) * 2 - 1

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    before = resident_peak()
    for k in range(config.r1_every + 2):
        step(real, plan_at(config, first + k))
    synchronize()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for k in range(steps):
        started = time.perf_counter()
        step(real, plan_at(config, first + k))
        synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else resident_peak() - before
    return {
        "resolution": now.stage.resolution,
        "batch_size": now.stage.batch_size,
        "steps_per_second": steps / sum(seconds),
        "images_per_second": steps * now.stage.batch_size / sum(seconds),
        "median_ms": 1e3 * statistics.median(seconds),
        "peak_mib": peak,
    }


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--stage", type=int, default=-1, help="index of the preset's stage; default: the last")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--steps", type=int, default=40, help="steps that are timed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()

    device = choose_device(arguments.device)
    config = resolved(replace(preset(arguments.preset), batch_size=arguments.batch_size))
    figures = measure(config, range(len(config.stages))[arguments.stage], arguments.steps, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{arguments.preset} on {name}, torch {torch.__version__}, Python {platform.python_version()}")
    print("| resolution | batch | steps/s | images/s | median ms | peak MiB |\n|---|---|---|---|---|---|")
    print(
        "| {resolution}² | {batch_size} | {steps_per_second:.2f} | {images_per_second:.1f} | {median_ms:.0f} "
        "| {peak_mib:.0f} |".format(**figures)
    )
    if arguments.json:
        content = {"preset": arguments.preset, "device": name, "torch": str(torch.__version__), **figures}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
