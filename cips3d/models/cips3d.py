"""The CIPS-3D generator: styles, a NeRF for every ray, an INR for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cips3d.cameras import Cameras, Rays, sides
from cips3d.errors import require_range
from cips3d.models.generator import (
    Generator,
    ParameterGroups,
    Picture,
    View,
    WeightParts,
    at_layers,
    check_styles,
    mixed_layers,
)
from cips3d.models.inr import INR
from cips3d.models.mapping import MappingNetwork
from cips3d.models.nerf import NeRF, siren_uniform_
from cips3d.models.precision import checked_precision
from cips3d.models.ray_parts import as_picture, default_chunk_rays, paint_rays
from cips3d.models.volume import VolumeSettings, check_cameras, draw_random, filled_depth
from cips3d.ops.checks import check_shape
from cips3d.ops.composite import DensityActivation
from cips3d.ops.march import RayDraws
from cips3d.ops.precision import Precision


@dataclass(frozen=True)
class CIPS3DConfig:
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
    """the volume starts as a soft ball of this radius (scene units), density_scale · (1 - |x| / radius) added to the
    raw density, which the network bends into shape: small models then learn heads, not reliefs on a slab. None: as
    published"""
    rgb_init: float = 0.01
    """weights of the INR's colour layers start in U(±√(6/in)) times this"""
    aux_init: float = 0.04
    """the same for the auxiliary image's colour layer"""

    def __post_init__(self) -> None:
        for name in ("point_scale", "density_scale"):
            require_range(name, getattr(self, name))
        for name in ("rgb_init", "aux_init"):
            require_range(name, getattr(self, name), 0)
        if self.initial_radius is not None:
            require_range("initial_radius", self.initial_radius, 0)
        require_range("inr_blocks", self.inr_blocks, 1)
        require_range("inr_rgb_from", self.inr_rgb_from, 0, self.inr_blocks - 1)
        require_range("inr_skip_from", self.inr_skip_from, int(self.features != self.inr_width))
        from_zero = ("inr_rgb_from", "inr_skip_from")
        for each in fields(self):
            if isinstance(getattr(self, each.name), int) and each.name not in from_zero:
                require_range(each.name, getattr(self, each.name), 1)

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


class Rendering(NamedTuple):
    """Pictures of a batch of cameras.

    Attributes:
        image: [B, 3, H, W] in [-1, 1].
        aux_image: [B, 3, H, W] in [-1, 1]: the NeRF's own picture, where asked for.
        depth: [B, 1, H, W] expected distance along the ray Σ w t, scene units.
        features: [B, features, H, W].
        weights: [B, H·W, samples] compositing weights, front to back.
        sample_depths: [B, H·W, samples].
    """

    image: Tensor
    aux_image: Tensor | None
    depth: Tensor
    features: Tensor
    weights: Tensor
    sample_depths: Tensor

    def filled_depth(self, t_far: float) -> Tensor:
        """Depth [B, 1, H, W] of a scene with a wall at t_far: Σ w t + (1 - Σ w) t_far; empty rays end far away."""
        return filled_depth(self.depth, self.weights, t_far)


class _Pixels(NamedTuple):
    rgb: Tensor  # [B, N, 3]
    aux_rgb: Tensor | None  # [B, N, 3]
    depth: Tensor  # [B, N, 1]
    features: Tensor  # [B, N, features]
    weights: Tensor  # [B, N, samples]
    sample_depths: Tensor  # [B, N, samples]


class CIPS3D(Generator[CIPS3DStyles]):
    """CIPS-3D's generator (arXiv 2110.09788).

    z_shape goes through a mapping network to the FiLM layers of a shallow NeRF, which gives a feature per ray;
    z_appearance goes through another to a deep per-pixel network, which turns the feature into a colour. A linear layer
    on the same feature gives the auxiliary image that a discriminator of its own sees during training.
    """

    is_3d: ClassVar[bool] = True
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
            siren_uniform_(self.aux_to_rgb.weight).mul_(25 * config.aux_init)

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
        self.nerf.precision = checked_precision(nerf or precision)
        self.inr.precision = checked_precision(inr or precision)
        self.inr.fast_dtype = fast_dtype

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
                    *(f"inr.layers.{2 * block}", f"inr.layers.{2 * block + 1}"),
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
        check_shape("points", points, (len(styles.shape), None, 3))
        return self.nerf.raw_density(points, styles.shape)

    def render(self, styles: CIPS3DStyles, view: View) -> Picture:
        """Pictures of styles; depth of empty space is t_far. A `window` of the picture is not offered."""
        if view.window is not None:
            raise ValueError("window is for generators of pixel coordinates; CIPS-3D renders whole pictures")
        rendering = self.synthesis(
            styles,
            view.cameras,
            view.volume,
            resolution=view.resolution,
            density_noise=view.density_noise,
            return_aux=view.return_aux,
            jitter=view.jitter,
            grad_points=view.grad_points,
            generator=view.generator,
        )
        return Picture(rendering.image, rendering.aux_image, rendering.filled_depth(view.volume.t_far))

    def forward(
        self,
        z_shape: Tensor,
        z_appearance: Tensor,
        cameras: Cameras,
        *,
        resolution: int | tuple[int, int],
        samples: int = 12,
        fine_samples: int | None = None,
        t_near: float = 0.88,
        t_far: float = 1.12,
        density_activation: DensityActivation = "relu",
        density_noise: float = 0.0,
        last_back: bool = False,
        white_back: bool = False,
        return_aux: bool = False,
        stratified_u: Tensor | None = None,
        importance_u: Tensor | None = None,
        coarse_noise: Tensor | None = None,
        merged_noise: Tensor | None = None,
        jitter: bool = True,
        grad_points: int | None = None,
        chunk_rays: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """Render images of random z: `synthesis(mapping(z), ...)`.

        Args:
            z_shape: [B, z_shape_dim]; z_appearance: [B, z_appearance_dim]; standard normal.
            cameras: B cameras.
            resolution: side of a square picture, or (height, width); any size.
            samples, fine_samples, t_near, t_far, density_activation, last_back, white_back: see `VolumeSettings`.
            density_noise: standard deviation of the noise added to raw densities (training).
            return_aux: also give the auxiliary image.
            stratified_u, importance_u: [B, R, S] uniform draws in [0, 1), R = H·W; drawn inside when not given.
            coarse_noise, merged_noise: [B, R, S] and [B, R, S + F] noise of the coarse and of all samples' raw
                densities, front to back, in place of `density_noise`.
            jitter: False renders without random numbers.
            grad_points: only so many randomly chosen rays an image carry gradients; the others are rendered without.
            chunk_rays: rays rendered at a time where no gradient is needed; default: `default_chunk_rays`.
                The result does not depend on it (up to rounding).
            generator: source of the draws.

        Returns:
            `Rendering`.
        """
        settings = VolumeSettings(samples, fine_samples, t_near, t_far, density_activation, last_back, white_back)
        return self.synthesis(
            self.mapping(z_shape, z_appearance),
            cameras,
            settings,
            resolution=resolution,
            density_noise=density_noise,
            return_aux=return_aux,
            stratified_u=stratified_u,
            importance_u=importance_u,
            coarse_noise=coarse_noise,
            merged_noise=merged_noise,
            jitter=jitter,
            grad_points=grad_points,
            chunk_rays=chunk_rays,
            generator=generator,
        )

    def synthesis(
        self,
        styles: CIPS3DStyles,
        cameras: Cameras,
        settings: VolumeSettings,
        *,
        resolution: int | tuple[int, int],
        density_noise: float = 0.0,
        return_aux: bool = False,
        stratified_u: Tensor | None = None,
        importance_u: Tensor | None = None,
        coarse_noise: Tensor | None = None,
        merged_noise: Tensor | None = None,
        jitter: bool = True,
        grad_points: int | None = None,
        chunk_rays: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """Render images of given styles; arguments as in `forward`.

        Raises:
            ValueError: an argument does not fit; it is named.
        """
        check_styles(styles, CIPS3DStyles)
        check_cameras(cameras, self.aux_to_rgb.weight)
        for name, style in (("shape", styles.shape), ("appearance", styles.appearance)):
            if len(style) != len(cameras):
                raise ValueError(f"cameras must be as many as styles.{name}, got {len(cameras)} and {len(style)}")
        height, width = sides(resolution)
        rays = cameras.rays((height, width))
        batch, count = rays.origins.shape[:2]
        draws = draw_random(
            batch,
            count,
            settings,
            density_noise=density_noise,
            stratified_u=stratified_u,
            importance_u=importance_u,
            coarse_noise=coarse_noise,
            merged_noise=merged_noise,
            jitter=jitter,
            generator=generator,
            device=self.device,
            dtype=rays.origins.dtype,
        )
        folded = self.inr.fold(styles.appearance)

        def paint(images: slice, rays: Rays, draws: RayDraws) -> _Pixels:
            features, ray = self.nerf(rays, styles.shape[images], settings, draws)
            rgb = self.inr(features, [weight[images] for weight in folded])
            aux_rgb = torch.tanh(self.aux_to_rgb(features)) if return_aux else None
            return _Pixels(rgb, aux_rgb, ray.depth[..., None], features, ray.weights, ray.depths)

        if chunk_rays is None:
            chunk_rays = default_chunk_rays(self.device)
        pixels = paint_rays(paint, rays, draws, chunk_rays=chunk_rays, grad_points=grad_points, generator=generator)

        shape = (height, width)
        return Rendering(
            image=as_picture(pixels.rgb, *shape),
            aux_image=None if pixels.aux_rgb is None else as_picture(pixels.aux_rgb, *shape),
            depth=as_picture(pixels.depth, *shape),
            features=as_picture(pixels.features, *shape),
            weights=pixels.weights,
            sample_depths=pixels.sample_depths,
        )
