"""Closed-form factorisation of styles (SeFa): the directions that change a generator's layers most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cips3d.errors import UserError
from cips3d.models.family import AnyGenerator
from cips3d.models.generator import chosen, styles_by_layer, styles_of

SAMPLES = 2048  # styles that deviations are measured on: to within 2%

StylesT = TypeVar("StylesT", bound="tuple[Tensor, ...]")


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions of one branch of a generator's styles, the strongest first."""

    branch: str
    """shape or appearance of CIPS-3D; w or style of others, which have one"""
    layers: tuple[int, ...]
    """that were decomposed, and that move"""
    vectors: Tensor
    """[D, width] orthonormal rows"""
    eigenvalues: Tensor
    """[D] of AᵀA, falling"""
    offsets: tuple[Tensor, ...]
    """styles [D, layers, ...]: one standard deviation of random faces along each direction"""

    def __len__(self) -> int:
        return len(self.vectors)


@torch.no_grad()
def semantic_directions(
    generator: AnyGenerator, branch: str | None = None, layers: Sequence[int] | None = None
) -> Directions:
    """Eigenvectors of AᵀA, A the stacked weights through which styles reach the layers.

    Moving a style by n changes what the layers are modulated with by A n; among unit vectors, the eigenvector of the
    largest eigenvalue changes it most, and so on. What A is made of (`Generator.style_weights`): in CIPS-3D's shape,
    the linear maps to the FiLM layers' gains (before their factor 15) and shifts; in its appearance, those to the INR's
    modulations; in StyleGAN2 and CIPS, those from w to the modulations of convolutions and ToRGBs; in pi-GAN, whose
    styles are the modulations, the mapping's last linear layer, so that n moves its last activations.

    Args:
        generator: whose weights are decomposed.
        branch: of its styles; None: the first of `style_weights`, the shape in CIPS-3D.
        layers: of the branch; None: all.

    Returns:
        All directions with an effect: the rank of A.

    Raises:
        ValueError: the model has no such branch or layer.
        UserError: its weights are 0 or no numbers, since training diverged.

    Source: Y. Shen and B. Zhou, Closed-form factorization of latent semantics in GANs (arXiv 2007.06600), section 3.
    """
    weights = generator.style_weights()
    if not weights:
        raise ValueError(f"{type(generator).__name__} has no styles that could be decomposed")
    branch = next(iter(weights)) if branch is None else branch
    if branch not in weights:
        raise ValueError(f"branch must be one of {', '.join(weights)}, got {branch!r}")
    count = len(weights[branch])
    moving = tuple(range(count)) if layers is None else tuple(sorted(set(layers)))
    if not moving or not 0 <= moving[0] <= moving[-1] < count:
        raise ValueError(f"layers must be one or more of 0 to {count - 1}, got {layers}")
    met = [weights[branch][layer] for layer in moving]
    if not all(weight.isfinite().all() for weight in met) or not any(weight.any() for weight in met):
        raise UserError(
            f"the weights that the {branch} of this {type(generator).__name__} meets give no direction: they are 0 or "
            "no numbers, so its training diverged; give an earlier checkpoint"
        )
    eigenvalues, vectors = principal_directions(met)
    vectors = vectors.to(weights[branch][0])
    units = generator.style_offsets(branch, vectors, moving)
    deviations = _deviations(generator, units)
    scaled = [unit * deviations.to(unit).view(-1, *[1] * (unit.dim() - 1)) for unit in units]
    return Directions(branch, moving, vectors, eigenvalues, styles_of(units, scaled))


def principal_directions(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Eigenvalues [D], falling, and eigenvectors [D, width], as rows, of AᵀA, A = `weights` [out, width] stacked.

    D is the rank of A. The sign of a vector is that which makes its largest component positive.
    """
    stacked = torch.cat([weight.detach().cpu().double() for weight in weights])
    eigenvalues, columns = torch.linalg.eigh(stacked.T @ stacked)  # rising
    eigenvalues, vectors = eigenvalues.flip(0), columns.T.flip(0)
    unknown = max(stacked.shape) * torch.finfo(torch.float32).eps  # of the largest singular value: weights are float32
    rank = int((eigenvalues > eigenvalues[0] * unknown**2).sum())
    vectors = vectors[:rank]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return eigenvalues[:rank], vectors * largest.sign()


def edited(styles: StylesT, directions: Directions, index: int, strength: float) -> StylesT:
    """Faces moved along a direction: in the layers of the directions, style + strength · offset.

    Args:
        styles: of B faces, by layer or the same for all.
        directions: of the generator that the styles are of.
        index: which direction.
        strength: in standard deviations of random faces along it; 0 gives the styles as they are.

    Returns:
        Styles of B faces.

    Raises:
        ValueError: there is no such direction.
    """
    if not 0 <= index < len(directions):
        raise ValueError(f"index must be 0 to {len(directions) - 1}, got {index}")
    if strength == 0:
        return styles
    offsets = chosen(directions.offsets, slice(index, index + 1))
    return styles_of(
        styles,
        [
            styles_by_layer(style, offset.shape[1]) + strength * offset if offset.any() else style
            for style, offset in zip(styles, offsets, strict=True)
        ],
    )


def _deviations(generator: AnyGenerator, units: tuple[Tensor, ...]) -> Tensor:
    """Standard deviation [D] of random faces along each of D orthogonal offsets: of ⟨style, o⟩ / ⟨o, o⟩."""
    styles = generator.mapping(*generator.sample_z(SAMPLES, generator=torch.Generator().manual_seed(0)))
    flat = [
        (styles_by_layer(style, unit.shape[1]).flatten(1).double(), unit.flatten(1).double())
        for style, unit in zip(styles, units, strict=True)
    ]
    along = torch.stack([style @ unit.T for style, unit in flat]).sum(0)  # [N, D]
    squares = torch.stack([unit.square().sum(1) for _, unit in flat]).sum(0)  # [D]
    return (along / squares).std(0)
