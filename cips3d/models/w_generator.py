"""What the generators with one style w have in common: StyleGAN2 and CIPS."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn

from cips3d.models.generator import Generator, ParameterGroups, at_layers, mixed_layers
from cips3d.models.style_mapping import StyleMapping, WStyles
from cips3d.ops.precision import Precision, product_precision


class WGenerator(Generator[WStyles]):
    """A 2-D generator: a mapping network makes a style w of z, and w modulates the layers of `network`.

    A subclass sets `style_mapping`, `network` and `style_layers`.
    """

    is_3d: ClassVar[bool] = False
    style_mapping: StyleMapping
    network: nn.Module
    precision: Precision | None = None
    """of the network's products and convolutions; None: as PyTorch is set"""

    @property
    def z_dims(self) -> tuple[int]:
        return (self.style_mapping.z_dim,)

    def set_precision(
        self,
        precision: Precision | None = None,
        *,
        nerf: Precision | None = None,
        inr: Precision | None = None,
        fast_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().set_precision(precision, nerf=nerf, inr=inr, fast_dtype=fast_dtype)
        self.precision = inr or precision

    def as_precise(self) -> AbstractContextManager[object]:
        """Inside, products and convolutions are as precise as was set; compiled code goes by PyTorch's settings."""
        return nullcontext() if torch.compiler.is_compiling() else product_precision(self.precision)

    def parameter_groups(self) -> ParameterGroups:
        return ParameterGroups(nerf=(), inr=(self.network,), mapping=(self.style_mapping,))

    @abstractmethod
    def style_weights(self) -> dict[str, tuple[Tensor, ...]]:
        """A of the modulations by each of the styles w: of a layer, of the ToRGB before it, or of both."""

    def style_offsets(self, branch: str, vectors: Tensor, layers: Sequence[int]) -> WStyles:
        if branch not in self.style_weights():
            return super().style_offsets(branch, vectors, layers)
        return WStyles(at_layers(vectors, layers, self.style_layers))

    def mapping(self, z: Tensor) -> WStyles:  # type: ignore[override]  # by its name
        """Styles of z [B, z_dim]."""
        return WStyles(self.style_mapping(z))

    def mixed(self, first: WStyles, second: WStyles, layer: int) -> WStyles:
        """Styles whose layers from `layer` on follow `second`; the last layer is the last ToRGB."""
        return WStyles(mixed_layers(first.w, second.w, layer, self.style_layers))
