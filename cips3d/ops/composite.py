"""Alpha compositing: densities along a ray become weights, weighted features and a depth."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.ops.checks import check_shape
from cips3d.ops.second_order import differentiate_reference

DensityActivation = Literal["relu", "softplus"]
DENSITY_ACTIVATIONS: tuple[str, ...] = get_args(DensityActivation)

LAST_DELTA = 1e10  # length of the last interval: whatever density is there becomes opaque
TRANSMITTANCE_FLOOR = 1e-10  # keeps T above 0 where alpha = 1, so that its gradient stays finite, as in pi-GAN


class Composited(NamedTuple):
    """What a ray sees."""

    features: Tensor  # [B, R, C]
    depth: Tensor  # [B, R]
    weights: Tensor  # [B, R, S]
    transmittance: Tensor  # [B, R] light that passes all samples: Π (1 - α + 1e-10)


def composite_weights(
    density: Tensor,
    depths: Tensor,
    *,
    noise: Tensor | None = None,
    activation: DensityActivation = "relu",
    last_back: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weights of samples in the order in which a ray meets them.

    α_i = 1 - exp(-δ_i·act(σ_i + noise_i)), δ_i = t_{i+1} - t_i, last δ = 1e10;
    T_i = Π_{j<i} (1 - α_j + 1e-10); w_i = α_i T_i.

    Args:
        density: [B, R, S] raw densities σ.
        depths: [B, R, S] ascending, scene units.
        noise: [B, R, S] added to the raw density (training), or None.
        activation: "relu" or "softplus".
        last_back: the last sample takes what is left, w_S += 1 - Σ w: an opaque back.

    Returns:
        weights [B, R, S], transmittance behind the last sample [B, R].

    Raises:
        ValueError: a shape does not fit or the activation is unknown.

    Source: NeRF (arXiv 2003.08934), eq. 3, with pi-GAN's constants.
    """
    shape = check_shape("density", density, (None, None, None))
    check_shape("depths", depths, shape)
    if shape[-1] < 1:
        raise ValueError("density must hold at least one sample a ray (shape [B, R, S] with S >= 1)")
    if noise is not None:
        check_shape("noise", noise, shape)
        density = density + noise
    if activation == "relu":
        density = F.relu(density)
    elif activation == "softplus":
        density = F.softplus(density)
    else:
        raise ValueError(f"activation must be one of {DENSITY_ACTIVATIONS}, got {activation!r}")
    weights, transmittance = _Weights.apply(density, depths)
    if last_back:
        left_over = 1 - weights.sum(-1, keepdim=True)
        weights = torch.cat([weights[..., :-1], weights[..., -1:] + left_over], dim=-1)
    return weights, transmittance


def _deltas(depths: Tensor) -> Tensor:
    return F.pad(depths[..., 1:] - depths[..., :-1], (0, 1), value=LAST_DELTA)


def _reference_weights(density: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and transmittance of densities that are not negative: the formula of `composite_weights`."""
    alpha = 1 - torch.exp(-_deltas(depths) * density)
    light = torch.cumprod(1 - alpha + TRANSMITTANCE_FLOOR, dim=-1)
    return alpha * F.pad(light[..., :-1], (1, 0), value=1.0), light[..., -1]


class _Weights(torch.autograd.Function):
    """`_reference_weights` with the backward of one suffix sum.

    dα_i = dw_i T_i - (Σ_{j>i} dw_j w_j + dT T) / (1 - α_i + 1e-10), with T the transmittance behind all samples.
    """

    @staticmethod
    def forward(ctx: Any, density: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        delta = _deltas(depths)
        passed = torch.exp(-delta * density)
        alpha = 1 - passed
        factor = 1 - alpha + TRANSMITTANCE_FLOOR
        light = torch.cumprod(factor, dim=-1)
        before = F.pad(light[..., :-1], (1, 0), value=1.0)
        weights = alpha * before
        ctx.save_for_backward(density, depths, delta, passed, factor, before, weights)
        return weights, light[..., -1].clone()

    @staticmethod
    def backward(ctx: Any, grad_weights: Tensor, grad_light: Tensor) -> tuple[Tensor | None, ...]:
        density, depths, delta, passed, factor, before, weights = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate_reference(
                _reference_weights, (density, depths), ctx.needs_input_grad, (grad_weights, grad_light)
            )
        # What lies behind sample i: of the later samples, and of the light that passes them all.
        behind = F.pad((grad_weights * weights)[..., 1:], (0, 1))
        behind[..., -1] = grad_light * (before[..., -1] * factor[..., -1])
        behind = behind.flip(-1).cumsum(-1).flip(-1)
        grad_optical = (grad_weights * before).sub_(behind.div_(factor)).mul_(passed)  # of δσ
        grad_density = grad_optical * delta if ctx.needs_input_grad[0] else None
        grad_depths = None
        if ctx.needs_input_grad[1]:
            grad_delta = (grad_optical * density)[..., :-1]
            grad_depths = F.pad(grad_delta, (1, 0)) - F.pad(grad_delta, (0, 1))
        return grad_density, grad_depths


def accumulate(weights: Tensor, values: Tensor) -> Tensor:
    """Weighted sums along rays: Σ_i w_i v_i.

    Args:
        weights: [B, R, S].
        values: [B, R, S, C].

    Returns:
        [B, R, C].
    """
    batch, rays, samples = check_shape("weights", weights, (None, None, None))
    check_shape("values", values, (batch, rays, samples, None))
    return _Accumulate.apply(weights, values)


class _Accumulate(torch.autograd.Function):
    """Σ_i w_i v_i and its gradients, each in the form that is quickest.

    They are products of very small matrices, one a ray, for which a CPU's batched product is slow: 3 to 10 times
    slower than adding up sample by sample, and than multiplying out the gradient of the values.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values)
        if values.device.type != "cpu":
            return torch.matmul(weights[..., None, :], values)[..., 0, :]
        sums = values.new_zeros(*values.shape[:2], values.shape[3])
        for i in range(values.shape[2]):
            sums.addcmul_(weights[..., i, None], values[..., i, :])
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights, values = ctx.saved_tensors
        grad_weights = torch.matmul(values, grad[..., None])[..., 0] if ctx.needs_input_grad[0] else None
        grad_values = weights[..., None] * grad[..., None, :] if ctx.needs_input_grad[1] else None
        return grad_weights, grad_values


def composite(
    density: Tensor,
    features: Tensor,
    depths: Tensor,
    *,
    noise: Tensor | None = None,
    activation: DensityActivation = "relu",
    last_back: bool = False,
    white_back: bool = False,
) -> Composited:
    """Composite S samples of C channels along each ray: features Σ w_i f_i, depth Σ w_i t_i.

    Args:
        density: [B, R, S] raw densities.
        features: [B, R, S, C].
        depths: [B, R, S] ascending, scene units.
        noise, activation, last_back: see `composite_weights`.
        white_back: adds 1 - Σ w to every channel: a background of ones.

    Returns:
        `Composited`.

    Raises:
        ValueError: a shape does not fit or the activation is unknown.

    Source: NeRF (arXiv 2003.08934), eq. 3; background options as in pi-GAN.
    """
    weights, transmittance = composite_weights(density, depths, noise=noise, activation=activation, last_back=last_back)
    sums = accumulate(weights, features)
    if white_back:
        sums = sums + (1 - weights.sum(-1, keepdim=True))
    return Composited(sums, (weights * depths).sum(-1), weights, transmittance)
