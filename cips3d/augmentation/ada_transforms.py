"""The image transforms of adaptive discriminator augmentation, without their random draws.

Positions are in pixels from the middle of the image, x to the right and y down. Everything is differentiable any
number of times with respect to images, since R1 differentiates the gradient of the augmented real images.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from cips3d.ops import upfirdn2d

# The low-pass filter of the Symlet-6 wavelet (Daubechies, Ten Lectures on Wavelets, chapter 8), Σ h = √2. Its even
# shifts are orthonormal: upsampling with it and downsampling with its mirror image give the image back.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
CENTRE = sum(k * tap for k, tap in enumerate(SYM6)) / sum(SYM6)  # the delay of smooth signals, in samples
MARGIN = 4  # mirrored pixels beyond each side from which upsampling gives every sample between the outer edges
AXIS = 3  # colours: the luma axis is (1, 1, 1) / √3


def mirrored(position: Tensor, size: int) -> Tensor:
    """Positions, counted in pixels from the first of `size`, folded back at the outer edges of the end pixels."""
    folded = (position + 0.5).remainder(2 * size)
    return torch.minimum(folded, 2 * size - folded) - 0.5


# Pixel blitting.


def blit(images: Tensor, flip: Tensor, turns: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Mirror left and right, then turn by quarters, then shift by whole pixels; no pixel is blended with another.

    What comes in at the edges is the mirrored image.

    Args:
        images: [B, C, H, W]; H = W.
        flip: [B] bool.
        turns: [B] quarters counter-clockwise, 0 to 3.
        right: [B] whole pixels.
        down: [B] whole pixels.

    Returns:
        [B, C, H, W] of pixels of the same image.

    Raises:
        ValueError: the images are not square.

    Source: ADA (arXiv 2006.06676), appendix B.
    """
    height, width = images.shape[2:]
    if height != width:
        raise ValueError(f"images must be square to be turned by quarters, got {height} x {width}")
    place = torch.arange(width, device=images.device, dtype=torch.float64) - (width - 1) / 2
    x, y = place - right[:, None], place - down[:, None]  # [B, side], of the output before the shift
    cos = ((1 - turns) * (turns % 2 == 0))[:, None, None]
    sin = ((2 - turns) * (turns % 2 == 1))[:, None, None]
    source_x = cos * x[:, None, :] - sin * y[:, :, None]  # [B, H, W]
    source_y = sin * x[:, None, :] + cos * y[:, :, None]
    source_x = torch.where(flip[:, None, None], -source_x, source_x)
    column, row = (mirrored(source + (width - 1) / 2, width).long() for source in (source_x, source_y))
    index = (row * width + column).flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view_as(images)


# Maps of positions [B, 3, 3] and of colours [B, 4, 4], both homogeneous.


def affine(linear: Tensor, offset: Tensor | None = None) -> Tensor:
    """[B, n + 1, n + 1] of v → linear v + offset, from [B, n, n] and [B, n]."""
    batch, n = linear.shape[:2]
    matrix = torch.eye(n + 1, dtype=linear.dtype, device=linear.device).repeat(batch, 1, 1)
    matrix[:, :n, :n] = linear
    if offset is not None:
        matrix[:, :n, n] = offset
    return matrix


def product(first: Tensor, second: Tensor) -> Tensor:
    """Matrix products [B, n, n], element by element: matmul may round to TF32."""
    return (first[:, :, :, None] * second[:, None, :, :]).sum(2)


def scaling(x: Tensor, y: Tensor) -> Tensor:
    """[B, 3, 3] from factors [B]."""
    return affine(torch.diag_embed(torch.stack([x, y], dim=1)))


def rotation(angle: Tensor) -> Tensor:
    """[B, 3, 3] from angles [B] in radians, counter-clockwise as seen."""
    cos, sin = angle.cos(), angle.sin()
    return affine(torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2))


def translation(x: Tensor, y: Tensor) -> Tensor:
    """[B, 3, 3] from shifts [B] in pixels."""
    offset = torch.stack([x, y], dim=1)
    return affine(_identity(x, 2), offset)


def brightness(offset: Tensor) -> Tensor:
    """[B, 4, 4] that adds `offset` [B] to all channels."""
    return affine(_identity(offset, 3), offset[:, None].expand(-1, 3))


def contrast(factor: Tensor) -> Tensor:
    """[B, 4, 4] that multiplies all channels by `factor` [B]."""
    return affine(_identity(factor, 3) * factor[:, None, None])


def luma_flip(flip: Tensor) -> Tensor:
    """[B, 4, 4] that mirrors the luma at 0 and leaves the chroma alone, I - 2 v vᵀ, where `flip` [B] is 1 (or 0)."""
    return affine(_identity(flip, 3) - 2 / AXIS * flip[:, None, None])


def hue(angle: Tensor) -> Tensor:
    """[B, 4, 4] that turns colours about the luma axis v by `angle` [B] in radians, from red towards green.

    cos θ·I + (1 - cos θ)·v vᵀ + sin θ·[v]×
    """
    identity = _identity(angle, 3)
    cycle = identity.roll(1, dims=1)  # red → green → blue
    cross = (cycle - cycle.mT) / math.sqrt(AXIS)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return affine(cos * identity + (1 - cos) / AXIS + sin * cross)


def saturation(factor: Tensor) -> Tensor:
    """[B, 4, 4] that multiplies the chroma by `factor` [B], v vᵀ + factor·(I - v vᵀ)."""
    factor = factor[:, None, None]
    return affine(factor * _identity(factor, 3) + (1 - factor) / AXIS)


def _identity(like: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device).expand(len(like), n, n)


# Applying them.


def recolor(images: Tensor, matrix: Tensor) -> Tensor:
    """Map the colours of every pixel.

    Args:
        images: [B, 3, H, W], in [-1, 1] where brightness and contrast shall mean what they say.
        matrix: [B, 4, 4] homogeneous, of the images' dtype.

    Returns:
        [B, 3, H, W].

    Raises:
        ValueError: the images do not have three channels.

    Source: ADA (arXiv 2006.06676), appendix B.
    """
    if images.shape[1] != 3:
        raise ValueError(f"images must have 3 channels for colour transforms, got {images.shape[1]}")
    columns = matrix[:, :3, :, None, None].unbind(2)  # four of [B, 3, 1, 1]
    red, green, blue = images.split(1, dim=1)
    return columns[0] * red + columns[1] * green + columns[2] * blue + columns[3]


def resample(images: Tensor, source: Tensor) -> Tensor:
    """Move images by affine maps, without aliasing: upsample by 2, look positions up bilinearly, downsample by 2.

    Positions outside are those of the mirrored image. Images that the identity is asked for come back exactly.

    Args:
        images: [B, C, H, W].
        source: [B, 3, 3] from positions of the result to positions of `images`, of the images' dtype.

    Returns:
        [B, C, H, W].

    Source: ADA (arXiv 2006.06676), appendix B.
    """
    height, width = images.shape[2:]
    taps = torch.tensor(SYM6, dtype=images.dtype)
    taps = (taps / taps.sum()).to(images.device, non_blocking=True)  # a GPU would wait for a blocking copy

    rows, columns = (_with_margin(size, images.device) for size in (height, width))
    fine = upfirdn2d(images.index_select(2, rows).index_select(3, columns), 2 * taps, up=2)

    x, y = (_fine_positions(size, images)[None] for size in (width, height))  # [1, 2·size + 10]
    grid = []
    for size, row in zip((width, height), source[:, :2].unbind(1), strict=True):
        along_x, along_y, offset = row[:, :, None, None].unbind(1)  # [B, 1, 1]
        position = along_x * x[:, None, :] + along_y * y[:, :, None] + offset  # [B, 2H + 10, 2W + 10]
        position = mirrored(position + (size - 1) / 2, size)
        # Sample 2i + 2·MARGIN + CENTRE - 11 of the upsampled image is at pixel i.
        sample = 2 * position + (2 * MARGIN + CENTRE - (len(SYM6) - 1))
        grid.append((2 * sample + 1) / _upsampled(size) - 1)
    moved = _GridSample.apply(fine, torch.stack(grid, dim=-1))

    result = upfirdn2d(moved, taps.flip(0), down=2)
    is_moved = (source != _identity(source, 3)).flatten(1).any(1)
    return torch.where(is_moved[:, None, None, None], result, images)


def _with_margin(size: int, device: torch.device) -> Tensor:
    return mirrored(torch.arange(-MARGIN, size + MARGIN, device=device).double(), size).long()


def _upsampled(size: int) -> int:
    return 2 * (size + 2 * MARGIN) - (len(SYM6) - 1)


def _fine_positions(size: int, like: Tensor) -> Tensor:
    """[2·size + 10] where the samples lie that the filter takes to `size` pixels, in pixels from the middle."""
    samples = torch.arange(2 * (size - 1) + len(SYM6), dtype=like.dtype, device=like.device)
    return (samples - CENTRE) / 2 - (size - 1) / 2


class _GridSample(Function):
    """Bilinear `grid_sample`, linear in the images; the grid is a constant.

    Not every supported release of PyTorch can differentiate its backward. Here it is the adjoint, whose own backward
    is this function again.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = images.shape[2:]
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _GridSampleAdjoint.apply(grad, grid, *ctx.size), None


class _GridSampleAdjoint(Function):
    """Every value of the grid is spread over the four pixels that it was read from."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
        ctx.save_for_backward(grid)
        images = grad.new_zeros(()).expand(*grad.shape[:2], height, width)  # values matter to a grid's gradient only
        bilinear, zeros = 0, 0  # PyTorch's numbers of the modes
        spread, _ = torch.ops.aten.grid_sampler_2d_backward(grad, images, grid, bilinear, zeros, False, [True, False])
        return spread

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (grid,) = ctx.saved_tensors
        return _GridSample.apply(grad, grid), None, None, None
