"""The CIPS-3D generator: styles, a NeRF for every ray, an INR for every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cips3d.cameras import Cameras, Rays
from cips3d.models.inr import INR
from cips3d.models.mapping import MappingNetwork
from cips3d.models.nerf import NeRF, siren_uniform_
from cips3d.models.volume import RandomDraws, VolumeSettings, draw_random
from cips3d.ops import ModulatedWeight
from cips3d.ops.composite import DensityActivation

CPU_CHUNK_RAYS = 1024  # 2 MB of activations a layer of 512: what a core's L2 holds
CHUNK_RAYS = 65_536  # elsewhere: a 256² picture at once, below 2 GB of activations
MEAN_STYLE_SAMPLES = 10_000


def default_chunk_rays(device: torch.device) -> int:
    """Rays of one image that are rendered at a time without gradients.

    A CPU is quickest while activations stay in its caches (512 to 2048 rays are within 3%, 256 and whole pictures 10%
    slower); an accelerator wants few, large launches, and the limit only bounds memory.
    """
    return CPU_CHUNK_RAYS if device.type == "cpu" else CHUNK_RAYS


@dataclass(frozen=True)
class GeneratorConfig:
    """Dimensions of a generator; the defaults are the published CIPS-3D."""

    z_shape_dim: int = 256
    shape_style_dim: int = 128
    shape_mapping_layers: int = 4
    nerf_width: int = 128
    nerf_color_width: int = 64
    features: int = 32
    z_appearance_dim: int = 512
    appearance_style_dim: int = 512
    appearance_mapping_layers: int = 8
    inr_width: int = 512
    inr_blocks: int = 9
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


class Styles(NamedTuple):
    """What the mapping networks make of z: all that a picture needs besides a camera."""

    shape: Tensor  # [B, shape_style_dim] for the NeRF, or [B, 3, shape_style_dim], one a FiLM layer
    appearance: Tensor  # [B, appearance_style_dim] for the INR, or [B, layers, appearance_style_dim]

    def truncate(self, mean: Styles, psi: float) -> Styles:
        """mean + ψ (style - mean): ψ < 1 trades variety for typical images."""
        return Styles(torch.lerp(mean.shape, self.shape, psi), torch.lerp(mean.appearance, self.appearance, psi))


class Rendering(NamedTuple):
    """Pictures of a batch of cameras."""

    image: Tensor  # [B, 3, H, W] in [-1, 1]
    aux_image: Tensor | None  # [B, 3, H, W] in [-1, 1]: the NeRF's own picture, where asked for
    depth: Tensor  # [B, 1, H, W] expected distance along the ray Σ w t, scene units
    features: Tensor  # [B, features, H, W]
    weights: Tensor  # [B, H·W, samples] compositing weights, front to back
    sample_depths: Tensor  # [B, H·W, samples]

    def filled_depth(self, t_far: float) -> Tensor:
        """Depth [B, 1, H, W] of a scene with a wall at t_far: Σ w t + (1 - Σ w) t_far; empty rays end far away."""
        return self.depth + (1 - self.weights.sum(-1).view_as(self.depth)) * t_far


class _Pixels(NamedTuple):
    rgb: Tensor  # [B, N, 3]
    aux_rgb: Tensor | None  # [B, N, 3]
    depth: Tensor  # [B, N, 1]
    features: Tensor  # [B, N, features]
    weights: Tensor  # [B, N, samples]
    sample_depths: Tensor  # [B, N, samples]


class Generator(nn.Module):
    """CIPS-3D's generator (arXiv 2110.09788).

    z_shape goes through a mapping network to the FiLM layers of a shallow NeRF, which gives a feature per ray;
    z_appearance goes through another to a deep per-pixel network, which turns the feature into a colour. A linear layer
    on the same feature gives the auxiliary image that a discriminator of its own sees during training.
    """

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GeneratorConfig()
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
    def device(self) -> torch.device:
        return self.aux_to_rgb.weight.device

    def set_autocast(self, *, nerf: torch.dtype | None, inr: torch.dtype | None) -> None:
        """Mixed precision of either network; None is full precision."""
        self.nerf.autocast_dtype = nerf
        self.inr.autocast_dtype = inr

    def sample_z(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Standard normal z_shape [batch, z_shape_dim] and z_appearance [batch, z_appearance_dim]."""
        device = self.device if generator is None else generator.device
        z_shape = torch.randn(batch, self.config.z_shape_dim, generator=generator, device=device)
        z_appearance = torch.randn(batch, self.config.z_appearance_dim, generator=generator, device=device)
        return z_shape.to(self.device), z_appearance.to(self.device)

    def mapping(self, z_shape: Tensor, z_appearance: Tensor) -> Styles:
        """Styles of z_shape [B, z_shape_dim] and z_appearance [B, z_appearance_dim]."""
        return Styles(self.shape_mapping(z_shape), self.appearance_mapping(z_appearance))

    @torch.no_grad()
    def mean_styles(self, count: int = MEAN_STYLE_SAMPLES, *, seed: int = 0) -> Styles:
        """Mean styles [1, ...] of `count` random z, the centre of truncation; compute once and keep."""
        styles = self.mapping(*self.sample_z(count, generator=torch.Generator().manual_seed(seed)))
        return Styles(styles.shape.mean(0, keepdim=True), styles.appearance.mean(0, keepdim=True))

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
            jitter: False renders without random numbers.
            grad_points: only so many randomly chosen rays an image carry gradients; the others are rendered without.
            chunk_rays: rays of an image rendered at a time where no gradient is needed; default: `default_chunk_rays`.
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
            jitter=jitter,
            grad_points=grad_points,
            chunk_rays=chunk_rays,
            generator=generator,
        )

    def synthesis(
        self,
        styles: Styles,
        cameras: Cameras,
        settings: VolumeSettings,
        *,
        resolution: int | tuple[int, int],
        density_noise: float = 0.0,
        return_aux: bool = False,
        stratified_u: Tensor | None = None,
        importance_u: Tensor | None = None,
        jitter: bool = True,
        grad_points: int | None = None,
        chunk_rays: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """Render images of given styles; arguments as in `forward`.

        Raises:
            ValueError: an argument does not fit; it is named.
        """
        if chunk_rays is not None and chunk_rays < 1:
            raise ValueError(f"chunk_rays must be at least 1, got {chunk_rays}")
        if grad_points is not None and grad_points < 1:
            raise ValueError(f"grad_points must be at least 1, got {grad_points}")
        if len(styles.shape) != len(cameras):
            raise ValueError(f"cameras must be as many as styles, got {len(cameras)} and {len(styles.shape)}")
        height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
        rays = cameras.rays((height, width))
        batch, count = rays.origins.shape[:2]
        draws = draw_random(
            batch,
            count,
            settings,
            density_noise=density_noise,
            stratified_u=stratified_u,
            importance_u=importance_u,
            jitter=jitter,
            generator=generator,
            device=self.device,
            dtype=rays.origins.dtype,
        )
        folded = self.inr.fold(styles.appearance)
        painter = _Painter(self, styles.shape, folded, settings, return_aux)
        chunk_rays = chunk_rays or default_chunk_rays(self.device)
        if not torch.is_grad_enabled():
            pixels = painter.in_chunks(rays, draws, chunk_rays)
        elif grad_points is not None and grad_points < count:
            pixels = painter.partial_gradients(rays, draws, grad_points, chunk_rays, generator)
        else:
            pixels = painter.paint(rays, draws)

        def picture(values: Tensor) -> Tensor:  # [B, N, C] -> [B, C, H, W]
            return values.transpose(1, 2).reshape(batch, -1, height, width)

        return Rendering(
            image=picture(pixels.rgb),
            aux_image=None if pixels.aux_rgb is None else picture(pixels.aux_rgb),
            depth=picture(pixels.depth),
            features=picture(pixels.features),
            weights=pixels.weights,
            sample_depths=pixels.sample_depths,
        )


@dataclass(frozen=True)
class _Painter:
    """Renders rays of images whose styles are settled."""

    generator: Generator
    shape_style: Tensor
    folded: list[ModulatedWeight]
    settings: VolumeSettings
    return_aux: bool

    def paint(self, rays: Rays, draws: RandomDraws) -> _Pixels:
        features, ray = self.generator.nerf(rays, self.shape_style, self.settings, draws)
        rgb = self.generator.inr(features, self.folded)
        aux_rgb = torch.tanh(self.generator.aux_to_rgb(features)) if self.return_aux else None
        return _Pixels(rgb, aux_rgb, ray.depth[..., None], features, ray.weights, ray.depths)

    def in_chunks(self, rays: Rays, draws: RandomDraws, chunk_rays: int) -> _Pixels:
        """Image by image, `chunk_rays` rays at a time, so that activations stay in cache and memory is bounded."""
        images = []
        for b in range(len(rays.origins)):
            image = slice(b, b + 1)
            painter = _Painter(
                self.generator,
                self.shape_style[image],
                [w[image] for w in self.folded],
                self.settings,
                self.return_aux,
            )
            chunks = []
            for start in range(0, rays.origins.shape[1], chunk_rays):
                part = slice(start, start + chunk_rays)
                chunk = Rays(rays.origins[image, part], rays.directions[image, part])
                chunks.append(painter.paint(chunk, draws.part(image, part)))
            images.append(_concatenate(chunks, dim=1))
        return _concatenate(images, dim=0)

    def partial_gradients(
        self,
        rays: Rays,
        draws: RandomDraws,
        grad_points: int,
        chunk_rays: int,
        generator: torch.Generator | None,
    ) -> _Pixels:
        """A random subset of rays with gradients, the rest without, scattered into one picture."""
        count = rays.origins.shape[1]
        device = rays.origins.device
        drawn_on = device if generator is None else generator.device
        permutation = torch.randperm(count, generator=generator, device=drawn_on).to(device)
        chosen, others = permutation[:grad_points], permutation[grad_points:]
        with_gradient = self.paint(rays.subset(chosen), draws.subset(chosen))
        with torch.no_grad():
            without = self.in_chunks(rays.subset(others), draws.subset(others), chunk_rays)
        place = torch.empty_like(permutation).index_copy_(0, permutation, torch.arange(count, device=device))
        joined = _concatenate([with_gradient, without], dim=1)
        return _Pixels(*(None if v is None else v.index_select(1, place) for v in joined))  # type: ignore[arg-type]


def _concatenate(parts: list[_Pixels], dim: int) -> _Pixels:
    if len(parts) == 1:
        return parts[0]
    return _Pixels(*(None if values[0] is None else torch.cat(values, dim=dim) for values in zip(*parts, strict=True)))  # type: ignore[arg-type]
