"""A cube of learned embeddings that a radiance field looks its points up in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EmbeddingGrid(nn.Module):
    """Trilinear interpolation in a cubic grid of embeddings; the same for all images.

    The outermost embeddings lie on the faces of the cube [-1, 1]³; outside of it the grid goes on with zeros. x runs
    along the last dimension, z along the first of the three.

    Args:
        width: of an embedding.
        resolution: embeddings along an edge, at least 2.
        init_std: embeddings start as N(0, init_std²).

    Source: pi-GAN (arXiv 2012.00926), the variants of its published code with spatial embeddings.
    """

    def __init__(self, width: int, resolution: int, init_std: float) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(1, width, resolution, resolution, resolution) * init_std)

    def forward(self, points: Tensor) -> Tensor:
        """points [B, N, 3] in [-1, 1] -> embeddings [B, N, width]; differentiable once, in points and embeddings."""
        # All images as one: expanding the grid to B of them would make B gradients of its size.
        places = points.reshape(1, 1, 1, -1, 3)
        found = F.grid_sample(self.embeddings, places, mode="bilinear", padding_mode="zeros", align_corners=True)
        return found.view(found.shape[1], -1).t().reshape(*points.shape[:2], found.shape[1])
