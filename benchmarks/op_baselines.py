"""What the kernels are compared with: every op in the best plain PyTorch we know, for eager and for torch.compile.

They are written for speed, not for the second derivative or odd arguments, and tested against the ops.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def bias_leaky_relu(x: Tensor, bias: Tensor) -> Tensor:
    """√2 · lrelu(x + b) for x [B, C, H, W]."""
    return F.leaky_relu(x + bias[:, None, None], 0.2) * math.sqrt(2)


def blur(x: Tensor, taps: Tensor) -> Tensor:
    """upfirdn2d with padding (2, 1): one row filter and one column filter of every plane."""
    planes = x.flatten(0, 1)[:, None]
    y = F.conv2d(F.pad(planes, (2, 1, 2, 1)), taps[None, None, None])
    return F.conv2d(y, taps[None, None, :, None]).view(x.shape)


def downsample(x: Tensor, taps: Tensor) -> Tensor:
    """upfirdn2d with down 2 and padding 1."""
    planes = x.flatten(0, 1)[:, None]
    y = F.conv2d(F.pad(planes, (1, 1, 1, 1)), taps[None, None, None], stride=(1, 2))
    y = F.conv2d(y, taps[None, None, :, None], stride=(2, 1))
    return y.view(*x.shape[:2], *y.shape[2:])


def upsample(x: Tensor, taps: Tensor) -> Tensor:
    """upfirdn2d with up 2 and padding (2, 1): a transposed convolution along each axis."""
    planes = x.flatten(0, 1)[:, None]
    y = F.conv_transpose2d(planes, taps[None, None, None], stride=(1, 2), padding=(0, 1))
    y = F.conv_transpose2d(y, taps[None, None, :, None], stride=(2, 1), padding=(1, 0))
    return y.view(*x.shape[:2], *y.shape[2:])


def composite(density: Tensor, features: Tensor, depths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features, depth and weights of rays; relu densities."""
    delta = F.pad(depths[..., 1:] - depths[..., :-1], (0, 1), value=1e10)
    alpha = 1 - torch.exp(-delta * F.relu(density))
    light = torch.cumprod(1 - alpha + 1e-10, dim=-1)
    weights = alpha * F.pad(light[..., :-1], (1, 0), value=1.0)
    return (weights[..., None] * features).sum(-2), (weights * depths).sum(-1), weights


def stratified(origins: Tensor, directions: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Depths from 0.88 to 1.12 and points on rays."""
    samples = u.shape[-1]
    centres = torch.linspace(0.88, 1.12, samples, device=u.device)
    depths = centres + (u - 0.5) * (0.24 / (samples - 1))
    return depths, origins[:, :, None] + depths[..., None] * directions[:, :, None]


def importance(depths: Tensor, weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Merged depths and their order, from coarse depths, weights and draws."""
    middle = 0.5 * (depths[..., :-1] + depths[..., 1:])
    inner = weights[..., 1:-1] + 2e-5
    cdf = F.pad(torch.cumsum(inner / inner.sum(-1, keepdim=True), dim=-1), (1, 0))
    upper = torch.searchsorted(cdf, u)
    lower = (upper - 1).clamp_min(0)
    upper = upper.clamp_max(depths.shape[-1] - 2)
    below, above = cdf.gather(-1, lower), cdf.gather(-1, upper)
    step = above - below
    share = (u - below) / torch.where(step < 1e-5, torch.ones_like(step), step)
    fine = torch.lerp(middle.gather(-1, lower), middle.gather(-1, upper), share)
    merged, order = torch.cat([depths, fine], dim=-1).sort(dim=-1)
    return merged, order


def film_siren(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """sin(gain ⊙ (x Wᵀ + b) + shift) with gain folded into the weight: one product and one sine."""
    folded = gain[:, :, None] * weight
    return torch.sin(torch.baddbmm((gain * bias + shift)[:, None], x, folded.transpose(1, 2)))


def modulated_epilogue(
    product: Tensor, demodulation: Tensor, skip: Tensor, next_modulation: Tensor, rgb_weight: Tensor, rgb: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What follows the product of a modulated layer: output, next layer's input, colours so far."""
    output = F.leaky_relu(product * demodulation[:, None].to(product.dtype), 0.2) + skip
    colours = rgb + output.float() @ rgb_weight.t()
    return output, output * next_modulation[:, None].to(product.dtype), colours


def modulated_inr(
    features: Tensor,
    first_weight: Tensor,
    hidden_weight: Tensor,
    first_modulation: Tensor,
    hidden_modulation: Tensor,
    demodulation: Tensor,
    rgb_weight: Tensor,
    skip_from: int,
    operands: torch.dtype,
) -> Tensor:
    """Blocks of two modulated layers with one weight for all images, products of `operands`, colours in float32."""
    x = features.to(operands)
    rgb: Tensor | int = 0
    weights, modulations = (first_weight, *hidden_weight), (first_modulation, *hidden_modulation.unbind(1))
    layers = list(zip(weights, modulations, demodulation.unbind(1), strict=True))
    for block, pair in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        before = x
        for weight, modulation, scale in pair:
            product = (x * modulation[:, None].to(operands)) @ weight.to(operands)
            x = F.leaky_relu(product * scale[:, None].to(operands), 0.2)
        x = x + before if block >= skip_from else x
        color = block + len(rgb_weight) - len(layers) // 2
        rgb = rgb + x.float() @ rgb_weight[color].t() if color >= 0 else rgb
    assert isinstance(rgb, Tensor)
    return rgb
