"""Rays to composite, and the formula in plain steps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from ops.backends import Backend
from torch import Tensor

from cips3d.ops import Composited

SETTINGS: list[dict[str, Any]] = [
    {},
    {"activation": "softplus", "white_back": True},
    {"last_back": True},
    {"last_back": True, "white_back": True},
    {"activation": "softplus", "last_back": True, "white_back": True},
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def sample_inputs(
    batch: int = 2, rays: int = 3, samples: int = 5, channels: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Density, features and depths: translucent samples, empty ones and opaque ones."""
    random = torch.Generator().manual_seed(0)
    density = 20 * torch.randn(batch, rays, samples, generator=random, dtype=torch.float64)
    features = torch.randn(batch, rays, samples, channels, generator=random, dtype=torch.float64)
    depths = torch.rand(batch, rays, samples, generator=random, dtype=torch.float64).sort(-1).values * 0.2 + 0.9
    return density.to(dtype), features.to(dtype), depths.to(dtype)


def formula(
    density: Tensor,
    features: Tensor,
    depths: Tensor,
    noise: Tensor | None = None,
    activation: str = "relu",
    last_back: bool = False,
    white_back: bool = False,
) -> Composited:
    """In plain differentiable steps."""
    raw = density if noise is None else density + noise
    sigma = raw.clamp_min(0) if activation == "relu" else F.softplus(raw)
    delta = torch.cat([depths[..., 1:] - depths[..., :-1], torch.full_like(depths[..., :1], 1e10)], dim=-1)
    alpha = 1 - torch.exp(-delta * sigma)
    light = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha + 1e-10], dim=-1), dim=-1)
    weights = alpha * light[..., :-1]
    opacity = weights.sum(-1)
    if last_back:
        weights = torch.cat([weights[..., :-1], 1 - weights[..., :-1].sum(-1, keepdim=True)], dim=-1)
    sums = (weights[..., None] * features).sum(2)
    if white_back:
        sums = sums + (1 - opacity[..., None])
    return Composited(sums, (weights * depths).sum(-1), weights, light[..., -1], opacity)


def on(backend: Backend, *tensors: Tensor) -> list[Tensor]:
    """Copies that require gradients."""
    return [t.detach().to(backend.device, copy=True).requires_grad_() for t in tensors]


def upstream(outputs: Composited) -> list[Tensor]:
    random = torch.Generator().manual_seed(2)
    return [torch.randn(y.shape, generator=random).to(y.device, y.dtype) for y in outputs]
