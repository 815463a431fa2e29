"""Adversarial losses by name, and the regularisers of both networks.

The adversarial losses take `real_logits` = D(x) and `fake_logits` = D(G(z)) of any shape, one logit an image [B, 1] or
one a patch [B, 1, H', W'], and return the scalar that the named network makes small. Weights, and intervals where a
regulariser is not taken every step, are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cips3d.draws import drawn
from cips3d.errors import UserError

LossName = Literal["logistic", "hinge", "wasserstein", "least-squares", "relativistic"]

TOP_K_DECAY = 0.99  # of the share that is kept, every `TOP_K_INTERVAL` steps
TOP_K_INTERVAL = 2000
TOP_K_FLOOR = 0.6
PATH_LENGTH_DECAY = 0.01


# Adversarial losses.


def logistic_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """mean softplus(-D(x)) + mean softplus(D(G(z))).

    Source: GAN (arXiv 1406.2661), section 3.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def nonsaturating_generator_loss(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """mean softplus(-D(G(z))) = -mean log sigmoid(D(G(z))).

    Source: GAN (arXiv 1406.2661), section 3.
    """
    return F.softplus(-fake_logits).mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))).

    Source: Geometric GAN (arXiv 1705.02894), section 3.
    """
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def wasserstein_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """mean D(G(z)) - mean D(x), for discriminators with a bounded slope (`gradient_penalty`).

    It is minus the estimated Wasserstein-1 distance.

    Source: Wasserstein GAN (arXiv 1701.07875), section 3.
    """
    return fake_logits.mean() - real_logits.mean()


def linear_generator_loss(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """-mean D(G(z)): the generator's side of the hinge and of the Wasserstein loss.

    Source: Geometric GAN (arXiv 1705.02894), section 3; Wasserstein GAN (arXiv 1701.07875), section 3.
    """
    return -fake_logits.mean()


def least_squares_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """½ mean (D(x) - 1)² + ½ mean D(G(z))².

    Source: LSGAN (arXiv 1611.04076), section 3.2, with the labels 0 and 1.
    """
    return 0.5 * (real_logits - 1).square().mean() + 0.5 * fake_logits.square().mean()


def least_squares_generator_loss(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """½ mean (D(G(z)) - 1)².

    Source: LSGAN (arXiv 1611.04076), section 3.2, with the labels 0 and 1.
    """
    return 0.5 * (fake_logits - 1).square().mean()


def relativistic_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """mean softplus(-(D(x) - D(G(z)))), each real image paired with one generated image.

    Raises:
        ValueError: the shapes differ.

    Source: R3GAN (arXiv 2501.05441), section 2, after Jolicoeur-Martineau (arXiv 1807.00734). It is trained with
    R1 and R2.
    """
    return F.softplus(-_lead(real_logits, fake_logits)).mean()


def relativistic_generator_loss(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """mean softplus(D(x) - D(G(z))), each generated image paired with one real image.

    Raises:
        ValueError: the real logits are missing or the shapes differ.

    Source: R3GAN (arXiv 2501.05441), section 2, after Jolicoeur-Martineau (arXiv 1807.00734).
    """
    if real_logits is None:
        raise ValueError("real_logits must be given: a relativistic generator is compared with real images")
    return F.softplus(_lead(real_logits, fake_logits)).mean()


def _lead(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """D(x) - D(G(z)) for pairs of a real and a generated image at the same place in the batch."""
    if real_logits.shape != fake_logits.shape:  # broadcasting would pair every image with every other
        raise ValueError(
            "real_logits and fake_logits must have the same shape, "
            f"got {list(real_logits.shape)} and {list(fake_logits.shape)}"
        )
    return real_logits - fake_logits


@dataclass(frozen=True)
class AdversarialLoss:
    """An adversarial loss: the functions that the discriminator and the generator minimise."""

    name: LossName
    discriminator: Callable[[Tensor, Tensor], Tensor]
    """discriminator(real_logits, fake_logits) → scalar"""
    generator: Callable[[Tensor, Tensor | None], Tensor]
    """generator(fake_logits, real_logits) → scalar"""
    needs_real: bool = False
    """the generator's loss looks at real_logits too; otherwise they may be None"""


LOSSES: dict[str, AdversarialLoss] = {
    loss.name: loss
    for loss in (
        AdversarialLoss("logistic", logistic_discriminator_loss, nonsaturating_generator_loss),
        AdversarialLoss("hinge", hinge_discriminator_loss, linear_generator_loss),
        AdversarialLoss("wasserstein", wasserstein_discriminator_loss, linear_generator_loss),
        AdversarialLoss("least-squares", least_squares_discriminator_loss, least_squares_generator_loss),
        AdversarialLoss("relativistic", relativistic_discriminator_loss, relativistic_generator_loss, needs_real=True),
    )
}


def adversarial_loss(name: str) -> AdversarialLoss:
    """The adversarial loss of a name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in LOSSES:
        raise UserError(f"--loss {name} is unknown; choose out of {', '.join(LOSSES)}")
    return LOSSES[name]


# Top-k: which generated images the generator learns from.


def top_k_share(step: int, *, floor: float = TOP_K_FLOOR) -> float:
    """max(0.99^(step / 2000), floor): the share of the generated batch that the generator learns from.

    Source: top-k training (arXiv 2002.06224), section 3, with the numbers of pi-GAN (arXiv 2012.00926).
    """
    return max(TOP_K_DECAY ** (step / TOP_K_INTERVAL), floor)


def most_real(logits: Tensor, share: float) -> Tensor:
    """The places in the batch of the ⌈share·B⌉ images that the discriminator takes most for real, best first.

    Args:
        logits: [B, ...] D(G(z)); an image with several logits counts by their mean.
        share: in (0, 1].

    Returns:
        [K] indices.

    Raises:
        ValueError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    count = math.ceil(share * len(logits) - 1e-9)  # 0.07 · 100 is a little more than 7 in floating point
    return logits.detach().reshape(len(logits), -1).mean(1).topk(max(count, 1)).indices


def keep_best(logits: Tensor, share: float) -> Tensor:
    """[K, ...] the logits of the images that `most_real` chooses, to be given to a generator's loss.

    Source: top-k training (arXiv 2002.06224), section 3.
    """
    return logits[most_real(logits, share)]


# Predictions of the discriminator: pose and latent.


def pose_loss(predicted: Tensor, pose: Tensor) -> Tensor:
    """Mean squared error of the pose that the discriminator reads off a generated image.

    Both networks make it small: the generator by letting the image tell the camera, so that heads turn with it and z
    does not turn them on its own.

    Args:
        predicted: [B, 2] yaw and pitch, radians.
        pose: [B, 2] of the camera that the image was rendered from.

    Returns:
        A scalar, radians².

    Source: pi-GAN (arXiv 2012.00926), its published code ("position loss"; weight 15 for CelebA).
    """
    return F.mse_loss(predicted, pose)


def latent_loss(predicted: Tensor, z: Tensor) -> Tensor:
    """Mean squared error of the z that the discriminator reads off a generated image.

    Args:
        predicted: [B, width].
        z: [B, width] that the image was generated from.

    Returns:
        A scalar.

    Source: pi-GAN (arXiv 2012.00926), its published code (weight 0 in all published configurations).
    """
    return F.mse_loss(predicted, z)


# Regularisers of the discriminator.


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean over real images of ‖∇D(x)‖², the sum of squares over an image's pixels and channels.

    The factor ½·γ is the caller's.

    Args:
        logits: [B, ...] D(images), of a discriminator run that recorded gradients.
        images: [B, ...] real images that require gradients.

    Returns:
        A scalar that can be differentiated with respect to the discriminator's parameters.

    Raises:
        ValueError: `images` does not require gradients.

    Source: Mescheder et al. (arXiv 1801.04406), section 4.1.
    """
    return _gradients(logits, images).square().sum(1).mean()


def r2_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean over generated images of ‖∇D(G(z))‖²: `r1_penalty` on the other side.

    Args:
        logits: [B, ...] D(images), of a discriminator run that recorded gradients.
        images: [B, ...] generated images, detached from the generator, that require gradients.

    Returns:
        A scalar that can be differentiated with respect to the discriminator's parameters.

    Raises:
        ValueError: `images` does not require gradients.

    Source: Mescheder et al. (arXiv 1801.04406), section 4.1.
    """
    return r1_penalty(logits, images)


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    *,
    target: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean of (‖∇D(x̂)‖ - target)² at x̂ = u·x + (1 - u)·G(z), u ~ U[0, 1) for every image.

    Args:
        discriminator: [B, ...] images → [B, ...] logits.
        real: [B, ...] real images.
        fake: [B, ...] generated images.
        target: the slope that D is drawn to.
        generator: source of u.

    Returns:
        A scalar that can be differentiated with respect to the discriminator's parameters, but not to the images.

    Raises:
        ValueError: the shapes differ.

    Source: WGAN-GP (arXiv 1704.00028), section 4 (weight 10).
    """
    if real.shape != fake.shape:
        raise ValueError(f"real and fake must have the same shape, got {list(real.shape)} and {list(fake.shape)}")
    u = drawn(torch.rand, len(real), generator=generator, device=real.device, dtype=real.dtype)
    between = torch.lerp(fake.detach(), real.detach(), u.view(-1, *[1] * (real.dim() - 1))).requires_grad_()
    norm = torch.linalg.vector_norm(_gradients(discriminator(between), between), dim=1)
    return (norm - target).square().mean()


def _gradients(logits: Tensor, images: Tensor) -> Tensor:
    """[B, values of an image] ∇D of every image, itself differentiable."""
    if not images.requires_grad:
        raise ValueError("images must require gradients before the discriminator sees them")
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.flatten(1)


# The regulariser of the generator.


def path_lengths(images: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """‖J_wᵀ y‖ of every image: how far it moves with its style, along a random direction y.

    J_wᵀ y = ∇_w Σ G(w)·noise / √(H·W); with a style a layer, the root of the layers' mean squared length.

    Args:
        images: [B, C, H, W] generated with recorded gradients.
        styles: [B, width] or [B, layers, width] that they were generated from, requiring gradients.
        noise: [B, C, H, W] ~ N(0, 1).

    Returns:
        [B], differentiable with respect to the generator's parameters.

    Raises:
        ValueError: `styles` does not require gradients.

    Source: StyleGAN2 (arXiv 1912.04958), section 3.2 and appendix B.
    """
    if not styles.requires_grad:
        raise ValueError("styles must require gradients before images are made of them")
    pixels = images.shape[-2] * images.shape[-1]
    (gradient,) = torch.autograd.grad((images * noise).sum() / math.sqrt(pixels), styles, create_graph=True)
    layers = 1 if styles.dim() == 2 else styles.shape[1]
    # The norm, unlike the root of a sum, has a finite derivative where an image does not move at all.
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1) / math.sqrt(layers)


class PathLength(nn.Module):
    """Path length regularisation and its running mean a, which is part of the state of a run.

    a ← a + decay·(mean l - a);  penalty = mean (l - a)²  with l the `path_lengths`.
    Gradients flow through the new part of a, as in the published code.

    Source: StyleGAN2 (arXiv 1912.04958), section 3.2 (weight 2, decay 0.01, every 4 steps).
    """

    mean: Tensor  # scalar: a

    def __init__(self, decay: float = PATH_LENGTH_DECAY) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(
        self,
        images: Tensor,
        styles: Tensor,
        noise: Tensor | None = None,
        *,
        share: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The penalty; moves the running mean on.

        Args:
            images: [B, C, H, W] generated with recorded gradients.
            styles: [B, width] or [B, layers, width] that they were generated from, requiring gradients.
            noise: [B, C, H, W] ~ N(0, 1); None: drawn.
            share: of a batch that comes in parts: all of them together move the mean on once.
            generator: source of the noise.

        Returns:
            A scalar, differentiable with respect to the generator's parameters.

        Raises:
            ValueError: `styles` does not require gradients.
        """
        if noise is None:
            noise = drawn(torch.randn, *images.shape, generator=generator, device=images.device, dtype=images.dtype)
        lengths = path_lengths(images, styles, noise)
        mean = torch.lerp(self.mean.to(lengths), lengths.mean(), self.decay * share)
        self.mean.copy_(mean.detach())
        return (lengths - mean).square().mean()
