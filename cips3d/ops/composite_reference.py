"""Alpha compositing in plain PyTorch: the formulas that the kernels of `cips3d.ops.composite` compute."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.ops.accumulate import weighted_sum
from cips3d.ops.autocast import gradients_without_autocast
from cips3d.ops.second_order import differentiate_reference

LAST_DELTA = 1e10  # length of the last interval: whatever density is there becomes opaque
TRANSMITTANCE_FLOOR = 1e-10  # keeps T above 0 where alpha = 1, so that its gradient stays finite, as in pi-GAN


def composite_reference(
    density: Tensor,
    features: Tensor,
    depths: Tensor,
    fine_density: Tensor | None,
    fine_features: Tensor | None,
    order: Tensor | None,
    noise: Tensor | None,
    activation: str,
    last_back: bool,
    white_back: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Features, depth, weights, transmittance and opacity; density, depths and noise of one dtype."""
    in_order = front_to_back(density, fine_density, order)
    weights, transmittance = weights_reference(in_order, depths, noise, activation, last_back=False)
    opacity = weights.sum(-1)
    weights = _with_back(weights) if last_back else weights
    if fine_features is None or order is None:
        sums = weighted_sum(weights, features)
    else:
        # Only scalars are put in order: the weights go back to where the features lie.
        of_coarse, of_fine = as_evaluated(weights, order, density.shape[-1])
        sums = weighted_sum(of_coarse, features) + weighted_sum(of_fine, fine_features)
    if white_back:
        sums = sums + (1 - opacity[..., None])
    return sums.to(features.dtype), (weights * depths).sum(-1), weights, transmittance, opacity


def front_to_back(coarse: Tensor, fine: Tensor | None, order: Tensor | None) -> Tensor:
    """Scalars of samples [B, R, S + F] in the order in which a ray meets them."""
    return coarse if order is None or fine is None else torch.cat([coarse, fine], dim=-1).gather(-1, order)


def as_evaluated(in_order: Tensor, order: Tensor, coarse: int) -> tuple[Tensor, Tensor]:
    """The inverse of `front_to_back`: scalars of the coarse samples and of the fine ones."""
    placed = torch.zeros_like(in_order).scatter(-1, order, in_order)
    return placed[..., :coarse], placed[..., coarse:]


def weights_reference(
    density: Tensor, depths: Tensor, noise: Tensor | None, activation: str, last_back: bool
) -> tuple[Tensor, Tensor]:
    """Weights and transmittance of raw densities front to back."""
    raw = density if noise is None else density + noise
    weights, transmittance = _Weights.apply(F.relu(raw) if activation == "relu" else F.softplus(raw), depths)
    return _with_back(weights) if last_back else weights, transmittance


def light_in_front(density: Tensor, depths: Tensor, noise: Tensor | None, activation: str) -> Tensor:
    """Transmittance in front of every sample [B, R, S], of raw densities front to back."""
    raw = density if noise is None else density + noise
    march, _ = _march(F.relu(raw) if activation == "relu" else F.softplus(raw), depths)
    return march.before


def _with_back(weights: Tensor) -> Tensor:
    left_over = 1 - weights.sum(-1, keepdim=True)
    return torch.cat([weights[..., :-1], weights[..., -1:] + left_over], dim=-1)


def _deltas(depths: Tensor) -> Tensor:
    return F.pad(depths[..., 1:] - depths[..., :-1], (0, 1), value=LAST_DELTA)


def _plain_weights(density: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and transmittance of densities that are not negative, differentiable any number of times."""
    alpha = 1 - torch.exp(-_deltas(depths) * density)
    light = torch.cumprod(1 - alpha + TRANSMITTANCE_FLOOR, dim=-1)
    return alpha * F.pad(light[..., :-1], (1, 0), value=1.0), light[..., -1]


class _March(NamedTuple):
    """The way of light along rays, [B, R, S] each.

    Attributes:
        delta: lengths of intervals.
        passed: exp(-δσ).
        factor: 1 - α + 1e-10.
        before: T in front of a sample.
    """

    delta: Tensor
    passed: Tensor
    factor: Tensor
    before: Tensor
    weights: Tensor

    def transmittance(self) -> Tensor:
        return self.before[..., -1] * self.factor[..., -1]


def _march(density: Tensor, depths: Tensor) -> tuple[_March, Tensor]:
    """The march through densities that are not negative, and the transmittance [B, R]."""
    delta = _deltas(depths)
    passed = torch.exp(-delta * density)
    alpha = 1 - passed
    factor = 1 - alpha + TRANSMITTANCE_FLOOR
    light = torch.cumprod(factor, dim=-1)
    before = F.pad(light[..., :-1], (1, 0), value=1.0)
    return _March(delta, passed, factor, before, alpha * before), light[..., -1].clone()


def _differentiate_march(march: _March, grad_weights: Tensor, grad_light: Tensor | float) -> Tensor:
    """The gradient of δσ by one suffix sum, with T the transmittance behind all samples.

    dα_i = dw_i T_i - (Σ_{j>i} dw_j w_j + dT T) / (1 - α_i + 1e-10).
    """
    # What lies behind sample i: of the later samples, and of the light that passes them all.
    behind = F.pad((grad_weights * march.weights)[..., 1:], (0, 1))
    behind[..., -1] = grad_light * march.transmittance()
    behind = behind.flip(-1).cumsum(-1).flip(-1)
    return (grad_weights * march.before).sub_(behind.div_(march.factor)).mul_(march.passed)


def _of_depths(grad_delta: Tensor) -> Tensor:
    grad_delta = grad_delta[..., :-1]  # the last interval has no depth behind it
    return F.pad(grad_delta, (1, 0)) - F.pad(grad_delta, (0, 1))


class _Weights(torch.autograd.Function):
    """`_plain_weights` with a backward of one suffix sum."""

    @staticmethod
    def forward(ctx: Any, density: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        march, transmittance = _march(density, depths)
        ctx.save_for_backward(density, depths, *march)
        return march.weights, transmittance

    @staticmethod
    @gradients_without_autocast
    def backward(ctx: Any, grad_weights: Tensor, grad_light: Tensor) -> tuple[Tensor | None, ...]:
        density, depths, *march = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate_reference(
                _plain_weights, (density, depths), ctx.needs_input_grad, (grad_weights, grad_light)
            )
        grad_optical = _differentiate_march(_March(*march), grad_weights, grad_light)
        grad_density = grad_optical * march[0] if ctx.needs_input_grad[0] else None
        return grad_density, _of_depths(grad_optical * density) if ctx.needs_input_grad[1] else None


def composite_backward_reference(
    density: Tensor,
    features: Tensor,
    depths: Tensor,
    fine_density: Tensor | None,
    fine_features: Tensor | None,
    order: Tensor | None,
    noise: Tensor | None,
    grad_sums: Tensor | None,
    grad_depth: Tensor | None,
    grad_weights: Tensor | None,
    grad_transmittance: Tensor | None,
    grad_opacity: Tensor | None,
    activation: str,
    last_back: bool,
    white_back: bool,
    with_density: bool,
    with_features: bool,
    with_depths: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of densities, features, depths, fine densities and fine features; empty where not wanted."""
    coarse = density.shape[-1]
    raw = front_to_back(density, fine_density, order)
    raw = raw if noise is None else raw + noise
    activated = F.relu(raw) if activation == "relu" else F.softplus(raw)
    march, _ = _march(activated, depths)
    shown = _with_back(march.weights) if last_back else march.weights

    of_weights = torch.zeros_like(depths) if grad_weights is None else grad_weights
    if grad_depth is not None:
        of_weights = of_weights + grad_depth[..., None] * depths
    if grad_sums is not None:
        grad_sums = grad_sums.to(depths.dtype)
        of_weights = of_weights + front_to_back(
            _project(features, grad_sums), None if fine_features is None else _project(fine_features, grad_sums), order
        )
    if last_back:  # the last sample shows 1 - Σ of the others: each of theirs is as much less of its own
        of_weights = of_weights - of_weights[..., -1:]
    # Opacity and background go by the weights as they were before.
    if grad_opacity is not None:
        of_weights = of_weights + grad_opacity[..., None]
    if grad_sums is not None and white_back:
        of_weights = of_weights - grad_sums.sum(-1, keepdim=True)

    grad_optical = _differentiate_march(march, of_weights, 0.0 if grad_transmittance is None else grad_transmittance)
    of_density, of_features = depths.new_empty(0), features.new_empty(0)
    of_fine_density, of_fine_features = depths.new_empty(0), features.new_empty(0)
    if with_density:
        of_density = grad_optical * march.delta * (raw > 0 if activation == "relu" else torch.sigmoid(raw))
        if order is not None:
            of_density, of_fine_density = (x.clone() for x in as_evaluated(of_density, order, coarse))
    if with_features and grad_sums is not None:
        of_coarse, of_fine = (shown, None) if order is None else as_evaluated(shown, order, coarse)
        of_features = _spread(of_coarse, grad_sums, features)
        if of_fine is not None:
            of_fine_features = _spread(of_fine, grad_sums, features)
    of_depths = depths.new_empty(0)
    if with_depths:
        of_depths = _of_depths(grad_optical * activated)
        if grad_depth is not None:
            of_depths = of_depths + grad_depth[..., None] * shown
    return of_density, of_features, of_depths, of_fine_density, of_fine_features


def _project(features: Tensor, grad: Tensor) -> Tensor:
    return torch.matmul(features.to(grad.dtype), grad[..., None])[..., 0]


def _spread(weights: Tensor, grad: Tensor, features: Tensor) -> Tensor:
    return (weights[..., None] * grad[..., None, :]).to(features.dtype)
