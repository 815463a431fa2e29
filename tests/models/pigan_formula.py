"""pi-GAN written once more, by the published formulas."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from models.small_pigan import BATCH, VOLUME, inputs
from torch import Tensor

from cips3d.models.pigan import PiGAN
from cips3d.models.volume import VolumeSettings
from cips3d.models.volume_generator import Rendering


def published_field(model: PiGAN, points: Tensor, directions: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Density [B, N] and colour [B, N, 3], with the frequencies and phases of a layer next to each other."""
    config, nerf = model.config, model.nerf
    x = z
    for k, linear in enumerate(model.style_mapping.linears):
        x = linear(x)
        if k + 1 < config.mapping_layers:
            x = F.leaky_relu(x, 0.2)
    frequencies, phases = x[:, : x.shape[1] // 2] * 15 + 30, x[:, x.shape[1] // 2 :]

    def film(layer: Any, x: Tensor, k: int) -> Tensor:
        part = slice(k * config.width, (k + 1) * config.width)
        return torch.sin(frequencies[:, None, part] * F.linear(x, layer.weight, layer.bias) + phases[:, None, part])

    x = points * (2 / 0.24) if config.box_warp else points
    if nerf.grid is not None:
        grid = nerf.grid.embeddings.expand(len(x), -1, -1, -1, -1)
        found = F.grid_sample(grid, x[:, None, None], mode="bilinear", padding_mode="zeros", align_corners=True)
        x = torch.cat([found[:, :, 0, 0].transpose(1, 2), x], dim=-1)
    for k, layer in enumerate(nerf.layers):
        x = film(layer, x, k)
    color = film(nerf.color, torch.cat([directions, x], dim=-1), config.layers)
    return nerf.density(x)[..., 0], torch.sigmoid(nerf.output(color))


def published_image(
    model: PiGAN,
    seen: Rendering,
    resolution: int,
    volume: VolumeSettings = VOLUME,
    *,
    lock_view: bool = False,
    noise: Tensor | float = 0.0,
) -> Tensor:
    """The picture of given sample depths and noise of raw densities, by the formulas."""
    z, cameras = inputs()
    rays = cameras.rays(resolution)
    depths = seen.sample_depths
    points = rays.origins[:, :, None] + depths[..., None] * rays.directions[:, :, None]
    directions = rays.directions[:, :, None].expand_as(points).flatten(1, 2)
    if lock_view:
        directions = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).expand_as(directions)
    density, color = published_field(model, points.flatten(1, 2), directions, z)
    activation = getattr(F, volume.density_activation)
    delta = F.pad(depths.diff(dim=-1), (0, 1), value=1e10)
    alpha = 1 - torch.exp(-delta * activation(density.view_as(depths) + noise))
    light = torch.cumprod(F.pad(1 - alpha + 1e-10, (1, 0), value=1.0), dim=-1)[..., :-1]
    weights = alpha * light
    total = weights.sum(-1, keepdim=True)
    if volume.last_back:
        weights = torch.cat([weights[..., :-1], weights[..., -1:] + 1 - total], dim=-1)
    pixels = (weights[..., None] * color.view(*depths.shape, 3)).sum(2)
    if volume.white_back:
        pixels = pixels + 1 - total
    return (2 * pixels - 1).transpose(1, 2).reshape(BATCH, 3, resolution, resolution)
