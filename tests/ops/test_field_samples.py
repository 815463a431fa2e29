"""Gradients of fields whose weights stream: which kernels compute them, schedules, small shared memory, tiles."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from ops import shallow_rays as shallow
from ops import test_render_deep_rays as deep
from ops.backends import Backend, multiprocessors, shared_limit
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.field_samples import streams_gradients
from cips3d.ops.precision import Precision

DEEP = deep.Setting(layers=3, width=96, color=48, rays=19, coarse=9, fine=9, noise=True)
WIDE = shallow.Setting(width=144, color=80, rays=17, coarse=8, fine=9, last_back=True, ball=0.08)
SMALLER = [227, 163, 99]  # KB: three stages of weights and 128 samples at a time; two; half as many samples


def losses(name: str, device: torch.device, dtype: torch.dtype, precision: Precision) -> tuple[Tensor, list[Tensor]]:
    """A loss, and what it has gradients for."""
    if name == "deep":
        ours = deep.sample_inputs(DEEP).to(device, dtype)
        return deep.loss(deep.run(ours, DEEP, precision)), ours.leaves()
    inputs = shallow.sample_inputs(WIDE).to(device, dtype)
    return shallow.loss(shallow.run(inputs, WIDE, precision)), inputs.leaves()


def fast_gradients(name: str, backend: Backend) -> Sequence[Tensor]:
    return torch.autograd.grad(*losses(name, backend.device, torch.float32, "fast"))


TOLERANCE = {"deep": deep.GRADIENT_TOLERANCE["fast"], "wide": shallow.GRADIENT_TOLERANCE["fast"]}


def check(found: Sequence[Tensor], name: str) -> None:
    expected = torch.autograd.grad(*losses(name, torch.device("cpu"), torch.float64, "highest"))
    for k, (ours, exact) in enumerate(zip(found, expected, strict=True)):
        if ours.numel() > 1:  # the density's bias is a sum that cancels for the most part
            assert relative_l2(ours, exact) < TOLERANCE[name], f"gradient {k}"


def test_who_uses_them(backend: Backend) -> None:
    """Operands of 16 bits, on devices that have kernels and room for them."""
    x = torch.zeros(1, device=backend.device)
    assert streams_gradients(x, fast=True) == backend.uses_kernels
    assert not streams_gradients(x, fast=False)
    assert not streams_gradients(x.double(), fast=True) and not streams_gradients(x.half(), fast=True)


@pytest.mark.parametrize("limit", SMALLER)
@pytest.mark.parametrize("name", TOLERANCE)
def test_smaller_devices(kernel_backend: Backend, name: str, limit: int) -> None:
    with shared_limit(kernel_backend, limit):
        assert streams_gradients(torch.zeros(1, device=kernel_backend.device), fast=True)
        check(fast_gradients(name, kernel_backend), name)


def test_without_room(kernel_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer, through the kernels of sine layers."""
    launched: list[str] = []
    launch = kernels.launch

    def listed(launcher: str, *arguments: object) -> None:
        launched.append(launcher)
        launch(launcher, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "launch", listed)
    seen = losses("deep", kernel_backend.device, torch.float32, "fast")
    with shared_limit(kernel_backend, 94):
        assert not streams_gradients(torch.zeros(1, device=kernel_backend.device), fast=True)
        check(torch.autograd.grad(*seen), "deep")
    assert "film_siren_slope" in launched and "field_samples" not in launched
    launched.clear()
    fast_gradients("deep", kernel_backend)
    assert "film_siren_slope" not in launched
    assert {"field_samples", "field_samples_backward"} <= set(launched) or kernel_backend.shared < SMALLER[-1]


@pytest.mark.parametrize("name", TOLERANCE)
def test_every_schedule_gives_the_same(kernel_backend: Backend, name: str) -> None:
    found = [fast_gradients(name, kernel_backend) for _ in kernel_backend.schedules()]
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("name", TOLERANCE)
def test_blocks_with_one_tile(kernel_backend: Backend, name: str) -> None:
    """With many multiprocessors no block has a second tile: the gradients of phases are the same, sums nearly."""
    few = fast_gradients(name, kernel_backend)
    with multiprocessors(kernels.module_for(kernel_backend.device), 132):
        many = fast_gradients(name, kernel_backend)
    for one, other in zip(few, many, strict=True):
        assert relative_l2(one, other) < 1e-5
