"""CIPS-3D's pictures in the best plain PyTorch we know, for torch.compile: what fused kernels have to beat.

Modulations are folded into weights, the last linear layer comes once a ray, samples are never sorted (their weights are
put back into the order in which the samples were computed), fine depths are sorted only among the coarse ones, and the
first sine layer, of three inputs, is arithmetic that a compiler can fuse with its sine. Written for speed, without
options that the comparison does not need.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from op_baselines import compositing_weights, importance_draws
from torch import Tensor, nn

from cips3d.cameras import Rays
from cips3d.models.cips3d import CIPS3D, CIPS3DStyles
from cips3d.models.inr import INR, ModulatedFC
from cips3d.models.mapping import LEAKY_SLOPE
from cips3d.models.nerf import NeRF
from cips3d.models.volume import VolumeSettings
from cips3d.ops.film_siren import FoldedLayer
from cips3d.ops.march import RayDraws
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


def features_of_rays(
    nerf: NeRF, rays: Rays, style: Tensor, settings: VolumeSettings, draws: RayDraws, dtype: torch.dtype
) -> Tensor:
    """Features [B, R, C] of rays: relu densities, no noise, coarse and fine samples."""
    assert draws.importance is not None
    field = nerf.fold(style)
    u = draws.stratified
    bin_width = (settings.t_far - settings.t_near) / (u.shape[-1] - 1)
    places = torch.linspace(settings.t_near, settings.t_far, u.shape[-1], device=u.device, dtype=u.dtype)

    def at(depths: Tensor) -> tuple[Tensor, Tensor]:
        points = rays.origins[:, :, None] + depths[..., None] * rays.directions[:, :, None]
        density, activations = evaluate(field, points.flatten(1, 2), dtype)
        return density.view(depths.shape), activations.unflatten(1, depths.shape[1:])

    coarse_depths = places + (u - 0.5) * bin_width
    coarse_density, coarse = at(coarse_depths)
    with torch.no_grad():
        coarse_weights = compositing_weights(coarse_density, coarse_depths)
        fine_depths = importance_draws(coarse_depths, coarse_weights, draws.importance)
        depths, order = torch.cat([coarse_depths, fine_depths], dim=-1).sort(dim=-1)
    fine_density, fine = at(fine_depths)
    weights = compositing_weights(torch.cat([coarse_density, fine_density], dim=-1).gather(-1, order), depths)
    opacity = weights.sum(-1, keepdim=True)
    weights = torch.zeros_like(weights).scatter(-1, order, weights)
    of_coarse, of_fine = weights.split([coarse.shape[2], fine.shape[2]], dim=-1)
    colors = (of_coarse[..., None] * coarse).sum(2) + (of_fine[..., None] * fine).sum(2)
    return F.linear(colors, nerf.output.weight) + nerf.output.bias * opacity


def colors_of_pixels(inr: INR, features: Tensor, style: Tensor, dtype: torch.dtype) -> Tensor:
    """Colours [B, N, 3] in [-1, 1] of features [B, N, C]; sums of colours in the features' dtype."""
    x = features.to(dtype)
    rgb = torch.stack([cast(nn.Linear, linear).bias for linear in inr.to_rgb]).sum(0)
    for block in range(inr.blocks):
        before = x
        for module in inr.layers[2 * block : 2 * block + 2]:
            layer = cast(ModulatedFC, module)
            weight = (1 + layer.modulation(style))[:, :, None] * layer.weight
            weight = weight * torch.rsqrt(weight.square().sum(1, keepdim=True) + 1e-8)
            x = F.leaky_relu_(torch.bmm(x, weight.to(dtype)), LEAKY_SLOPE)
        x = x + before if block >= inr.skip_from else x
        if block >= inr.rgb_from:
            weight = cast(nn.Linear, inr.to_rgb[block - inr.rgb_from]).weight
            rgb = rgb + (x @ weight.to(dtype).mT).to(features.dtype)
    return torch.tanh(rgb)


def render(
    generator: CIPS3D,
    styles: CIPS3DStyles,
    rays: Rays,
    settings: VolumeSettings,
    draws: RayDraws,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Colours [B, R, 3] in [-1, 1] of rays.

    Args:
        dtype: of products and activations; None: that of the rays.
    """
    kept = dtype or rays.origins.dtype
    features = features_of_rays(generator.nerf, rays, styles.shape, settings, draws, kept)
    return colors_of_pixels(generator.inr, features, styles.appearance, kept)
