"""The kernels of the fused per-pixel network: which one computes what, in every schedule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ops.backends import Backend, require_warpgroups, shared_limit
from ops.inr_networks import TOLERANCE, Setting, both, run, sample_inputs
from reference_records import relative_l2

from cips3d.ops import Precision, kernels

# Shared memory in KB, pixels of an image, and how many a block then takes at a time: other devices have less memory,
# and a picture that would leave multiprocessors idle (there are two of them in these tests) is cut finer.
PASSES = [
    ("fast", 227, 150, 128),
    ("fast", 163, 150, 128),
    ("fast", 99, 150, 64),
    ("fast", 227, 65, 64),
    ("highest", 227, 90, 64),
    ("highest", 163, 70, 32),
    ("highest", 99, 90, 32),
]


@pytest.mark.parametrize("width", [512, 200])
@pytest.mark.parametrize(("precision", "limit", "pixels", "rows"), PASSES)
def test_every_kernel(
    kernel_backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    limit: int,
    pixels: int,
    rows: int,
    width: int,
) -> None:
    monkeypatch.setenv("CIPS3D_WGMMA", "0")  # those of every architecture
    s = Setting(32, width, 2, 1, 0, pixels=pixels, images=1)
    ours, exact = both(sample_inputs(s), kernel_backend)
    chosen = kernels.module_for(kernel_backend.device).modulated_inr_rows
    with shared_limit(kernel_backend, limit):
        index = kernel_backend.device.index or 0
        assert chosen(index, s.images, s.pixels, width, precision != "fast") == rows
        found = run(ours, s, precision)
    assert relative_l2(found, run(exact, s)) < TOLERANCE[precision]


@pytest.fixture
def warpgroups(monkeypatch: pytest.MonkeyPatch, kernel_backend: Backend) -> Callable[[Setting, Precision], None]:
    """A check that a setting gets a kernel that only compute capability 9.0 has."""
    monkeypatch.setenv("CIPS3D_WGMMA", "modulated_inr")  # no other one, which may be wrong

    def check(s: Setting, precision: Precision) -> None:
        device, sizes = kernel_backend.device, (s.images, s.pixels, s.width)
        chosen = kernels.module_for(device).modulated_inr_warpgroups(device.index or 0, *sizes, precision != "fast")
        require_warpgroups(kernel_backend, chosen)

    return check


WARPGROUPS = {
    "two chunks, skips": Setting(32, 512, 3, 1, 1, pixels=300, images=1),
    "no skips, odd widths": Setting(37, 460, 1, 1, 0, pixels=130, images=2),
    "one chunk, skips of features": Setting(256, 256, 2, 0, 0, pixels=120, images=5),
    "one chunk, late colours": Setting(5, 200, 3, 2, 2, pixels=260, images=2),
}


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", WARPGROUPS)
def test_warpgroups(
    kernel_backend: Backend, warpgroups: Callable[[Setting, Precision], None], name: str, precision: Precision
) -> None:
    s = WARPGROUPS[name]
    warpgroups(s, precision)
    ours, exact = both(sample_inputs(s), kernel_backend)
    found = run(ours, s, precision)
    assert relative_l2(found, run(exact, s)) < TOLERANCE[precision]
    for _ in kernel_backend.schedules():
        assert torch.equal(run(ours, s, precision), found)


def test_warpgroups_can_be_refused(
    kernel_backend: Backend, warpgroups: Callable[[Setting, Precision], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are only for widths that fill whole chunks."""
    s = WARPGROUPS["two chunks, skips"]
    warpgroups(s, "fast")
    chosen, index = kernels.module_for(kernel_backend.device).modulated_inr_warpgroups, kernel_backend.device.index or 0
    assert not any(chosen(index, s.images, s.pixels, 300, accurate) for accurate in (False, True))
    monkeypatch.setenv("CIPS3D_WGMMA", "0")
    assert not any(chosen(index, s.images, s.pixels, s.width, accurate) for accurate in (False, True))


@pytest.mark.parametrize("precision", TOLERANCE)
def test_every_schedule_gives_the_same(kernel_backend: Backend, precision: Precision) -> None:
    s = Setting(20, 272, 2, 1, 0, pixels=40)
    ours, _ = both(sample_inputs(s), kernel_backend)
    found = [run(ours, s, precision) for _ in kernel_backend.schedules()]
    assert all(torch.equal(found[0], again) for again in found[1:])


@pytest.mark.parametrize("width", [64, 300, 512])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_features_without_channels(kernel_backend: Backend, precision: Precision, width: int) -> None:
    """Nothing is multiplied in the first layer, and so nobody waits for slabs of it."""
    s = Setting(0, width, 2, 1, 0, pixels=130, images=1)
    ours, _ = both(sample_inputs(s), kernel_backend)
    for _ in kernel_backend.schedules():
        assert torch.equal(run(ours, s, precision), torch.zeros(1, 130, 3, device=kernel_backend.device))
