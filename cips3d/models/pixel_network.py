"""CIPS's network: coordinates and styles of pixels to their colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cips3d.models.equalized import SUM_SCALE, EqualizedConv2d
from cips3d.models.styled_conv import StyledConv, ToRGB


class PixelNetwork(nn.Module):
    """Sines of coordinates beside an embedding, then modulated layers of single pixels, and colours.

    Args:
        coordinates: 2 of a plane, or 3 of a cylinder.
        hidden: sines, and channels of the embedding.
        resolution: side of the embedding.
        widths: of the blocks, one or more; the layer before the first is as wide as it.
        style_dim: width of w.
        residual: blocks have shortcuts and the last gives the colours; otherwise every block adds to the colours.

    Source: CIPS (arXiv 2011.13775), section 3: Fourier features, coordinate embedding, ModFC layers, ToRGB.
    """

    def __init__(
        self, *, coordinates: int, hidden: int, resolution: int, widths: Sequence[int], style_dim: int, residual: bool
    ) -> None:
        super().__init__()
        self.fourier = nn.Conv2d(coordinates, hidden, 1)
        bound = math.sqrt(9 / coordinates)
        nn.init.uniform_(self.fourier.weight, -bound, bound)
        self.embedding = nn.Parameter(torch.randn(1, hidden, resolution, resolution))
        self.first = StyledConv(2 * hidden, widths[0], 1, style_dim)
        self.blocks = nn.ModuleList(
            PixelBlock(i, o, style_dim, residual=residual) for i, o in zip([widths[0], *widths], widths, strict=False)
        )
        self.to_rgb = ToRGB(widths[-1], style_dim) if residual else None

    @property
    def layers(self) -> int:
        """ModFC layers, which have noise each."""
        return 1 + 2 * len(self.blocks)

    def style_weights(self) -> tuple[Tensor, ...]:
        """A of what each style modulates, stacked [Σ in, style_dim]; the last style has a ToRGB alone."""
        met: list[list[Tensor]] = [[] for _ in range(self.layers + 1)]
        met[0].append(self.first.conv.style_weight)
        for k, module in enumerate(self.blocks):
            block = cast("PixelBlock", module)
            met[1 + 2 * k].append(block.conv1.conv.style_weight)
            met[2 + 2 * k].append(block.conv2.conv.style_weight)
            if block.to_rgb is not None:
                met[3 + 2 * k].append(block.to_rgb.conv.style_weight)
        if self.to_rgb is not None:
            met[-1].append(self.to_rgb.conv.style_weight)
        return tuple(torch.cat(weights) for weights in met)

    def forward(
        self, coords: Tensor, embedding: Tensor | None, w: Sequence[Tensor], noise: Sequence[Tensor | None]
    ) -> Tensor:
        """Colours of pixels.

        Args:
            coords: [B or 1, coordinates, H, W].
            embedding: [1, hidden, H, W] to be used as it is; None: it is sampled at the coordinates.
            w: the style [B, style_dim] of every layer, and one more. Colours follow the style of the layer behind them.
            noise: [B or 1, 1, H, W] of every layer, or None.

        Returns:
            [B, 3, H, W].
        """
        sines = torch.sin(self.fourier(coords))
        embedding = self.sample_embedding(coords) if embedding is None else embedding.expand_as(sines)
        x = self.first(torch.cat([sines, embedding], dim=1), w[0], noise[0])
        rgb: Tensor | None = None
        for k, block in enumerate(self.blocks):
            of_block = slice(1 + 2 * k, 4 + 2 * k)
            x, rgb = block(x, rgb, w[of_block], noise[of_block])
        if self.to_rgb is not None:
            rgb = self.to_rgb(x, w[-1])
        assert rgb is not None  # every block of a network without a last ToRGB gives colours
        return rgb

    def sample_embedding(self, coords: Tensor) -> Tensor:
        """The embedding [B, hidden, H, W] at coordinates [B, coordinates, H, W], bilinear.

        A square embedding goes on with its border outside of [-1, 1]², one of a cylinder goes around it.
        """
        count, _, height, width = coords.shape
        embedding: Tensor = self.embedding
        if coords.shape[1] == 2:
            places = coords.permute(0, 2, 3, 1)
        else:
            side = embedding.shape[-1]
            # Beyond either edge follows the column of the other: between the two is the seam.
            embedding = F.pad(embedding, (1, 1, 0, 0), mode="circular")
            x = torch.atan2(coords[:, 1], coords[:, 0]) * (side / (math.pi * (side + 2)))
            places = torch.stack([x, coords[:, 2]], dim=-1)
        # All images as one: expanding the embedding to B of them would make B gradients of its size.
        places = places.reshape(1, count * height, width, 2)
        found = F.grid_sample(embedding, places, mode="bilinear", padding_mode="border", align_corners=False)
        return found.view(-1, count, height, width).transpose(0, 1)


class PixelBlock(nn.Module):
    """Two ModFC layers: with colours of their own, or with a shortcut, (h + shortcut) / √2.

    The shortcut is an equalised 1x1 convolution without bias where widths differ.
    """

    def __init__(self, width_in: int, width_out: int, style_dim: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = StyledConv(width_in, width_out, 1, style_dim)
        self.conv2 = StyledConv(width_out, width_out, 1, style_dim)
        self.to_rgb = None if residual else ToRGB(width_out, style_dim)
        self.shortcut = EqualizedConv2d(width_in, width_out, 1) if residual and width_in != width_out else None

    def forward(
        self, x: Tensor, rgb: Tensor | None, w: Sequence[Tensor], noise: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, in, H, W] and the colours so far, with the styles of both layers and of what follows -> the same."""
        y = self.conv2(self.conv1(x, w[0], noise[0]), w[1], noise[1])
        if self.residual:
            y = (y + (x if self.shortcut is None else self.shortcut(x))) * SUM_SCALE
        return y, rgb if self.to_rgb is None else self.to_rgb(y, w[2], rgb)
