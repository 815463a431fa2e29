"""The pi-GAN generator: a deep FiLM-SIREN radiance field that sees the viewing direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cips3d.cameras import Cameras, Rays
from cips3d.errors import UserError
from cips3d.models.embedding_grid import EmbeddingGrid
from cips3d.models.generator import Generator, ParameterGroups, Picture, View, mixed_layers
from cips3d.models.mapping import LEAKY_SLOPE
from cips3d.models.nerf import GAIN_CENTRE, GAIN_SCALE, siren_uniform_
from cips3d.models.ray_parts import paint_rays
from cips3d.models.volume import RandomDraws, VolumeSettings, draw_random, filled_depth, render_volume
from cips3d.ops.checks import check_shape
from cips3d.ops.composite import DensityActivation
from cips3d.ops.film_siren import film_siren

FIRST_LAYER_BOUND = 1 / 3  # the first layer's weights start in U(±1/3), those of embeddings too
MAPPING_OUTPUT_SCALE = 0.25  # of the mapping's last weights: styles start close to the centre
LOCKED_DIRECTION = (0.0, 0.0, -1.0)  # what all points are seen along where the view is locked
CPU_CHUNK_POINTS = 2048  # 2 MB of activations a layer of 256: what a core's L2 holds
CHUNK_POINTS = 1 << 20  # elsewhere: 1 GB a layer of 256


@dataclass(frozen=True)
class PiGANConfig:
    """Dimensions of a generator; the defaults are the published SPATIALSIRENBASELINE (CelebA, Cats)."""

    system: Literal["pigan"] = "pigan"
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

    def __post_init__(self) -> None:
        for name in ("z_dim", "width", "layers", "mapping_width", "mapping_layers", "grid_width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.box_side <= 0:
            raise UserError(f"box_side must be a positive length in scene units, got {self.box_side}")
        if self.grid_resolution is not None and self.grid_resolution < 2:
            raise UserError(f"grid_resolution must be at least 2, or None for no grid, got {self.grid_resolution}")
        if self.grid_resolution is not None and not self.box_warp:
            raise UserError("a grid of embeddings fills the box that points are warped to; give box_warp=True with it")

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
    def point_scale(self) -> float:
        """Scene units to the field's coordinates."""
        return 2 / self.box_side if self.box_warp else 1.0


class PiGANStyles(NamedTuple):
    """What the mapping makes of z; the last layer is the colour's."""

    frequencies: Tensor  # [B, layers + 1, width] f of gain = 15·f + 30
    phases: Tensor  # [B, layers + 1, width] radians


class PiGANRendering(NamedTuple):
    """Pictures of a batch of cameras."""

    image: Tensor  # [B, 3, H, W] in [-1, 1]
    depth: Tensor  # [B, 1, H, W] expected distance along the ray Σ w t, scene units
    weights: Tensor  # [B, H·W, samples] compositing weights, front to back
    sample_depths: Tensor  # [B, H·W, samples]

    def filled_depth(self, t_far: float) -> Tensor:
        """Depth [B, 1, H, W] of a scene with a wall at t_far: Σ w t + (1 - Σ w) t_far; empty rays end far away."""
        return filled_depth(self.depth, self.weights, t_far)


class _Pixels(NamedTuple):
    color: Tensor  # [B, N, 3] in [0, 1]
    depth: Tensor  # [B, N, 1]
    weights: Tensor  # [B, N, samples]
    sample_depths: Tensor  # [B, N, samples]


def default_chunk_rays(device: torch.device, samples: int) -> int:
    """Rays of one image that are rendered at a time without gradients, with `samples` samples each."""
    points = CPU_CHUNK_POINTS if device.type == "cpu" else CHUNK_POINTS
    return max(points // samples, 1)


class StyleMapping(nn.Module):
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
        x = z
        for k, linear in enumerate(self.linears):
            x = linear(x if k == 0 else nn.functional.leaky_relu(x, LEAKY_SLOPE))
        frequencies, phases = x.chunk(2, dim=1)
        return PiGANStyles(frequencies.unflatten(1, self.style_shape), phases.unflatten(1, self.style_shape))


class ModulatedSine(nn.Linear):
    """y = sin(gain ⊙ (W x + b) + phase) with gain = 15·f + 30, for frequencies f and phases that are given."""

    def forward(self, x: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:  # type: ignore[override]
        """x [B, N, in], frequencies and phases [B, out] -> [B, N, out]."""
        return film_siren(x, self.weight, self.bias, GAIN_SCALE * frequencies + GAIN_CENTRE, phases)


class ViewDependentNeRF(nn.Module):
    """Points and directions to densities and colours.

    h_k = sin(gain_k ⊙ (W_k h_{k-1} + b_k) + phase_k), with gain = 15·f + 30 and h_0 the point, behind its embedding
    where there is a grid; σ = v · h + c; colour = sigmoid(C sin(gain ⊙ (W [d, h] + b) + phase) + e), d the direction.

    Source: pi-GAN (arXiv 2012.00926), section 3.1.
    """

    def __init__(self, config: PiGANConfig) -> None:
        super().__init__()
        self.point_scale = config.point_scale
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

    def trunk(self, points: Tensor, styles: PiGANStyles) -> tuple[Tensor, Tensor]:
        """Raw density [B, N] and the last features [B, N, width] of points [B, N, 3] in scene units."""
        x = points * self.point_scale
        if self.grid is not None:
            x = torch.cat([self.grid(x), x], dim=-1)
        frequencies, phases = styles
        for k, layer in enumerate(self.layers):
            x = layer(x, frequencies[:, k], phases[:, k])
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
        x = self.color(torch.cat([directions, features], dim=-1), frequencies[:, -1], phases[:, -1])
        return density, torch.sigmoid(self.output(x))


class PiGAN(Generator[PiGANStyles]):
    """pi-GAN's generator (arXiv 2012.00926).

    z goes through a mapping network to the frequencies and phases of a radiance field's sine layers; the field is
    rendered along the rays of a camera.
    """

    is_3d: ClassVar[bool] = True

    def __init__(self, config: PiGANConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PiGANConfig()
        self.style_layers = config.layers + 1
        self.nerf = ViewDependentNeRF(config)
        self.style_mapping = StyleMapping(config)

    @property
    def z_dims(self) -> tuple[int]:
        return (self.config.z_dim,)

    def parameter_groups(self) -> ParameterGroups:
        return ParameterGroups(nerf=(self.nerf,), inr=(), mapping=(self.style_mapping,))

    def frozen_part(self) -> tuple[nn.Module, ...]:
        return self.nerf, self.style_mapping

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
            jitter: False renders without random numbers.
            grad_points: only so many randomly chosen rays an image carry gradients; the others are rendered without.
            chunk_rays: rays of an image rendered at a time where no gradient is needed; default: `default_chunk_rays`.
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
        if len(styles.frequencies) != len(cameras):
            raise ValueError(f"cameras must be as many as styles, got {len(cameras)} and {len(styles.frequencies)}")
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

        def paint(images: slice, rays: Rays, draws: RandomDraws) -> _Pixels:
            return self._paint(PiGANStyles(*(s[images] for s in styles)), rays, draws, settings, lock_view)

        if chunk_rays is None:
            chunk_rays = default_chunk_rays(self.device, max(settings.samples, settings.fine))
        pixels = paint_rays(paint, rays, draws, chunk_rays=chunk_rays, grad_points=grad_points, generator=generator)

        def picture(values: Tensor) -> Tensor:  # [B, N, C] -> [B, C, H, W]
            return values.transpose(1, 2).reshape(batch, -1, height, width)

        return PiGANRendering(
            image=picture(2 * pixels.color - 1),
            depth=picture(pixels.depth),
            weights=pixels.weights,
            sample_depths=pixels.sample_depths,
        )

    def _paint(
        self, styles: PiGANStyles, rays: Rays, draws: RandomDraws, settings: VolumeSettings, lock_view: bool
    ) -> _Pixels:
        directions = rays.directions
        if lock_view:
            directions = directions.new_tensor(LOCKED_DIRECTION).expand_as(directions)

        def field(points: Tensor) -> tuple[Tensor, Tensor]:
            samples = points.shape[1] // directions.shape[1]
            return self.nerf(points, directions.repeat_interleave(samples, dim=1), styles)

        ray = render_volume(field, rays, settings, draws)
        color = ray.values + (1 - ray.weight_sum) if settings.white_back else ray.values
        return _Pixels(color, ray.depth[..., None], ray.weights, ray.depths)

    def _check_styles(self, styles: PiGANStyles) -> None:
        for name, value in styles._asdict().items():
            check_shape(name, value, (len(styles.frequencies), self.style_layers, self.config.width))
