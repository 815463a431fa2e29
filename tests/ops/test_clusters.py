"""Kernels of warpgroups whose blocks share the weights that they read, as clusters of two."""

from __future__ import annotations

import pytest
import torch
from ops.backends import Backend, multiprocessors, require_warpgroups
from ops.inr_networks import TOLERANCE, Setting, both, run, sample_inputs
from reference_records import relative_l2

from cips3d.ops import Precision, kernels

# Tiles of 128 pixels, or 64, for two blocks at a time.
NETWORKS = {
    "an odd number of tiles": Setting(32, 512, 2, 1, 1, pixels=300, images=1),
    "a tile an image": Setting(256, 256, 2, 0, 0, pixels=100, images=5),
    "two tiles": Setting(37, 460, 1, 1, 0, pixels=256, images=1),
    "no channels": Setting(0, 512, 2, 1, 0, pixels=130, images=1),
}


def cluster_of(backend: Backend, s: Setting, precision: Precision = "fast") -> int:
    """Blocks of a cluster."""
    chosen, sizes = kernels.module_for(backend.device).modulated_inr_cluster, (s.images, s.pixels, s.width)
    return int(chosen(backend.device.index or 0, *sizes, precision != "fast"))


@pytest.fixture
def cluster_backend(monkeypatch: pytest.MonkeyPatch, kernel_backend: Backend) -> Backend:
    monkeypatch.setenv("CIPS3D_WGMMA", "modulated_inr,clusters")
    require_warpgroups(kernel_backend, cluster_of(kernel_backend, NETWORKS["two tiles"]) == 2)
    return kernel_backend


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", NETWORKS)
def test_warpgroups_in_clusters_compute_the_same(
    cluster_backend: Backend, monkeypatch: pytest.MonkeyPatch, name: str, precision: Precision
) -> None:
    s = NETWORKS[name]
    assert cluster_of(cluster_backend, s, precision) == 2
    ours, exact = both(sample_inputs(s), cluster_backend)
    found = [run(ours, s, precision) for _ in cluster_backend.schedules()]
    assert relative_l2(found[0], run(exact, s)) < TOLERANCE[precision] or not run(exact, s).any()
    monkeypatch.setenv("CIPS3D_WGMMA", "modulated_inr")
    assert cluster_of(cluster_backend, s, precision) == 1
    expected = run(ours, s, precision)
    assert all(torch.equal(again, expected) for again in found)


def test_warpgroups_without_clusters(cluster_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one block has all pixels, where more blocks would work without, and without warpgroups."""
    s = NETWORKS["two tiles"]
    assert cluster_of(cluster_backend, Setting(37, 460, 1, 1, 0, pixels=128, images=1)) == 1
    for count in (1, 3):
        with multiprocessors(kernels.module_for(cluster_backend.device), count):
            assert cluster_of(cluster_backend, Setting(37, 460, 1, 1, 0, pixels=384, images=1)) == 1
    monkeypatch.setenv("CIPS3D_WGMMA", "clusters")
    assert cluster_of(cluster_backend, s) == 1


def test_warpgroups_in_as_many_clusters_as_there_is_room_for(cluster_backend: Backend) -> None:
    """Of an odd number of multiprocessors one is left over; what the blocks keep for themselves has to have room."""
    s = Setting(16, 512, 2, 1, 0, pixels=128, images=12)
    ours, exact = both(sample_inputs(s), cluster_backend)
    for count in (2, 7):
        with multiprocessors(kernels.module_for(cluster_backend.device), count):
            assert cluster_of(cluster_backend, s) == 2
            assert relative_l2(run(ours, s, "fast"), run(exact, s)) < TOLERANCE["fast"]
