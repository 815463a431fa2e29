"""Gradients of the fused NeRF branch: their sizes, sums and special values, and where shared memory is small."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from ops.backends import Backend, shared_limit
from ops.shallow_rays import (
    GRADIENT_TOLERANCE,
    Setting,
    both_kinds,
    loss,
    run,
    sample_inputs,
)
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.gradient_scales import gradient_scales
from cips3d.ops.march import RenderedRays
from cips3d.ops.precision import Precision
from cips3d.ops.render_rays_backward import _blocks as blocks_an_image
from cips3d.ops.render_rays_backward import _in_pairs


@pytest.mark.parametrize(
    ("precision", "limit", "fits"),
    [("highest", 163, False), ("highest", 99, False), ("fast", 163, True), ("fast", 99, True), ("fast", 90, False)],
)
def test_gradients_with_little_shared_memory(
    kernel_backend: Backend, precision: Precision, limit: int, fits: bool
) -> None:
    """With 163 KB (8.0) and 99 KB (8.6) warps share the samples; without room for weights these stream."""
    s = Setting(width=64, color=32, rays=37, coarse=6, fine=5)
    inputs = sample_inputs(s)
    ours, exact = inputs.to(kernel_backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)
    kernels._warned.clear()
    with shared_limit(kernel_backend, limit), warnings.catch_warnings():
        warnings.filterwarnings("error", "cips3d")
        module, index = kernels.module_for(kernel_backend.device), kernel_backend.device.index or 0
        assert module.render_rays_backward_fits(index, precision == "highest") == fits
        found = torch.autograd.grad(loss(run(ours, s, precision)), ours.leaves())
    expected = torch.autograd.grad(loss(run(exact, s, "highest")), exact.leaves())
    for gradient, reference in zip(found, expected, strict=True):
        assert relative_l2(gradient, reference) < GRADIENT_TOLERANCE[precision] or gradient.numel() == 1


@pytest.mark.parametrize("color", [16, 7])
def test_gradients_that_lie_anywhere_in_memory(kernel_backend: Backend, color: int) -> None:
    """The kernel reads pairs of colours' gradients: where they lie between pairs or are odd it gets a copy."""
    s = Setting(width=32, color=color, rays=5, coarse=4, fine=4)
    ours = sample_inputs(s).to(kernel_backend.device, torch.float32)
    seen = run(ours, s, "fast").colors
    part = torch.linspace(-1, 1, seen.numel() + 1, device=seen.device)[1:].view_as(seen)
    assert part.data_ptr() % 8 and part.is_contiguous()
    found, expected = (
        torch.autograd.grad(seen, ours.leaves(), grad, retain_graph=True, materialize_grads=True)
        for grad in (part, part.clone())
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert any(gradient.any() for gradient in found)


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_gradients_of_any_size(kernel_backend: Backend, scale: float) -> None:
    """float16 operands must neither overflow nor vanish: the kernel scales by a power of two, so nothing changes."""
    s = Setting(width=32, color=16, rays=5, coarse=4, fine=4)
    ours = sample_inputs(s).to(kernel_backend.device, torch.float32)
    plain = torch.autograd.grad(run(ours, s, "fast").colors.sum(), ours.leaves())
    scaled = torch.autograd.grad(run(ours, s, "fast").colors.sum() * scale, ours.leaves())
    for a, b in zip(plain, scaled, strict=True):
        assert relative_l2(b / scale, a) < 2e-3  # another power of two rounds small halves elsewhere


@pytest.mark.parametrize("size", [1e-8, 1e6])
@pytest.mark.parametrize("output", ["weights", "depth"])
def test_gradients_without_colors(kernel_backend: Backend, output: str, size: float) -> None:
    """The scale of float16 operands goes by every gradient that there is, not by those of colours alone."""
    s = Setting(width=32, color=16, rays=9, coarse=4, fine=4, noise=False)

    def total(seen: RenderedRays) -> Tensor:
        x = getattr(seen, output)
        return size * (x * torch.linspace(0.5, 1.5, x.shape[-1]).to(x)).sum()

    found, expected = (
        torch.autograd.grad(total(run(at, s, "highest")), at.leaves(), materialize_grads=True)
        for at in both_kinds(kernel_backend, sample_inputs(s))
    )
    for gradient, reference in zip(found, expected, strict=True):
        error = (gradient.cpu() - reference).norm()
        assert error <= GRADIENT_TOLERANCE["highest"] * reference.norm() or gradient.numel() == 1


@pytest.mark.parametrize(("of_colors", "of_depth"), [(1e-6, 1.0), (1e6, 1.0)])
def test_gradients_of_unequal_size(kernel_backend: Backend, of_colors: float, of_depth: float) -> None:
    """Colours keep their own scale beside a depth's gradient that is larger or smaller by powers of ten."""
    s = Setting(width=32, color=16, rays=9, coarse=4, fine=4)
    found, expected = (
        torch.autograd.grad(of_colors * seen.colors.sum() + of_depth * seen.depth.sum(), at.leaves())
        for at in both_kinds(kernel_backend, sample_inputs(s))
        for seen in [run(at, s, "highest")]
    )
    for gradient, reference in zip(found, expected, strict=True):
        assert relative_l2(gradient, reference) < GRADIENT_TOLERANCE["highest"] or gradient.numel() == 1


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_seen(kernel_backend: Backend, bad: float) -> None:
    """Gradient scaling has to find them in the layers, so nothing may be cut off to a finite number."""
    s = Setting(width=32, color=16, rays=5, coarse=4, fine=4)
    ours = sample_inputs(s).to(kernel_backend.device, torch.float32)
    colors = run(ours, s, "fast").colors
    upstream = torch.ones_like(colors)
    upstream[0, 3, 5] = bad
    for gradient in torch.autograd.grad(colors, ours.leaves(), upstream):
        assert not gradient.isfinite().all()


def test_long_sums_keep_their_size(kernel_backend: Backend) -> None:
    """Tensor cores cut off what an accumulator cannot hold: sums over many samples must not be left to them."""
    s = Setting(width=32, color=16, rays=700, coarse=12, fine=0, noise=False, activation="softplus")
    found, expected = (
        torch.autograd.grad(run(at, s, "highest").colors.sum(), at.leaves()[:6])
        for at in both_kinds(kernel_backend, sample_inputs(s))  # two images: in the emulation a block has all rays
    )
    for gradient, reference in zip(found, expected, strict=True):
        assert relative_l2(gradient, reference) < 1e-5  # up to 2e-6; 2e-5 to 5e-5 where nothing is moved on the way


def test_blocks_of_the_gradients() -> None:
    """Whole rounds of all multiprocessors where several images allow it, and never more blocks than work."""
    assert blocks_an_image(132, 1, 65536) == 132
    assert blocks_an_image(132, 16, 65536) == 8
    assert blocks_an_image(132, 48, 65536) == 8  # three rounds of 384; one of two blocks an image has 96
    assert blocks_an_image(132, 200, 65536) == 1  # two would fill four rounds as badly as one fills two
    assert blocks_an_image(132, 1, 100) == 2
    assert blocks_an_image(2, 5, 10) == 1


@pytest.mark.parametrize(("start", "channels"), [(0, 4), (1, 4), (0, 3), (1, 3)])
def test_gradients_of_colours_are_read_in_pairs(start: int, channels: int) -> None:
    """Also where they begin behind an odd number of others."""
    given = torch.arange(1.0, 25.0)[start : start + 5 * channels].view(1, 5, channels)
    pairs = _in_pairs(given)
    assert pairs.data_ptr() % 8 == 0 and pairs.is_contiguous()
    assert torch.equal(pairs[..., :channels], given)
    assert torch.equal(pairs[..., channels:], torch.zeros(1, 5, 4 - channels))


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1.0, 3e38])
def test_scales_of_gradients_stay_within_float32(size: float) -> None:
    scales = gradient_scales(torch.ones(1, 2, 3), torch.full((1, 2, 4), size), None, None, None)
    assert ((scales > 0) & scales.isfinite()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_scales_do_not_depend_on_the_default_dtype(dtype: torch.dtype) -> None:
    depths, grad = torch.ones(1, 2, 3), torch.full((1, 2, 4), 1e-8)
    expected = gradient_scales(depths, grad, None, None, None)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        scales = gradient_scales(depths, grad, None, None, None)
    finally:
        torch.set_default_dtype(before)
    assert scales.dtype == torch.float32 and torch.equal(scales, expected)


def test_sample_at_the_centre_of_the_ball(kernel_backend: Backend) -> None:
    """Its distance has no slope there, which is 0 and not NaN; wide fields have their gradients op by op."""
    for width in (32, 144):
        s = Setting(width=width, color=16, rays=1, coarse=5, fine=0, noise=False, ball=0.1)
        inputs = sample_inputs(s, images=1)
        ahead = torch.tensor([[[0.0, 0.0, 1.0]]])
        inputs = replace(inputs, origins=ahead, directions=-ahead)
        inputs.draws.stratified.fill_(0.5)  # the third sample is at depth 1
        ours = inputs.to(kernel_backend.device, torch.float32)
        for gradient in torch.autograd.grad(run(ours, s, "highest").colors.sum(), ours.leaves()):
            assert gradient.isfinite().all()


def test_zero_gradients(kernel_backend: Backend) -> None:
    s = Setting(width=32, color=16, rays=5, coarse=4, fine=4)
    ours = sample_inputs(s).to(kernel_backend.device, torch.float32)
    for gradient in torch.autograd.grad(run(ours, s, "fast").colors.sum() * 0, ours.leaves()):
        assert torch.equal(gradient, torch.zeros_like(gradient))
