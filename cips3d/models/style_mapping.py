"""StyleGAN2's mapping network, from random z to the style w, and styles by layer."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from cips3d.errors import UserError, require_whole
from cips3d.models.equalized import EqualizedLinear
from cips3d.models.generator import styles_by_layer
from cips3d.models.mapping import pixel_norm
from cips3d.ops.checks import check_input, check_shape


class WStyles(NamedTuple):
    """What the mapping network makes of z: all that a picture needs.

    Attributes:
        w: [B, style_dim] for all layers, or [B, layers, style_dim], one a layer.
    """

    w: Tensor

    def by_layer(self, layers: int, style_dim: int) -> tuple[Tensor, ...]:
        """The style [B, style_dim] of every layer.

        Raises:
            ValueError: w has another shape.
        """
        w = self.w
        if w.dim() not in (2, 3) or w.shape[-1] != style_dim or (w.dim() == 3 and w.shape[1] != layers):
            raise ValueError(
                f"w must have shape [B, {style_dim}] or [B, {layers}, {style_dim}], got {list(self.w.shape)}"
            )
        return styles_by_layer(w, layers).unbind(1)


def check_style_dimensions(z_dim: int, style_dim: int, mapping_layers: int, mapping_lr_multiplier: float) -> None:
    """Raise `UserError`, naming the field, unless these make a `StyleMapping`."""
    for name, value in (("z_dim", z_dim), ("style_dim", style_dim), ("mapping_layers", mapping_layers)):
        require_whole(name, value, 1)
    if not 0 < mapping_lr_multiplier < math.inf:
        raise UserError(
            f"mapping_lr_multiplier {mapping_lr_multiplier} is no positive number; the published one is 0.01"
        )


class StyleMapping(nn.Module):
    """Pixel norm, then fully connected layers with leaky ReLU · √2 behind each, the last included.

    Args:
        z_dim: width of z.
        style_dim: width of all layers and of w.
        layers: how many.
        lr_multiplier: factor on the learning rate of weights and biases (see `EqualizedLinear`).

    Source: StyleGAN (arXiv 1812.04948), section 2; as StyleGAN2 and CIPS (arXiv 2011.13775) use it.
    """

    def __init__(self, z_dim: int, style_dim: int, layers: int, *, lr_multiplier: float = 0.01) -> None:
        super().__init__()
        self.z_dim = z_dim
        widths = [z_dim] + [style_dim] * layers
        self.linears = nn.ModuleList(
            EqualizedLinear(i, o, lr_multiplier=lr_multiplier, activation=True)
            for i, o in zip(widths, widths[1:], strict=False)
        )

    def forward(self, z: Tensor) -> Tensor:
        """z [B, z_dim] -> w [B, style_dim]."""
        check_shape("z", z, (None, self.z_dim))
        check_input("z", z, self.linears[0].weight)
        x = pixel_norm(z)
        for linear in self.linears:
            x = linear(x)
        return x
