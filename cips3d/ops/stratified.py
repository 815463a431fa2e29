"""Stratified sampling: one jittered depth in each of S equal bins of a ray."""

from __future__ import annotations

import torch
from torch import Tensor

from cips3d.ops.checks import check_shape


def stratified_depths(u: Tensor, t_near: float, t_far: float) -> Tensor:
    """Depths along rays, evenly spaced and moved at random by up to half a spacing.

    t_i = t_near + (t_far - t_near)·i/(S-1) + (u_i - ½)·(t_far - t_near)/(S-1); with S = 1, the middle of the range,
    moved by up to half of the range.

    Args:
        u: [B, R, S] uniform draws in [0, 1); 0.5 everywhere leaves the depths in place.
        t_near, t_far: range of depths in scene units.

    Returns:
        [B, R, S] ascending depths.

    Raises:
        ValueError: u is not [B, R, S], S is 0, or the range is empty.

    Source: NeRF (arXiv 2003.08934), eq. 2, in the centred form of pi-GAN and CIPS-3D.
    """
    _, _, samples = check_shape("u", u, (None, None, None))
    if samples < 1:
        raise ValueError("u must hold at least one draw a ray (shape [B, R, S] with S >= 1)")
    if not t_near < t_far:
        raise ValueError(f"t_near must be smaller than t_far, got {t_near} and {t_far}")
    if samples == 1:
        return t_near + (t_far - t_near) * u
    centres = torch.linspace(t_near, t_far, samples, dtype=u.dtype, device=u.device)
    return centres + (u - 0.5) * (centres[1] - centres[0])


def ray_points(origins: Tensor, directions: Tensor, depths: Tensor) -> Tensor:
    """Points on rays: o + t·d.

    Args:
        origins, directions: [B, R, 3].
        depths: [B, R, S].

    Returns:
        [B, R, S, 3].
    """
    batch, rays, _ = check_shape("depths", depths, (None, None, None))
    check_shape("origins", origins, (batch, rays, 3))
    check_shape("directions", directions, (batch, rays, 3))
    return torch.addcmul(origins[:, :, None], depths[..., None], directions[:, :, None])
