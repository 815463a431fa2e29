"""Sizes and types for the gradients of radiance fields that are computed layer by layer, without a fused kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from cips3d.ops import kernels

# Samples whose activations are kept at a time, for every multiprocessor of a device: computing them takes about as long
# as the host needs to launch the kernels. Products of 16-bit numbers take half of the time, and such a sample half of
# the memory. Nine layers of 256 take about 2 GB on 132 multiprocessors.
SAMPLES, FAST_SAMPLES = 1024, 2048
MULTIPROCESSORS = 32  # assumed of a device without kernels


def rays_at_a_time(depths: Tensor, *, fast: bool) -> int:
    """Rays of every image whose activations are kept at a time, for depths [B, R, S] of their samples."""
    multiprocessors = kernels.multiprocessors(depths.device) if kernels.take(depths) else MULTIPROCESSORS
    images, _, samples = depths.shape
    return max(1, multiprocessors * (FAST_SAMPLES if fast else SAMPLES) // max(1, images * samples))


def types_between_layers(x: Tensor, *, fast: bool) -> tuple[torch.dtype, torch.dtype]:
    """The types of activations, and of their gradients, between two sine layers.

    16-bit products round to these types in any case, and memory traffic is what limits them.
    """
    return (torch.float16, torch.bfloat16) if fast and kernels.take(x) else (x.dtype, x.dtype)
