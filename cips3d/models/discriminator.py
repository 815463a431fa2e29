"""What every discriminator of the family offers to training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class DiscriminatorOutput(NamedTuple):
    """What one discriminator network gives for images.

    Attributes:
        logits: [B, 1] large where an image looks real.
        pose: [B, 2] yaw and pitch, radians from the front; None where it is not predicted.
        latent: [B, z width] the image's z; None where it is not predicted.
    """

    logits: Tensor
    pose: Tensor | None
    latent: Tensor | None = None

    def float(self) -> DiscriminatorOutput:
        """The same in float32."""
        pose, latent = (None if x is None else x.float() for x in (self.pose, self.latent))
        return DiscriminatorOutput(self.logits.float(), pose, latent)


class DiscriminatorOutputs(NamedTuple):
    """Outputs of the main and the auxiliary discriminator.

    Attributes:
        main: of the images.
        aux: of the auxiliary images; None without any.
    """

    main: DiscriminatorOutput
    aux: DiscriminatorOutput | None

    def float(self) -> DiscriminatorOutputs:
        """The same in float32."""
        return DiscriminatorOutputs(self.main.float(), None if self.aux is None else self.aux.float())


class Discriminator(nn.Module, ABC):
    """A critic of images and, where it has an auxiliary part, of the NeRF's own pictures of the same faces.

    A model of the family is one subclass and its configuration (`cips3d.models.family`), which makes it.
    """

    @abstractmethod
    def discriminate(self, image: Tensor, aux_image: Tensor | None = None, fade: float = 1.0) -> DiscriminatorOutputs:
        """Logits of images, and what is read off them.

        Args:
            image: [B, 3, R, R] in [-1, 1].
            aux_image: [B, 3, R', R'] for the auxiliary part (a real image goes to both), or None.
            fade: α in [0, 1], the share of the newest resolution's block in what enters the one behind it.

        Raises:
            ValueError: there is an `aux_image` but no auxiliary part, or an argument does not fit.
        """

    def discriminate_aux(self, aux_image: Tensor, fade: float = 1.0) -> DiscriminatorOutput:
        """The auxiliary part's output alone; arguments as in `discriminate`.

        Raises:
            ValueError: there is no such part, or an argument does not fit.
        """
        raise ValueError("aux_image is given, but this discriminator has no auxiliary part")
