"""Memory of rendering and of its gradients, counted allocation by allocation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import emulated_kernels
import pytest
import torch
from picture_cases import Pictures
from timing import Stopwatch, peak_allocated
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.pigan import PiGAN
from cips3d.models.pigan_field import PiGANConfig
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings
from cips3d.ops import Precision, kernels

SETTINGS = VolumeSettings(samples=3)
CHUNK = 1 << 15
CPU = torch.device("cpu")
PRECISIONS: tuple[Precision, ...] = ("fast", "highest")

NARROW = CIPS3DConfig(
    z_shape_dim=2,
    shape_style_dim=2,
    shape_mapping_layers=1,
    nerf_width=4,
    nerf_color_width=2,
    features=2,
    z_appearance_dim=2,
    appearance_style_dim=2,
    appearance_mapping_layers=1,
    inr_width=2,
    inr_blocks=1,
    inr_skip_from=1,
    inr_rgb_from=0,
)


def test_allocations_are_counted() -> None:
    """A tensor of 4 MB, one of 8 MB beside it, 12 MB at most; 4 MB that stay."""

    def run() -> Tensor:
        a = torch.zeros(1_000_000)
        b = torch.zeros(2_000_000)
        del b
        return a

    assert peak_allocated(run, CPU) == pytest.approx(12e6, rel=1e-3)
    assert Stopwatch(CPU, repeats=1, warm_up=0)(run).peak_mb == pytest.approx(12, rel=1e-3)


def beyond_the_picture(model: Any, side: int) -> int:
    """Bytes that rendering holds at most besides the picture, the rays and their draws."""
    angles = torch.tensor([1.5])
    cameras, z = Cameras.from_angles(angles, angles), model.sample_z(1, generator=torch.Generator().manual_seed(0))
    seen: list[Any] = []

    @torch.no_grad()
    def run() -> None:
        seen.append(model(*z, view=View(side, cameras, SETTINGS), chunk_rays=CHUNK))

    peak = peak_allocated(run, CPU)
    picture = sum(4 * x.numel() for x in seen[0] if x is not None)
    directions, draws = 4 * 3 * side**2, 4 * (SETTINGS.samples + SETTINGS.fine) * side**2
    return peak - picture - directions - draws


@pytest.mark.parametrize("model", ["cips3d", "pigan"])
def test_large_pictures_need_no_more_than_themselves(model: str) -> None:
    """From 512² to 1024², a chunk's activations are all that is held, and they stay as they are.

    Were a single number a pixel more held, that would be 4 MB at 1024² and 1 MB at 512².
    """
    torch.manual_seed(0)
    made = (
        CIPS3D(NARROW)
        if model == "cips3d"
        else PiGAN(PiGANConfig(z_dim=2, width=4, layers=2, mapping_width=2, mapping_layers=1))
    )
    small, large = beyond_the_picture(made, 512), beyond_the_picture(made, 1024)
    assert large < small + 100_000, f"{small} bytes at 512², {large} at 1024²"
    assert 0 < small < 4 * 160 * CHUNK  # numbers a ray, for 6 samples of 4 channels and their directions at a time


@contextmanager
def without_products() -> Iterator[None]:
    """Inside, matrix products on the CPU give tensors with anything in them, at once."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return a.new_empty(*a.shape[:-1], b.shape[-1])

    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel of torch is replaced
            library.impl("mm", product, "CPU")
            library.impl("bmm", product, "CPU")
        yield
    finally:
        library._destroy()


def published_bytes_a_pixel() -> float:
    """What the published formulation keeps for a pixel's gradients; matrices of an image are left out."""
    sides = (16, 24)
    peaks = []
    for side in sides:
        pictures = Pictures(CPU, 1, side)
        peaks.append(peak_allocated(partial(pictures.gradients, pictures.published), CPU))
    return (peaks[1] - peaks[0]) / (sides[1] ** 2 - sides[0] ** 2)


def test_gradients_of_whole_pictures_take_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward through every ray of four 256² pictures at full widths, as on 132 multiprocessors.

    Every tensor is allocated, though nothing is computed into most: neither kernels nor matrix products run.
    """
    published = 4 * 256**2 * published_bytes_a_pixel()
    monkeypatch.setattr(kernels, "launch", lambda *_: None)
    monkeypatch.setattr(kernels, "multiprocessors", lambda _: 132)
    pictures = Pictures(CPU, 4, 256)
    taken = {}
    with kernels.emulation(emulated_kernels.load()), without_products():
        for precision in PRECISIONS:
            render = partial(pictures.ours, precision)
            taken[precision] = peak_allocated(partial(pictures.gradients, render), CPU) / published
    assert 0.06 < taken["fast"] < 0.1, taken
    assert 0.06 < taken["highest"] < 0.1, taken
