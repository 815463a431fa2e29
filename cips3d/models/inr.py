"""The INR branch: a deep per-pixel network of modulated fully connected layers."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from cips3d.models.mapping import LEAKY_SLOPE
from cips3d.models.precision import autocast
from cips3d.ops import ModulatedWeight, Precision, modulated_inr

# Up to so many pixels, activations are kept for the backward; with more, the backward computes them once more, which
# costs another forward. The published network's activations of one pixel take 42 KB in 16 bits and 84 KB in float32.
KEPT_PIXELS = 1 << 16


class ModulatedFC(nn.Module):
    """Weight [in, out] and the linear map from the style to its modulation, m = 1 + A s + a."""

    def __init__(self, width_in: int, width_out: int, style_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width_out))
        self.modulation = nn.Linear(style_dim, width_in)
        # On the (in, out) matrix "fan_in" is the number of outputs: what the published network trains with.
        nn.init.kaiming_normal_(self.weight, a=LEAKY_SLOPE, mode="fan_in", nonlinearity="leaky_relu")
        nn.init.kaiming_normal_(self.modulation.weight, a=LEAKY_SLOPE, mode="fan_in", nonlinearity="leaky_relu")

    def fold(self, style: Tensor) -> ModulatedWeight:
        """The weight modulated by a style [B, style_dim]."""
        return ModulatedWeight.of(self.weight, 1 + self.modulation(style))


class INR(nn.Module):
    """Features of pixels to colours: blocks of two modulated layers, residual sums, RGB from every later block.

    No spatial operator: each pixel is computed alone, so any set of pixels at any resolution can be rendered.

    Source: CIPS-3D (arXiv 2110.09788), section 3.2.
    """

    def __init__(
        self,
        *,
        features: int,
        width: int,
        blocks: int,
        style_dim: int,
        skip_from: int,
        rgb_from: int,
        rgb_init: float,
    ) -> None:
        super().__init__()
        if not 0 <= rgb_from < blocks:
            raise ValueError(f"rgb_from must be the index of one of {blocks} blocks, got {rgb_from}")
        self.precision: Precision | None = None
        self.fast_dtype = torch.bfloat16  # what "fast" rounds operands and activations to
        self.skip_from = skip_from
        self.rgb_from = rgb_from
        widths = [features] + [width] * (2 * blocks)
        self.layers = nn.ModuleList(ModulatedFC(i, o, style_dim) for i, o in zip(widths, widths[1:], strict=False))
        to_rgb = [nn.Linear(width, 3) for _ in range(rgb_from, blocks)]
        self.to_rgb = nn.ModuleList(to_rgb)
        for linear in to_rgb:
            bound = math.sqrt(6 / width) * rgb_init
            nn.init.uniform_(linear.weight, -bound, bound)

    @property
    def blocks(self) -> int:
        return len(self.layers) // 2

    def fold(self, style: Tensor) -> list[ModulatedWeight]:
        """Weights of all layers for a style [B, style_dim] or [B, layers, style_dim]."""
        styles = style.unbind(1) if style.dim() == 3 else (style,) * len(self.layers)
        layers = cast("list[ModulatedFC]", self.layers)
        return [layer.fold(s) for layer, s in zip(layers, styles, strict=True)]

    def style_weights(self) -> tuple[Tensor, ...]:
        """A of every layer's modulation 1 + A s + a, [in, style_dim]."""
        return tuple(layer.modulation.weight for layer in cast("list[ModulatedFC]", self.layers))

    def forward(self, features: Tensor, folded: list[ModulatedWeight]) -> Tensor:
        """features [B, N, features], weights of `fold` -> RGB [B, N, 3] in [-1, 1]."""
        to_rgb = cast("list[nn.Linear]", self.to_rgb)
        with autocast(features.device, self.fast_dtype if self.precision == "fast" else None):
            rgb = modulated_inr(
                features,
                folded,
                [linear.weight for linear in to_rgb],
                skip_from=self.skip_from,
                negative_slope=LEAKY_SLOPE,
                precision=self.precision,
                keep_activations=_keeps_activations(features, folded),
            )
        # Added one by one: all parts of a stack's sum would share one gradient tensor, and code that changes one
        # gradient in place (clipping, accumulation, loss scaling) would change them all.
        bias: Tensor = to_rgb[0].bias
        for linear in to_rgb[1:]:
            bias = bias + linear.bias
        return torch.tanh(rgb + bias)


def _keeps_activations(features: Tensor, folded: list[ModulatedWeight]) -> bool:
    """Whether gradients are wanted, and the pixels are few enough to keep their activations in memory."""
    if not torch.is_grad_enabled() or features.shape[0] * features.shape[1] > KEPT_PIXELS:
        return False
    given = (features, *(x for layer in folded for x in (layer.weight, layer.modulation)))
    return any(x is not None and x.requires_grad for x in given)
