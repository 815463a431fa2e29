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
from cips3d.ops.precision import Precision

DEEP = deep.Setting(layers=3, width=96, color=48, rays=19, coarse=9, fine=9, noise=True)
WIDE = shallow.Setting(width=144, color=80, rays=17, coarse=8, fine=9, last_back=True, ball=0.08)
NARROW = shallow.Setting(width=112, color=48, rays=17, coarse=8, fine=9, ball=0.08)
SMALLER = [227, 163, 99]  # KB of devices, which decide how many samples a block has at a time, and stages of weights
CASES: list[tuple[str, Precision, int]] = [
    *((name, "fast", limit) for name in ("deep", "wide") for limit in SMALLER),
    *((name, "highest", limit) for name in ("deep", "wide") for limit in SMALLER),
    *(("narrow", "highest", limit) for limit in SMALLER[1:]),  # with more room, weights do not stream
]
LARGEST: list[tuple[str, Precision, int]] = [
    *(("deep", "fast", 227), ("wide", "fast", 227)),
    *(("deep", "highest", 227), ("wide", "highest", 227), ("narrow", "highest", 163)),
]


def losses(name: str, device: torch.device, dtype: torch.dtype, precision: Precision) -> tuple[Tensor, list[Tensor]]:
    """A loss, and what it has gradients for."""
    if name == "deep":
        ours = deep.sample_inputs(DEEP).to(device, dtype)
        return deep.loss(deep.run(ours, DEEP, precision)), ours.leaves()
    setting = WIDE if name == "wide" else NARROW
    inputs = shallow.sample_inputs(setting).to(device, dtype)
    return shallow.loss(shallow.run(inputs, setting, precision)), inputs.leaves()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is launched, in order."""
    names: list[str] = []
    launch = kernels.launch

    def listed(launcher: str, *arguments: object) -> None:
        names.append(launcher)
        launch(launcher, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "launch", listed)
    return names


def gradients(name: str, backend: Backend, precision: Precision, limit: int) -> Sequence[Tensor]:
    with shared_limit(backend, limit):
        return torch.autograd.grad(*losses(name, backend.device, torch.float32, precision))


def check(found: Sequence[Tensor], name: str, precision: Precision) -> None:
    tolerance = (deep if name == "deep" else shallow).GRADIENT_TOLERANCE[precision]
    expected = torch.autograd.grad(*losses(name, torch.device("cpu"), torch.float64, "highest"))
    for k, (ours, exact) in enumerate(zip(found, expected, strict=True)):
        if ours.numel() > 1:  # the density's bias is a sum that cancels for the most part
            assert relative_l2(ours, exact) < tolerance, f"gradient {k}"


@pytest.mark.parametrize(("name", "precision", "limit"), CASES)
def test_smaller_devices(
    kernel_backend: Backend, name: str, precision: Precision, limit: int, launched: list[str]
) -> None:
    check(gradients(name, kernel_backend, precision, limit), name, precision)
    assert {"field_samples", "field_samples_backward"} <= set(launched) and "film_siren_slope" not in launched


@pytest.mark.parametrize(("name", "precision", "limit"), LARGEST)
def test_every_schedule_gives_the_same(kernel_backend: Backend, name: str, precision: Precision, limit: int) -> None:
    found = [gradients(name, kernel_backend, precision, limit) for _ in kernel_backend.schedules()]
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize(("name", "precision", "limit"), LARGEST)
def test_blocks_with_one_tile(kernel_backend: Backend, name: str, precision: Precision, limit: int) -> None:
    """With many multiprocessors no block has a second tile: the gradients of phases are the same, sums nearly."""
    few = gradients(name, kernel_backend, precision, limit)
    with multiprocessors(kernels.module_for(kernel_backend.device), 132):
        many = gradients(name, kernel_backend, precision, limit)
    for one, other in zip(few, many, strict=True):
        assert relative_l2(one, other) < 1e-5
