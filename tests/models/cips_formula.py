"""CIPS written once more, in float64: one image, one pixel after the other, a weight for each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cips3d.models.cips import CIPS
from cips3d.models.styled_conv import StyledConv, ToRGB


def modulated(layer: Any, x: Tensor, w: Tensor, *, demodulate: bool) -> Tensor:
    """x [in] -> [out]."""
    modulation = layer.modulation.weight @ w / math.sqrt(len(w)) + layer.modulation.bias
    weight = layer.weight[:, :, 0, 0] / math.sqrt(len(x)) * modulation
    if demodulate:
        weight = weight / (weight.square().sum(1, keepdim=True) + 1e-8).sqrt()
    return weight @ x


def styled(layer: StyledConv, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
    y = modulated(layer.conv, x, w, demodulate=True) + layer.bias
    if noise is not None:
        y = y + layer.noise_strength * noise
    return math.sqrt(2) * torch.where(y > 0, y, 0.2 * y)


def coloured(layer: ToRGB, x: Tensor, w: Tensor) -> Tensor:
    return modulated(layer.conv, x, w, demodulate=False) + layer.bias


def embedding_at(model: CIPS, place: Tensor) -> Tensor:
    """Bilinear, pixel centres at (2 k + 1)/side - 1, going on with the border (x of a cylinder goes around)."""
    grid = model.network.embedding[0]
    side = grid.shape[-1]
    around = len(place) == 3
    if around:
        place = torch.stack([torch.atan2(place[1], place[0]) / math.pi, place[2]])
    column, row = (((place + 1) * side - 1) / 2).tolist()
    row = min(max(row, 0), side - 1)
    column = column if around else min(max(column, 0), side - 1)
    value = torch.zeros(len(grid), dtype=torch.float64)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            weight = (1 - abs(row - i)) * (1 - abs(column - j))
            value = value + weight * grid[:, min(i, side - 1), j % side if around else min(j, side - 1)]
    return value


def pixel(model: CIPS, w: Tensor, place: Tensor, noise: list[Tensor | None], embedding: Tensor | None = None) -> Tensor:
    network, blocks = model.network, list(model.network.blocks)
    sines = torch.sin(network.fourier.weight[:, :, 0, 0] @ place + network.fourier.bias)
    embedding = embedding_at(model, place) if embedding is None else embedding
    x = styled(network.first, torch.cat([sines, embedding]), w, noise[0])
    rgb = torch.zeros(3, dtype=torch.float64)
    for k, block in enumerate(blocks):
        y = styled(block.conv2, styled(block.conv1, x, w, noise[1 + 2 * k]), w, noise[2 + 2 * k])
        if model.config.variant == "skip":
            x = y
            rgb = rgb + coloured(block.to_rgb, x, w)
        else:
            shortcut = block.shortcut
            x = (y + (x if shortcut is None else shortcut.weight[:, :, 0, 0] @ x / math.sqrt(len(x)))) / math.sqrt(2)
    return rgb if model.config.variant == "skip" else coloured(network.to_rgb, x, w)


def picture(model: CIPS, w: Tensor, coords: Tensor, *, stored: bool = False) -> Tensor:
    """Without noise, [B, 3, H, W]; coords [B, coordinates, H, W]."""
    image = torch.zeros(len(coords), 3, *coords.shape[2:], dtype=torch.float64)
    silent: list[Tensor | None] = [None] * model.network.layers
    rows = []
    for b in range(len(image)):
        pixels = []
        for i in range(image.shape[2]):
            for j in range(image.shape[3]):
                embedding = model.network.embedding[0, :, i, j] if stored else None
                pixels.append(pixel(model, w[b], coords[b, :, i, j], silent, embedding))
        rows.append(torch.stack(pixels, dim=1).view(3, *coords.shape[2:]))
    return torch.stack(rows)
