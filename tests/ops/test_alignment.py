"""One tensor alone that begins off 16 bytes, as a part of a larger one does, among others that do not.

Kernels that move several numbers at a time ask where each of them begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops.library import OPS

Draw = Callable[..., Tensor]

# Arguments of registered ops, by what draws a tensor of a shape; sizes that wide accesses divide.
CASES: dict[str, Callable[[Draw], tuple[Any, ...]]] = {
    "accumulate": lambda of: (of(1, 3, 5), of(1, 3, 5, 16)),
    "accumulate_backward": lambda of: (of(1, 3, 16), of(1, 3, 5), of(1, 3, 5, 16), True, True),
    "composite": lambda of: (*_samples(of), None, "relu", False, True),
    "composite_backward": lambda of: (
        *(*_samples(of), None, of(1, 3, 16), of(1, 3), of(1, 3, 8), of(1, 3), of(1, 3)),
        *("softplus", False, True, True, True, True),
    ),
    "bias_leaky_relu": lambda of: (of(2, 3, 16), of(3), 0.2, 1.5),
    "bias_leaky_relu_backward": lambda of: (of(2, 3, 16), of(2, 3, 16), True, 0.2, 1.5),
    "bias_leaky_relu_sloped": lambda of: (of(2, 3, 16), of(3), of(2, 3, 16), 0.2, 1.5),
    "modulated_epilogue": lambda of: (
        *(of(2, 5, 16), of(2, 16), 0.2, of(2, 5, 16), of(2, 16), of(3, 16), of(2, 5, 3), True),
    ),
    "modulated_epilogue_backward": lambda of: (
        *(of(2, 5, 16), of(2, 16), 0.2, of(2, 5, 16), of(2, 16), of(3, 16)),
        *(of(2, 5, 16), of(2, 5, 16), of(2, 5, 3), [True] * 5),
    ),
    "upfirdn2d": lambda of: (of(1, 2, 8, 16), of(4), [1, 1], [1, 1], [2, 1, 2, 1], False),
    "film_siren": lambda of: (of(1, 9, 16), of(8, 16), of(8), of(1, 8), of(1, 8), torch.float32, False),
    "film_siren_backward": lambda of: (
        *(of(1, 9, 8), of(1, 9, 16), of(8, 16), of(8), of(1, 8), of(1, 8), False, True, True),
    ),
    "film_siren_backward of points": lambda of: (
        *(of(1, 9, 8), of(1, 9, 3), of(8, 3), of(8), of(1, 8), of(1, 8), False, True, True),
    ),
    "split_matmul": lambda of: (of(9, 16), of(16, 8), torch.full((), 4.0)),
    "split_matmul_over_rows": lambda of: (of(9, 16), of(9, 8), torch.full((), 4.0), torch.full((), 4.0)),
    "importance_depths": lambda of: (of(1, 3, 8), of(1, 3, 8).abs(), of(1, 3, 8).sigmoid()),
    "ray_points": lambda of: (of(1, 3, 8), of(1, 3, 3), of(1, 3, 3)),
    "ray_points_backward": lambda of: (of(1, 3, 8, 3), of(1, 3, 3), of(1, 3, 8), True),
}


def _samples(of: Draw) -> tuple[Tensor, ...]:
    """Density, features, depths, and those of fine samples with their order."""
    order = torch.tensor([0, 4, 5, 1, 2, 6, 3, 7]).expand(1, 3, 8)
    return of(1, 3, 4), of(1, 3, 4, 16), of(1, 3, 8).sort(-1).values, of(1, 3, 4), of(1, 3, 4, 16), order


def misaligned(x: Tensor) -> Tensor:
    """A copy that begins one element behind a multiple of 16 bytes."""
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)
    return shifted.copy_(x)


@pytest.mark.parametrize("name", CASES)
def test_one_misaligned_tensor(kernel_backend: Backend, name: str) -> None:
    random = torch.Generator().manual_seed(0)
    arguments = [
        x.to(kernel_backend.device) if isinstance(x, Tensor) else x
        for x in CASES[name](lambda *shape: torch.randn(shape, generator=random))
    ]

    def run(given: Sequence[Any]) -> tuple[Tensor, ...]:
        found = OPS[name.split()[0]](*given)
        return (found,) if isinstance(found, Tensor) else tuple(found)

    expected = run(arguments)
    for place, argument in enumerate(arguments):
        if not isinstance(argument, Tensor):
            continue
        found = run([*arguments[:place], misaligned(argument), *arguments[place + 1 :]])
        for a, b in zip(found, expected, strict=True):
            assert relative_l2(a, b) <= 2e-6, f"argument {place}"  # sums in another order
