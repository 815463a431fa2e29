"""Rendering by replay: a picture's launches captured once in a CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.models.cips3d import CIPS3D, Rendering, Styles
from cips3d.models.volume import VolumeSettings

WARM_UP = 3  # runs before the capture, in which libraries set themselves up


class CompiledRender:
    """Renders pictures of one size, without gradients, at the cost of a single launch.

    On a GPU the first call captures everything from styles and cameras to the picture in a CUDA graph, and every call
    replays it; small pictures then take as long as their kernels, not as long as their launches. The pictures of a call
    stay valid until the next one. Elsewhere it calls the generator.

    Args:
        generator: its weights may change between calls (they are read where they are), its device and settings not.
        settings: of the volume.
        batch: pictures of a call.
        resolution: side, or (height, width).
        jitter: False renders without random numbers; with True every replay draws new ones.
        return_aux: also give the auxiliary image.
        chunk_rays: see `CIPS3D.forward`.

    Example:
        >>> render = CompiledRender(generator, VolumeSettings(), batch=1, resolution=64)
        >>> image = render(generator.mapping(*generator.sample_z(1)), cameras).image
    """

    def __init__(
        self,
        generator: CIPS3D,
        settings: VolumeSettings,
        *,
        batch: int,
        resolution: int | tuple[int, int],
        jitter: bool = False,
        return_aux: bool = False,
        chunk_rays: int | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.generator = generator
        self.settings = settings
        self.batch = batch
        self.resolution = resolution
        self.jitter = jitter
        self.return_aux = return_aux
        self.chunk_rays = chunk_rays
        self._captured: tuple[torch.cuda.CUDAGraph, Rendering] | None = None
        self._inputs: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def __call__(self, styles: Styles, cameras: Cameras) -> Rendering:
        """Render `batch` styles from `batch` cameras.

        Raises:
            ValueError: there are more or fewer of them, or their shapes are not those of the first call.
        """
        for name, count in (("styles", len(styles.shape)), ("cameras", len(cameras))):
            if count != self.batch:
                raise ValueError(f"{name} must be {self.batch}, as many as the render was made for, got {count}")
        device = self.generator.device
        if device.type != "cuda":
            return self._render(styles, cameras)
        given = (*styles, cameras.rotation, cameras.position, cameras.fov_degrees)
        if self._captured is None:
            self._captured = self._capture(given, device)
        graph, rendering = self._captured
        for place, value in zip(self._inputs, given, strict=True):
            if place.shape != value.shape:
                raise ValueError(f"styles and cameras must keep the shapes of the first call: {list(value.shape)} came")
            place.copy_(value)
        graph.replay()
        return rendering

    def _render(self, styles: Styles, cameras: Cameras) -> Rendering:
        return self.generator.synthesis(
            styles,
            cameras,
            self.settings,
            resolution=self.resolution,
            jitter=self.jitter,
            return_aux=self.return_aux,
            chunk_rays=self.chunk_rays,
        )

    def _capture(self, given: tuple[Tensor, ...], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Rendering]:
        self._inputs = tuple(x.to(device, copy=True).contiguous() for x in given)
        styles, cameras = Styles(*self._inputs[:2]), Cameras(*self._inputs[2:])
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self._render(styles, cameras)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                rendering = self._render(styles, cameras)
        return graph, rendering
