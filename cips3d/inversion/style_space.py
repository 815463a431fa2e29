"""Coordinates of a generator's styles in which steps of one size change pictures alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cips3d.models.family import AnyGenerator
from cips3d.models.generator import styles_of

SAMPLES = 2048  # styles that mean and spread are taken from
MOST_COMPONENTS = 512  # of a tensor of styles: as wide as the widest w of the family
LEAST_SPREAD = 0.05  # of a component, as a share of the widest: narrower ones would hardly move


@dataclass(frozen=True, eq=False)
class StyleSpace:
    """Styles as mean + Σ_k u_k s_k v_k, in every one of their tensors.

    v_k are principal components of the styles of random z, s_k their standard deviations, no less than 0.05 of the
    largest. Typical faces have u ~ N(0, 1); u = 0 is the mean face. A tensor of at most 512 numbers can take any value;
    larger ones (pi-GAN's frequencies and phases, 2·2304 numbers of a z of 256) those of the 512 widest components.
    """

    like: tuple[Tensor, ...]
    """styles of one face"""
    means: tuple[Tensor, ...]
    """[D] each, a flattened tensor of styles"""
    bases: tuple[Tensor, ...]
    """[K, D] each, rows s_k v_k"""

    @classmethod
    @torch.no_grad()
    def of(cls, generator: AnyGenerator, *, samples: int = SAMPLES, seed: int = 0) -> StyleSpace:
        """The space of a generator's styles; the seed chooses the z that it is measured on."""
        styles = generator.mapping(*generator.sample_z(samples, generator=torch.Generator().manual_seed(seed)))
        flat = [style.flatten(1) for style in styles]
        means = tuple(style.mean(0) for style in flat)
        bases = tuple(principal_axes(style - mean) for style, mean in zip(flat, means, strict=True))
        return cls(styles_of(styles, [style[:1] for style in styles]), means, bases)

    def styles(self, coordinates: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Styles of B faces at coordinates [B, K], one a tensor of styles."""
        parts = zip(self.means, coordinates, self.bases, self.like, strict=True)
        return styles_of(self.like, [(mean + u @ basis).unflatten(1, s.shape[1:]) for mean, u, basis, s in parts])

    def coordinates(self, styles: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The coordinates [B, K] of the styles nearest to those of B faces."""
        parts = zip(styles, self.means, self.bases, strict=True)
        return tuple((style.flatten(1) - mean) @ b.T / b.square().sum(1) for style, mean, b in parts)


def principal_axes(centred: Tensor) -> Tensor:
    """Rows s_k v_k [K, D] of the principal components of samples [N, D] around 0, the widest first.

    From the eigenvectors of whichever is smaller, the covariance X ᵀX / N or the Gram matrix X Xᵀ / N, in float64.
    """
    count, width = centred.shape
    x = centred.double()
    wide = width > count
    squares, vectors = torch.linalg.eigh((x @ x.T if wide else x.T @ x) / count)  # ascending
    kept = min(width, count - 1, MOST_COMPONENTS)
    squares, vectors = squares[-kept:].flip(0), vectors[:, -kept:].flip(1)
    spread = squares.clamp_min(0).sqrt()
    axes = torch.nn.functional.normalize(x.T @ vectors if wide else vectors, dim=0)  # [D, K]
    return (axes * spread.clamp_min(LEAST_SPREAD * float(spread[0]))).T.to(centred)
