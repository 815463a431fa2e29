"""The layers that StyleGAN2 and CIPS are made of: modulated convolutions with noise, bias and activation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cips3d.draws import drawn
from cips3d.models.equalized import EqualizedLinear
from cips3d.ops.bias_leaky_relu import bias_leaky_relu
from cips3d.ops.modulated_fc import demodulation
from cips3d.ops.upfirdn2d import binomial_kernel, upfirdn2d


class ModulatedConv2d(nn.Module):
    """Convolution with a weight that a style scales for every image, and that is then renormalised.

    W'[o, i, :] = m_i · W[o, i, :] / sqrt(in · k²), m = A w + a; W'' = W' / sqrt(Σ_{i, taps} W'² + 1e-8).

    It is computed as ((x ⊙ m) ∗ W) ⊙ d: one weight and one ordinary convolution for the whole batch. With `upsample`
    the convolution is transposed at stride 2 and a blur [1, 3, 3, 1] follows.

    Args:
        in_channels, out_channels: of x and of the result.
        kernel_size: odd; 1 for layers of single pixels.
        style_dim: width of w.
        demodulate: renormalise.
        upsample: the result is twice as large.

    Source: StyleGAN2 (arXiv 1912.04958), section 2.2; CIPS (arXiv 2011.13775), section 3 (ModFC) with single pixels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        *,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.demodulate = demodulate
        self.upsample = upsample
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.modulation = EqualizedLinear(style_dim, in_channels, bias_init=1)
        if upsample:
            self.register_buffer("taps", binomial_kernel(gain=2), persistent=False)

    @property
    def style_weight(self) -> Tensor:
        """A of the modulation m = A w + a, [in, style_dim]."""
        weight: Tensor = self.modulation.weight
        return weight * self.modulation.scale

    def forward(self, x: Tensor, style: Tensor, offset: Tensor | None = None) -> Tensor:
        """The convolution of x, plus an offset.

        Args:
            x: [B, in, H, W], or [1, in, H, W] for the same one in every image.
            style: [B, style_dim].
            offset: what the result is broadcast with and added to, or None.

        Returns:
            [B, out, H, W], with `upsample` [B, out, 2H, 2W].
        """
        modulation = self.modulation(style)  # [B, in]
        weight = self.weight * self.scale
        y = self._convolve(x * modulation[:, :, None, None], weight)
        if not self.demodulate:
            return y if offset is None else y + offset
        factors = self._demodulation(weight, modulation)[:, :, None, None].to(y.dtype)
        return y * factors if offset is None else torch.addcmul(offset, y, factors)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        size = weight.shape[-1]
        if not self.upsample:
            return F.conv2d(x, weight, padding=size // 2)
        y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        # 2H + size - 2 rows, of which a blur of 4 taps and these pads leave 2H.
        return upfirdn2d(y, self.get_buffer("taps"), padding=(5 - size) // 2)

    def _demodulation(self, weight: Tensor, modulation: Tensor) -> Tensor:
        taps = weight.shape[-1] ** 2
        columns = weight.permute(1, 2, 3, 0).flatten(0, 2)  # [in · taps, out]
        return demodulation(columns, modulation.repeat_interleave(taps, dim=1) if taps > 1 else modulation)


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias and leaky ReLU · √2: y = √2 · lrelu(conv(x, w) + strength · noise + b).

    Args:
        in_channels, out_channels, kernel_size, style_dim, upsample: see `ModulatedConv2d`.

    Source: StyleGAN2 (arXiv 1912.04958), section 2.1 (figure 2c).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, style_dim: int, *, upsample: bool = False
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, kernel_size, style_dim, upsample=upsample)
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """The layer.

        Args:
            x: [B, in, H, W], or [1, in, H, W] for the same one in every image.
            style: [B, style_dim].
            noise: [B, 1, H', W'] or [1, 1, H', W'], as large as the result; None: none.

        Returns:
            [B, out, H', W'].
        """
        y = self.conv(x, style, None if noise is None else noise * self.noise_strength)
        return bias_leaky_relu(y, self.bias)


class ToRGB(nn.Module):
    """Colours of a layer, added to those so far: rgb' = rgb + conv1x1(x, w) + b, modulated and not demodulated.

    Args:
        in_channels: of x.
        style_dim: width of w.
        upsample: the colours so far are half as large as x, and are doubled by zeros between pixels and a blur.

    Source: StyleGAN2 (arXiv 1912.04958), section 4.1 (figure 7b, skip connections).
    """

    def __init__(self, in_channels: int, style_dim: int, *, upsample: bool = False) -> None:
        super().__init__()
        self.upsample = upsample
        self.conv = ModulatedConv2d(in_channels, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))
        if upsample:
            self.register_buffer("taps", binomial_kernel(gain=2), persistent=False)

    def forward(self, x: Tensor, style: Tensor, rgb: Tensor | None = None) -> Tensor:
        """x [B, in, H, W], style [B, style_dim], rgb [B, 3, H, W] (with `upsample` half as large) -> [B, 3, H, W]."""
        offset = self.bias[:, None, None]
        if rgb is not None:
            if self.upsample:
                rgb = upfirdn2d(rgb, self.get_buffer("taps"), up=2, padding=(2, 1))
            offset = offset + rgb
        return self.conv(x, style, offset)


def draw_noise(
    batch: int, height: int, width: int, *, like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal noise [batch, 1, height, width] with the dtype and on the device of `like`."""
    normal = partial(torch.randn, dtype=like.dtype)
    return drawn(normal, batch, 1, height, width, generator=generator, device=like.device, dtype=None)


def noise_maps(
    noise: str | Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    kinds: Sequence[str],
    batch: int,
    like: Tensor,
    generator: torch.Generator | None = None,
) -> list[Tensor | None]:
    """Noise of every layer: standard normal draws ("random"), nothing ("none"), or what is given.

    Args:
        noise: "random", "none", or [batch or 1, 1, height, width] of every layer.
        sizes: (height, width) of what every layer gives.
        kinds: the names that the model knows, for messages.
        batch: images.
        like: maps have its dtype and device.
        generator: source of the draws.

    Raises:
        ValueError: there is no such kind, or a given map does not fit.
    """
    if isinstance(noise, str):
        if noise == "random":
            return [draw_noise(batch, *size, like=like, generator=generator) for size in sizes]
        if noise == "none":
            return [None for _ in sizes]
        raise ValueError(f"noise must be one of {', '.join(kinds)}, got {noise!r}")
    if len(noise) != len(sizes):
        raise ValueError(f"noise must have a map for each of {len(sizes)} layers, got {len(noise)}")
    for k, (given, size) in enumerate(zip(noise, sizes, strict=True)):
        if given.dim() != 4 or given.shape[0] not in (1, batch) or given.shape[1:] != (1, *size):
            wanted = [batch, 1, *size]
            raise ValueError(f"noise[{k}] must have shape {wanted}, or 1 for all images, got {list(given.shape)}")
    return [given.to(like) for given in noise]
