"""Instructions that the kernels execute, counted on a CPU by running what nvcc makes of them.

    python benchmarks/instructions.py                       # for compute capability 9.0
    python benchmarks/instructions.py --only render_rays --lines 20

Every case runs at two sizes, and what the larger one takes more is divided by what it has more of: a launch's own costs
drop out. Columns: instructions of a warp a unit (of PTX; ptxas makes about as many of them); wavefronts of shared
memory over the least they could be, 1 without bank conflicts; bytes of global memory that are asked of the first cache,
in sectors of 32. Needs nvcc and g++.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from cips3d.cameras import Cameras, Rays
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.volume import VolumeSettings, draw_random
from cips3d.ops import Precision, composite, film_siren, importance_depths, kernels, stratified_points
from cips3d.ops.bias_leaky_relu import bias_leaky_relu
from cips3d.ops.upfirdn2d import binomial_kernel, upfirdn2d
from cips3d.process.ending import exit_on_user_error

Counts = Counter[tuple[str, str, str]]  # by kernel, source line and what


@dataclass(frozen=True)
class Case:
    """Something to run, with gradients if its output requires them."""

    name: str
    unit: str
    size: int
    """units of the smaller run; the larger one has twice as many"""
    make: Callable[[int], Callable[[], Tensor]]
    """a run of so many units"""


def rays_through_volume(precision: Precision) -> Callable[[int], Callable[[], Tensor]]:
    """CIPS-3D's NeRF branch, 12 + 12 samples; a unit is one of them."""

    def make(samples: int) -> Callable[[], Tensor]:
        config, settings, count = CIPS3DConfig(), VolumeSettings(), samples // 24
        generator = CIPS3D(config)
        generator.set_precision(precision)
        rays = Rays(*(x[:, :count] for x in Cameras.from_angles(*torch.full((2, 1), 1.5)).rays(64)))
        style, draws = torch.randn(1, config.shape_style_dim), draw_random(1, count, settings)
        return lambda: generator.nerf(rays, style, settings, draws)[0]

    return make


def film_siren_layer(precision: Precision) -> Callable[[int], Callable[[], Tensor]]:
    def make(points: int) -> Callable[[], Tensor]:
        x, weight = torch.rand(1, points, 128, requires_grad=True), torch.rand(128, 128, requires_grad=True)
        rest = torch.zeros(128), torch.full((1, 128), 30.0), torch.zeros(1, 128)
        return lambda: film_siren(x, weight, *rest, precision=precision)

    return make


def composited(rays: int) -> Callable[[], Tensor]:
    density, features = torch.rand(1, rays, 24, requires_grad=True), torch.rand(1, rays, 24, 64, requires_grad=True)
    depths = torch.linspace(0.88, 1.12, 24).expand(1, rays, 24).contiguous()
    return lambda: composite(density, features, depths)[0]


def importance(rays: int) -> Callable[[], Tensor]:
    depths = torch.linspace(0.88, 1.12, 12).expand(1, rays, 12).contiguous()
    weights, draws = torch.rand(1, rays, 12), torch.rand(1, rays, 12)
    return lambda: importance_depths(depths, weights, draws)[0]


def stratified(rays: int) -> Callable[[], Tensor]:
    origins, directions = (torch.rand(1, rays, 3, requires_grad=True) for _ in range(2))
    draws = torch.rand(1, rays, 12)
    return lambda: stratified_points(origins, directions, draws, 0.88, 1.12)[1]


def activated(pixels: int) -> Callable[[], Tensor]:
    x, bias = torch.rand(1, 4, pixels // 512, 128, requires_grad=True), torch.rand(4, requires_grad=True)
    return lambda: bias_leaky_relu(x, bias)


def blurred(pixels: int) -> Callable[[], Tensor]:
    x = torch.rand(pixels // 16384, 1, 128, 128, requires_grad=True)
    return lambda: upfirdn2d(x, binomial_kernel(), padding=(2, 1))


CASES = (
    Case("render_rays_fast", "sample", 6144, rays_through_volume("fast")),
    Case("render_rays_accurate", "sample", 6144, rays_through_volume("highest")),
    Case("film_siren_fast", "point", 8192, film_siren_layer("fast")),
    Case("film_siren", "point", 8192, film_siren_layer("highest")),
    Case("composite", "ray", 4096, composited),
    Case("importance", "ray", 4096, importance),
    Case("stratified", "ray", 4096, stratified),
    Case("bias_leaky_relu", "number", 1 << 18, activated),
    Case("upfirdn2d_blur", "number", 1 << 17, blurred),
)


def counting_module(architecture: str) -> ModuleType:
    """The kernels' PTX, which counts what it executes."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import emulated_kernels  # type: ignore[import-not-found]

    os.environ["CIPS3D_PTX"] = architecture
    module: ModuleType = emulated_kernels.load()
    module.count_ptx()
    return module


def counts_of(module: ModuleType) -> Counts:
    """What was counted since this was asked last."""
    counts: Counts = Counter()
    for kernel, line, opcode, runs, transfers, least in module.counted_ptx():
        counts[kernel, line, "instructions"] += runs
        if ".shared" in opcode and not opcode.startswith("cp.async.cg"):
            counts[kernel, line, "wavefronts"] += transfers
            counts[kernel, line, "least"] += least
        elif transfers:
            counts[kernel, line, "bytes"] += 32 * transfers
    return counts


def measured(module: ModuleType, case: Case) -> Iterator[tuple[str, Counts]]:
    """A direction, and what it takes a unit."""
    found: dict[str, list[Counts]] = {"forward": [], "backward": []}
    for size in (case.size, 2 * case.size):
        torch.manual_seed(0)
        run = case.make(size)
        counts_of(module)
        output = run()
        found["forward"].append(counts_of(module))
        if output.requires_grad:
            output.backward(torch.randn_like(output))
            found["backward"].append(counts_of(module))
    for direction, of_sizes in found.items():
        if of_sizes:
            smaller, larger = of_sizes
            yield direction, Counter({key: larger[key] - smaller[key] for key in larger})


def kernel_names(counts: Counts) -> dict[str, str]:
    """Mangled names, and what they mean without template arguments and namespaces."""
    mangled = sorted({kernel for kernel, _, _ in counts})
    read = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    return {m: re.findall(r"(\w+)(?:<.*)?\(", name)[0] for m, name in zip(mangled, read.splitlines(), strict=True)}


def report(case: Case, direction: str, counts: Counts, lines: int) -> None:
    for mangled, name in kernel_names(counts).items():
        total: Counter[str] = Counter()
        of_line: Counter[str] = Counter()
        for (kernel, line, what), count in counts.items():
            if kernel == mangled:
                total[what] += count
                of_line[line] += count if what == "instructions" else 0
        instructions = total["instructions"] / case.size
        if instructions < 0.01:
            continue
        conflicts = f"{total['wavefronts'] / total['least']:.2f}" if total["least"] > 0 else "-"
        columns = f"{instructions:10.2f} {conflicts:>11} {total['bytes'] / case.size:10.1f}"
        print(f"{case.name:22} {direction:9} {case.unit:7} {columns}  {name}", flush=True)
        for line, count in of_line.most_common(lines):
            print(f"{count / case.size:50.2f}  {line}")


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="90", help="80, 90, 100 or 120 (default: 90)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--lines", type=int, default=0, help="lines of the source to list of every kernel (default: 0)")
    arguments = parser.parse_args()
    module = counting_module(arguments.architecture)
    print(f"{'':22} {'':9} {'a':7} {'PTX':>10} {'wavefronts':>11} {'bytes':>10}")
    with kernels.emulation(module):
        for case in CASES:
            if arguments.only in case.name:
                for direction, counts in measured(module, case):
                    report(case, direction, counts, arguments.lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
