"""The pi-GAN generator: a deep FiLM-SIREN radiance field that sees the viewing direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cips3d.cameras import Cameras, Rays, sides
from cips3d.errors import UserError
from cips3d.models.generator import Generator, ParameterGroups, Picture, View, WeightParts, check_styles, mixed_layers
from cips3d.models.pigan_field import PiGANConfig, PiGANMapping, PiGANStyles, ViewDependentNeRF
from cips3d.models.precision import checked_precision
from cips3d.models.ray_parts import as_picture, paint_rays
from cips3d.models.volume import VolumeSettings, check_cameras, draw_random, filled_depth
from cips3d.ops.checks import check_shape
from cips3d.ops.composite import DensityActivation
from cips3d.ops.deep_field import along_rays
from cips3d.ops.march import RayDraws, RenderedRays, march_rays
from cips3d.ops.precision import Precision
from cips3d.ops.render_rays import render_rays

LOCKED_DIRECTION = (0.0, 0.0, -1.0)  # what all points are seen along where the view is locked
CPU_CHUNK_POINTS = 2048  # 2 MB of activations a layer of 256: what a core's L2 holds
CHUNK_POINTS = 1 << 20  # elsewhere: 1 GB a layer of 256


class PiGANRendering(NamedTuple):
    """Pictures of a batch of cameras.

    Attributes:
        image: [B, 3, H, W] in [-1, 1].
        depth: [B, 1, H, W] expected distance along the ray Σ w t, scene units.
        weights: [B, H·W, samples] compositing weights, front to back.
        sample_depths: [B, H·W, samples].
    """

    image: Tensor
    depth: Tensor
    weights: Tensor
    sample_depths: Tensor

    def filled_depth(self, t_far: float) -> Tensor:
        """Depth [B, 1, H, W] of a scene with a wall at t_far: Σ w t + (1 - Σ w) t_far; empty rays end far away."""
        return filled_depth(self.depth, self.weights, t_far)


class _Pixels(NamedTuple):
    color: Tensor  # [B, N, 3] in [-1, 1]
    depth: Tensor  # [B, N, 1]
    weights: Tensor  # [B, N, samples]
    sample_depths: Tensor  # [B, N, samples]


def rays_at_once(device: torch.device, samples: int) -> int:
    """Rays of so many samples each that are rendered at a time where no gradient is needed."""
    points = CPU_CHUNK_POINTS if device.type == "cpu" else CHUNK_POINTS
    return max(points // samples, 1)


class PiGAN(Generator[PiGANStyles]):
    """pi-GAN's generator (arXiv 2012.00926).

    z goes through a mapping network to the frequencies and phases of a radiance field's sine layers; the field is
    rendered along the rays of a camera.
    """

    is_3d: ClassVar[bool] = True
    has_view_dependence: ClassVar[bool] = True

    def __init__(self, config: PiGANConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PiGANConfig()
        self.style_layers = config.layers + 1
        self.nerf = ViewDependentNeRF(config)
        self.style_mapping = PiGANMapping(config)

    @property
    def z_dims(self) -> tuple[int]:
        return self.config.z_dims

    def parameter_groups(self) -> ParameterGroups:
        return ParameterGroups(nerf=(self.nerf,), inr=(), mapping=(self.style_mapping,))

    def set_precision(
        self,
        precision: Precision | None = None,
        *,
        nerf: Precision | None = None,
        inr: Precision | None = None,
        fast_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        if inr is not None:
            raise UserError("pi-GAN has no INR whose precision could be set; leave --amp.inr at none")
        self.nerf.precision = checked_precision(nerf or precision)

    def frozen_part(self) -> tuple[nn.Module, ...]:
        return self.nerf, self.style_mapping

    def weight_parts(self) -> WeightParts:
        """One block for each sine layer: the first includes the grid, the last the density, the colour's the output."""
        blocks = [[f"nerf.layers.{layer}"] for layer in range(self.config.layers)]
        if self.nerf.grid is not None:
            blocks[0].append("nerf.grid")
        blocks[-1].append("nerf.density")
        blocks.append(["nerf.color", "nerf.output"])
        return WeightParts(tuple(tuple(block) for block in blocks), mapping=("style_mapping",))

    def style_weights(self) -> dict[str, tuple[Tensor, ...]]:
        """The mapping's last matrix B by the layers whose frequencies and phases it gives, [2 · width, mapping_width].

        Styles are B h + b, the modulation itself, so the space of vectors is that of h, the mapping's last activations.
        """
        return {"style": self.style_mapping.output_by_layer()}

    def style_offsets(self, branch: str, vectors: Tensor, layers: Sequence[int]) -> PiGANStyles:
        if branch not in self.style_weights():
            return super().style_offsets(branch, vectors, layers)
        moved = torch.einsum("loi,di->dlo", torch.stack(self.style_mapping.output_by_layer()), vectors)
        kept = moved.new_zeros(self.style_layers, 1)
        kept[list(layers)] = 1
        return PiGANStyles(*(moved * kept).chunk(2, dim=2))

    def mapping(self, z: Tensor) -> PiGANStyles:  # type: ignore[override]  # by its name
        """Styles of z [B, z_dim]."""
        return self.style_mapping(z)

    def mixed(self, first: PiGANStyles, second: PiGANStyles, layer: int) -> PiGANStyles:
        """`first` below `layer`, `second` from it on; the colour's layer is the last."""
        frequencies, phases = (mixed_layers(a, b, layer, self.style_layers) for a, b in zip(first, second, strict=True))
        return PiGANStyles(frequencies, phases)

    def render(self, styles: PiGANStyles, view: View) -> Picture:
        """Pictures of styles; depth of empty space is t_far. Auxiliary images and windows are not offered."""
        if view.window is not None or view.return_aux:
            name = "return_aux" if view.return_aux else "window"
            raise ValueError(f"{name} is not for pi-GAN, which renders one whole picture")
        rendering = self.synthesis(
            styles,
            view.cameras,
            view.volume,
            resolution=view.resolution,
            density_noise=view.density_noise,
            lock_view=view.lock_view,
            jitter=view.jitter,
            grad_points=view.grad_points,
            generator=view.generator,
        )
        return Picture(rendering.image, None, rendering.filled_depth(view.volume.t_far))

    def density(self, styles: PiGANStyles, points: Tensor) -> Tensor:
        """Raw densities of points, before their activation.

        Args:
            styles: of B images.
            points: [B, N, 3] in scene units. All are evaluated at once: give large grids in parts.

        Returns:
            [B, N].

        Raises:
            ValueError: a shape does not fit; the argument is named.
        """
        self._check_styles(styles)
        check_shape("points", points, (len(styles.frequencies), None, 3))
        return self.nerf.trunk(points, styles)[0]

    def forward(
        self,
        z: Tensor,
        cameras: Cameras,
        *,
        resolution: int | tuple[int, int],
        samples: int = 12,
        fine_samples: int | None = None,
        t_near: float = 0.88,
        t_far: float = 1.12,
        density_activation: DensityActivation = "relu",
        density_noise: float = 0.0,
        white_back: bool = False,
        last_back: bool = False,
        lock_view: bool = False,
        stratified_u: Tensor | None = None,
        importance_u: Tensor | None = None,
        coarse_noise: Tensor | None = None,
        merged_noise: Tensor | None = None,
        jitter: bool = True,
        grad_points: int | None = None,
        chunk_rays: int | None = None,
        generator: torch.Generator | None = None,
    ) -> PiGANRendering:
        """Render images of random z: `synthesis(mapping(z), ...)`.

        Args:
            z: [B, z_dim], standard normal.
            cameras: B cameras.
            resolution: side of a square picture, or (height, width); any size.
            samples, fine_samples, t_near, t_far, density_activation, white_back, last_back: see `VolumeSettings`.
            density_noise: standard deviation of the noise added to raw densities (training).
            lock_view: colours as seen along -z from wherever the camera looks, which keeps them still in videos.
            stratified_u, importance_u: [B, R, S] uniform draws in [0, 1), R = H·W; drawn inside when not given.
            coarse_noise, merged_noise: [B, R, S] and [B, R, S + F] noise of the coarse and of all samples' raw
                densities, front to back, in place of `density_noise`.
            jitter: False renders without random numbers.
            grad_points: only so many randomly chosen rays an image carry gradients; the others are rendered without.
            chunk_rays: rays rendered at a time where no gradient is needed; default: `rays_at_once`.
                The result does not depend on it (up to rounding).
            generator: source of the draws.

        Returns:
            `PiGANRendering`.
        """
        settings = VolumeSettings(samples, fine_samples, t_near, t_far, density_activation, last_back, white_back)
        return self.synthesis(
            self.mapping(z),
            cameras,
            settings,
            resolution=resolution,
            density_noise=density_noise,
            lock_view=lock_view,
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
        styles: PiGANStyles,
        cameras: Cameras,
        settings: VolumeSettings,
        *,
        resolution: int | tuple[int, int],
        density_noise: float = 0.0,
        lock_view: bool = False,
        stratified_u: Tensor | None = None,
        importance_u: Tensor | None = None,
        coarse_noise: Tensor | None = None,
        merged_noise: Tensor | None = None,
        jitter: bool = True,
        grad_points: int | None = None,
        chunk_rays: int | None = None,
        generator: torch.Generator | None = None,
    ) -> PiGANRendering:
        """Render images of given styles; arguments as in `forward`.

        Raises:
            ValueError: an argument does not fit; it is named.
        """
        self._check_styles(styles)
        check_cameras(cameras, next(self.nerf.parameters()))
        if len(styles.frequencies) != len(cameras):
            raise ValueError(f"cameras must be as many as styles, got {len(cameras)} and {len(styles.frequencies)}")
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

        def paint(images: slice, rays: Rays, draws: RayDraws) -> _Pixels:
            return self._paint(PiGANStyles(*(s[images] for s in styles)), rays, draws, settings, lock_view)

        if chunk_rays is None:
            chunk_rays = rays_at_once(self.device, max(settings.samples, settings.fine))
        pixels = paint_rays(paint, rays, draws, chunk_rays=chunk_rays, grad_points=grad_points, generator=generator)

        shape = (height, width)
        return PiGANRendering(
            image=as_picture(pixels.color, *shape),
            depth=as_picture(pixels.depth, *shape),
            weights=pixels.weights,
            sample_depths=pixels.sample_depths,
        )

    def _paint(
        self, styles: PiGANStyles, rays: Rays, draws: RayDraws, settings: VolumeSettings, lock_view: bool
    ) -> _Pixels:
        ray = self._rendered(styles, rays, draws, settings, lock_view)
        color = ray.colors + (1 - ray.opacity[..., None]) if settings.white_back else ray.colors
        return _Pixels(2 * color - 1, ray.depth[..., None], ray.weights, ray.depths)

    def _rendered(
        self, styles: PiGANStyles, rays: Rays, draws: RayDraws, settings: VolumeSettings, lock_view: bool
    ) -> RenderedRays:
        """What rays see: by `render_rays` where it knows such a field, otherwise op by op."""
        if self.nerf.grid is None and len(self.nerf.layers) > 1:
            return render_rays(
                *(rays.origins, rays.directions, self.nerf.fold(styles, LOCKED_DIRECTION if lock_view else None)),
                *(draws, settings.t_near, settings.t_far),
                activation=settings.density_activation,
                last_back=settings.last_back,
                precision=self.nerf.precision,
            )
        directions = rays.directions
        if lock_view:  # filled in, since a GPU would wait for a copy, and graphs refuse it
            along = (torch.full_like(directions[..., 0], part) for part in LOCKED_DIRECTION)
            directions = torch.stack(list(along), dim=-1)

        def field(points: Tensor) -> tuple[Tensor, Tensor]:
            return self.nerf(points, along_rays(directions, points), styles)

        return march_rays(
            field,
            *(rays.origins, rays.directions, draws, settings.t_near, settings.t_far),
            activation=settings.density_activation,
            last_back=settings.last_back,
        )

    def _check_styles(self, styles: PiGANStyles) -> None:
        check_styles(styles, PiGANStyles)
        for name, value in (("frequencies", styles.frequencies), ("phases", styles.phases)):
            check_shape(name, value, (len(styles.frequencies), self.style_layers, self.config.width))
