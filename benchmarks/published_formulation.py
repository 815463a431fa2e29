"""CIPS-3D's pictures in the published formulation, step by step in plain PyTorch: what our renderer is compared with.

The same pictures as `CIPS3D.synthesis` from the same weights, rays and random draws, computed in the published order:
gain and shift applied to every sample, all 32 channels of every sample computed before compositing, feature and density
of a sample concatenated, all samples sorted by depth and gathered, one modulated matrix an image and layer and its
batched product, no fused pass between layers. With truncation, mean styles of 10 000 random z are found anew in every
call, as published. Cameras and rays are given.

Source: CIPS-3D (arXiv 2110.09788), sections 3.1 and 3.2, and its implementation.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.cameras import Rays
from cips3d.models.cips3d import CIPS3D, CIPS3DStyles
from cips3d.models.generator import truncated
from cips3d.models.inr import INR, ModulatedFC
from cips3d.models.mapping import LEAKY_SLOPE
from cips3d.models.nerf import GAIN_CENTRE, GAIN_SCALE, FilmSiren, NeRF
from cips3d.models.ray_parts import as_picture
from cips3d.models.view import Picture, View
from cips3d.models.volume import VolumeSettings, draw_random
from cips3d.ops.march import RayDraws

LAST_DELTA = 1e10  # the last sample's light goes nowhere else
LIGHT_EPS = 1e-10  # keeps light behind an opaque sample above 0
WEIGHT_EPS = 1e-5  # every bin can be drawn from


def film(layer: FilmSiren, x: Tensor, style: Tensor) -> Tensor:
    """sin(gain ⊙ (W x + b) + shift) for x [B, N, in] and a style [B, style_dim]."""
    gain = GAIN_SCALE * layer.gain(style) + GAIN_CENTRE
    return torch.sin(gain[:, None] * layer.linear(x) + layer.shift(style)[:, None])


def evaluate(nerf: NeRF, points: Tensor, style: Tensor) -> Tensor:
    """Feature and raw density [B, N, features + 1] of points [B, N, 3]."""
    x = points * nerf.point_scale
    for layer in nerf.layers:
        x = film(cast(FilmSiren, layer), x, style)
    density = nerf.density(x) * nerf.density_scale
    return torch.cat([nerf.output(film(nerf.color, x, style)), density], dim=-1)


def composite(
    samples: Tensor, depths: Tensor, noise: Tensor | None, settings: VolumeSettings, *, last_back: bool
) -> tuple[Tensor, Tensor]:
    """Features [B, R, C] and weights [B, R, S, 1] of samples [B, R, S, C + 1] at ascending depths [B, R, S, 1]."""
    features, density = samples[..., :-1], samples[..., -1:]
    if noise is not None:
        density = density + noise[..., None]
    delta = depths[:, :, 1:] - depths[:, :, :-1]
    delta = torch.cat([delta, torch.full_like(delta[:, :, :1], LAST_DELTA)], dim=2)
    positive = F.softplus(density) if settings.density_activation == "softplus" else F.relu(density)
    alpha = 1 - torch.exp(-delta * positive)
    light = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :, :1]), 1 - alpha + LIGHT_EPS], dim=2), dim=2)
    weights = alpha * light[:, :, :-1]
    if last_back:
        weights = torch.cat([weights[:, :, :-1], weights[:, :, -1:] + 1 - weights.sum(2, keepdim=True)], dim=2)
    return (weights * features).sum(2), weights


def importance_depths(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Depths [B, R, F, 1] drawn where the weights [B, R, S, 1] are, from u [B, R, F] in [0, 1)."""
    t, w = depths[..., 0].flatten(0, 1), weights[..., 0].flatten(0, 1) + WEIGHT_EPS
    draws = u.flatten(0, 1).contiguous()
    bins = 0.5 * (t[:, :-1] + t[:, 1:])  # [B·R, S - 1]
    inner = w[:, 1:-1] + WEIGHT_EPS
    share = inner / inner.sum(-1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(share[:, :1]), torch.cumsum(share, dim=-1)], dim=-1)
    found = torch.searchsorted(cdf, draws)
    ends = torch.stack([(found - 1).clamp_min(0), found.clamp_max(share.shape[1])], dim=-1).flatten(1)
    of_cdf = torch.gather(cdf, 1, ends).unflatten(1, (-1, 2))
    of_bins = torch.gather(bins, 1, ends).unflatten(1, (-1, 2))
    step = of_cdf[..., 1] - of_cdf[..., 0]
    step = torch.where(step < WEIGHT_EPS, torch.ones_like(step), step)
    fine = of_bins[..., 0] + (draws - of_cdf[..., 0]) / step * (of_bins[..., 1] - of_bins[..., 0])
    return fine.view(*u.shape, 1)


def features_of_rays(nerf: NeRF, rays: Rays, style: Tensor, settings: VolumeSettings, draws: RayDraws) -> Tensor:
    """Features [B, R, C] of rays: coarse samples, fine samples, both sorted and composited.

    Raises:
        ValueError: the volume starts as a ball, which the published one does not.
    """
    if nerf.initial_radius is not None:
        raise ValueError("nerf must start without a ball (initial_radius None): the published formulation has none")
    shape = draws.stratified.shape

    def at(depths: Tensor) -> Tensor:
        points = rays.origins[:, :, None] + depths * rays.directions[:, :, None]
        return evaluate(nerf, points.flatten(1, 2), style).unflatten(1, depths.shape[1:3])

    places = torch.linspace(settings.t_near, settings.t_far, shape[2], device=style.device, dtype=style.dtype)
    depths = places.view(1, 1, -1, 1).repeat(shape[0], shape[1], 1, 1)
    depths = depths + (draws.stratified[..., None] - 0.5) * (depths[:, :, 1:2] - depths[:, :, :1])
    samples = at(depths)
    noise = draws.coarse_noise
    if draws.importance is not None:
        with torch.no_grad():
            _, weights = composite(samples, depths, noise, settings, last_back=False)
            fine_depths = importance_depths(depths, weights, draws.importance)
        samples = torch.cat([at(fine_depths), samples], dim=2)
        depths = torch.cat([fine_depths, depths], dim=2)
        order = torch.sort(depths, dim=2).indices
        depths = torch.gather(depths, 2, order)
        samples = torch.gather(samples, 2, order.expand(-1, -1, -1, samples.shape[-1]))
        noise = draws.merged_noise
    features, weights = composite(samples, depths, noise, settings, last_back=settings.last_back)
    return features + (1 - weights.sum(2)) if settings.white_back else features


def modulated(layer: ModulatedFC, x: Tensor, style: Tensor) -> Tensor:
    """lrelu(x W'') for x [B, N, in], with a modulated and demodulated matrix an image."""
    weight = layer.weight[None] * (layer.modulation(style)[:, :, None] + 1)
    weight = weight * torch.rsqrt(weight.pow(2).sum(1, keepdim=True) + 1e-8)
    return F.leaky_relu_(torch.bmm(x, weight), LEAKY_SLOPE)


def colors(inr: INR, features: Tensor, style: Tensor) -> Tensor:
    """Colours [B, N, 3] in [-1, 1] of features [B, N, C]."""
    x, rgb = features, torch.zeros_like(features[..., :3])
    for block in range(inr.blocks):
        before = x
        for layer in inr.layers[2 * block : 2 * block + 2]:
            x = modulated(cast(ModulatedFC, layer), x, style)
        if block >= inr.skip_from:
            x = x + before
        if block >= inr.rgb_from:
            rgb = rgb + inr.to_rgb[block - inr.rgb_from](x)
    return torch.tanh(rgb)


def render(
    generator: CIPS3D,
    styles: CIPS3DStyles,
    rays: Rays,
    settings: VolumeSettings,
    draws: RayDraws,
    *,
    truncation: float = 1.0,
) -> Tensor:
    """Colours [B, R, 3] in [-1, 1] of rays.

    Args:
        generator: its weights; the volume must start without a ball.
        styles: one of the shape [B, shape_style_dim] and one of the appearance [B, appearance_style_dim] an image.
        rays: [B, R] rays.
        settings, draws: the volume of a view and `draws`, as for `CIPS3D.synthesis`.
        truncation: below 1, styles are drawn towards the mean, which is found anew.
    """
    if truncation < 1:
        styles = truncated(styles, generator.mean_styles(), truncation)
    features = features_of_rays(generator.nerf, rays, styles.shape, settings, draws)
    return colors(generator.inr, features, styles.appearance)


def picture(generator: CIPS3D, styles: CIPS3DStyles, view: View) -> Picture:
    """What `CIPS3D.render` gives of a square view, with gradients through every ray; no depth."""
    side, rays = view.resolution, view.cameras.rays(view.resolution)
    assert isinstance(side, int) and view.grad_points is None
    batch, count = rays.origins.shape[:2]
    draws = draw_random(
        batch,
        count,
        view.volume,
        density_noise=view.density_noise,
        jitter=view.jitter,
        generator=view.generator,
        device=rays.origins.device,
        dtype=rays.origins.dtype,
    )
    features = features_of_rays(generator.nerf, rays, styles.shape, view.volume, draws)
    image = as_picture(colors(generator.inr, features, styles.appearance), side, side)
    aux = as_picture(torch.tanh(generator.aux_to_rgb(features)), side, side) if view.return_aux else None
    return Picture(image, aux, None)
