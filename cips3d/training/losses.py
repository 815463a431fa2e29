"""Adversarial losses and the gradient penalty of the StyleGAN2 family."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nonsaturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """mean softplus(-D(G(z))) = -mean log sigmoid(D(G(z))).

    Args:
        fake_logits: D(G(z)), any shape.

    Returns:
        A scalar.

    Source: GAN (arXiv 1406.2661), section 3.
    """
    return F.softplus(-fake_logits).mean()


def logistic_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """mean softplus(-D(x)) + mean softplus(D(G(z))).

    Args:
        real_logits: D(x), any shape.
        fake_logits: D(G(z)), any shape.

    Returns:
        A scalar.

    Source: GAN (arXiv 1406.2661), section 3.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


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


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean over images of ‖∇D(x)‖², the sum of squares over an image's pixels and channels.

    The factor ½·γ (and the interval, where R1 is not taken every step) is the caller's.

    Args:
        logits: [B, ...] D(images), of a discriminator run that recorded gradients.
        images: [B, ...] real images that require gradients.

    Returns:
        A scalar that can be differentiated with respect to the discriminator's parameters.

    Raises:
        ValueError: `images` does not require gradients.

    Source: Mescheder et al. (arXiv 1801.04406), section 4.1.
    """
    if not images.requires_grad:
        raise ValueError("images must require gradients before the discriminator sees them")
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
