"""pi-GAN's two networks: the mapping to frequencies and phases, and the radiance field that they modulate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from cips3d.errors import UserError, require_range
from cips3d.models.embedding_grid import EmbeddingGrid
from cips3d.models.generator import GeneratorConfig
from cips3d.models.mapping import LEAKY_SLOPE
from cips3d.models.nerf import GAIN_CENTRE, GAIN_SCALE, siren_uniform_
from cips3d.ops.checks import check_input, check_shape
from cips3d.ops.deep_field import DeepSirenField
from cips3d.ops.film_siren import film_siren
from cips3d.ops.precision import Precision

FIRST_LAYER_BOUND = 1 / 3  # the first layer's weights start in U(±1/3), those of embeddings too
MAPPING_OUTPUT_SCALE = 0.25  # of the mapping's last weights: styles start close to the centre


@dataclass(frozen=True)
class PiGANConfig(GeneratorConfig):
    """Dimensions of a generator; the defaults are the published SPATIALSIRENBASELINE (CelebA, Cats)."""

    system: Literal["pigan"] = field(default="pigan", kw_only=True)
    z_dim: int = 256
    width: int = 256
    """of every sine layer"""
    layers: int = 8
    """sine layers below the density; the colour has one more"""
    mapping_width: int = 256
    mapping_layers: int = 4
    """linear layers of the mapping, the one that gives frequencies and phases included"""
    box_warp: bool = True
    """points are scaled so that a cube of side `box_side` becomes [-1, 1]³"""
    box_side: float = 0.24
    """scene units; should hold the scene"""
    grid_resolution: int | None = None
    """embeddings along an edge of the learned cube that fills the box; None: there is no cube"""
    grid_width: int = 32
    """of an embedding"""
    grid_init_std: float = 0.01
    """embeddings start as N(0, grid_init_std²)"""

    closes_pictures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("z_dim", "width", "layers", "mapping_width", "mapping_layers", "grid_width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.box_side < math.inf:
            raise UserError(f"box_side must be a positive length in scene units, got {self.box_side}")
        if self.grid_resolution is not None and self.grid_resolution < 2:
            raise UserError(f"grid_resolution must be at least 2, or None for no grid, got {self.grid_resolution}")
        if self.grid_resolution is not None and not self.box_warp:
            raise UserError("a grid of embeddings fills the box that points are warped to; give box_warp=True with it")
        require_range("grid_init_std", self.grid_init_std, 0)

    @classmethod
    def tall_siren(cls) -> PiGANConfig:
        """The published TALLSIREN (CARLA): points as they are."""
        return cls(box_warp=False)

    @classmethod
    def embedding_128(cls) -> PiGANConfig:
        """The published EmbeddingPiGAN128: 128 wide, with a cube of 96³ embeddings."""
        return cls(width=128, grid_resolution=96, grid_init_std=0.01)

    @classmethod
    def embedding_256(cls) -> PiGANConfig:
        """The published EmbeddingPiGAN256: 256 wide, with a cube of 64³ embeddings."""
        return cls(width=256, grid_resolution=64, grid_init_std=0.1)

    @property
    def z_dims(self) -> tuple[int]:
        return (self.z_dim,)

    @property
    def point_scale(self) -> float:
        """Scene units to the field's coordinates."""
        return 2 / self.box_side if self.box_warp else 1.0


class PiGANStyles(NamedTuple):
    """What the mapping makes of z; the last layer is the colour's.

    Attributes:
        frequencies: [B, layers + 1, width] f of gain = 15·f + 30.
        phases: [B, layers + 1, width] radians.
    """

    frequencies: Tensor
    phases: Tensor


class PiGANMapping(nn.Module):
    """z to frequencies and phases: linear layers with leaky ReLU 0.2 between; z is taken as it is.

    Source: pi-GAN (arXiv 2012.00926), section 3.1.
    """

    def __init__(self, config: PiGANConfig) -> None:
        super().__init__()
        self.z_dim = config.z_dim
        self.style_shape = (config.layers + 1, config.width)
        outputs = 2 * (config.layers + 1) * config.width
        widths = [config.z_dim, *[config.mapping_width] * (config.mapping_layers - 1), outputs]
        linears = [nn.Linear(i, o) for i, o in zip(widths, widths[1:], strict=False)]
        self.linears = nn.ModuleList(linears)
        for linear in linears:
            nn.init.kaiming_normal_(linear.weight, a=LEAKY_SLOPE, mode="fan_in", nonlinearity="leaky_relu")
        with torch.no_grad():
            linears[-1].weight.mul_(MAPPING_OUTPUT_SCALE)

    def forward(self, z: Tensor) -> PiGANStyles:
        """z [B, z_dim] -> styles."""
        check_shape("z", z, (None, self.z_dim))
        check_input("z", z, self.linears[0].weight)
        x = z
        for k, linear in enumerate(self.linears):
            x = linear(x if k == 0 else nn.functional.leaky_relu(x, LEAKY_SLOPE))
        frequencies, phases = x.chunk(2, dim=1)
        return PiGANStyles(frequencies.unflatten(1, self.style_shape), phases.unflatten(1, self.style_shape))

    def output_by_layer(self) -> tuple[Tensor, ...]:
        """The last layer's weights by the sine layers they are for, [2 · width, in]: frequencies, then phases."""
        last = cast("nn.Linear", self.linears[-1])
        frequencies, phases = (part.unflatten(0, self.style_shape) for part in last.weight.chunk(2))
        return torch.cat([frequencies, phases], dim=1).unbind(0)


class ModulatedSine(nn.Linear):
    """y = sin(gain ⊙ (W x + b) + phase) with gain = 15·f + 30, for frequencies f and phases that are given."""

    def forward(  # type: ignore[override]
        self, x: Tensor, frequencies: Tensor, phases: Tensor, precision: Precision | None = None
    ) -> Tensor:
        """x [B, N, in], frequencies and phases [B, out] -> [B, N, out]."""
        gain = GAIN_SCALE * frequencies + GAIN_CENTRE
        return film_siren(x, self.weight, self.bias, gain, phases, precision=precision)


class ViewDependentNeRF(nn.Module):
    """Points and directions to densities and colours.

    h_k = sin(gain_k ⊙ (W_k h_{k-1} + b_k) + phase_k), with gain = 15·f + 30 and h_0 the point, behind its embedding
    where there is a grid; σ = v · h + c; colour = sigmoid(C sin(gain ⊙ (W [d, h] + b) + phase) + e), d the direction.

    Source: pi-GAN (arXiv 2012.00926), section 3.1.
    """

    def __init__(self, config: PiGANConfig) -> None:
        super().__init__()
        self.point_scale = config.point_scale
        self.precision: Precision | None = None
        width = config.width
        self.grid: EmbeddingGrid | None = None
        if config.grid_resolution is not None:
            self.grid = EmbeddingGrid(config.grid_width, config.grid_resolution, config.grid_init_std)
        width_in = 3 if self.grid is None else config.grid_width + 3
        widths = [width_in, *[width] * config.layers]
        layers = [ModulatedSine(i, o) for i, o in zip(widths, widths[1:], strict=False)]
        self.layers = nn.ModuleList(layers)
        self.density = nn.Linear(width, 1)
        self.color = ModulatedSine(3 + width, width)
        self.output = nn.Linear(width, 3)
        for linear in (*layers, self.density, self.color, self.output):
            siren_uniform_(linear.weight)
        nn.init.uniform_(layers[0].weight, -FIRST_LAYER_BOUND, FIRST_LAYER_BOUND)

    def fold(self, styles: PiGANStyles, seen_along: tuple[float, float, float] | None = None) -> DeepSirenField:
        """The field of the images with these styles, as `render_rays` takes it; for fields without a grid.

        Args:
            seen_along: the direction that all points are seen along, wherever rays go; it becomes a part of the
                colour's bias. None: that of the ray.
        """
        # Under autocast the mapping gives 16 bits.
        frequencies, phases = (style.to(self.density.weight.dtype) for style in styles)
        gains = GAIN_SCALE * frequencies + GAIN_CENTRE
        layers = [cast(nn.Linear, linear) for linear in self.layers]
        first, *hidden = layers
        color_weight: Tensor = self.color.weight
        color_bias: Tensor = self.color.bias
        if seen_along is not None:
            color_bias = color_bias + sum(part * color_weight[:, k] for k, part in enumerate(seen_along))
            color_weight = torch.cat([torch.zeros_like(color_weight[:, :3]), color_weight[:, 3:]], dim=1)
        return DeepSirenField(
            first_weight=first.weight * self.point_scale,
            hidden_weight=torch.stack([linear.weight for linear in hidden]),
            trunk_bias=torch.stack([linear.bias for linear in layers]),
            trunk_gain=gains[:, :-1],
            trunk_shift=phases[:, :-1],
            density_weight=self.density.weight[0],
            density_bias=self.density.bias,
            color_weight=color_weight,
            color_bias=color_bias,
            color_gain=gains[:, -1],
            color_shift=phases[:, -1],
            head_weight=self.output.weight,
            head_bias=self.output.bias,
        )

    def trunk(self, points: Tensor, styles: PiGANStyles) -> tuple[Tensor, Tensor]:
        """Raw density [B, N] and the last features [B, N, width] of points [B, N, 3] in scene units."""
        x = points * self.point_scale
        if self.grid is not None:
            x = torch.cat([self.grid(x), x], dim=-1)
        frequencies, phases = styles
        for k, layer in enumerate(self.layers):
            x = layer(x, frequencies[:, k], phases[:, k], self.precision)
        return self.density(x)[..., 0], x

    def forward(self, points: Tensor, directions: Tensor, styles: PiGANStyles) -> tuple[Tensor, Tensor]:
        """Raw density and colour.

        Args:
            points: [B, N, 3] in scene units.
            directions: [B, N, 3], unit length: the way a ray goes.
            styles: of B images.

        Returns:
            raw density [B, N], colour [B, N, 3] in [0, 1].
        """
        density, features = self.trunk(points, styles)
        frequencies, phases = styles
        seen = torch.cat([directions, features], dim=-1)
        x = self.color(seen, frequencies[:, -1], phases[:, -1], self.precision)
        return density, torch.sigmoid(self.output(x))
