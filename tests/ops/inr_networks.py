"""Per-pixel networks of many sizes for `modulated_inr`, and how far from float64 its results may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from ops.backends import Backend
from torch import Tensor

from cips3d.ops import ModulatedWeight, Precision, demodulation
from cips3d.ops.modulated_inr import modulated_inr
from cips3d.ops.stacked_layers import StackedLayers

# Accurate products keep about 22 bits of both operands; what is left is float32's own rounding in sums of 512 terms,
# plain float32 shows the same 4e-7 after 18 layers. Fast ones round weights, activations and skips to 11 bits, three
# errors of 2e-4 a layer: 1.3e-3 after 18 layers.
TOLERANCE: dict[Precision, float] = {"highest": 2e-6, "fast": 3e-3}
# Gradients are plain float32 products, and bfloat16 ones: a share of about eps = 2^-7 of the activations ends up beyond
# the kink, where the slope is off by 0.8, layer after layer: twice √eps, as of `composed_inr` under autocast.
GRADIENT_TOLERANCE: dict[Precision, float] = {"highest": 1e-5, "fast": 2 * 2**-3.5}


@dataclass(frozen=True)
class Setting:
    """One network and its pixels."""

    features: int = 16
    width: int = 32
    blocks: int = 3
    skip_from: int = 1
    rgb_from: int = 1
    pixels: int = 7
    images: int = 2


SETTINGS = {
    "CIPS-3D": Setting(32, 512, 9, 4, 3, pixels=8),
    "odd widths": Setting(21, 70, 2, 1, 0, pixels=9, images=3),
    "skips from the first block": Setting(48, 48, 2, 0, 1, pixels=70),
    "two chunks, no skips": Setting(16, 320, 2, 2, 1),
    "one block, one pixel": Setting(5, 3, 1, 1, 0, pixels=1, images=1),
    "wide features": Setting(512, 16, 1, 1, 0, images=3),
}


@dataclass(frozen=True)
class Inputs:
    features: Tensor
    weights: list[Tensor]
    modulations: list[Tensor]
    rgb_weights: list[Tensor]

    def leaves(self) -> list[Tensor]:
        return [self.features, *self.weights, *self.modulations, *self.rgb_weights]

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Copies that require gradients."""

        def copy(tensors: list[Tensor]) -> list[Tensor]:
            return [x.detach().to(device, dtype, copy=True).requires_grad_() for x in tensors]

        return Inputs(copy([self.features])[0], copy(self.weights), copy(self.modulations), copy(self.rgb_weights))

    def layers(self) -> list[ModulatedWeight]:
        return [ModulatedWeight.of(*of) for of in zip(self.weights, self.modulations, strict=True)]

    def stacked(self) -> StackedLayers:
        """What the registered op takes."""
        scales = [demodulation(w, m) for w, m in zip(self.weights, self.modulations, strict=True)]
        return StackedLayers(
            *(self.weights[0], torch.stack(self.weights[1:])),
            *(self.modulations[0], torch.stack(self.modulations[1:], 1)),
            *(torch.stack(scales, 1), torch.stack(self.rgb_weights)),
        )


def sample_inputs(s: Setting) -> Inputs:
    """A freshly initialised network."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    widths = [s.features] + [s.width] * (2 * s.blocks)
    return Inputs(
        normal(s.images, s.pixels, s.features),
        [math.sqrt(2 / o) * normal(i, o) for i, o in zip(widths, widths[1:], strict=False)],
        [1 + 0.5 * normal(s.images, i) for i in widths[:-1]],
        [math.sqrt(2 / s.width) * normal(3, s.width) for _ in range(s.rgb_from, s.blocks)],
    )


def run(inputs: Inputs, s: Setting, precision: Precision | None = "highest") -> Tensor:
    return modulated_inr(
        *(inputs.features, inputs.layers(), inputs.rgb_weights), skip_from=s.skip_from, precision=precision
    )


def both(inputs: Inputs, backend: Backend) -> tuple[Inputs, Inputs]:
    """In float32 where the test computes, and in float64."""
    return inputs.to(backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)


def loss(rgb: Tensor) -> Tensor:
    return (rgb * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(1)).to(rgb)).sum()
