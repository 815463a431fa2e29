"""Rendering by replay: a picture's launches captured once in a CUDA graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.models.view import Picture, View

StylesT = TypeVar("StylesT", bound="tuple[Tensor, ...]")
TakenT = TypeVar("TakenT", bound="tuple[Tensor, ...]", contravariant=True)

WARM_UP = 3  # runs before the capture, in which libraries set themselves up


class Renders(Protocol[TakenT]):
    """A generator, as far as this module knows it."""

    @property
    def device(self) -> torch.device: ...

    def render(self, styles: TakenT, view: View) -> Picture: ...


class CompiledRender(Generic[StylesT]):
    """`Generator.render` of one view, without gradients: one replay and a copy of each tensor of styles and cameras.

    On a GPU the first call captures everything from styles and cameras to the picture in a CUDA graph, and every call
    replays it; small pictures then take as long as their kernels, not as long as their launches. The pictures of a call
    stay valid until the next one. Elsewhere it calls the generator. Made by `Generator.compiled_render`.

    Args:
        generator: its weights may change between calls (they are read where they are), its device, mode and precision
            not.
        view: what is rendered, with as many cameras as there will be pictures a call. With `jitter` every replay draws
            new random numbers, from PyTorch's own generator.

    Raises:
        ValueError: the view has no camera, or a random generator of its own, whose numbers a replay could not draw.
    """

    def __init__(self, generator: Renders[StylesT], view: View) -> None:
        if len(view.cameras) < 1:
            raise ValueError("view.cameras must be at least one, as many as pictures a call")
        if view.generator is not None:
            raise ValueError("view.generator must be None: a replay draws from PyTorch's own random generator")
        self.generator = generator
        self.view = view
        self._captured: tuple[torch.cuda.CUDAGraph, Picture] | None = None
        self._styles: StylesT | None = None
        self._cameras: Cameras | None = None

    @torch.no_grad()
    def __call__(self, styles: StylesT, cameras: Cameras | None = None) -> Picture:
        """Pictures of styles from cameras; default: those of the view.

        Raises:
            ValueError: there are not as many as the view has cameras, or their shapes are not those of the first call.
        """
        cameras = self.view.cameras if cameras is None else cameras
        for name, count in (("styles", len(styles[0])), ("cameras", len(cameras))):
            if count != len(self.view.cameras):
                raise ValueError(f"{name} must be {len(self.view.cameras)}, as many as the view has, got {count}")
        device = self.generator.device
        if device.type != "cuda":
            return self.generator.render(styles, replace(self.view, cameras=cameras))
        if self._captured is None:
            self._captured = self._capture(styles, cameras, device)
        assert self._styles is not None and self._cameras is not None
        graph, picture = self._captured
        places = (*self._styles, *_tensors(self._cameras))
        for place, value in zip(places, (*styles, *_tensors(cameras)), strict=True):
            if place.shape != value.shape:
                raise ValueError(f"styles and cameras must keep the shapes of the first call: {list(value.shape)} came")
            place.copy_(value)
        graph.replay()
        return picture

    # What is kept has to serve calls outside of inference mode too.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _capture(self, styles: StylesT, cameras: Cameras, device: torch.device) -> tuple[torch.cuda.CUDAGraph, Picture]:
        self._styles = type(styles)(*(_kept(x, device) for x in styles))
        self._cameras = Cameras(*(_kept(x, device) for x in _tensors(cameras)))
        view = replace(self.view, cameras=self._cameras)
        # Autocast would keep its copies of weights for later layers: the graph would read those, and not the weights.
        dtype, is_on = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        with torch.cuda.device(device), torch.autocast("cuda", dtype=dtype, enabled=is_on, cache_enabled=False):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.generator.render(self._styles, view)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Its own stream would be one of the device that captured first.
            with torch.cuda.graph(graph, stream=side):
                picture = self.generator.render(self._styles, view)
        return graph, picture


def _tensors(cameras: Cameras) -> tuple[Tensor, ...]:
    return cameras.rotation, cameras.position, cameras.fov_degrees


def _kept(x: Tensor, device: torch.device) -> Tensor:
    """A copy whose place stays."""
    return x.to(device, copy=True).contiguous()
