"""The constant blur kernels that published state dicts carry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from cips3d.errors import UserError
from cips3d.ops.upfirdn2d import binomial_kernel


def blur_kernel(gain: float = 1.0) -> Tensor:
    """[1, 3, 3, 1] on both axes, [4, 4] with the sum `gain`²."""
    taps = binomial_kernel(gain)
    return torch.outer(taps, taps)


def without_blur_kernels(
    state: Mapping[str, Tensor], keys: Iterable[str], what: str, *, gain: float = 1.0
) -> dict[str, Tensor]:
    """The state without the blur kernels `keys`, which may be missing.

    Those of layers that upsample sum to `gain`², or to 1 where the filter alone was written down: the gain is the
    layer's, which applies it in any case.

    Raises:
        UserError: one of them is another kernel.
    """
    expected = (blur_kernel(gain), blur_kernel())
    kernels = {key: state[key] for key in keys if key in state}
    for key, kernel in kernels.items():
        is_blur = kernel.shape == expected[0].shape and any(torch.allclose(kernel.cpu().float(), e) for e in expected)
        if not is_blur:
            raise UserError(
                f"the state dict is not that of {what}: {key} is not [1, 3, 3, 1] · {gain:g}/8 on both axes"
            )
    return {key: value for key, value in state.items() if key not in kernels}
