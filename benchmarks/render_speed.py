"""Pictures a second and peak memory of the full generator, random weights, without gradients.

    python benchmarks/render_speed.py                                   # on the GPU where there is one
    python benchmarks/render_speed.py --device cuda --resolutions 256 --json benchmarks/results/render_speed_h200.json
    python benchmarks/render_speed.py --device cpu                      # 64², 128², 256², one picture at a time

On a GPU, in one run and for every resolution: ours from styles and cameras on, with "fast" and with "highest" products,
against the published formulation in eager float32 and against torch.compile on the best formulation in bfloat16, which
takes minutes a resolution (`--no-compile`). Medians of warm runs, L2 flushed; "of limit" is the time of a picture's
matrix products at the rate of a large one over the time it took.

On a CPU, float32, ours and the published formulation in turn, each in a process of its own, best and median of
`--repeats` pictures. Machines are not equally quick and not always quiet: "products" is how long the matrix products of
a picture alone would take at the rate at which a loop of 512 x 512 products ran right before and after; the last column
is best / products. Peak memory is the growth of the process's resident set over the state after building the model.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from conditions import about, described, keeping, prepared_device
from figures import PICTURE_HEAD, Results, picture_row
from picture_cases import Pictures, multiply_adds
from picture_speed import compiled_picture_lines, picture_lines
from published_formulation import render as render_as_published
from timing import Stopwatch, measure_ceilings, resident_peak

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.errors import UserError
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.ray_parts import default_chunk_rays
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings, draw_random
from cips3d.process.ending import exit_on_user_error
from cips3d.process.versions import processor

WARM_UP = 2  # pictures before the first that is timed
PRODUCT_REPEATS = 20


@dataclass(frozen=True)
class Setting:
    """What one process measures on a CPU."""

    resolution: int
    batch_size: int
    samples: int
    threads: int
    repeats: int
    published: bool
    """in the published formulation, or ours"""


@dataclass(frozen=True)
class Figures:
    """What it found; times of one picture, in milliseconds."""

    resolution: int
    published: bool
    best_ms: float
    median_ms: float
    products_ms: float
    peak_mib: float


def seconds_of(run: Callable[[], object]) -> float:
    """Duration of one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def seconds_per_multiply_add(config: CIPS3DConfig) -> float:
    """The best rate of products as large as one layer on one chunk of pixels."""
    rows, width = default_chunk_rays(torch.device("cpu")), config.inr_width
    pixels, weight = torch.randn(rows, width), torch.randn(width, width)
    product = torch.empty_like(pixels)

    def multiply() -> None:
        torch.mm(pixels, weight, out=product)

    multiply()
    return min(seconds_of(multiply) for _ in range(PRODUCT_REPEATS)) / (rows * width * width)


@torch.no_grad()
def measure(setting: Setting) -> Figures:
    """Render a batch of pictures several times; to be called in a fresh process."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    generator = CIPS3D().eval()
    draws = torch.Generator().manual_seed(0)
    z = generator.sample_z(setting.batch_size, generator=draws)
    pitch, yaw = PoseDistribution().sample(setting.batch_size, generator=draws)
    cameras, volume = Cameras.from_angles(pitch, yaw), VolumeSettings(setting.samples)
    before = resident_peak()

    def render() -> None:
        if not setting.published:
            generator(*z, view=View(setting.resolution, cameras, volume, generator=draws))
            return
        rays = cameras.rays(setting.resolution)
        batch, count, _ = rays.origins.shape
        random = draw_random(batch, count, volume, generator=draws)
        render_as_published(generator, generator.mapping(*z), rays, volume, random)

    product = seconds_per_multiply_add(generator.config)
    for _ in range(WARM_UP):
        render()
    seconds = [seconds_of(render) for _ in range(setting.repeats)]
    peak = resident_peak() - before
    product = min(product, seconds_per_multiply_add(generator.config))
    return Figures(
        resolution=setting.resolution,
        published=setting.published,
        best_ms=1e3 * min(seconds) / setting.batch_size,
        median_ms=1e3 * statistics.median(seconds) / setting.batch_size,
        products_ms=1e3 * product * multiply_adds(generator.config, setting.resolution, setting.samples),
        peak_mib=peak,
    )


def in_fresh_process(setting: Setting) -> Figures:
    """`measure`, undisturbed by what other measurements left in memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, setting).result()


def table(figures: list[Figures]) -> str:
    """Markdown."""
    head = "| resolution | formulation | images/s | ms, best | median | products, ms | peak MiB | best / products |"
    rows = [
        f"| {f.resolution}² | {'published' if f.published else 'ours'} | {1e3 / f.best_ms:.3g} | {f.best_ms:.4g} "
        f"| {f.median_ms:.4g} | {f.products_ms:.4g} | {f.peak_mib:.0f} | {f.best_ms / f.products_ms:.2f} |"
        for f in figures
    ]
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows])


def command_on_cpu(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(arguments.threads)
    name = processor()
    print(f"{name}; torch {torch.__version__}, Python {platform.python_version()}")
    print(f"batch size {arguments.batch_size}, {arguments.samples} + {arguments.samples} samples a ray, float32")
    figures = [
        in_fresh_process(
            Setting(
                resolution,
                arguments.batch_size,
                arguments.samples,
                arguments.threads,
                arguments.repeats,
                published,
            )
        )
        for resolution in arguments.resolutions
        for published in (False, True)
    ]
    print(table(figures))
    if arguments.json:
        content = {
            "machine": name,
            "torch": str(torch.__version__),
            "batch_size": arguments.batch_size,
            "samples": arguments.samples,
            "figures": [asdict(f) for f in figures],
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


def compare(device: torch.device, arguments: argparse.Namespace, config: CIPS3DConfig | None = None) -> int:
    """Every way to compute the pictures, as on a GPU."""
    stopwatch = Stopwatch(device, repeats=arguments.repeats)
    ceilings = measure_ceilings(stopwatch)
    sizes = {"batch_size": arguments.batch_size, "samples": arguments.samples}
    results = Results(keeping(arguments.json, about(device, ceilings) | sizes), picture_row)
    print(
        f"{described(ceilings)}\nbatch size {arguments.batch_size}, {arguments.samples} + {arguments.samples} samples"
    )
    print(PICTURE_HEAD, flush=True)
    for resolution in arguments.resolutions:
        name = f"render_{resolution}"
        with results.reporting(name):
            pictures = Pictures(device, arguments.batch_size, resolution, arguments.samples, config)
            for line, result in picture_lines(pictures, stopwatch, ceilings, name, others=False):
                results.add(line, result)
            if not arguments.no_compile:
                for line, result in compiled_picture_lines(pictures, stopwatch, ceilings, name, "best"):
                    results.compared(line, result)
        torch.compiler.reset()
        torch.cuda.empty_cache()
    return 1 if results.failures else 0


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[64, 128, 256], metavar="PIXELS")
    parser.add_argument("--batch-size", type=int, help="default: 16 on a GPU, 1 on a CPU")
    parser.add_argument("--samples", type=int, default=12, help="coarse samples a ray, and as many fine ones")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--repeats", type=int, help="runs that are timed; default: 20 on a GPU, 5 on a CPU")
    parser.add_argument("--no-compile", action="store_true", help="on a GPU: leave torch.compile out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    device = prepared_device(arguments.device)
    on_gpu = device.type == "cuda"
    for name, default in (("batch_size", 16 if on_gpu else 1), ("repeats", 20 if on_gpu else 5)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    for name in ("batch_size", "samples", "threads", "repeats"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if min(arguments.resolutions) < 1:
        raise UserError(f"--resolutions must be at least 1, got {min(arguments.resolutions)}")
    return compare(device, arguments) if on_gpu else command_on_cpu(arguments)


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
