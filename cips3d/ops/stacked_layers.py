"""The layers of CIPS-3D's per-pixel network as the tensors of a registered op."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from cips3d.ops.modulated_fc import ModulatedWeight


class StackedLayers(NamedTuple):
    """L modulated layers of width W, the first on F channels, and colours behind the last R pairs of them.

    Attributes:
        first_weight: [F, W].
        hidden_weight: [L - 1, W, W] layers 2 to L.
        first_modulation: [B, F].
        hidden_modulation: [B, L - 1, W].
        demodulation: [B, L, W].
        rgb_weight: [R, 3, W].
    """

    first_weight: Tensor
    hidden_weight: Tensor
    first_modulation: Tensor
    hidden_modulation: Tensor
    demodulation: Tensor
    rgb_weight: Tensor

    def unstacked(self) -> list[ModulatedWeight]:
        """The layers one by one."""
        weights = (self.first_weight, *self.hidden_weight)
        modulations = (self.first_modulation, *self.hidden_modulation.unbind(1))
        return [ModulatedWeight(*of) for of in zip(weights, modulations, self.demodulation.unbind(1), strict=True)]


LAYERS = len(StackedLayers._fields)
INPUTS = 1 + LAYERS  # tensors of the op: the features of pixels come first
SCHEMA = (
    f"Tensor features, {', '.join(f'Tensor {name}' for name in StackedLayers._fields)}, "
    "int skip_from, float negative_slope, bool float16_products, bool bfloat16_gradients"
)
