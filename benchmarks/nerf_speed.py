"""Volumes alone, CIPS-3D's and pi-GAN's, 12 + 12 samples, forward and backward; milliseconds an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import best_formulation
import torch
from compiling import compiled_by_torch
from figures import Result, against_compiled, relative_l2, result_of
from timing import Ceilings, Stopwatch, Timing, Work
from torch import Tensor

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.pigan import PiGAN, PiGANConfig, PiGANStyles
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings, draw_random
from cips3d.ops import Precision, kernels
from cips3d.ops.march import RayDraws

# Products of a direction in those of the forward; what a backward computes anew is not asked for.
PRODUCTS = {"forward": 1, "step": 3, "backward": 2}


class Timings(NamedTuple):
    """Of a forward without gradients, of both, and of a backward through a graph that is kept."""

    forward: Timing
    step: Timing
    backward: Timing


class Volumes(ABC):
    """Rays through a volume of random weights, and gradients of all that it is made of."""

    images: int
    flops: float
    """of the forward's products"""
    upstream: Tensor
    """gradient of what is rendered"""

    @abstractmethod
    def trained(self) -> list[Tensor]:
        """What gradients are asked for."""

    @abstractmethod
    def ours(self) -> Tensor:
        """What a ray sees."""

    @abstractmethod
    def set_precision(self, precision: Precision) -> None: ...

    def seen(self) -> list[Tensor]:
        """What a ray sees, and the gradients."""
        seen = self.ours()
        return [seen.detach(), *torch.autograd.grad(seen, self.trained(), self.upstream)]

    def timed(self, render: Callable[[], Tensor], stopwatch: Stopwatch) -> Timings:
        return Timings(**dict(self.timed_one_by_one(render, stopwatch)))

    def timed_one_by_one(self, render: Callable[[], Tensor], stopwatch: Stopwatch) -> Iterator[tuple[str, Timing]]:
        """The fields of `Timings`, with their names."""
        trained = self.trained()
        with torch.no_grad():
            forward = stopwatch(render)
        yield "forward", forward
        yield "step", stopwatch(lambda: torch.autograd.grad(render(), trained, self.upstream))
        seen = render()
        yield "backward", stopwatch(lambda: torch.autograd.grad(seen, trained, self.upstream, retain_graph=True))


class CIPS3DVolumes(Volumes):
    """Four 256² pictures of CIPS-3D's NeRF branch."""

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

    def trained(self) -> list[Tensor]:
        return list(self.nerf.parameters())

    def ours(self) -> Tensor:
        return self.nerf(self.rays, self.style, self.settings, self.draws)[0]

    def set_precision(self, precision: Precision) -> None:
        self.nerf.precision = precision

    def compiled(self) -> Tensor:
        """The formulation that suits a compiler best, products and activations in bfloat16."""
        render = compiled_by_torch(best_formulation.features_of_rays)
        with kernels.disabled():
            return render(self.nerf, self.rays, self.style, self.settings, self.draws, torch.bfloat16)


class PiGANVolumes(Volumes):
    """Eight 64² pictures of pi-GAN, which are nothing but its volume; styles have gradients too."""

    def __init__(self, device: torch.device, config: PiGANConfig | None = None) -> None:
        self.images, self.side = (8, 64) if device.type == "cuda" else (1, 4)
        torch.manual_seed(0)
        self.generator = PiGAN(config).to(device)
        draws = torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            styles = self.generator.mapping(*self.generator.sample_z(self.images, generator=draws))
        self.styles = PiGANStyles(*(style.requires_grad_() for style in styles))
        self.cameras = Cameras.from_angles(*PoseDistribution().sample(self.images, generator=draws, device=device))
        self.settings = VolumeSettings()
        self.uniform = torch.rand(self.images, self.side**2, self.settings.samples, generator=draws, device=device)
        self.upstream = torch.randn(self.images, 3, self.side, self.side, generator=draws, device=device)
        layers, width = self.generator.config.layers, self.generator.config.width
        products = (layers - 1) * width * width + (3 + width) * width
        self.flops = 2.0 * self.images * self.side**2 * 2.0 * self.settings.samples * products

    def trained(self) -> list[Tensor]:
        return [*self.generator.nerf.parameters(), *self.styles]

    def ours(self) -> Tensor:
        view = View(self.side, self.cameras, self.settings)
        return self.generator.synthesis(self.styles, view, draws=RayDraws(self.uniform, self.uniform)).image

    def set_precision(self, precision: Precision) -> None:
        self.generator.set_precision(precision)


def nerf_lines(
    volumes: Volumes, stopwatch: Stopwatch, ceilings: Ceilings, name: str, resolution: int
) -> Iterator[tuple[str, Result]]:
    """With operands rounded to float16 and with products as accurate as float32's.

    Eager is plain PyTorch in float32, op by op.
    """
    with kernels.disabled():
        eager = volumes.timed(volumes.ours, stopwatch)
        expected = volumes.seen()
    precisions: tuple[tuple[str, Precision, int], ...] = (("", "fast", 1), ("_accurate", "highest", 3))
    for end, precision, passes in precisions:
        volumes.set_precision(precision)
        ours = volumes.timed(volumes.ours, stopwatch)
        image, *gradients = volumes.seen()
        of_image, of_gradients = relative_l2([image], expected[:1]), relative_l2(gradients, expected[1:])
        for direction, products in PRODUCTS.items():
            work = Work(flops=products * volumes.flops, dtype="float16", passes=passes)
            found, plain = getattr(ours, direction), getattr(eager, direction)
            line = result_of(
                found,
                eager=plain,
                work=work,
                ceilings=ceilings,
                images=volumes.images,
                difference=of_image if direction == "forward" else of_gradients,
            )
            yield f"{name}_{direction}_{resolution}{end}", line


def nerf_256(
    stopwatch: Stopwatch, ceilings: Ceilings, name: str = "nerf", width: int = 128
) -> Iterator[tuple[str, Result]]:
    """CIPS-3D's NeRF branch."""
    yield from nerf_lines(CIPS3DVolumes(stopwatch.device, width), stopwatch, ceilings, name, 256)


def pigan_64(
    stopwatch: Stopwatch, ceilings: Ceilings, config: PiGANConfig | None = None
) -> Iterator[tuple[str, Result]]:
    """pi-GAN's pictures."""
    yield from nerf_lines(PiGANVolumes(stopwatch.device, config), stopwatch, ceilings, "pigan", 64)


def compiled_nerf_256(stopwatch: Stopwatch) -> Iterator[tuple[str, Result]]:
    """With operands rounded to 16 bits, against torch.compile in bfloat16; ours is timed once more beside it.

    Each line as soon as it is there: compiling the gradients may take more time than there is.
    """
    volumes = CIPS3DVolumes(stopwatch.device)
    volumes.set_precision("fast")
    both = [volumes.timed_one_by_one(render, stopwatch) for render in (volumes.compiled, volumes.ours)]
    for (direction, compiled), (_, ours) in zip(*both, strict=True):
        line = result_of(ours, images=volumes.images)
        yield f"nerf_{direction}_256", against_compiled(line, ours, compiled, volumes.images)
