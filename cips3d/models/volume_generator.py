"""Generators of volumes: rays from cameras, random numbers for them, and pictures of what a subclass paints of them."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from cips3d.cameras import sides
from cips3d.models.generator import Generator, StylesT
from cips3d.models.ray_parts import Painter, as_picture, paint_rays
from cips3d.models.view import Picture, View, check_view
from cips3d.models.volume import VolumeSettings, check_cameras, check_drawn, draw_random
from cips3d.ops.march import RayDraws, RenderedRays


class RayPixels(NamedTuple):
    """What a generator paints of rays.

    Attributes:
        colors: [B, R, 3] in [-1, 1].
        depth: [B, R, 1] expected distance along the ray Σ w t, scene units.
        weights: [B, R, samples] compositing weights, front to back.
        sample_depths: [B, R, samples].
        aux_colors: [B, R, 3] of the auxiliary image, where asked for.
        features: [B, R, features] that the colours are made of, of generators that have some.
    """

    colors: Tensor
    depth: Tensor
    weights: Tensor
    sample_depths: Tensor
    aux_colors: Tensor | None = None
    features: Tensor | None = None

    @classmethod
    def of(
        cls, ray: RenderedRays, colors: Tensor, *, aux_colors: Tensor | None = None, features: Tensor | None = None
    ) -> RayPixels:
        """Colours beside the depths and weights of what was rendered."""
        return cls(colors, ray.depth[..., None], ray.weights, ray.depths, aux_colors, features)


class Rendering(NamedTuple):
    """Pictures of a batch of cameras.

    Attributes:
        image: [B, 3, H, W] in [-1, 1].
        depth: [B, 1, H, W] expected distance along the ray Σ w t, scene units.
        weights: [B, H·W, samples] compositing weights, front to back.
        sample_depths: [B, H·W, samples].
        aux_image: [B, 3, H, W] in [-1, 1]: the NeRF's own picture, where asked for.
        features: [B, features, H, W] that the image is made of, of generators that have some.
    """

    image: Tensor
    depth: Tensor
    weights: Tensor
    sample_depths: Tensor
    aux_image: Tensor | None = None
    features: Tensor | None = None

    def filled_depth(self, t_far: float) -> Tensor:
        """Depth [B, 1, H, W] of a scene with a wall at t_far: Σ w t + (1 - Σ w) t_far; empty rays end far away."""
        return self.depth + (1 - self.weights.sum(-1).view_as(self.depth)) * t_far


class VolumeGenerator(Generator[StylesT]):
    """A generator of volumes that cameras look at."""

    is_3d: ClassVar[bool] = True

    @abstractmethod
    def check_batch(self, styles: StylesT, images: int) -> None:
        """Raise, naming the argument, unless these are the model's styles of so many images."""

    @abstractmethod
    def painter(self, styles: StylesT, view: View) -> Painter[RayPixels]:
        """What paints rays of these images, with the view's volume."""

    @abstractmethod
    def rays_at_once(self, volume: VolumeSettings) -> int:
        """Rays that are rendered at a time where no gradient is needed."""

    def forward(
        self, *z: Tensor, view: View, draws: RayDraws | None = None, chunk_rays: int | None = None
    ) -> Rendering:
        """Pictures of z [B, width], one for each of `z_dims`: `synthesis(mapping(*z), view, ...)`."""
        return self.synthesis(self.mapping(*z), view, draws=draws, chunk_rays=chunk_rays)

    def render(self, styles: StylesT, view: View) -> Picture:
        """Pictures of styles; depth of empty space is t_far."""
        seen = self.synthesis(styles, view)
        return Picture(seen.image, seen.aux_image, seen.filled_depth(view.volume.t_far))

    def synthesis(
        self, styles: StylesT, view: View, *, draws: RayDraws | None = None, chunk_rays: int | None = None
    ) -> Rendering:
        """Pictures of styles, with the weights and depths of samples.

        Args:
            styles: of B images, as `mapping` gives them.
            view: B cameras and how their pictures are taken.
            draws: the random numbers of R = H·W rays, row after row, instead of drawing them as `view` says.
            chunk_rays: rays rendered at a time where no gradient is needed; default: `rays_at_once`. The result does
                not depend on it (up to rounding).

        Raises:
            ValueError: an argument does not fit; it is named.
            TypeError: styles or cameras are of another kind.
        """
        check_view(view)
        name = type(self).__name__
        if view.window is not None:
            raise ValueError(f"window is for generators of pixel coordinates; {name} renders whole pictures")
        if view.return_aux and not self.has_aux_image:
            raise ValueError(f"return_aux is for generators with an auxiliary image, which {name} has not")
        check_cameras(view.cameras, next(self.parameters()))
        self.check_batch(styles, len(view.cameras))
        height, width = sides(view.resolution)
        rays = view.cameras.rays((height, width))
        batch, count = rays.origins.shape[:2]
        if draws is None:
            draws = draw_random(
                batch,
                count,
                view.volume,
                density_noise=view.density_noise,
                jitter=view.jitter,
                generator=view.generator,
                device=self.device,
                dtype=rays.origins.dtype,
            )
        else:
            check_drawn(draws, batch, count, view.volume)
        pixels = paint_rays(
            self.painter(styles, view),
            rays,
            draws,
            chunk_rays=self.rays_at_once(view.volume) if chunk_rays is None else chunk_rays,
            grad_points=view.grad_points,
            generator=view.generator,
        )

        def picture(values: Tensor) -> Tensor:
            return as_picture(values, height, width)

        return Rendering(
            image=picture(pixels.colors),
            depth=picture(pixels.depth),
            weights=pixels.weights,
            sample_depths=pixels.sample_depths,
            aux_image=None if pixels.aux_colors is None else picture(pixels.aux_colors),
            features=None if pixels.features is None else picture(pixels.features),
        )
