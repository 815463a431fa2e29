"""Everything that is measured on a GPU, in one command: correctness first, then ops, rendering and training.

    python benchmarks/suite.py --json benchmarks/results/suite_h200.json

Runs the op tests on the GPU (and stops where one fails: a wrong kernel's speed is of no interest), then times every op
against eager PyTorch and torch.compile, whole 256² pictures against the published formulation, a training step at 256²
and the memory that it takes. Compiling takes longest and comes last: past `--minutes` no more is begun, and where it is
missing its column stays empty. The file is written anew after every line; what fails is noted there, and the rest goes
on.
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
from functools import partial
from pathlib import Path

import memory
import torch
from memory import fitting
from op_cases import GROUPS, inr_cases
from ops_speed import HEAD, Result, Results, compared, compile_groups, run_groups
from picture_cases import Pictures, multiply_adds
from timing import Ceilings, Stopwatch, measure_ceilings
from torch import Tensor

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.errors import UserError, exit_on_user_error
from cips3d.files import atomic_file
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.generator import View
from cips3d.models.volume import VolumeSettings, draw_random
from cips3d.ops import Precision, kernels
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


def run_tests(selection: str, seconds: float | None = None) -> None:
    """The op tests of a selection; raises UserError where one fails or they take too long."""
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-k", selection, str(ROOT / "tests" / "ops")]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    try:
        failed = subprocess.run(tests, cwd=ROOT, env=environment, timeout=seconds).returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        raise UserError(
            f"the op tests ({selection}) fail on this GPU; repair them first, or measure all the same with --no-tests"
        )


def pictures_256(device: torch.device) -> Pictures:
    """16 pictures of 256², full widths, 12 + 12 samples."""
    return Pictures(device, *((16, 256) if device.type == "cuda" else (1, 8)))


@torch.no_grad()
def render_256(stopwatch: Stopwatch, ceilings: Ceilings) -> dict[str, Result]:
    """The pictures from styles and cameras on; milliseconds an image.

    Eager is the published formulation in float32. It and other ways to compute the pictures have lines of their own
    too.
    """
    pictures = pictures_256(stopwatch.device)
    batch, side, bfloat16 = len(pictures.cameras), pictures.side, torch.bfloat16
    ways: dict[str, Callable[[], Tensor]] = {
        "": partial(pictures.ours, "fast"),
        "_accurate": partial(pictures.ours, "highest"),
        "_plain": pictures.plain,
        "_published": pictures.published,
        "_published_bf16": partial(pictures.published, dtype=bfloat16),
    }
    timings = {way: stopwatch(run) for way, run in ways.items()}
    config = pictures.generator.config
    sine_layers = 2.0 * 24 * side**2 * config.nerf_width * (config.nerf_width + config.nerf_color_width)
    others = 2.0 * multiply_adds(config, side, 12) - sine_layers
    floors = {
        "": ceilings.floor_ms(0, sine_layers + others, "float16"),
        "_accurate": ceilings.floor_ms(0, 3 * sine_layers, "float16") + ceilings.floor_ms(0, others, "float32"),
    }
    results: dict[str, Result] = {}
    for way, timing in timings.items():
        result = Result(ms=timing.ms / batch, peak_mb=timing.peak_mb)
        if way in floors:
            result = replace(compared(timing, timings["_published"], None, batch * floors[way]), ms=result.ms)
        results[f"render_256{way}"] = result
    return results


@torch.no_grad()
def compile_256(results: Results, stopwatch: Stopwatch) -> None:
    """The same pictures by torch.compile in bfloat16: the formulation that suits it best, and the published one."""
    pictures = pictures_256(stopwatch.device)
    for way, render in (("best", pictures.best), ("published", pictures.published)):
        name = f"render_256_{way}_bf16_compiled"
        with results.reporting(name):
            timing = stopwatch(partial(render, compiled=True, dtype=torch.bfloat16))
            ms = timing.ms / len(pictures.cameras)
            results.add(name, Result(ms=ms, peak_mb=timing.peak_mb))
            for ours in ("render_256", "render_256_accurate") if way == "best" else ():
                if ours in results:
                    results.add(ours, replace(results[ours], ratio_vs_compile=ms / results[ours].ms))


@torch.no_grad()
def warpgroups_256(stopwatch: Stopwatch, ceilings: Ceilings, *, tests: bool) -> dict[str, Result]:
    """The INR and whole pictures by the kernel for compute capability 9.0, which has to be asked for.

    To be held against `modulated_inr_fast_forward` and `render_256`. Its tests run first, with a limit on their time:
    where a copy goes astray, threads would wait for it for ever.
    """
    on_gpu = stopwatch.device.type == "cuda"
    if on_gpu and torch.cuda.get_device_capability(stopwatch.device) != (9, 0):
        return {}
    if on_gpu and tests:
        run_tests("cuda and warpgroups", seconds=120)
    pictures = pictures_256(stopwatch.device)
    (inr,) = (case for case in inr_cases(stopwatch.device, small=not on_gpu) if case.name == "modulated_inr_fast")
    floor = ceilings.floor_ms(inr.forward_bytes, inr.forward_flops, inr.dtype)
    os.environ["CIPS3D_WGMMA"] = "1"
    try:
        alone, whole = stopwatch(partial(inr.ours, *inr.inputs)), stopwatch(partial(pictures.ours, "fast"))
    finally:
        del os.environ["CIPS3D_WGMMA"]
    return {
        "modulated_inr_warpgroups_forward": Result(
            ms=alone.ms, fraction_of_limit=floor / alone.ms, peak_mb=alone.peak_mb
        ),
        "render_256_warpgroups": Result(ms=whole.ms / len(pictures.cameras), peak_mb=whole.peak_mb),
    }


@torch.no_grad()
def render_64(stopwatch: Stopwatch) -> dict[str, Result]:
    """One picture of 64², as small as launches are felt: launch by launch, and replayed from a CUDA graph."""
    pictures = Pictures(stopwatch.device, 1, 64 if stopwatch.device.type == "cuda" else 8)
    generator, view = pictures.generator, View(pictures.side, pictures.cameras, pictures.settings, jitter=False)
    generator.set_precision("fast")
    launched = stopwatch(partial(generator.render, pictures.styles, view))
    replayed = stopwatch(partial(generator.compiled_render(view), pictures.styles))
    return {
        "render_64": Result(ms=launched.ms, peak_mb=launched.peak_mb),
        "render_64_replayed": Result(
            ms=replayed.ms, ratio_vs_eager=launched.ms / replayed.ms, peak_mb=replayed.peak_mb
        ),
    }


def nerf_256(stopwatch: Stopwatch, ceilings: Ceilings, name: str = "nerf", width: int = 128) -> dict[str, Result]:
    """A NeRF branch of four 256² pictures, 12 + 12 samples, forward and backward; milliseconds an image.

    Both with operands rounded to float16 and with products as accurate as float32's; eager is plain PyTorch in
    float32, op by op.
    """
    on_gpu = stopwatch.device.type == "cuda"
    images, side = (4, 256) if on_gpu else (1, 8)
    torch.manual_seed(0)
    nerf = CIPS3D(CIPS3DConfig(nerf_width=width)).nerf.to(stopwatch.device)
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

    color, samples = 64, 24
    flops = 2.0 * images * side * side * samples * (width * width + width * color)
    results: dict[str, Result] = {}
    with kernels.disabled():
        plain = stopwatch(forward_alone), stopwatch(both)
    precisions: tuple[tuple[str, Precision, int], ...] = (("", "fast", 1), ("_accurate", "highest", 3))
    for way, precision, products in precisions:
        nerf.precision = precision
        ours = stopwatch(forward_alone), stopwatch(both)
        floor = ceilings.floor_ms(0, products * flops, "float16")
        # The backward has the products of the recomputed forward, of the gradients of activations and of weights.
        for direction, k, times in (("forward", 0, 1), ("step", 1, 4)):
            result = compared(ours[k], plain[k], None, times * floor)
            results[f"{name}_{direction}_256{way}"] = replace(result, ms=result.ms / images)
        backward = ours[1].ms - ours[0].ms
        results[f"{name}_backward_256{way}"] = Result(
            ms=backward / images,
            ratio_vs_eager=(plain[1].ms - plain[0].ms) / backward,
            fraction_of_limit=3 * floor / backward,
            peak_mb=ours[1].peak_mb,
        )
    return results


def train_step_256(stopwatch: Stopwatch) -> dict[str, Result]:
    """One step of the published 256² stage, batch 4, gradients through every ray, R1 every 16 steps: their mean.

    With kernels, and with every op in plain PyTorch.
    """
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
    ours = few(interval)
    results = {"train_step_256": Result(ms=ours.ms / config.r1_every, peak_mb=ours.peak_mb)}
    with kernels.disabled():
        plain = fitting("train_step_256_plain", few, interval)
    if plain is not None:
        results["train_step_256"] = replace(results["train_step_256"], ratio_vs_eager=plain.ms / ours.ms)
        results["train_step_256_plain"] = Result(ms=plain.ms / config.r1_every, peak_mb=plain.peak_mb)
    return results


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
        run_tests("cuda and not warpgroups")

    stopwatch = Stopwatch(device, repeats=arguments.repeats)
    ceilings = measure_ceilings(stopwatch)
    print(HEAD, flush=True)
    about = {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "driver": driver() if on_gpu else None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        "commit": arguments.commit or commit(),
        "ceilings": asdict(ceilings),
    }

    def keep(results: Results) -> None:
        if arguments.json:
            lines = {name: asdict(result) for name, result in results.items()}
            record = about | {"results": lines, "failures": results.failures}
            with atomic_file(arguments.json) as file:
                file.write((json.dumps(record, indent=2) + "\n").encode())

    results = Results(keep)
    for name, measure in {
        "nerf_256": partial(nerf_256, stopwatch, ceilings),
        "nerf_wide_256": partial(nerf_256, stopwatch, ceilings, "nerf_wide", 256),
        "render_256": partial(render_256, stopwatch, ceilings),
        "render_64": partial(render_64, stopwatch),
        "train_step_256": partial(train_step_256, stopwatch),
        "generator_step_256": partial(memory.training, stopwatch),
        "picture": partial(memory.rendering, stopwatch),
    }.items():
        with results.reporting(name):
            for line, result in measure().items():
                results.add(line, result)
    run_groups(list(GROUPS), results, stopwatch, ceilings, small=not on_gpu)
    until = started + 60 * arguments.minutes
    if not arguments.no_compile and time.monotonic() < until:
        with results.reporting("render_256, compiled"):
            compile_256(results, stopwatch)
        compile_groups(list(GROUPS), results, stopwatch, small=not on_gpu, until=until)
    with results.reporting("warpgroups_256"):
        for line, result in warpgroups_256(stopwatch, ceilings, tests=not arguments.no_tests).items():
            results.add(line, result)
    print(f"{time.monotonic() - started:.0f} s")
    for name, why in results.failures.items():
        print(f"{name} failed: {why}", file=sys.stderr)
    return 1 if results.failures else 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
