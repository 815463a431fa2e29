"""Importance sampling: fine depths where the coarse samples were opaque, merged with the coarse ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.checks import check_device, check_shape
from cips3d.ops.library import define
from cips3d.ops.ray_tensors import kernels_take_float32, require_float32

WEIGHT_FLOOR = 1e-5  # added twice, as in pi-GAN: to the weights, and to those inside that make the density
CDF_FLOOR = 1e-5  # a step of the distribution flatter than this is not divided by
LARGEST_RAY = 12000  # 4 S + 3 F numbers of a ray lie in 48 KB of shared memory


class MergedDepths(NamedTuple):
    """Fine depths and the order in which coarse and fine samples lie on a ray.

    Attributes:
        fine: [B, R, F] ascending.
        merged: [B, R, S + F] coarse and fine depths, ascending.
        order: [B, R, S + F] int64: merged[i] is element order[i] of cat(coarse, fine).
    """

    fine: Tensor
    merged: Tensor
    order: Tensor


@torch.no_grad()
def importance_depths(depths: Tensor, weights: Tensor, u: Tensor) -> MergedDepths:
    """Draw depths from the piecewise constant density that the coarse weights define, and merge them in.

    The density lives on the S-1 midpoints of neighbouring coarse depths, with the S-2 inner weights; its cumulative
    distribution is inverted at u with linear interpolation. No gradient flows backward, as in the published
    systems; tangents of forward mode do in plain PyTorch.

    Args:
        depths: [B, R, S] coarse depths, ascending; S >= 3.
        weights: [B, R, S] compositing weights of the coarse samples.
        u: [B, R, F] uniform draws in [0, 1), in any order.

    Returns:
        `MergedDepths`, in the dtype of the depths. Kernels compute float32, and put coarse samples first among equal
        depths; other dtypes are computed in plain PyTorch, where equal depths come in any order.

    Raises:
        ValueError: a shape or device does not fit, S < 3, or a ray has more samples than the kernel takes,
            4 S + 3 F > 12 000.

    Source: NeRF (arXiv 2003.08934), section 5.2; constants and bins as in pi-GAN's `sample_pdf`.

    Example:
        >>> depths, weights = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([[[0.0, 0.0, 1.0, 0.0]]])
        >>> importance_depths(depths, weights, torch.tensor([[[0.25, 0.75]]])).merged
        tensor([[[1.0000, 2.0000, 2.7500, 3.0000, 3.2500, 4.0000]]])
    """
    samples, fine = check_importance(depths, weights, u)
    weights, u = weights.to(depths.dtype), u.to(depths.dtype)
    if not kernels_take_float32(depths, weights, u):
        return MergedDepths(*_reference(depths, weights, u))
    if 4 * samples + 3 * fine > LARGEST_RAY:
        raise ValueError(
            f"depths and u hold {samples} coarse and {fine} fine samples a ray; the kernel takes 4 S + 3 F up to "
            f"{LARGEST_RAY} (inside cips3d.ops.kernels.disabled() there is no limit)"
        )
    return MergedDepths(*_OP(depths, weights, u))


def check_importance(depths: Tensor, weights: Tensor, u: Tensor) -> tuple[int, int]:
    """The numbers of coarse and fine samples; raises ValueError, naming the argument, where they do not fit."""
    batch, rays, samples = check_shape("depths", depths, (None, None, None))
    check_shape("weights", weights, (batch, rays, samples))
    _, _, fine = check_shape("u", u, (batch, rays, None))
    check_device("depths", depths, weights=weights, u=u)
    if samples < 3:
        raise ValueError(f"depths must hold at least 3 coarse samples a ray to resample from, got {samples}")
    return samples, fine


def _reference(depths: Tensor, weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    samples = depths.shape[-1]
    middle = 0.5 * (depths[..., :-1] + depths[..., 1:])  # [B, R, S-1]
    inner = (weights[..., 1:-1] + WEIGHT_FLOOR) + WEIGHT_FLOOR  # [B, R, S-2]
    cdf = torch.cumsum(inner / inner.sum(-1, keepdim=True), dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], dim=-1)  # [B, R, S-1]
    upper = torch.searchsorted(cdf, u.contiguous())
    lower = (upper - 1).clamp_min_(0)
    upper.clamp_max_(samples - 2)
    cdf_lower, cdf_upper = cdf.gather(-1, lower), cdf.gather(-1, upper)
    step = cdf_upper - cdf_lower
    share = (u - cdf_lower) / torch.where(step < CDF_FLOOR, torch.ones_like(step), step)
    fine = torch.lerp(middle.gather(-1, lower), middle.gather(-1, upper), share)
    fine = fine.sort(dim=-1).values
    merged, order = torch.cat([depths, fine], dim=-1).sort(dim=-1)
    return fine, merged, order


def _kernel(depths: Tensor, weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    require_float32(depths=depths, weights=weights, u=u)
    fine, merged, order = _fake(depths, weights, u)
    if merged.numel() > 0:
        batch, rays, samples = depths.shape
        kernels.launch(
            "importance",
            depths.contiguous(),
            weights.contiguous(),
            u.contiguous(),
            fine,
            merged,
            order,
            batch * rays,
            samples,
            u.shape[-1],
        )
    return fine, merged, order


def _fake(depths: Tensor, weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    samples, fine = check_importance(depths, weights, u)
    merged = depths.new_empty(*depths.shape[:2], samples + fine)
    return depths.new_empty(u.shape), merged, merged.new_empty(merged.shape, dtype=torch.int64)


_OP = define(
    "importance_depths(Tensor depths, Tensor weights, Tensor u) -> (Tensor, Tensor, Tensor)",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
)
