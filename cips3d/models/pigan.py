"""The pi-GAN generator: a deep FiLM-SIREN radiance field that sees the viewing direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cips3d.cameras import Rays
from cips3d.errors import UserError
from cips3d.models.generator import ParameterGroups, WeightParts, check_styles, mixed_layers
from cips3d.models.pigan_field import PiGANConfig, PiGANMapping, PiGANStyles, ViewDependentNeRF
from cips3d.models.precision import checked_fast_dtype, checked_precision
from cips3d.models.ray_parts import Painter
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings
from cips3d.models.volume_generator import RayPixels, VolumeGenerator
from cips3d.ops.checks import check_input, check_shape
from cips3d.ops.deep_field import along_rays
from cips3d.ops.march import RayDraws, RenderedRays, march_rays
from cips3d.ops.precision import Precision
from cips3d.ops.render_rays import render_rays

LOCKED_DIRECTION = (0.0, 0.0, -1.0)  # what all points are seen along where the view is locked
CPU_CHUNK_POINTS = 2048  # 2 MB of activations a layer of 256: what a core's L2 holds
CHUNK_POINTS = 1 << 20  # elsewhere: 1 GB a layer of 256


def rays_at_once(device: torch.device, samples: int) -> int:
    """Rays of so many samples each that are rendered at a time where no gradient is needed."""
    points = CPU_CHUNK_POINTS if device.type == "cpu" else CHUNK_POINTS
    return max(points // samples, 1)


class PiGAN(VolumeGenerator[PiGANStyles]):
    """pi-GAN's generator (arXiv 2012.00926).

    z goes through a mapping network to the frequencies and phases of a radiance field's sine layers; the field is
    rendered along the rays of a camera.
    """

    config: PiGANConfig
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
        of_nerf, _ = checked_precision(nerf or precision), checked_fast_dtype(fast_dtype)
        self.nerf.precision = of_nerf

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
        check_styles(styles, PiGANStyles)
        self.check_batch(styles, len(styles.frequencies))
        check_shape("points", points, (len(styles.frequencies), None, 3))
        check_input("points", points, self.nerf.density.weight)
        return self.nerf.trunk(points, styles)[0]

    def check_batch(self, styles: PiGANStyles, images: int) -> None:
        check_styles(styles, PiGANStyles)
        if len(styles.frequencies) != images:
            raise ValueError(f"cameras must be as many as styles, got {images} and {len(styles.frequencies)}")
        for name, style in zip(PiGANStyles._fields, styles, strict=True):
            check_shape(name, style, (images, self.style_layers, self.config.width))

    def rays_at_once(self, volume: VolumeSettings) -> int:
        return rays_at_once(self.device, max(volume.samples, volume.fine))

    def painter(self, styles: PiGANStyles, view: View) -> Painter[RayPixels]:
        def paint(images: slice, rays: Rays, draws: RayDraws) -> RayPixels:
            ray = self._rendered(PiGANStyles(*(s[images] for s in styles)), rays, draws, view.volume, view.lock_view)
            colors = ray.colors + (1 - ray.opacity[..., None]) if view.volume.white_back else ray.colors
            return RayPixels.of(ray, 2 * colors - 1)

        return paint

    def _rendered(
        self, styles: PiGANStyles, rays: Rays, draws: RayDraws, settings: VolumeSettings, lock_view: bool
    ) -> RenderedRays:
        """What rays see: by `render_rays` where it knows such a field, otherwise op by op."""
        if self.nerf.grid is None and len(self.nerf.layers) > 1:
            return render_rays(
                rays.origins,
                rays.directions,
                self.nerf.fold(styles, LOCKED_DIRECTION if lock_view else None),
                draws,
                settings.t_near,
                settings.t_far,
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
            rays.origins,
            rays.directions,
            draws,
            settings.t_near,
            settings.t_far,
            activation=settings.density_activation,
            last_back=settings.last_back,
        )
