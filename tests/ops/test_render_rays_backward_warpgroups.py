"""The kernel of the fused NeRF branch's gradients that only compute capability 9.0 has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ops.backends import Backend, require_warpgroups
from ops.shallow_rays import (
    GRADIENT_TOLERANCE,
    SETTINGS,
    Inputs,
    Setting,
    both_kinds,
    cosine,
    loss,
    run,
    sample_inputs,
)
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import Precision, kernels
from cips3d.ops.siren_field import is_wide

OF_COLORS = (4, 5)  # among the leaves: the colour layer's weight and bias
SHALLOW = [name for name, s in SETTINGS.items() if not is_wide(s.width, s.color)]


def chosen(backend: Backend, *, accurate: bool = False, of_rays: bool = False) -> bool:
    device = backend.device
    found: bool = kernels.module_for(device).render_rays_backward_warpgroups(device.index or 0, accurate, of_rays)
    return found


@pytest.fixture
def warpgroup_backend(monkeypatch: pytest.MonkeyPatch, kernel_backend: Backend) -> Backend:
    monkeypatch.setenv("CIPS3D_WGMMA", "render_rays_backward")  # no other one, which may be wrong
    if not kernels.module_for(kernel_backend.device).render_rays_backward_has_warpgroups():
        pytest.skip("nvcc before 13.0.88 has compiled the kernels")
    require_warpgroups(kernel_backend, chosen(kernel_backend))
    return kernel_backend


def layer_gradients(at: Inputs, s: Setting, precision: Precision) -> tuple[Tensor, ...]:
    """Of a loss, without those of the rays."""
    without = replace(at, origins=at.origins.detach(), directions=at.directions.detach())
    return torch.autograd.grad(loss(run(without, s, precision), with_weights=False), at.leaves()[:-2])


@pytest.mark.parametrize("name", SHALLOW)
def test_gradients(warpgroup_backend: Backend, name: str) -> None:
    s = SETTINGS[name]
    assert chosen(warpgroup_backend)
    ours, exact = both_kinds(warpgroup_backend, sample_inputs(s, images=1))
    found, expected = layer_gradients(ours, s, "fast"), layer_gradients(exact, s, "highest")
    limit = GRADIENT_TOLERANCE["fast"]
    for k, (gradient, reference) in enumerate(zip(found, expected, strict=True)):
        if gradient.numel() == 1:  # the density's bias: one sum that cancels for the most part
            assert (gradient.cpu() - reference).abs() < limit * expected[6].norm()
            continue
        error = relative_l2(gradient, reference)
        assert error < limit, f"gradient {k}: {error:.1e}"
        assert cosine(gradient, reference) > 1 - limit**2
    for _ in warpgroup_backend.schedules():
        assert all(torch.equal(a, b) for a, b in zip(found, layer_gradients(ours, s, "fast"), strict=True))


@pytest.mark.parametrize(("of_colors", "of_others"), [(0.0, 1e6), (1e-6, 1.0), (1e6, 1.0)])
def test_gradients_of_unequal_size(warpgroup_backend: Backend, of_colors: float, of_others: float) -> None:
    """Colours have a scale of their own beside gradients that are larger or smaller by powers of ten."""
    s = Setting(width=32, color=16, rays=9, coarse=4, fine=4)
    found, expected = (
        torch.autograd.grad(
            of_colors * seen.colors.sum() + of_others * (seen.depth.sum() + (seen.weights * ramp).sum()),
            at.leaves()[:-2],
        )
        for at, precision in zip(both_kinds(warpgroup_backend, sample_inputs(s)), ("fast", "highest"), strict=True)
        for seen in [run(replace(at, origins=at.origins.detach(), directions=at.directions.detach()), s, precision)]
        for ramp in [torch.linspace(0.5, 1.5, seen.weights.shape[-1]).to(seen.weights)]
    )
    for k, (gradient, reference) in enumerate(zip(found, expected, strict=True)):
        if of_colors == 0 and k in OF_COLORS:
            assert not gradient.any() and not reference.any()
        elif gradient.numel() > 1:
            assert relative_l2(gradient, reference) < GRADIENT_TOLERANCE["fast"], f"gradient {k}"


def test_gradients_of_many_samples(warpgroup_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than matrix instructions add up, 8192 of a block; against the kernel of every architecture, which rounds the
    same operands.
    """
    s = Setting(rays=800, noise=False)
    ours = sample_inputs(s, images=1).to(warpgroup_backend.device, torch.float32)
    found = layer_gradients(ours, s, "fast")
    monkeypatch.setenv("CIPS3D_WGMMA", "render_rays")
    assert not chosen(warpgroup_backend)
    for k, (gradient, other) in enumerate(zip(found, layer_gradients(ours, s, "fast"), strict=True)):
        error = relative_l2(gradient, other)
        assert error < GRADIENT_TOLERANCE["fast"] / 5, f"gradient {k}: {error:.1e}"


def test_what_has_no_gradients_of_warpgroups(warpgroup_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not chosen(warpgroup_backend, accurate=True)
    assert not chosen(warpgroup_backend, of_rays=True)
    monkeypatch.setenv("CIPS3D_WGMMA", "render_rays")
    assert not chosen(warpgroup_backend)
