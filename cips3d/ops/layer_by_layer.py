"""How the gradients of a radiance field go layer by layer, where no fused kernel computes them."""

from __future__ import annotations

import torch
from torch import Tensor

from cips3d.ops import kernels

# Samples whose activations are kept at a time, for every multiprocessor of a device: enough to compute for about as
# long as the host needs to launch so many kernels. With products of 16-bit numbers that takes half of the time, and a
# sample half of the memory. Nine layers of 256 take about 2 GB on 132 multiprocessors.
SAMPLES, FAST_SAMPLES = 1024, 2048
MULTIPROCESSORS = 32  # stand for a device without kernels


def rays_at_a_time(depths: Tensor, *, fast: bool) -> int:
    """Of every image, for depths [B, R, S] of its samples."""
    multiprocessors = kernels.multiprocessors(depths.device) if kernels.take(depths) else MULTIPROCESSORS
    images, _, samples = depths.shape
    return max(1, multiprocessors * (FAST_SAMPLES if fast else SAMPLES) // max(1, images * samples))


def types_between_layers(x: Tensor, *, fast: bool) -> tuple[torch.dtype, torch.dtype]:
    """The types of activations and of their gradients from one sine layer to the next, where nobody else sees them.

    16-bit products round them to these in any case, and what limits such products is the memory's traffic.
    """
    return (torch.float16, torch.bfloat16) if fast and kernels.take(x) else (x.dtype, x.dtype)
