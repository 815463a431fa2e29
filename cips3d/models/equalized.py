"""Layers with equalised learning rate: stored weights are N(0, 1), the He factor is applied at run time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cips3d.ops.bias_leaky_relu import bias_leaky_relu

SUM_SCALE = math.sqrt(0.5)  # the sum of two paths of unit variance gets unit variance


class EqualizedConv2d(nn.Module):
    """Convolution with weight W / sqrt(in · k²), W ~ N(0, 1); its bias lives with the activation behind it.

    Source: ProGAN (arXiv 1710.10196), section 4.1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H', W']."""
        return F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)


class EqualizedLinear(nn.Module):
    """y = x Wᵀ · lr/sqrt(in) + b · lr, W ~ N(0, 1) / lr; with `activation`, bias and leaky ReLU · √2 in one.

    Args:
        in_features: width of x.
        out_features: width of y.
        lr_multiplier: lr above; below 1 it slows this layer's learning (StyleGAN2's mapping: 0.01).
        bias_init: b · lr at the start.
        activation: leaky ReLU with slope 0.2 and gain √2 behind the bias.

    Source: ProGAN (arXiv 1710.10196), section 4.1; the multiplier is StyleGAN's (arXiv 1812.04948).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
        activation: bool = False,
    ) -> None:
        super().__init__()
        self.lr_multiplier = lr_multiplier
        self.activation = activation
        self.scale = lr_multiplier / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] (with `activation` [B, in]) -> [..., out]."""
        weight = self.weight * self.scale
        bias = self.bias * self.lr_multiplier
        if not self.activation:
            return F.linear(x, weight, bias)
        y = F.linear(x, weight)
        return bias_leaky_relu(y, bias)
