"""What the kernels are compared with: every op in the best plain PyTorch we know, for eager and for torch.compile.

Where one formulation suits eager PyTorch and another one a compiler, both are here. They are written for speed, not for
the second derivative or odd arguments, and tested against the ops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GAIN = math.sqrt(2)


def bias_leaky_relu(x: Tensor, bias: Tensor) -> Tensor:
    """√2 · lrelu(x + b) for x [B, C, H, W]."""
    return F.leaky_relu(x + bias[:, None, None], 0.2) * GAIN


def scaled_bias_leaky_relu(x: Tensor, bias: Tensor) -> Tensor:
    """The same as lrelu(√2 x + √2 b), in two passes, the second one in place."""
    return F.leaky_relu_(torch.add((GAIN * bias)[:, None, None], x, alpha=GAIN), 0.2)


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


def padded(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """x [B, C, H, W] with zeros before and after it along an axis."""
    around = [0] * 4
    around[2 * (3 - axis) : 2 * (3 - axis) + 2] = before, after
    return F.pad(x, around)


def weighted_sum(parts: Sequence[Tensor], taps: Sequence[float]) -> Tensor:
    total = taps[0] * parts[0]
    for part, tap in zip(parts[1:], taps[1:], strict=True):
        total.add_(part, alpha=tap)
    return total


def fir(x: Tensor, axis: int, step: int, before: int, after: int, taps: Sequence[float]) -> Tensor:
    """Symmetric taps along an axis as a sum of slices."""
    x = padded(x, axis, before, after)
    count = (x.shape[axis] - len(taps)) // step + 1
    at = (slice(None),) * axis + (slice(None, None, step),)
    return weighted_sum([x.narrow(axis, j, (count - 1) * step + 1)[at] for j in range(len(taps))], taps)


def blur_by_slices(x: Tensor, taps: Sequence[float]) -> Tensor:
    """upfirdn2d with padding (2, 1)."""
    return fir(fir(x, 3, 1, 2, 1, taps), 2, 1, 2, 1, taps)


def downsample_by_slices(x: Tensor, taps: Sequence[float]) -> Tensor:
    """upfirdn2d with down 2 and padding 1."""
    return fir(fir(x, 3, 2, 1, 1, taps), 2, 2, 1, 1, taps)


def upsample_by_slices(x: Tensor, taps: Sequence[float]) -> Tensor:
    """upfirdn2d with up 2 and padding (2, 1): along each axis, every other output has every other tap."""
    for axis in (3, 2):
        size = x.shape[axis]
        left, middle, right = (padded(x, axis, 1, 1).narrow(axis, j, size) for j in range(3))
        even = weighted_sum([left, middle], taps[::2])
        odd = weighted_sum([middle, right], taps[1::2])
        x = torch.stack([even, odd], dim=axis + 1).flatten(axis, axis + 1)
    return x


def compositing_weights(density: Tensor, depths: Tensor) -> Tensor:
    """Of relu densities [B, R, S] at ascending depths."""
    delta = F.pad(depths[..., 1:] - depths[..., :-1], (0, 1), value=1e10)
    alpha = 1 - torch.exp(-delta * F.relu(density))
    light = torch.cumprod(1 - alpha + 1e-10, dim=-1)
    return alpha * F.pad(light[..., :-1], (1, 0), value=1.0)


def composite(density: Tensor, features: Tensor, depths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features, depth and weights of rays; relu densities. For a compiler, which never writes the products."""
    weights = compositing_weights(density, depths)
    return (weights[..., None] * features).sum(-2), (weights * depths).sum(-1), weights


def composite_by_products(density: Tensor, features: Tensor, depths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with a product of a row and a matrix a ray."""
    weights = compositing_weights(density, depths)
    return torch.matmul(weights[..., None, :], features).squeeze(-2), (weights * depths).sum(-1), weights


def stratified(origins: Tensor, directions: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Depths from 0.88 to 1.12 and points on rays."""
    samples = u.shape[-1]
    spacing = 0.24 / (samples - 1)
    centres = torch.linspace(0.88, 1.12, samples, device=u.device)
    depths = torch.add(centres - 0.5 * spacing, u, alpha=spacing)
    return depths, torch.addcmul(origins[:, :, None], depths[..., None], directions[:, :, None])


def importance_draws(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Fine depths, in the order of the draws, from coarse depths, weights and draws."""
    middle = 0.5 * (depths[..., :-1] + depths[..., 1:])
    inner = weights[..., 1:-1] + 2e-5
    cdf = F.pad(torch.cumsum(inner / inner.sum(-1, keepdim=True), dim=-1), (1, 0))
    upper = torch.searchsorted(cdf, u)
    lower = (upper - 1).clamp_min(0)
    upper = upper.clamp_max(depths.shape[-1] - 2)
    below, above = cdf.gather(-1, lower), cdf.gather(-1, upper)
    step = above - below
    share = (u - below) / torch.where(step < 1e-5, torch.ones_like(step), step)
    return torch.lerp(middle.gather(-1, lower), middle.gather(-1, upper), share)


def importance(depths: Tensor, weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Merged depths and their order; the fine ones need no sorting of their own."""
    fine = importance_draws(depths, weights, u)
    merged, order = torch.cat([depths, fine], dim=-1).sort(dim=-1)
    return merged, order


def film_siren(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    shift: Tensor,
    operands: torch.dtype = torch.float32,
) -> Tensor:
    """sin(gain ⊙ (x Wᵀ + b) + shift) with gain folded into the weight: one product of `operands` and one sine."""
    folded = (gain[:, :, None] * weight).to(operands)
    moved = (gain * bias + shift)[:, None].to(operands)
    phase = torch.baddbmm(moved, x.to(operands), folded.transpose(1, 2))
    return (torch.sin(phase) if phase.requires_grad else phase.sin_()).to(x.dtype)


def modulated_epilogue(
    product: Tensor, demodulation: Tensor, skip: Tensor, next_modulation: Tensor, rgb_weight: Tensor, rgb: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What follows the product of a modulated layer: output, next layer's input, colours so far."""
    output = F.leaky_relu_(product * demodulation[:, None].to(product.dtype), 0.2) + skip
    colours = rgb + output.float() @ rgb_weight.t()
    return output, output * next_modulation[:, None].to(product.dtype), colours


def modulated_epilogue_16_bit(
    product: Tensor, demodulation: Tensor, skip: Tensor, next_modulation: Tensor, rgb_weight: Tensor, rgb: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the colours' products in 16 bits, which saves a float32 copy of the output."""
    output = F.leaky_relu_(product * demodulation[:, None].to(product.dtype), 0.2) + skip
    colours = rgb + output @ rgb_weight.to(product.dtype).t()
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
    *,
    folded: bool,
) -> Tensor:
    """Blocks of two modulated layers, products of `operands`, colours summed in float32.

    Folded: a weight an image that modulation and demodulation are in; else one weight for all images, which takes
    two more passes over the activations.
    """
    x = features.to(operands)
    rgb: Tensor | int = 0
    weights, modulations = (first_weight, *hidden_weight), (first_modulation, *hidden_modulation.unbind(1))
    layers = list(zip(weights, modulations, demodulation.unbind(1), strict=True))
    for block, pair in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        before = x
        for weight, modulation, scale in pair:
            if folded:
                product = torch.bmm(x, (modulation[:, :, None] * weight * scale[:, None]).to(operands))
            else:
                product = (x * modulation[:, None].to(operands)) @ weight.to(operands)
                product = product * scale[:, None].to(operands)
            x = F.leaky_relu_(product, 0.2)
        x = x + before if block >= skip_from else x
        color = block + len(rgb_weight) - len(layers) // 2
        rgb = rgb + (x @ rgb_weight[color].to(operands).t()).float() if color >= 0 else rgb
    assert isinstance(rgb, Tensor)
    return rgb
