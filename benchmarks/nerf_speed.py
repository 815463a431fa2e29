"""The NeRF branch of four 256² pictures, 12 + 12 samples, forward and backward; milliseconds an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import best_formulation
import torch
from compiling import compiled_by_torch
from figures import Result, against_compiled, result_of
from timing import Ceilings, Stopwatch, Timing, Work
from torch import Tensor

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.volume import VolumeSettings, draw_random
from cips3d.ops import Precision, kernels

# Products of a direction in those of the forward; what a backward computes anew is not asked for.
PRODUCTS = {"forward": 1, "step": 3, "backward": 2}


class Timings(NamedTuple):
    """Of a forward without gradients, of both, and of a backward through a graph that is kept."""

    forward: Timing
    step: Timing
    backward: Timing


class Volumes:
    """Rays of pictures through a volume of random weights, and gradients of all of its parameters."""

    def __init__(self, device: torch.device, width: int = 128) -> None:
        self.images, self.side = (4, 256) if device.type == "cuda" else (1, 8)
        torch.manual_seed(0)
        config = CIPS3DConfig(nerf_width=width)
        self.nerf = CIPS3D(config).nerf.to(device)
        draws = torch.Generator(device).manual_seed(0)
        self.style = torch.randn(self.images, config.shape_style_dim, generator=draws, device=device)
        poses = PoseDistribution().sample(self.images, generator=draws, device=device)
        self.rays = Cameras.from_angles(*poses).rays(self.side)
        self.settings = VolumeSettings()
        count = self.side**2
        self.draws = draw_random(self.images, count, self.settings, generator=draws, device=device)
        self.upstream = torch.randn(self.images, count, config.features, generator=draws, device=device)
        samples = 2.0 * self.settings.samples
        self.flops = 2.0 * self.images * count * samples * (width * width + width * config.nerf_color_width)

    def ours(self) -> Tensor:
        return self.nerf(self.rays, self.style, self.settings, self.draws)[0]

    def compiled(self) -> Tensor:
        """The formulation that suits a compiler best, products and activations in bfloat16."""
        render = compiled_by_torch(best_formulation.features_of_rays)
        with kernels.disabled():
            return render(self.nerf, self.rays, self.style, self.settings, self.draws, torch.bfloat16)

    def timed(self, render: Callable[[], Tensor], stopwatch: Stopwatch) -> Timings:
        trained = list(self.nerf.parameters())
        with torch.no_grad():
            forward = stopwatch(render)
        step = stopwatch(lambda: torch.autograd.grad(render(), trained, self.upstream))
        seen = render()
        backward = stopwatch(lambda: torch.autograd.grad(seen, trained, self.upstream, retain_graph=True))
        return Timings(forward, step, backward)


def nerf_256(
    stopwatch: Stopwatch, ceilings: Ceilings, name: str = "nerf", width: int = 128
) -> Iterator[tuple[str, Result]]:
    """With operands rounded to float16 and with products as accurate as float32's.

    Eager is plain PyTorch in float32, op by op.
    """
    volumes = Volumes(stopwatch.device, width)
    with kernels.disabled():
        eager = volumes.timed(volumes.ours, stopwatch)
    precisions: tuple[tuple[str, Precision, int], ...] = (("", "fast", 1), ("_accurate", "highest", 3))
    for end, precision, passes in precisions:
        volumes.nerf.precision = precision
        ours = volumes.timed(volumes.ours, stopwatch)
        for direction, products in PRODUCTS.items():
            work = Work(flops=products * volumes.flops, dtype="float16", passes=passes)
            found, plain = getattr(ours, direction), getattr(eager, direction)
            line = result_of(found, eager=plain, work=work, ceilings=ceilings, images=volumes.images)
            yield f"{name}_{direction}_256{end}", line


def compiled_nerf_256(stopwatch: Stopwatch) -> Iterator[tuple[str, Result]]:
    """With operands rounded to 16 bits, against torch.compile in bfloat16; ours is timed once more beside it."""
    volumes = Volumes(stopwatch.device)
    compiled = volumes.timed(volumes.compiled, stopwatch)
    volumes.nerf.precision = "fast"
    ours = volumes.timed(volumes.ours, stopwatch)
    for direction in PRODUCTS:
        found = getattr(ours, direction)
        line = result_of(found, images=volumes.images)
        yield f"nerf_{direction}_256", against_compiled(line, found, getattr(compiled, direction), volumes.images)
