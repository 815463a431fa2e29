"""Mapping networks: from random z to the style of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cips3d.ops.checks import check_input, check_shape

PIXEL_NORM_EPS = 1e-8
LEAKY_SLOPE = 0.2


def pixel_norm(z: Tensor) -> Tensor:
    """z / sqrt(mean(z²) + 1e-8) over the last dimension (ProGAN, arXiv 1710.10196, section 4.2)."""
    return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + PIXEL_NORM_EPS)


class MappingNetwork(nn.Module):
    """Pixel norm, then fully connected layers with leaky ReLU 0.2 between them.

    With `layer_norm`, every linear layer is followed by a LayerNorm; the last LayerNorm is the output. There is no
    activation behind the last layer.

    Source: CIPS-3D (arXiv 2110.09788), section 3; one network for the NeRF and one for the INR.
    """

    def __init__(self, z_dim: int, style_dim: int, layers: int, layer_norm: bool) -> None:
        super().__init__()
        self.z_dim = z_dim
        widths = [z_dim] + [style_dim] * layers
        linears = [nn.Linear(i, o) for i, o in zip(widths, widths[1:], strict=False)]
        self.linears = nn.ModuleList(linears)
        self.norms = nn.ModuleList(nn.LayerNorm(style_dim) for _ in range(layers)) if layer_norm else None
        for linear in linears:
            nn.init.kaiming_normal_(linear.weight, a=LEAKY_SLOPE, mode="fan_in", nonlinearity="leaky_relu")

    def forward(self, z: Tensor) -> Tensor:
        """z [B, z_dim] -> style [B, style_dim]."""
        check_shape("z", z, (None, self.z_dim))
        check_input("z", z, self.linears[0].weight)
        x = pixel_norm(z)
        for k, linear in enumerate(self.linears):
            x = linear(x)
            if self.norms is not None:
                x = self.norms[k](x)
            if k + 1 < len(self.linears):
                x = nn.functional.leaky_relu(x, LEAKY_SLOPE)
        return x
