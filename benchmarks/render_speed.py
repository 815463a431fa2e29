"""Pictures a second and peak memory of the full generator, random weights, float32, without gradients.

    python benchmarks/render_speed.py                                      # 64², 128², 256², one picture at a time
    python benchmarks/render_speed.py --device cuda --resolutions 256 --batch-size 4 --json speed.json

Each resolution is measured in a process of its own. Times of a CPU are best and median of `--repeats` pictures, those
of a GPU are between CUDA events. Machines are not equally quick and not always quiet: "products" is how long the
matrix products of a picture alone would take at the rate at which a loop of 512 x 512 products ran right before and
after; the last column is best / products. Peak memory is the growth of the process's resident set over the state
after building the model (CPU), or what torch allocated at most, weights included (GPU).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from picture_cases import multiply_adds
from published_formulation import render as render_as_published

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.errors import UserError, exit_on_user_error
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig, default_chunk_rays
from cips3d.models.volume import VolumeSettings, draw_random
from cips3d.training.distributed import choose_device

MIB = 2**20
WARM_UP = 2  # pictures before the first that is timed
PRODUCT_REPEATS = 20


@dataclass(frozen=True)
class Setting:
    """What one process measures."""

    device: str
    resolution: int
    batch_size: int
    samples: int
    threads: int
    repeats: int
    published: bool = False
    """in the published formulation"""


@dataclass(frozen=True)
class Figures:
    """What it found; times of one picture, in milliseconds."""

    resolution: int
    best_ms: float
    median_ms: float
    products_ms: float
    peak_mib: float


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Duration of one run."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def seconds_per_multiply_add(config: CIPS3DConfig, device: torch.device) -> float:
    """The best rate of products as large as one layer on one chunk of pixels."""
    rows, width = default_chunk_rays(device), config.inr_width
    pixels, weight = torch.randn(rows, width, device=device), torch.randn(width, width, device=device)
    product = torch.empty_like(pixels)

    def multiply() -> None:
        torch.mm(pixels, weight, out=product)

    multiply()
    return min(seconds_of(multiply, device) for _ in range(PRODUCT_REPEATS)) / (rows * width * width)


def resident_peak() -> float:
    """Largest resident set of this process so far, MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def measure(setting: Setting) -> Figures:
    """Render a batch of pictures several times; to be called in a fresh process."""
    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device)
    torch.manual_seed(0)
    generator = CIPS3D().eval().to(device)
    draws = torch.Generator(device).manual_seed(0)
    z = generator.sample_z(setting.batch_size, generator=draws)
    pitch, yaw = PoseDistribution().sample(setting.batch_size, generator=draws, device=device)
    cameras = Cameras.from_angles(pitch, yaw)
    before = resident_peak()

    def render() -> None:
        if not setting.published:
            generator(*z, cameras, resolution=setting.resolution, samples=setting.samples, generator=draws)
            return
        volume, rays = VolumeSettings(setting.samples), cameras.rays(setting.resolution)
        batch, count, _ = rays.origins.shape
        random = draw_random(batch, count, volume, generator=draws, device=device)
        render_as_published(generator, generator.mapping(*z), rays, volume, random)

    product = seconds_per_multiply_add(generator.config, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(WARM_UP):
        render()
    seconds = [seconds_of(render, device) for _ in range(setting.repeats)]
    peak = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else resident_peak() - before
    product = min(product, seconds_per_multiply_add(generator.config, device))
    return Figures(
        resolution=setting.resolution,
        best_ms=1e3 * min(seconds) / setting.batch_size,
        median_ms=1e3 * statistics.median(seconds) / setting.batch_size,
        products_ms=1e3 * product * multiply_adds(generator.config, setting.resolution, setting.samples),
        peak_mib=peak,
    )


def in_fresh_process(setting: Setting) -> Figures:
    """`measure`, undisturbed by what other measurements left in memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, setting).result()


def machine(device: torch.device, threads: int) -> str:
    """The device, as people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.split(":")[1].strip() for line in _cpu_description() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {threads} threads"


def _cpu_description() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def table(figures: list[Figures]) -> str:
    """Markdown."""
    head = "| resolution | images/s | ms/image, best | median | products, ms | peak MiB | best / products |"
    rows = [
        f"| {f.resolution}² | {1e3 / f.best_ms:.3g} | {f.best_ms:.4g} | {f.median_ms:.4g} | {f.products_ms:.4g} "
        f"| {f.peak_mib:.0f} | {f.best_ms / f.products_ms:.2f} |"
        for f in figures
    ]
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows])


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[64, 128, 256], metavar="PIXELS")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--samples", type=int, default=12, help="coarse samples a ray, and as many fine ones")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="pictures that are timed")
    parser.add_argument("--published", action="store_true", help="in the published formulation, plain PyTorch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    for name in ("batch_size", "samples", "threads", "repeats"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if min(arguments.resolutions) < 1:
        raise UserError(f"--resolutions must be at least 1, got {min(arguments.resolutions)}")

    device = choose_device(arguments.device)
    name = machine(device, arguments.threads)
    print(f"{name}; torch {torch.__version__}, Python {platform.python_version()}")
    formulation = ", published formulation" if arguments.published else ""
    print(
        f"batch size {arguments.batch_size}, {arguments.samples} + {arguments.samples} samples a ray, float32"
        f"{formulation}"
    )
    figures = [
        in_fresh_process(
            Setting(
                str(device),
                resolution,
                arguments.batch_size,
                arguments.samples,
                arguments.threads,
                arguments.repeats,
                arguments.published,
            )
        )
        for resolution in arguments.resolutions
    ]
    print(table(figures))
    if arguments.json:
        content = {
            "machine": name,
            "torch": str(torch.__version__),
            "batch_size": arguments.batch_size,
            "samples": arguments.samples,
            "published": arguments.published,
            "figures": [asdict(f) for f in figures],
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
