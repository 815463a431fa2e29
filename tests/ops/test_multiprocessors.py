"""Kernels that share out their work by the number of multiprocessors: with few of them, and with many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from ops import inr_networks, shallow_rays
from ops.backends import Backend, multiprocessors
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import Precision, film_siren, kernels, split_matmul

MANY = 132  # of an H100
# Other partial sums; and other kernels of the per-pixel network, which round halves elsewhere.
TOLERANCE: dict[Precision, float] = {"highest": 1e-5, "fast": 3e-3}

Case = tuple[Callable[[Precision], Sequence[Tensor]], list[Tensor]]  # outputs of an op, and its inputs


def draws(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) - 0.5


def sine_layer(device: torch.device, rows: int, width: int) -> Case:
    x, *layer = (t.to(device).requires_grad_() for t in (draws(2, rows, width), draws(70, width), draws(70)))
    film = [(scale * draws(2, 70)).to(device).requires_grad_() for scale in (30, 1)]
    return lambda precision: [film_siren(x, *layer, *film, precision=precision)], [x, *layer, *film]


def product(device: torch.device, rows: int) -> Case:
    x, weight = (t.to(device).requires_grad_() for t in (draws(rows, 48), draws(48, 72)))
    return lambda precision: [split_matmul(x, weight)], [x, weight]


def rays(device: torch.device, images: int, **sizes: Any) -> Case:
    s = shallow_rays.Setting(rays=20, coarse=5, fine=4, **sizes)
    inputs = shallow_rays.sample_inputs(s, images).to(device, torch.float32)
    return lambda precision: shallow_rays.run(inputs, s, precision)[:3], inputs.leaves()


def network(device: torch.device, images: int) -> Case:
    s = inr_networks.Setting(16, 200, 1, 1, 0, pixels=150, images=images)
    inputs = inr_networks.sample_inputs(s).to(device, torch.float32)
    return lambda precision: [inr_networks.run(inputs, s, precision)], inputs.leaves()


# Of a device and how many times as much as two multiprocessors can do.
CASES: dict[str, Callable[[torch.device, int], Case]] = {
    "sine layer": lambda device, times: sine_layer(device, 300 * times, 24),
    "sine layer on points": lambda device, times: sine_layer(device, 300 * times, 3),
    "product": lambda device, times: product(device, 600 * times),
    "rays": lambda device, times: rays(device, 2 * times, width=32, color=16),
    "rays, wide": lambda device, times: rays(device, 2 * times, width=144, color=80),
    "per-pixel network": network,
}


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_many_compute_what_few_do(kernel_backend: Backend, name: str, precision: Precision) -> None:
    module = kernels.module_for(kernel_backend.device)
    on_gpu = not hasattr(module, "set_schedule")  # not one that the emulation stands in for
    op, inputs = CASES[name](kernel_backend.device, MANY // 2 if on_gpu else 1)

    def step() -> list[Tensor]:
        found = list(op(precision))
        loss = torch.stack([x.square().sum() for x in found]).sum()
        return [*found, *torch.autograd.grad(loss, inputs)]

    few = step()
    with multiprocessors(module, MANY):
        assert kernels.multiprocessors(kernel_backend.device) == MANY
        many, again = step(), step()
    for a, b, c in zip(many, few, again, strict=True):
        assert relative_l2(a, b) < TOLERANCE[precision]
        assert torch.equal(a, c)
