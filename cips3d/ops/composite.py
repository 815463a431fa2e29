"""Alpha compositing: densities along a ray become weights, weighted features and a depth."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.composite_checks import (
    DensityActivation,
    check_densities,
    check_features,
    check_merged,
    check_pairs,
)
from cips3d.ops.composite_reference import (
    composite_backward_reference,
    composite_reference,
    front_to_back,
    weights_reference,
)
from cips3d.ops.library import define
from cips3d.ops.ray_tensors import kernels_take_float32, require_float32
from cips3d.ops.second_order import gradients_of_op

SAMPLES_IN_LANES = 32  # samples of a ray that a kernel keeps in registers; of longer rays the backward stores them


class Composited(NamedTuple):
    """What a ray sees.

    Attributes:
        features: [B, R, C] Σ w f.
        depth: [B, R] Σ w t, scene units.
        weights: [B, R, S] front to back.
        transmittance: [B, R] light that passes all samples: Π (1 - α + 1e-10).
        opacity: [B, R] Σ w, without what `last_back` gives the last sample.
    """

    features: Tensor
    depth: Tensor
    weights: Tensor
    transmittance: Tensor
    opacity: Tensor


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
        density: [B, R, S] raw densities σ, of any floating dtype.
        depths: [B, R, S] ascending, scene units; float32, or float64, which is computed in plain PyTorch.
        noise: [B, R, S] added to the raw density (training), or None.
        activation: "relu" or "softplus".
        last_back: the last sample takes what is left, w_S += 1 - Σ w: an opaque back.

    Returns:
        weights [B, R, S], transmittance behind the last sample [B, R], in the dtype of the depths.

    Raises:
        ValueError: a shape or device does not fit or the activation is unknown.
        TypeError: depths are of 16 bits: too coarse for the differences of neighbours.

    Source: NeRF (arXiv 2003.08934), eq. 3, with pi-GAN's constants.

    Example:
        >>> weights, behind = composite_weights(torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[0.0, 1.0]]]))
        >>> weights  # 1 - 1/e of the light, and the rest
        tensor([[[0.6321, 0.3679]]])
    """
    check_densities(density, depths, noise, activation)
    density = density.to(depths.dtype)
    noise = None if noise is None else noise.to(depths.dtype)
    if kernels_take_float32(depths, density, noise):
        no_features = density.new_empty(*density.shape, 0)
        _, _, weights, transmittance, _ = _OP(
            density, no_features, depths, None, None, None, noise, activation, last_back, False
        )
        return weights, transmittance
    return weights_reference(density, depths, noise, activation, last_back)


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
        density: [B, R, S] raw densities, of any floating dtype.
        features: [B, R, S, C] of any floating dtype; they need not have that of the others.
        depths: [B, R, S] ascending, scene units; float32, or float64, which is computed in plain PyTorch.
        noise, activation, last_back: see `composite_weights`.
        white_back: adds 1 - Σ w to every channel: a background of ones. With `last_back` the w of both are those in
            front of either, as in pi-GAN's code: what is left counts twice.

    Returns:
        `Composited`: features in their dtype, the rest in that of the depths.

    Raises:
        ValueError: a shape or device does not fit or the activation is unknown.
        TypeError: depths are of 16 bits.

    Source: NeRF (arXiv 2003.08934), eq. 3; background options as in pi-GAN.

    Example:
        >>> depths = torch.tensor([[[1.0, 2.0]]])
        >>> seen = composite(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[[5.0], [7.0]]]]), depths)
        >>> seen.features, seen.depth
        (tensor([[[7.]]]), tensor([[2.]]))
    """
    check_densities(density, depths, noise, activation)
    check_features(density, features)
    return _composite(density, features, depths, None, None, None, noise, activation, last_back, white_back)


def composite_merged(
    coarse: tuple[Tensor, Tensor],
    fine: tuple[Tensor, Tensor],
    depths: Tensor,
    order: Tensor,
    *,
    noise: Tensor | None = None,
    activation: DensityActivation = "relu",
    last_back: bool = False,
    white_back: bool = False,
) -> Composited:
    """`composite` of coarse and fine samples as they were evaluated, with the order in which a ray meets them.

    Equal to `composite` of cat(coarse, fine) gathered by `order`, and no features are concatenated or moved.

    Args:
        coarse: density [B, R, S] and features [B, R, S, C], with S >= 1.
        fine: density [B, R, F] and features [B, R, F, C], of the coarse ones' dtypes.
        depths: [B, R, S + F] of all of them, ascending (`MergedDepths.merged`); float32, or float64, which is
            computed in plain PyTorch.
        order: [B, R, S + F] int64, a permutation a ray: sample i is element order[i] of cat(coarse, fine). What it
            holds is not checked; a kernel that meets a position which does not exist ends the process's use of the GPU.
        noise: [B, R, S + F] added to the raw densities, front to back, or None.
        activation, last_back: see `composite_weights`.
        white_back: see `composite`.

    Returns:
        `Composited`, with weights [B, R, S + F] front to back.

    Raises:
        ValueError: a shape or device does not fit or the activation is unknown.
        TypeError: a dtype does not fit.

    Source: NeRF (arXiv 2003.08934), section 5.2, as pi-GAN and CIPS-3D use it (one field, one final compositing).
    """
    check_pairs(coarse=coarse, fine=fine)
    (density, features), (fine_density, fine_features) = coarse, fine
    check_merged(density, features, fine_density, fine_features, depths, order, noise, activation)
    return _composite(
        density,
        features,
        depths,
        fine_density,
        fine_features,
        order,
        noise,
        activation,
        last_back,
        white_back,
    )


def _composite(
    density: Tensor,
    features: Tensor,
    depths: Tensor,
    fine_density: Tensor | None,
    fine_features: Tensor | None,
    order: Tensor | None,
    noise: Tensor | None,
    *settings: Any,
) -> Composited:
    density = density.to(depths.dtype)
    fine_density = None if fine_density is None else fine_density.to(depths.dtype)
    noise = None if noise is None else noise.to(depths.dtype)
    takes = kernels_take_float32(depths, density, fine_density, noise) and kernels.take(features)
    run = _OP if takes else composite_reference
    return Composited(*run(density, features, depths, fine_density, fine_features, order, noise, *settings))


# The registered op and its gradients. `settings` are activation, last_back and white_back.


def _kernel(
    density: Tensor,
    features: Tensor,
    depths: Tensor,
    fine_density: Tensor | None,
    fine_features: Tensor | None,
    order: Tensor | None,
    noise: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, ...]:
    outputs = _fake(density, features, depths, fine_density, fine_features, order, noise, *settings)
    require_float32(density=density, fine_density=fine_density, depths=depths, noise=noise)
    if depths.numel() > 0:
        kernels.launch(
            "composite",
            features.dtype,
            *_contiguous(density, fine_density, depths, order, noise, features, fine_features),
            *outputs,
            *_sizes(density, features, depths),
            *_coded(*settings),
        )
    return outputs


def _fake(
    density: Tensor,
    features: Tensor,
    depths: Tensor,
    fine_density: Tensor | None,
    fine_features: Tensor | None,
    order: Tensor | None,
    noise: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, ...]:
    if fine_density is None or fine_features is None or order is None:
        check_densities(density, depths, noise, settings[0])
        check_features(density, features)
    else:
        check_merged(density, features, fine_density, fine_features, depths, order, noise, settings[0])
    rays = depths.shape[:2]
    sums = features.new_empty(*rays, features.shape[3])
    return sums, depths.new_empty(rays), depths.new_empty(depths.shape), depths.new_empty(rays), depths.new_empty(rays)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def _sizes(density: Tensor, features: Tensor, depths: Tensor) -> tuple[int, int, int, int]:
    """Rays, coarse samples, samples, channels."""
    return depths.shape[0] * depths.shape[1], density.shape[2], depths.shape[2], features.shape[3]


def _coded(activation: str, last_back: bool, white_back: bool) -> tuple[bool, bool, bool]:
    return activation == "softplus", last_back, white_back


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, activation, last_back, white_back = inputs
    ctx.settings = activation, last_back, white_back
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)  # most outputs have no gradient


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors

    def written() -> tuple[Tensor | None, ...]:
        density, features, depths, fine_density, fine_features, _, noise, *_ = ctx.needs_input_grad
        with_density = density or fine_density or noise
        with_features = (features or fine_features) and grads[0] is not None
        of_density, of_features, of_depths, of_fine_density, of_fine_features = _BACKWARD(
            *inputs, *grads, *ctx.settings, with_density, with_features, depths
        )
        if not with_features:
            of_features = of_fine_features = None
        of_noise = front_to_back(of_density, of_fine_density, inputs[5]) if noise else None
        return of_density, of_features, of_depths, of_fine_density, of_fine_features, None, of_noise

    return gradients_of_op(ctx, composite_reference, inputs, grads, written)


def _backward_kernel(density: Tensor, features: Tensor, depths: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    outputs = _backward_fake(density, features, depths, *arguments)
    fine_density, fine_features, order, noise, *grads = arguments[:9]
    *settings, with_density, with_features, with_depths = arguments[9:]
    of_density, of_features, of_depths, of_fine_density, of_fine_features = outputs
    require_float32(density=density, fine_density=fine_density, depths=depths, noise=noise)
    if depths.numel() == 0:
        return outputs
    workspace = None
    if depths.shape[2] > SAMPLES_IN_LANES:
        workspace = depths.new_empty(2, *depths.shape)
    wanted = with_density, with_density, with_depths, with_features, with_features
    results = of_density, of_fine_density, of_depths, of_features, of_fine_features
    kernels.launch(
        "composite_backward",
        features.dtype,
        *_contiguous(density, fine_density, depths, order, noise, features, fine_features, *grads),
        *(x if w else None for x, w in zip(results, wanted, strict=True)),
        workspace,
        *_sizes(density, features, depths),
        *_coded(*settings),
    )
    return outputs


def _backward_fake(density: Tensor, features: Tensor, depths: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    fine_density, fine_features, *_ = arguments
    with_density, with_features, with_depths = arguments[-3:]
    if fine_density is None:
        fine_density, fine_features = density.new_empty(0), features.new_empty(0)

    def like(x: Tensor, wanted: bool) -> Tensor:
        return x.new_empty(x.shape if wanted else 0)

    return (
        like(density, with_density),
        like(features, with_features),
        like(depths, with_depths),
        like(fine_density, with_density),
        like(fine_features, with_features),
    )


_ARGUMENTS = (
    "Tensor density, Tensor features, Tensor depths, Tensor? fine_density, Tensor? fine_features, Tensor? order,"
    " Tensor? noise"
)
_SETTINGS = "str activation, bool last_back, bool white_back"
_OP = define(
    f"composite({_ARGUMENTS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=_kernel,
    reference=composite_reference,
    fake=_fake,
    setup_context=_setup,
    backward=_gradients,
)
_BACKWARD = define(
    f"composite_backward({_ARGUMENTS}, Tensor? grad_sums, Tensor? grad_depth, Tensor? grad_weights,"
    f" Tensor? grad_transmittance, Tensor? grad_opacity, {_SETTINGS},"
    " bool with_density, bool with_features, bool with_depths) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=_backward_kernel,
    reference=composite_backward_reference,
    fake=_backward_fake,
)
