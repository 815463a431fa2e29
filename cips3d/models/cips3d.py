"""The CIPS-3D generator: styles, a NeRF for every ray, an INR for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cips3d.cameras import Rays
from cips3d.errors import UserError, require_range, require_whole
from cips3d.models.generator import (
    GeneratorConfig,
    ParameterGroups,
    WeightParts,
    at_layers,
    check_style,
    check_styles,
    mixed_layers,
)
from cips3d.models.inr import INR
from cips3d.models.mapping import MappingNetwork
from cips3d.models.nerf import NeRF, siren_uniform_
from cips3d.models.precision import checked_fast_dtype, checked_precision
from cips3d.models.ray_parts import Painter, default_chunk_rays
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings
from cips3d.models.volume_generator import RayPixels, VolumeGenerator
from cips3d.ops.checks import check_input, check_shape
from cips3d.ops.march import RayDraws
from cips3d.ops.precision import Precision


@dataclass(frozen=True)
class CIPS3DConfig(GeneratorConfig):
    """Dimensions of a generator; the defaults are the published CIPS-3D."""

    system: Literal["cips3d"] = field(default="cips3d", kw_only=True)
    z_shape_dim: int = 256
    """width of the z that gives the shape"""
    shape_style_dim: int = 128
    """width of its style"""
    shape_mapping_layers: int = 4
    """layers of the mapping network from one to the other"""
    nerf_width: int = 128
    """channels of the NeRF's two FiLM-SIREN layers"""
    nerf_color_width: int = 64
    """channels of its colour layer"""
    features: int = 32
    """channels of what the NeRF gives the INR for every ray"""
    z_appearance_dim: int = 512
    """width of the z that gives the appearance"""
    appearance_style_dim: int = 512
    """width of its style"""
    appearance_mapping_layers: int = 8
    """layers of the mapping network from one to the other"""
    inr_width: int = 512
    """channels of the INR"""
    inr_blocks: int = 9
    """blocks of the INR, two modulated layers each"""
    inr_skip_from: int = 4
    """blocks from this index on add their input to their output"""
    inr_rgb_from: int = 3
    """blocks from this index on contribute to the colour"""
    point_scale: float = 2 / 0.24
    """scene units to the NeRF's coordinates"""
    density_scale: float = 1.0
    """factor on the raw density; larger values make small, quickly trained volumes opaque"""
    initial_radius: float | None = None
    """the volume starts as a soft ball of this radius (scene units), initial_density · (1 - |x| / radius) added to the
    raw density, which the network bends into shape: small models then learn heads, not reliefs on a slab. None: as
    published"""
    initial_density: float | None = None
    """raw density in the middle of that ball; the larger, the less floats around it. Default: density_scale"""
    rgb_init: float = 0.01
    """weights of the INR's colour layers start in U(±√(6/in)) times this"""
    aux_init: float = 0.04
    """the same for the auxiliary image's colour layer"""

    def __post_init__(self) -> None:
        for name in ("point_scale", "density_scale"):
            require_range(name, getattr(self, name))
        for name in ("rgb_init", "aux_init"):
            require_range(name, getattr(self, name), 0)
        for name in ("initial_radius", "initial_density"):
            if getattr(self, name) is not None:
                require_range(name, getattr(self, name), 0)
        if self.initial_density is not None and self.initial_radius is None:
            density = f"initial_density {self.initial_density:g}"
            raise UserError(f"{density} has no ball to be in; give initial_radius too, or None")
        require_range("inr_blocks", self.inr_blocks, 1)
        require_range("inr_rgb_from", self.inr_rgb_from, 0, self.inr_blocks - 1)
        require_range("inr_skip_from", self.inr_skip_from, int(self.features != self.inr_width))
        from_zero = ("inr_rgb_from", "inr_skip_from")
        for each in fields(self):
            if isinstance(getattr(self, each.name), int) and each.name not in from_zero:
                require_whole(each.name, getattr(self, each.name), 1)

    @property
    def z_dims(self) -> tuple[int, int]:
        return self.z_shape_dim, self.z_appearance_dim


class CIPS3DStyles(NamedTuple):
    """What the mapping networks make of z: all that a picture needs besides a camera.

    Attributes:
        shape: [B, shape_style_dim] for the NeRF, or [B, 3, shape_style_dim], one a FiLM layer.
        appearance: [B, appearance_style_dim] for the INR, or [B, layers, appearance_style_dim].
    """

    shape: Tensor
    appearance: Tensor


class CIPS3D(VolumeGenerator[CIPS3DStyles]):
    """CIPS-3D's generator (arXiv 2110.09788).

    z_shape goes through a mapping network to the FiLM layers of a shallow NeRF, which gives a feature per ray;
    z_appearance goes through another to a deep per-pixel network, which turns the feature into a colour. A linear layer
    on the same feature gives the auxiliary image that a discriminator of its own sees during training.
    """

    config: CIPS3DConfig
    has_aux_image: ClassVar[bool] = True

    def __init__(self, config: CIPS3DConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CIPS3DConfig()
        self.style_layers = 2 * config.inr_blocks
        self.nerf = NeRF(
            width=config.nerf_width,
            color_width=config.nerf_color_width,
            features=config.features,
            style_dim=config.shape_style_dim,
            point_scale=config.point_scale,
            density_scale=config.density_scale,
            initial_radius=config.initial_radius,
            initial_density=config.initial_density,
        )
        self.shape_mapping = MappingNetwork(
            config.z_shape_dim, config.shape_style_dim, config.shape_mapping_layers, layer_norm=False
        )
        self.inr = INR(
            features=config.features,
            width=config.inr_width,
            blocks=config.inr_blocks,
            style_dim=config.appearance_style_dim,
            skip_from=config.inr_skip_from,
            rgb_from=config.inr_rgb_from,
            rgb_init=config.rgb_init,
        )
        self.appearance_mapping = MappingNetwork(
            config.z_appearance_dim,
            config.appearance_style_dim,
            config.appearance_mapping_layers,
            layer_norm=True,
        )
        self.aux_to_rgb = nn.Linear(config.features, 3)
        with torch.no_grad():
            siren_uniform_(self.aux_to_rgb.weight, config.aux_init)

    @property
    def z_dims(self) -> tuple[int, int]:
        return self.config.z_dims

    def set_precision(
        self,
        precision: Precision | None = None,
        *,
        nerf: Precision | None = None,
        inr: Precision | None = None,
        fast_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        of_nerf, of_inr = checked_precision(nerf or precision), checked_precision(inr or precision)
        self.inr.fast_dtype = checked_fast_dtype(fast_dtype)
        self.nerf.precision, self.inr.precision = of_nerf, of_inr

    def parameter_groups(self) -> ParameterGroups:
        return ParameterGroups(
            nerf=(self.nerf, self.aux_to_rgb),
            mapping=(self.shape_mapping, self.appearance_mapping),
            inr=(self.inr,),
        )

    def frozen_part(self) -> tuple[nn.Module, ...]:
        return self.nerf, self.shape_mapping, self.aux_to_rgb

    def weight_parts(self) -> WeightParts:
        """The INR's blocks with their ToRGB, the appearance's mapping, and all of the NeRF's side."""
        first_rgb = self.config.inr_rgb_from
        return WeightParts(
            blocks=tuple(
                (
                    f"inr.layers.{2 * block}",
                    f"inr.layers.{2 * block + 1}",
                    *((f"inr.to_rgb.{block - first_rgb}",) if block >= first_rgb else ()),
                )
                for block in range(self.config.inr_blocks)
            ),
            mapping=("appearance_mapping",),
            shape=("nerf", "shape_mapping", "aux_to_rgb"),
        )

    def style_weights(self) -> dict[str, tuple[Tensor, ...]]:
        """Of the shape, [A_g, A_b] of the three FiLM layers; of the appearance, A of the INR's modulated layers."""
        return {"shape": self.nerf.style_weights(), "appearance": self.inr.style_weights()}

    def style_offsets(self, branch: str, vectors: Tensor, layers: Sequence[int]) -> CIPS3DStyles:
        weights = self.style_weights()
        if branch not in weights:
            return super().style_offsets(branch, vectors, layers)
        still = {name: vectors.new_zeros(len(vectors), len(a), a[0].shape[1]) for name, a in weights.items()}
        return CIPS3DStyles(**{**still, branch: at_layers(vectors, layers, len(weights[branch]))})

    def mapping(self, z_shape: Tensor, z_appearance: Tensor) -> CIPS3DStyles:  # type: ignore[override]  # by their names
        """Styles of z_shape [B, z_shape_dim] and z_appearance [B, z_appearance_dim]."""
        return CIPS3DStyles(self.shape_mapping(z_shape), self.appearance_mapping(z_appearance))

    def mixed(self, first: CIPS3DStyles, second: CIPS3DStyles, layer: int) -> CIPS3DStyles:
        """The shape of `first`; of the INR, layers from `layer` on follow the appearance of `second`."""
        return CIPS3DStyles(first.shape, mixed_layers(first.appearance, second.appearance, layer, self.style_layers))

    def density(self, styles: CIPS3DStyles, points: Tensor) -> Tensor:
        """Raw density [B, N] at points [B, N, 3] in scene units.

        Raises:
            ValueError: an argument does not fit; it is named.
            TypeError: styles are of another kind.
        """
        check_styles(styles, CIPS3DStyles)
        self.check_batch(styles, len(styles.shape))
        check_shape("points", points, (len(styles.shape), None, 3))
        check_input("points", points, self.nerf.density.weight)
        return self.nerf.raw_density(points, styles.shape)

    def check_batch(self, styles: CIPS3DStyles, images: int) -> None:
        check_styles(styles, CIPS3DStyles)
        widths = (self.config.shape_style_dim, self.config.appearance_style_dim)
        layers = (len(self.nerf.layers) + 1, self.style_layers)
        for name, style, width, count in zip(CIPS3DStyles._fields, styles, widths, layers, strict=True):
            check_style(f"styles.{name}", style, width, count, self.nerf.density.weight)
            if len(style) != images:
                raise ValueError(f"cameras must be as many as styles.{name}, got {images} and {len(style)}")

    def rays_at_once(self, volume: VolumeSettings) -> int:
        return default_chunk_rays(self.device)

    def painter(self, styles: CIPS3DStyles, view: View) -> Painter[RayPixels]:
        folded = self.inr.fold(styles.appearance)

        def paint(images: slice, rays: Rays, draws: RayDraws) -> RayPixels:
            features, ray = self.nerf(rays, styles.shape[images], view.volume, draws)
            colors = self.inr(features, [weight[images] for weight in folded])
            aux_colors = torch.tanh(self.aux_to_rgb(features)) if view.return_aux else None
            return RayPixels.of(ray, colors, aux_colors=aux_colors, features=features)

        return paint
