"""Stratified sampling: one jittered depth in each of S equal bins of a ray, and the points at depths of rays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.checks import check_device, check_number, check_shape
from cips3d.ops.library import define
from cips3d.ops.ray_tensors import kernels_take_float32, require_float32

MAX_GRID_Y = 65535  # images of one launch


def stratified_depths(u: Tensor, t_near: float, t_far: float) -> Tensor:
    """Depths along rays, evenly spaced and moved at random by up to half a spacing.

    t_i = t_near + (t_far - t_near)·i/(S-1) + (u_i - ½)·(t_far - t_near)/(S-1); with S = 1, the middle of the range,
    moved by up to half of the range.

    Args:
        u: [B, R, S] uniform draws in [0, 1); 0.5 everywhere leaves the depths in place.
        t_near, t_far: range of depths in scene units.

    Returns:
        [B, R, S] ascending depths. Kernels compute float32; other dtypes are computed in plain PyTorch.

    Raises:
        ValueError: u is not [B, R, S], S is 0, or the range is empty.

    Source: NeRF (arXiv 2003.08934), eq. 2, in the centred form of pi-GAN and CIPS-3D.
    """
    check_stratified(u, t_near, t_far)
    return _DEPTHS(u, t_near, t_far) if kernels_take_float32(u) else _depths_reference(u, t_near, t_far)


def ray_points(origins: Tensor, directions: Tensor, depths: Tensor) -> Tensor:
    """Points on rays: o + t·d.

    Args:
        origins, directions: [B, R, 3].
        depths: [B, R, S].

    Returns:
        [B, R, S, 3]. Kernels compute float32; other dtypes are computed in plain PyTorch.

    Raises:
        ValueError: a shape or device does not fit; the argument is named.
    """
    check_rays(origins, directions, "depths", depths)
    if kernels_take_float32(depths, origins, directions):
        return _POINTS(depths, origins, directions)
    return _points_reference(depths, origins, directions)


def stratified_points(
    origins: Tensor, directions: Tensor, u: Tensor, t_near: float, t_far: float
) -> tuple[Tensor, Tensor]:
    """`stratified_depths` of rays and the points at them, in one pass.

    Args:
        origins, directions: [B, R, 3].
        u: [B, R, S] uniform draws in [0, 1).
        t_near, t_far: range of depths in scene units.

    Returns:
        depths [B, R, S], points [B, R, S, 3].

    Raises:
        ValueError: a shape or device does not fit, S is 0, or the range is empty; the argument is named.

    Source: NeRF (arXiv 2003.08934), eq. 2, in the centred form of pi-GAN and CIPS-3D.

    Example:
        >>> u = torch.full((1, 1, 3), 0.5)
        >>> depths, points = stratified_points(torch.zeros(1, 1, 3), torch.tensor([[[0.0, 0.0, 1.0]]]), u, 1.0, 2.0)
        >>> depths, points.shape
        (tensor([[[1.0000, 1.5000, 2.0000]]]), torch.Size([1, 1, 3, 3]))
    """
    check_stratified(u, t_near, t_far)
    check_rays(origins, directions, "u", u)
    run = _BOTH if kernels_take_float32(u, origins, directions) else _both_reference
    return run(u, origins, directions, t_near, t_far)


def check_stratified(u: Tensor, t_near: float, t_far: float) -> None:
    """Raise ValueError, naming the argument, unless depths are defined for these."""
    _, _, samples = check_shape("u", u, (None, None, None))
    if samples < 1:
        raise ValueError("u must hold at least one draw a ray (shape [B, R, S] with S >= 1)")
    check_range(t_near, t_far)


def check_range(t_near: float, t_far: float) -> None:
    """Raise, naming the argument, unless there are depths from t_near to t_far."""
    check_number("t_near", t_near)
    check_number("t_far", t_far)
    if not t_near < t_far:
        raise ValueError(f"t_near must be smaller than t_far, got {t_near} and {t_far}")


def check_rays(origins: Tensor, directions: Tensor, name: str, samples: Tensor) -> None:
    """Raise ValueError, naming the argument, unless rays and their samples fit together."""
    batch, rays, _ = check_shape(name, samples, (None, None, None))
    check_shape("origins", origins, (batch, rays, 3))
    check_shape("directions", directions, (batch, rays, 3))
    check_device(name, samples, origins=origins, directions=directions)


def _spacing(samples: int, t_near: float, t_far: float) -> float:
    return (t_far - t_near) / max(samples - 1, 1)


# References.


def _depths_reference(u: Tensor, t_near: float, t_far: float) -> Tensor:
    samples = u.shape[-1]
    if samples == 1:
        return t_near + (t_far - t_near) * u
    centres = torch.linspace(t_near, t_far, samples, dtype=u.dtype, device=u.device)
    return centres + (u - 0.5) * (centres[1] - centres[0])


def _points_reference(depths: Tensor, origins: Tensor, directions: Tensor) -> Tensor:
    return torch.addcmul(origins[:, :, None], depths[..., None], directions[:, :, None])


def _both_reference(
    u: Tensor, origins: Tensor, directions: Tensor, t_near: float, t_far: float
) -> tuple[Tensor, Tensor]:
    depths = _depths_reference(u, t_near, t_far)
    return depths, _points_reference(depths, origins, directions)


def _points_backward_reference(
    grad: Tensor, directions: Tensor, depths: Tensor, with_depths: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_depths = torch.einsum("brsc,brc->brs", grad, directions) if with_depths else grad.new_empty(0)
    return grad.sum(2), torch.einsum("brsc,brs->brc", grad, depths), grad_depths


# Kernels.


def _launch(
    u: Tensor | None,
    depths: Tensor,
    origins: Tensor | None = None,
    directions: Tensor | None = None,
    points: Tensor | None = None,
    t_near: float = 0.0,
    t_far: float = 1.0,
) -> None:
    require_float32(u=u, depths=depths, origins=origins, directions=directions)
    if depths.numel() == 0:
        return
    batch, rays, samples = depths.shape
    # Rays of a camera share their origin, as a tensor of stride 0: no need to write it out.
    shared = origins is not None and origins.stride(1) == 0 and batch <= MAX_GRID_Y
    images = batch if shared else 1
    if origins is not None:
        origins = (origins[:, 0] if shared else origins).contiguous()
    kernels.launch(
        "stratified_points",
        None if u is None else u.contiguous(),
        origins,
        None if directions is None else directions.contiguous(),
        depths,
        points,
        images,
        batch * rays // images,
        samples,
        shared,
        t_near,
        t_far,
    )


def _depths_kernel(u: Tensor, t_near: float, t_far: float) -> Tensor:
    depths = _depths_fake(u, t_near, t_far)
    _launch(u, depths, t_near=t_near, t_far=t_far)
    return depths


def _points_kernel(depths: Tensor, origins: Tensor, directions: Tensor) -> Tensor:
    points = _points_fake(depths, origins, directions)
    _launch(None, depths.contiguous(), origins, directions, points)
    return points


def _both_kernel(u: Tensor, origins: Tensor, directions: Tensor, t_near: float, t_far: float) -> tuple[Tensor, Tensor]:
    depths, points = _both_fake(u, origins, directions, t_near, t_far)
    _launch(u, depths, origins, directions, points, t_near, t_far)
    return depths, points


def _points_backward_kernel(
    grad: Tensor, directions: Tensor, depths: Tensor, with_depths: bool
) -> tuple[Tensor, Tensor, Tensor]:
    require_float32(grad=grad, directions=directions, depths=depths)
    gradients = _points_backward_fake(grad, directions, depths, with_depths)
    grad_origins, grad_directions, grad_depths = gradients
    batch, rays, samples = depths.shape
    if depths.numel() == 0:
        return grad_origins.zero_(), grad_directions.zero_(), grad_depths
    kernels.launch(
        "ray_points_backward",
        grad.contiguous(),
        directions.contiguous(),
        depths.contiguous(),
        grad_origins,
        grad_directions,
        grad_depths if with_depths else None,
        batch * rays,
        samples,
    )
    return gradients


# What comes out, without data.


def _depths_fake(u: Tensor, t_near: float, t_far: float) -> Tensor:
    return torch.empty_like(u, memory_format=torch.contiguous_format)


def _points_fake(depths: Tensor, origins: Tensor, directions: Tensor) -> Tensor:
    return depths.new_empty(*depths.shape, 3)


def _both_fake(u: Tensor, origins: Tensor, directions: Tensor, t_near: float, t_far: float) -> tuple[Tensor, Tensor]:
    return _depths_fake(u, t_near, t_far), _points_fake(u, origins, directions)


def _points_backward_fake(
    grad: Tensor, directions: Tensor, depths: Tensor, with_depths: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rays = depths.shape[:2]
    grad_depths = depths.new_empty(depths.shape if with_depths else 0)
    return grad.new_empty(*rays, 3), grad.new_empty(*rays, 3), grad_depths


# Gradients. Those that are to be differentiated again (`create_graph=True`) are computed in plain PyTorch.


def _points_backward(grad: Tensor, directions: Tensor, depths: Tensor, with_depths: bool) -> tuple[Tensor, ...]:
    run = _points_backward_reference if torch.is_grad_enabled() else _POINTS_BACKWARD
    return run(grad, directions, depths, with_depths)


def _depths_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, t_near, t_far = inputs
    ctx.spacing = _spacing(u.shape[-1], t_near, t_far)


def _depths_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return grad * ctx.spacing, None, None


def _points_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    depths, _, directions = inputs
    ctx.save_for_backward(directions, depths)


def _points_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    directions, depths = ctx.saved_tensors
    grad_origins, grad_directions, grad_depths = _points_backward(grad, directions, depths, ctx.needs_input_grad[0])
    return grad_depths if ctx.needs_input_grad[0] else None, grad_origins, grad_directions


def _both_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    u, _, directions, t_near, t_far = inputs
    ctx.save_for_backward(directions, output[0])
    ctx.spacing = _spacing(u.shape[-1], t_near, t_far)


def _both_gradients(ctx: Any, grad_depths: Tensor, grad_points: Tensor) -> tuple[Any, ...]:
    directions, depths = ctx.saved_tensors
    with_u = ctx.needs_input_grad[0]
    grad_origins, grad_directions, along = _points_backward(grad_points, directions, depths, with_u)
    return (along + grad_depths) * ctx.spacing if with_u else None, grad_origins, grad_directions, None, None


_DEPTHS = define(
    "stratified_depths(Tensor u, float t_near, float t_far) -> Tensor",
    kernel=_depths_kernel,
    reference=_depths_reference,
    fake=_depths_fake,
    setup_context=_depths_setup,
    backward=_depths_gradients,
)
_POINTS = define(
    "ray_points(Tensor depths, Tensor origins, Tensor directions) -> Tensor",
    kernel=_points_kernel,
    reference=_points_reference,
    fake=_points_fake,
    setup_context=_points_setup,
    backward=_points_gradients,
)
_BOTH = define(
    "stratified_points(Tensor u, Tensor origins, Tensor directions, float t_near, float t_far) -> (Tensor, Tensor)",
    kernel=_both_kernel,
    reference=_both_reference,
    fake=_both_fake,
    setup_context=_both_setup,
    backward=_both_gradients,
)
_POINTS_BACKWARD = define(
    "ray_points_backward(Tensor grad, Tensor directions, Tensor depths, bool with_depths) -> (Tensor, Tensor, Tensor)",
    kernel=_points_backward_kernel,
    reference=_points_backward_reference,
    fake=_points_backward_fake,
)
