"""The StyleGAN2 generator: from a learned constant to a picture, twice as large with every block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from cips3d.models.channels import RESOLUTION_MIN, channel_table, channels_at, check_channel_table
from cips3d.models.generator import GeneratorConfig, WeightParts, check_styles
from cips3d.models.style_mapping import StyleMapping, WStyles, check_style_dimensions
from cips3d.models.styled_conv import StyledConv, ToRGB, noise_maps
from cips3d.models.view import Picture, View
from cips3d.models.w_generator import WGenerator
from cips3d.ops.checks import check_input

Noise = Literal["const", "random", "none"]


@dataclass(frozen=True)
class StyleGAN2Config(GeneratorConfig):
    """Dimensions of a generator; the defaults are the published StyleGAN2 at 1024² (configuration F)."""

    system: Literal["stylegan2"] = field(default="stylegan2", kw_only=True)
    channels: dict[int, int] = field(default_factory=channel_table)
    """channels at each resolution, 4 to that of the pictures: a power of two each"""
    z_dim: int = 512
    """width of z"""
    style_dim: int = 512
    """width of w and of the mapping network"""
    mapping_layers: int = 8
    """layers of the mapping network"""
    mapping_lr_multiplier: float = 0.01
    """factor on the learning rate of the mapping network, within its layers"""

    def __post_init__(self) -> None:
        check_channel_table("channels", self.channels)
        check_style_dimensions(self.z_dim, self.style_dim, self.mapping_layers, self.mapping_lr_multiplier)

    @property
    def z_dims(self) -> tuple[int]:
        return (self.z_dim,)

    @property
    def resolution(self) -> int:
        """Side of the pictures."""
        return max(self.channels)

    def at(self, resolution: int) -> StyleGAN2Config:
        return replace(self, channels=channels_at(self.channels, resolution))


class StyleGAN2(WGenerator):
    """StyleGAN2's generator with skip connections (arXiv 1912.04958).

    z goes through a mapping network to a style w for 3x3 modulated convolutions, which start at a learned constant of
    4x4 pixels; every block doubles the resolution, and the picture is the sum of what all blocks give as colours.
    """

    config: StyleGAN2Config
    has_one_size: ClassVar[bool] = True
    network: SynthesisNetwork

    def __init__(self, config: StyleGAN2Config | None = None) -> None:
        super().__init__()
        self.config = config = config or StyleGAN2Config()
        self.style_mapping = StyleMapping(
            config.z_dim, config.style_dim, config.mapping_layers, lr_multiplier=config.mapping_lr_multiplier
        )
        self.network = SynthesisNetwork(config.channels, config.style_dim)
        self.style_layers = len(self.network.layers) + 1
        self.fixed_resolution = config.resolution
        self.noises = nn.Module()  # the buffers noise_0, noise_1, ... of noise="const"
        for k, side in enumerate(self.network.sides):
            self.noises.register_buffer(f"noise_{k}", torch.randn(1, 1, side, side))

    @property
    def resolution(self) -> int:
        """Side of the pictures."""
        return self.config.resolution

    def weight_parts(self) -> WeightParts:
        """A block a resolution, the one at 4² with the constant, each with its ToRGB and its fixed noise."""
        blocks: list[tuple[str, ...]] = []
        for block in range(len(self.network.to_rgb)):
            layers = (0,) if block == 0 else (2 * block - 1, 2 * block)
            blocks.append(
                (
                    *(("network.constant",) if block == 0 else ()),
                    *(f"network.layers.{layer}" for layer in layers),
                    f"network.to_rgb.{block}",
                    *(f"noises.noise_{layer}" for layer in layers),
                )
            )
        return WeightParts(tuple(blocks), mapping=("style_mapping",))

    def style_weights(self) -> dict[str, tuple[Tensor, ...]]:
        return {"w": self.network.style_weights()}

    def render(self, styles: WStyles, view: View) -> Picture:
        """Pictures of styles, with fixed noise where the view has no jitter.

        Raises:
            ValueError: the view asks for another resolution, for a window or for gradients of some pixels.
        """
        if view.resolution not in (self.resolution, (self.resolution, self.resolution)):
            raise ValueError(f"resolution must be {self.resolution}, the only one of this model, got {view.resolution}")
        if view.window is not None or view.grad_points is not None:
            name = "grad_points" if view.window is None else "window"
            raise ValueError(f"{name} is for generators of single pixels; StyleGAN2 makes whole pictures")
        return self.synthesis(styles, noise="random" if view.jitter else "const", generator=view.generator)

    def forward(
        self, z: Tensor, *, noise: Noise | Sequence[Tensor] = "random", generator: torch.Generator | None = None
    ) -> Picture:
        """Pictures of random z: `synthesis(mapping(z), ...)`.

        Args:
            z: [B, z_dim], standard normal.
            noise: "random" draws what every layer adds, "const" takes the model's fixed noise, "none" leaves it out;
                or [B or 1, 1, side, side] of each layer (`network.sides`).
            generator: source of random noise.

        Returns:
            `Picture` with an image [B, 3, resolution, resolution], in [-1, 1] but for overshoot.
        """
        return self.synthesis(self.mapping(z), noise=noise, generator=generator)

    def synthesis(
        self,
        styles: WStyles,
        *,
        noise: Noise | Sequence[Tensor] = "random",
        generator: torch.Generator | None = None,
    ) -> Picture:
        """Pictures of given styles; arguments as in `forward`.

        Raises:
            ValueError: an argument does not fit; it is named.
        """
        check_styles(styles, WStyles)
        w = styles.by_layer(self.style_layers, self.config.style_dim)
        check_input("styles.w", styles.w, self.network.constant)
        with self.as_precise():
            image = self.network(w, self._noise(noise, w[0], generator))
        return Picture(image, aux_image=None, depth=None)

    def _noise(
        self, noise: Noise | Sequence[Tensor], w: Tensor, generator: torch.Generator | None
    ) -> list[Tensor | None]:
        sides = self.network.sides
        if isinstance(noise, str) and noise == "const":
            return [self.noises.get_buffer(f"noise_{k}") for k in range(len(sides))]
        sizes = [(side, side) for side in sides]
        return noise_maps(noise, sizes, kinds=get_args(Noise), batch=len(w), like=w, generator=generator)


class SynthesisNetwork(nn.Module):
    """Styles to pictures: one styled convolution at 4², two at every further resolution, colours from each.

    Args:
        channels: of every resolution from 4 on.
        style_dim: width of w.

    Source: StyleGAN2 (arXiv 1912.04958), sections 2 and 4.1.
    """

    def __init__(self, channels: dict[int, int], style_dim: int) -> None:
        super().__init__()
        width = channels[RESOLUTION_MIN]
        self.constant = nn.Parameter(torch.randn(1, width, RESOLUTION_MIN, RESOLUTION_MIN))
        self.sides = [RESOLUTION_MIN]  # of what each layer gives
        layers = [StyledConv(width, width, 3, style_dim)]
        to_rgb = [ToRGB(width, style_dim)]
        for side in sorted(channels)[1:]:
            width, width_before = channels[side], width
            layers.append(StyledConv(width_before, width, 3, style_dim, upsample=True))
            layers.append(StyledConv(width, width, 3, style_dim))
            to_rgb.append(ToRGB(width, style_dim, upsample=True))
            self.sides += [side, side]
        self.layers = nn.ModuleList(layers)
        self.to_rgb = nn.ModuleList(to_rgb)

    def style_weights(self) -> tuple[Tensor, ...]:
        """A of what each style modulates, stacked [Σ in, style_dim]; the last style has a ToRGB alone."""
        met: list[list[Tensor]] = [[cast("StyledConv", layer).conv.style_weight] for layer in self.layers] + [[]]
        for block, to_rgb in enumerate(self.to_rgb):
            met[2 * block + 1].append(cast("ToRGB", to_rgb).conv.style_weight)
        return tuple(torch.cat(weights) for weights in met)

    def forward(self, w: Sequence[Tensor], noise: Sequence[Tensor | None]) -> Tensor:
        """Pictures of styles.

        Args:
            w: the style [B, style_dim] of every layer, and one more. Colours follow the style of the layer behind them.
            noise: [B or 1, 1, side, side] of every layer, or None.

        Returns:
            [B, 3, H, W].
        """
        x, rgb = self.constant, None
        for k, layer in enumerate(self.layers):
            x = layer(x, w[k], noise[k])
            if k % 2 == 0:
                rgb = self.to_rgb[k // 2](x, w[k + 1], rgb)
        assert rgb is not None  # the first layer gives colours
        return rgb
