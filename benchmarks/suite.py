"""Everything that is measured on a GPU, in one command: correctness first, then ops, rendering and training.

    python benchmarks/suite.py --json benchmarks/results/suite_h200.json

Runs the op tests on the GPU (and stops where one fails: a wrong kernel's speed is of no interest), then times every op
against eager PyTorch and torch.compile, a whole 256² picture and a training step at 256². Under 8 minutes: past
`--minutes`, torch.compile is left out and its column stays empty.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from op_cases import GROUPS
from ops_speed import HEAD, Result, compared, row, run_groups
from timing import Ceilings, Stopwatch, measure_ceilings
from torch import Tensor

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.errors import UserError, exit_on_user_error
from cips3d.files import atomic_file
from cips3d.models.cips3d import CIPS3D
from cips3d.models.volume import VolumeSettings, draw_random
from cips3d.ops import kernels
from cips3d.training.config import settled
from cips3d.training.distributed import Processes, choose_device
from cips3d.training.presets import preset
from cips3d.training.schedule import moment
from cips3d.training.state import TrainingState
from cips3d.training.step import TrainingStep

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str | None:
    """The checked-out commit, with "+changes" where files differ from it; None outside of a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "--", "csrc") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def driver() -> str | None:
    """The GPU driver's version, or None where nvidia-smi cannot tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def run_tests() -> None:
    """The op tests that use the GPU; raises UserError where one fails."""
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "cuda", str(ROOT / "tests" / "ops")]
    if subprocess.run(tests, cwd=ROOT, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}).returncode != 0:
        raise UserError("the op tests fail on this GPU; repair them first, or pass --no-tests to measure all the same")


def with_and_without_kernels(run: Callable[[], object], stopwatch: Stopwatch, floor_ms: float | None) -> Result:
    """A whole computation with kernels, and with every op in plain PyTorch."""
    ours = stopwatch(run)
    with kernels.disabled():
        plain = stopwatch(run)
    result = compared(ours, plain, None, floor_ms or 0.0)
    return result if floor_ms is not None else replace(result, fraction_of_limit=None)


def render_256(stopwatch: Stopwatch) -> Result:
    """One 256² picture out of a batch of 16, full widths, 12 + 12 samples; milliseconds an image."""
    batch = 16 if stopwatch.device.type == "cuda" else 1
    side = 256 if stopwatch.device.type == "cuda" else 16
    torch.manual_seed(0)
    generator = CIPS3D().eval().to(stopwatch.device)
    draws = torch.Generator(stopwatch.device).manual_seed(0)
    z = generator.sample_z(batch, generator=draws)
    pitch, yaw = PoseDistribution().sample(batch, generator=draws, device=stopwatch.device)
    cameras = Cameras.from_angles(pitch, yaw)

    @torch.no_grad()
    def render() -> object:
        return generator(*z, cameras, resolution=side, samples=12, generator=draws)

    result = with_and_without_kernels(render, stopwatch, None)
    return replace(result, ms=result.ms / batch)


def nerf_256(stopwatch: Stopwatch, ceilings: Ceilings) -> dict[str, Result]:
    """The NeRF branch of four 256² pictures, 12 + 12 samples, forward and backward; milliseconds an image.

    Both with operands rounded to float16 and with products as accurate as float32's; eager is plain PyTorch in
    float32, op by op.
    """
    on_gpu = stopwatch.device.type == "cuda"
    images, side = (4, 256) if on_gpu else (1, 8)
    torch.manual_seed(0)
    nerf = CIPS3D().nerf.to(stopwatch.device)
    draws = torch.Generator(stopwatch.device).manual_seed(0)
    style = torch.randn(images, 128, generator=draws, device=stopwatch.device)
    rays = Cameras.from_angles(*PoseDistribution().sample(images, generator=draws, device=stopwatch.device)).rays(side)
    settings = VolumeSettings()
    random = draw_random(images, side * side, settings, generator=draws, device=stopwatch.device)
    upstream = torch.randn(images, side * side, 32, generator=draws, device=stopwatch.device)

    def forward() -> Tensor:
        return nerf(rays, style, settings, random)[0]

    def forward_alone() -> None:
        with torch.no_grad():
            forward()

    def both() -> None:
        torch.autograd.grad(forward(), list(nerf.parameters()), upstream)

    width, color, samples = 128, 64, 24
    flops = 2.0 * images * side * side * samples * (width * width + width * color)
    results: dict[str, Result] = {}
    with kernels.disabled():
        plain = stopwatch(forward_alone), stopwatch(both)
    for name, operands, products in (("", torch.float16, 1), ("_accurate", None, 3)):
        nerf.autocast_dtype = operands
        ours = stopwatch(forward_alone), stopwatch(both)
        floor = ceilings.floor_ms(0, products * flops, "float16")
        # The backward has the products of the recomputed forward, of the gradients of activations and of weights.
        for direction, k, times in (("forward", 0, 1), ("step", 1, 4)):
            result = compared(ours[k], plain[k], None, times * floor)
            results[f"nerf_{direction}_256{name}"] = replace(result, ms=result.ms / images)
        backward = ours[1].ms - ours[0].ms
        results[f"nerf_backward_256{name}"] = Result(
            ms=backward / images,
            ratio_vs_eager=(plain[1].ms - plain[0].ms) / backward,
            fraction_of_limit=3 * floor / backward,
            peak_mb=ours[1].peak_mb,
        )
    return results


def train_step_256(stopwatch: Stopwatch) -> Result:
    """One step of the published 256² stage, batch 4, gradients through every ray, R1 every 16 steps: their mean."""
    on_gpu = stopwatch.device.type == "cuda"
    config = settled(replace(preset("ffhq"), batch_size=4))
    stage = replace(config.stages[-1], freeze_nerf=False, grad_points=None)
    if not on_gpu:
        stage = replace(stage, resolution=8)
    config = replace(config, stages=(stage,), r1_every=16 if on_gpu else 2)
    state = TrainingState(config, Processes(device=stopwatch.device))
    now = moment(config, 0)
    state.enter_stage(now.stage_index, now.stage)
    step = TrainingStep(state, config)
    real = torch.rand(stage.batch_size, 3, stage.resolution, stage.resolution, device=stopwatch.device) * 2 - 1

    def interval() -> None:
        for k in range(config.r1_every):
            step(real, moment(config, k))

    few = Stopwatch(stopwatch.device, repeats=3, warm_up=1)
    result = with_and_without_kernels(interval, few, None)
    return replace(result, ms=result.ms / config.r1_every)


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda, cuda:N, auto, or cpu to see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--minutes", type=float, default=6, help="after these, torch.compile is left out")
    parser.add_argument("--repeats", type=int, default=20, help="runs of every op that are timed")
    parser.add_argument("--no-tests", action="store_true", help="measure without testing first")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--commit", help="written into the record; default: asked of git")
    arguments = parser.parse_args()
    started = time.monotonic()
    device = choose_device(arguments.device)
    on_gpu = device.type == "cuda"
    if on_gpu and not arguments.no_tests:
        run_tests()

    stopwatch = Stopwatch(device, repeats=arguments.repeats)
    ceilings = measure_ceilings(stopwatch)
    print(HEAD, flush=True)
    results: dict[str, Result] = {}
    results |= nerf_256(stopwatch, ceilings)
    results["render_256"] = render_256(stopwatch)
    results["train_step_256"] = train_step_256(stopwatch)
    for name, result in results.items():
        print(row(name, result), flush=True)
    results |= run_groups(
        list(GROUPS),
        stopwatch,
        ceilings,
        small=not on_gpu,
        compile=not arguments.no_compile,
        compile_until=started + 60 * arguments.minutes,
    )
    if arguments.json:
        record = {
            "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
            "driver": driver() if on_gpu else None,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
            "commit": arguments.commit or commit(),
            "ceilings": asdict(ceilings),
            "results": {name: asdict(result) for name, result in results.items()},
        }
        with atomic_file(arguments.json) as file:
            file.write((json.dumps(record, indent=2) + "\n").encode())
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
