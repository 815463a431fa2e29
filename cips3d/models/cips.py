"""The CIPS generator: every pixel from its own coordinates and a style, without any spatial operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from cips3d.cameras import sides
from cips3d.errors import UserError, require_choice
from cips3d.models.generator import GeneratorConfig, WeightParts, check_styles
from cips3d.models.pixel_network import PixelNetwork
from cips3d.models.ray_parts import default_chunk_rays
from cips3d.models.style_mapping import StyleMapping, WStyles, check_style_dimensions
from cips3d.models.styled_conv import noise_maps
from cips3d.models.view import Picture, View, Window
from cips3d.models.w_generator import WGenerator
from cips3d.ops.checks import check_input

Variant = Literal["skip", "residual"]
Coordinates = Literal[2, 3]
Noise = Literal["random", "none"]

# Widths of the blocks of models for 1024²; those for smaller pictures have the first of them.
PUBLISHED_WIDTHS: dict[Variant, tuple[int, ...]] = {
    "skip": (512, 512, 512, 512, 512, 256, 128, 64, 32),
    "residual": (512, 512, 512, 512, 512, 256, 128, 128, 64),
}
SAME_GRID = 1e-5  # coordinates this close are those of the same pixel: far above rounding, far below a pixel


@dataclass(frozen=True)
class CIPSConfig(GeneratorConfig):
    """Dimensions of a generator; the defaults are the published CIPS for 256²."""

    system: Literal["cips"] = field(default="cips", kw_only=True)
    resolution: int = 256
    """side of the learned embedding, which is that of the pictures of training"""
    variant: Variant = "skip"
    """skip: every block adds to the colours; residual: blocks have shortcuts, and the last gives the colours"""
    coordinates: Coordinates = 2
    """2: pictures are squares (`square_coordinates`); 3: cylindrical panoramas (`cylinder_coordinates`)"""
    hidden: int = 512
    """sines of the coordinates, and as many channels of the embedding"""
    widths: tuple[int, ...] | None = None
    """of the blocks, one each; None: the published ones, log2(resolution) - 1 blocks"""
    z_dim: int = 512
    """width of z"""
    style_dim: int = 512
    """width of w and of the mapping network"""
    mapping_layers: int = 8
    """layers of the mapping network"""
    mapping_lr_multiplier: float = 0.01
    """factor on the learning rate of the mapping network, within its layers"""

    def __post_init__(self) -> None:
        require_choice("variant", self.variant, get_args(Variant))
        require_choice("coordinates", self.coordinates, get_args(Coordinates))
        check_style_dimensions(self.z_dim, self.style_dim, self.mapping_layers, self.mapping_lr_multiplier)
        if self.hidden < 1:
            raise UserError(f"hidden {self.hidden} is too small; give at least 1")
        if self.widths is not None and (not self.widths or min(self.widths) < 1):
            raise UserError(f"widths {self.widths} make no network; give at least 1 for each of one or more blocks")
        if self.widths is None and not 4 <= self.resolution < 2048:
            raise UserError(f"resolution {self.resolution} has no published widths; give one from 4 to 1024, or widths")
        if self.resolution < 1:
            raise UserError(f"resolution {self.resolution} is too small; give at least 1")

    def at(self, resolution: int) -> CIPSConfig:
        return replace(self, resolution=resolution)

    @property
    def z_dims(self) -> tuple[int]:
        return (self.z_dim,)

    @property
    def block_widths(self) -> tuple[int, ...]:
        """Widths of the blocks."""
        if self.widths is not None:
            return self.widths
        return PUBLISHED_WIDTHS[self.variant][: self.resolution.bit_length() - 2]


def square_coordinates(
    resolution: int | tuple[int, int], *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Coordinates of the pixels of a picture that fills the square [-1, 1]², borders included.

    Args:
        resolution: side, or (height, width): another number of pixels, not another part of the plane.

    Returns:
        [1, 2, H, W]: x from -1 (left) to 1, y from -1 (top) to 1.
    """
    height, width = sides(resolution)
    return window_coordinates(resolution, (0, 0, height, width), device=device, dtype=dtype)


def window_coordinates(
    resolution: int | tuple[int, int],
    window: Window,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`square_coordinates` of a part of the picture: a tile of a large one, or a crop to train on.

    Args:
        resolution: of the whole picture.
        window: (top, left, height, width) in its pixels.

    Returns:
        [1, 2, height, width].

    Raises:
        ValueError: the window is empty or not within the picture.
    """
    height, width = sides(resolution)
    top, left, rows, columns = window
    if min(top, left) < 0 or min(rows, columns) < 1 or top + rows > height or left + columns > width:
        raise ValueError(f"window must lie within the {height} x {width} pixels of the picture, got {window}")
    x = torch.linspace(-1, 1, width, device=device, dtype=dtype)[left : left + columns]
    y = torch.linspace(-1, 1, height, device=device, dtype=dtype)[top : top + rows]
    return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)])[None]


def cylinder_coordinates(
    height: int,
    width: int,
    *,
    window: Window | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Coordinates of the pixels of a panorama: points (cos θ, sin θ, y) of a cylinder, once around.

    Column j is at θ = 2π (j + ½) / width - π, so that the last is as far from the first as any from its neighbour; rows
    are at y from -1 (top) to 1. A network of these coordinates (`CIPSConfig.coordinates` 3) gives pictures whose left
    and right edges join, whatever its weights are.

    Args:
        height, width: pixels of the whole panorama.
        window: (top, left, height, width) of the part that is wanted, in its pixels; columns go on around the cylinder
            (left = -8 begins 8 columns left of the seam).

    Returns:
        [1, 3, H, W].

    Raises:
        ValueError: there are no pixels, or rows of the window are outside of the panorama.
    """
    height, width = sides((height, width))
    top, left, rows, columns = (0, 0, height, width) if window is None else window
    if top < 0 or min(rows, columns) < 1 or top + rows > height:
        raise ValueError(f"window must have rows within the {height} of the panorama, and columns, got {window}")
    column = torch.arange(left, left + columns, device=device).remainder(width).to(dtype)
    angle = (column + 0.5) * (2 * math.pi / width) - math.pi
    y = torch.linspace(-1, 1, height, device=device, dtype=dtype)[top : top + rows]
    circle = torch.stack([angle.cos(), angle.sin()])[:, None].expand(-1, rows, -1)
    return torch.cat([circle, y[None, :, None].expand(-1, -1, columns)])[None]


class CIPS(WGenerator):
    """CIPS's generator (arXiv 2011.13775): pixels that know their coordinates, and nothing of each other.

    Sines of a pixel's coordinates beside a learned embedding at its place go through layers of modulated 1x1
    convolutions, whose style w a mapping network makes of z. Any set of pixels at any resolution can be rendered.
    In evaluation mode, parts of a picture are those of the whole one; in training mode, the whole square at the model's
    resolution takes the embedding as it is stored, and all else samples it.
    """

    config: CIPSConfig
    has_windows: ClassVar[bool] = True
    network: PixelNetwork

    def __init__(self, config: CIPSConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CIPSConfig()
        self.style_mapping = StyleMapping(
            config.z_dim, config.style_dim, config.mapping_layers, lr_multiplier=config.mapping_lr_multiplier
        )
        self.network = PixelNetwork(
            coordinates=config.coordinates,
            hidden=config.hidden,
            resolution=config.resolution,
            widths=config.block_widths,
            style_dim=config.style_dim,
            residual=config.variant == "residual",
        )
        self.style_layers = self.network.layers + 1

    def weight_parts(self) -> WeightParts:
        """What comes before the first block (coordinates, embedding, a layer), then a block each with its ToRGB."""
        before = ("network.fourier", "network.embedding", "network.first")
        blocks: list[tuple[str, ...]] = [(f"network.blocks.{block}",) for block in range(len(self.network.blocks))]
        if self.network.to_rgb is not None:
            blocks[-1] = (*blocks[-1], "network.to_rgb")
        return WeightParts((before, *blocks), mapping=("style_mapping",))

    def style_weights(self) -> dict[str, tuple[Tensor, ...]]:
        return {"w": self.network.style_weights()}

    def render(self, styles: WStyles, view: View) -> Picture:
        """Pictures of styles, or a window of them; without noise where the view has no jitter.

        Raises:
            ValueError: the window is not within the picture, or the view asks for gradients of some pixels.
        """
        if view.grad_points is not None:
            raise ValueError("grad_points is for rays through a volume; train CIPS on a window of the picture")
        return self.synthesis(
            styles,
            resolution=view.resolution,
            window=view.window,
            noise="random" if view.jitter else "none",
            generator=view.generator,
        )

    def forward(
        self,
        z: Tensor,
        *,
        coords: Tensor | None = None,
        resolution: int | tuple[int, int] | None = None,
        window: Window | None = None,
        noise: Noise | Sequence[Tensor] = "random",
        generator: torch.Generator | None = None,
        chunk_pixels: int | None = None,
    ) -> Picture:
        """Pictures of random z: `synthesis(mapping(z), ...)`.

        Args:
            z: [B, z_dim], standard normal.
            coords: [B, coordinates, H, W], or [1, ...] for all images the same; see `square_coordinates`,
                `window_coordinates` and `cylinder_coordinates`.
            resolution: side of the whole square or panorama, or (height, width), in place of coords; default: that of
                the model.
            window: (top, left, height, width) of the part of that resolution that is wanted; None: all of it.
            noise: "random" draws what every layer adds, "none" leaves it out; or [B or 1, 1, H, W] of each layer.
            generator: source of the noise.
            chunk_pixels: pixels that are computed at a time where there are no gradients; bounds memory, changes
                nothing else.

        Returns:
            `Picture` with an image [B, 3, H, W], in [-1, 1] but for overshoot.
        """
        styles = self.mapping(z)
        return self.synthesis(
            styles,
            coords=coords,
            resolution=resolution,
            window=window,
            noise=noise,
            generator=generator,
            chunk_pixels=chunk_pixels,
        )

    def synthesis(
        self,
        styles: WStyles,
        *,
        coords: Tensor | None = None,
        resolution: int | tuple[int, int] | None = None,
        window: Window | None = None,
        noise: Noise | Sequence[Tensor] = "random",
        generator: torch.Generator | None = None,
        chunk_pixels: int | None = None,
    ) -> Picture:
        """Pictures of given styles; arguments as in `forward`.

        Raises:
            ValueError: an argument does not fit; it is named.
        """
        if chunk_pixels is not None and chunk_pixels < 1:
            raise ValueError(f"chunk_pixels must be at least 1, got {chunk_pixels}")
        check_styles(styles, WStyles)
        w = styles.by_layer(self.style_layers, self.config.style_dim)
        check_input("styles.w", styles.w, self.network.embedding)
        side = self.config.resolution
        if coords is None:
            size = sides(side if resolution is None else resolution)
            coords = self.coordinates_of(size, window)
            is_square = size == (side, side) and window in (None, (0, 0, side, side)) and self.config.coordinates == 2
        elif resolution is not None or window is not None:
            raise ValueError("coords must be given alone, without resolution and window: they say the same")
        else:
            coords = self._checked(coords, len(w[0])).to(w[0])
            is_square = self._is_square(coords)
        height, width = coords.shape[2:]
        embedding = self.network.embedding if self.training and is_square else None
        sizes = [(height, width)] * self.network.layers
        maps = noise_maps(noise, sizes, kinds=get_args(Noise), batch=len(w[0]), like=w[0], generator=generator)
        with self.as_precise():
            if torch.is_grad_enabled():
                image = self.network(coords, embedding, w, maps)
            else:
                image = self._in_chunks(coords, embedding, w, maps, chunk_pixels or default_chunk_rays(self.device))
        return Picture(image, aux_image=None, depth=None)

    def coordinates_of(self, resolution: int | tuple[int, int], window: Window | None = None) -> Tensor:
        """Coordinates [1, coordinates, H, W] of whole pictures of this model, or of a window of them."""
        height, width = sides(resolution)
        like = self.network.embedding
        if self.config.coordinates == 3:
            return cylinder_coordinates(height, width, window=window, device=like.device, dtype=like.dtype)
        whole = (0, 0, height, width)
        return window_coordinates(resolution, window or whole, device=like.device, dtype=like.dtype)

    def _checked(self, coords: Tensor, batch: int) -> Tensor:
        count = self.config.coordinates
        if coords.dim() != 4 or coords.shape[1] != count or coords.shape[0] not in (1, batch) or not coords.numel():
            raise ValueError(f"coords must have shape [{batch}, {count}, H, W], got {list(coords.shape)}")
        return coords

    def _is_square(self, coords: Tensor) -> bool:
        """These are the coordinates of the full square at its resolution, whose embedding is stored."""
        side = self.config.resolution
        if coords.shape[1:] != (2, side, side):
            return False
        square = square_coordinates(side, device=coords.device, dtype=coords.dtype)
        return bool((coords - square).abs().max() < SAME_GRID)

    def _in_chunks(
        self,
        coords: Tensor,
        embedding: Tensor | None,
        w: Sequence[Tensor],
        noise: Sequence[Tensor | None],
        chunk_pixels: int,
    ) -> Tensor:
        """Part by part, so that activations stay in cache and memory is bounded."""
        batch, (height, width) = len(w[0]), coords.shape[2:]
        count = height * width
        images = max(1, chunk_pixels // count)  # several small pictures at once
        painted = w[0].new_empty(batch, 3, 1, count)

        def part(values: Tensor, rows: slice, pixels: slice) -> Tensor:
            values = values.flatten(2)[:, :, None, pixels]
            return values if len(values) == 1 else values[rows]

        for first in range(0, batch, images):
            rows = slice(first, first + images)
            for start in range(0, count, chunk_pixels):
                pixels = slice(start, start + chunk_pixels)
                painted[rows, ..., pixels] = self.network(
                    part(coords, rows, pixels),
                    None if embedding is None else part(embedding, rows, pixels),
                    [style[rows] for style in w],
                    [None if n is None else part(n, rows, pixels) for n in noise],
                )
        return painted.view(batch, 3, height, width)
