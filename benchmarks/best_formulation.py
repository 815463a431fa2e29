"""CIPS-3D's pictures in the best plain PyTorch we know, for torch.compile: what fused kernels have to beat.

Modulations are folded into weights, the last linear layer comes once a ray, samples are never sorted (their weights are
put back into the order in which the samples were computed), and the first sine layer, of three inputs, is arithmetic
that a compiler can fuse with its sine. Written for speed, without options that the comparison does not need.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.cameras import Rays
from cips3d.models.cips3d import CIPS3D, Styles
from cips3d.models.volume import RandomDraws, VolumeSettings
from cips3d.ops.film_siren import FoldedLayer
from cips3d.ops.importance import importance_depths
from cips3d.ops.siren_field import SirenField


def first_layer(points: Tensor, layer: FoldedLayer) -> Tensor:
    """sin(W p + b) for points [B, N, 3]."""
    x, y, z = (points[..., k : k + 1] * layer.weight[:, None, :, k] for k in range(3))
    return torch.sin(x + y + z + layer.bias[:, None])


def sine_layer(x: Tensor, layer: FoldedLayer) -> Tensor:
    """sin(x Wᵀ + b) for x [B, N, in]; autocast decides on the product."""
    return torch.sin(torch.baddbmm(layer.bias[:, None].to(x.dtype), x, layer.weight.to(x.dtype).mT))


def evaluate(field: SirenField, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Raw density [B, N] and colour activations [B, N, C] at points [B, N, 3]."""
    h = sine_layer(first_layer(points, field.first).to(dtype), field.second)
    density = (h @ field.density_weight.to(dtype)).to(points.dtype) + field.density_bias
    return density, sine_layer(h, field.color)


def weights_of(density: Tensor, depths: Tensor) -> Tensor:
    """Compositing weights [B, R, S] of relu densities at ascending depths."""
    delta = F.pad(depths[..., 1:] - depths[..., :-1], (0, 1), value=1e10)
    alpha = 1 - torch.exp(-delta * F.relu(density))
    light = torch.cumprod(1 - alpha + 1e-10, dim=-1)
    return alpha * F.pad(light[..., :-1], (1, 0), value=1.0)


def render(
    generator: CIPS3D,
    styles: Styles,
    rays: Rays,
    settings: VolumeSettings,
    draws: RandomDraws,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Colours [B, R, 3] in [-1, 1] of rays: relu densities, no noise, coarse and fine samples.

    Args:
        dtype: of products and activations; None: that of the rays.
    """
    assert draws.importance is not None
    nerf, kept = generator.nerf, dtype or rays.origins.dtype
    field = nerf.fold(styles.shape)
    u = draws.stratified
    bin_width = (settings.t_far - settings.t_near) / (u.shape[-1] - 1)
    places = torch.linspace(settings.t_near, settings.t_far, u.shape[-1], device=u.device, dtype=u.dtype)

    def at(depths: Tensor) -> tuple[Tensor, Tensor]:
        points = rays.origins[:, :, None] + depths[..., None] * rays.directions[:, :, None]
        density, activations = evaluate(field, points.flatten(1, 2), kept)
        return density.view(depths.shape), activations.unflatten(1, depths.shape[1:])

    coarse_depths = places + (u - 0.5) * bin_width
    coarse_density, coarse = at(coarse_depths)
    with torch.no_grad():
        coarse_weights = weights_of(coarse_density, coarse_depths)
        fine_depths, depths, order = importance_depths(coarse_depths, coarse_weights, draws.importance)
    fine_density, fine = at(fine_depths)
    weights = weights_of(torch.cat([coarse_density, fine_density], dim=-1).gather(-1, order), depths)
    opacity = weights.sum(-1, keepdim=True)
    weights = torch.zeros_like(weights).scatter(-1, order, weights)
    of_coarse, of_fine = weights.split([coarse.shape[2], fine.shape[2]], dim=-1)
    colors = (of_coarse[..., None] * coarse).sum(2) + (of_fine[..., None] * fine).sum(2)
    features = F.linear(colors, nerf.output.weight) + nerf.output.bias * opacity
    around: AbstractContextManager[object] = nullcontext()
    if dtype is not None:
        around = torch.autocast(features.device.type, dtype=dtype)
    with around:
        return generator.inr(features, generator.inr.fold(styles.appearance))
