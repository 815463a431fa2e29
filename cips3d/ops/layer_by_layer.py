"""What gradients of radiance fields have in common that are computed for some rays at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.library import OPS

# Samples whose activations are kept at a time, times layers, for every multiprocessor of a device: computing them takes
# at least as long as the host needs to launch the kernels. With 256 channels they take about 2.5 GB on 132
# multiprocessors, with 16-bit operands 1.3 GB.
SAMPLES = 9 * 1024
MULTIPROCESSORS = 32  # assumed of a device without kernels


def rays_at_a_time(depths: Tensor, layers: int) -> int:
    """Rays of every image whose activations are kept at a time, for depths [B, R, S] of their samples."""
    multiprocessors = kernels.multiprocessors(depths.device) if kernels.take(depths) else MULTIPROCESSORS
    images, _, samples = depths.shape
    return max(1, multiprocessors * SAMPLES // max(1, images * samples * layers))


def through_compositing(
    density: Tensor,
    colors: Tensor,
    depths: Tensor,
    noise: Tensor | None,
    of_colors: Tensor | None,
    of_opacity: Tensor | None,
    of_depth: Tensor | None,
    of_weights: Tensor | None,
    *,
    activation: str,
    last_back: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of densities [B, R, S] and colours [B, R, S, C] from those of what was composited of them.

    Args:
        density, colors, depths, noise: of samples in order, [B, R, S] and [B, R, S, C].
        of_colors, of_opacity, of_depth, of_weights: gradients [B, R, C], [B, R], [B, R], [B, R, S]; None: 0.
        activation, last_back: as in `render_rays`.
    """
    of_density, of_samples, *_ = OPS["composite_backward"](
        density,
        colors,
        depths,
        fine_density=None,
        fine_features=None,
        order=None,
        noise=noise,
        grad_sums=of_colors,
        grad_depth=of_depth,
        grad_weights=of_weights,
        grad_transmittance=None,
        grad_opacity=of_opacity,
        activation=activation,
        last_back=last_back,
        white_back=False,
        with_density=True,
        with_features=of_colors is not None,
        with_depths=False,
    )
    return of_density, torch.zeros_like(colors) if of_colors is None else of_samples
