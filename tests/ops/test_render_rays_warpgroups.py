"""The kernel of the fused NeRF branch that only compute capability 9.0 has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ops.backends import Backend, require_warpgroups
from ops.shallow_rays import SETTINGS, TOLERANCE, Setting, both_kinds, run, sample_inputs
from reference_records import relative_l2

from cips3d.ops import kernels
from cips3d.ops.siren_field import is_wide


def chosen(backend: Backend, s: Setting, *, accurate: bool = False) -> bool:
    device = backend.device
    found: bool = kernels.module_for(device).render_rays_warpgroups(device.index or 0, s.coarse, s.fine, accurate)
    return found


@pytest.fixture
def warpgroup_backend(monkeypatch: pytest.MonkeyPatch, kernel_backend: Backend) -> Backend:
    monkeypatch.setenv("CIPS3D_WGMMA", "render_rays")  # no other one, which may be wrong
    require_warpgroups(kernel_backend, chosen(kernel_backend, Setting()))
    return kernel_backend


WARPGROUPS = {
    **{name: s for name, s in SETTINGS.items() if not is_wide(s.width, s.color)},
    "teams without rays": Setting(rays=1, fine=0),
    "several tiles a team": Setting(rays=64, noise=False),
    "samples of one ray that fill no step": Setting(rays=2, coarse=21, fine=13),
}


@pytest.mark.parametrize("name", WARPGROUPS)
def test_outputs(warpgroup_backend: Backend, name: str) -> None:
    """Against float64, in every schedule; three images on two multiprocessors: blocks change theirs midway."""
    s = WARPGROUPS[name]
    assert chosen(warpgroup_backend, s)
    ours, exact = both_kinds(warpgroup_backend, sample_inputs(s, images=3))
    found, expected = run(ours, s, "fast"), run(exact, s, "highest")
    for field in ("colors", "opacity", "depth", "weights", "depths"):
        error = relative_l2(getattr(found, field), getattr(expected, field))
        assert error < TOLERANCE["fast"] * (2 if field == "weights" else 1), f"{field}: {error:.1e}"
    for _ in warpgroup_backend.schedules():
        again = run(ours, s, "fast")
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_same_as_of_every_architecture(warpgroup_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The products' operands are the same numbers: what differs is the order of sums."""
    s = replace(WARPGROUPS["several tiles a team"], rays=40)
    ours = sample_inputs(s).to(warpgroup_backend.device, torch.float32)
    found = run(ours, s, "fast")
    monkeypatch.setenv("CIPS3D_WGMMA", "0")
    assert not chosen(warpgroup_backend, s)
    other = run(ours, s, "fast")
    for field in ("colors", "opacity", "depth"):
        assert relative_l2(getattr(found, field), getattr(other, field)) < TOLERANCE["fast"] / 4, field


def test_others_can_be_refused(warpgroup_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, expected in {"render_rays": True, "modulated_inr,render_rays": True, "modulated_inr": False}.items():
        monkeypatch.setenv("CIPS3D_WGMMA", allowed)
        assert chosen(warpgroup_backend, Setting()) is expected, allowed


def test_not_for_accurate_products(warpgroup_backend: Backend) -> None:
    assert not chosen(warpgroup_backend, Setting(), accurate=True)
