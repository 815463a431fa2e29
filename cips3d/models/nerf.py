"""The NeRF branch: a shallow FiLM-SIREN network that gives a feature per ray."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from cips3d.cameras import Rays
from cips3d.models.mapping import LEAKY_SLOPE
from cips3d.models.volume import VolumeSettings
from cips3d.ops.autocast import product
from cips3d.ops.film_siren import FoldedLayer, fold_film
from cips3d.ops.march import RayDraws, RenderedRays
from cips3d.ops.precision import Precision
from cips3d.ops.render_rays import render_rays
from cips3d.ops.siren_field import SirenField, evaluate_siren_field

GAIN_SCALE, GAIN_CENTRE = 15.0, 30.0  # gain = 15·(A s + c) + 30: frequencies around SIREN's ω₀ = 30
SIREN_INIT_SCALE = 1 / 25  # hidden weights U(±√(6/in)/25), pi-GAN's


def siren_uniform_(weight: Tensor, scale: float = SIREN_INIT_SCALE) -> Tensor:
    """Fill with U(±scale·√(6/in)); the default is that of pi-GAN's sine layers."""
    bound = math.sqrt(6 / weight.shape[1]) * scale
    return nn.init.uniform_(weight, -bound, bound)


class StyleAffine(nn.Linear):
    """A s + c in full precision also under autocast: gains of 30 would magnify what 16 bits lose."""

    def forward(self, style: Tensor) -> Tensor:
        return product(style, self.weight.t()) + self.bias


class FilmSiren(nn.Module):
    """y = sin(gain ⊙ (W x + b) + shift), gain = 15·(A_g s + c_g) + 30, shift = A_b s + c_b, from the style s."""

    def __init__(self, width_in: int, width_out: int, style_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)
        self.gain = StyleAffine(style_dim, width_out)
        self.shift = StyleAffine(style_dim, width_out)
        with torch.no_grad():
            siren_uniform_(self.linear.weight)
            self.gain.weight.mul_(0.25)
            self.shift.weight.mul_(0.25)

    def fold(self, style: Tensor) -> FoldedLayer:
        """The layer modulated by a style [B, style_dim]."""
        gain = GAIN_SCALE * self.gain(style) + GAIN_CENTRE
        return fold_film(self.linear.weight, self.linear.bias, gain, self.shift(style))


class NeRF(nn.Module):
    """Points to densities and features: FiLM 3→w, FiLM w→w, density w→1; colour FiLM w→v, linear v→features.

    No layer sees the viewing direction. The last linear layer commutes with compositing, Σ w (C h + c) = C Σ w h +
    c Σ w, so it is applied once a ray instead of once a sample.

    Source: CIPS-3D (arXiv 2110.09788), section 3.1.
    """

    def __init__(
        self,
        *,
        width: int,
        color_width: int,
        features: int,
        style_dim: int,
        point_scale: float,
        density_scale: float,
        initial_radius: float | None = None,
        initial_density: float | None = None,
    ) -> None:
        super().__init__()
        self.precision: Precision | None = None
        self.point_scale = point_scale
        self.density_scale = density_scale
        self.initial_radius = initial_radius
        self.initial_density = density_scale if initial_density is None else initial_density
        self.layers = nn.ModuleList([FilmSiren(3, width, style_dim), FilmSiren(width, width, style_dim)])
        self.density = nn.Linear(width, 1)
        self.color = FilmSiren(width, color_width, style_dim)
        self.output = nn.Linear(color_width, features)
        nn.init.kaiming_normal_(self.output.weight, a=LEAKY_SLOPE, mode="fan_in", nonlinearity="leaky_relu")
        if density_scale != 1:  # a bias drawn at random would be scaled too, and fill or empty the whole volume
            nn.init.zeros_(self.density.bias)

    def fold(self, style: Tensor) -> SirenField:
        """The field of the images with these styles.

        Args:
            style: [B, style_dim], or [B, 3, style_dim] with one style a FiLM layer.
        """
        layers = [*self.layers, self.color]
        style = style.to(self.density.weight.dtype)  # under autocast the mapping gives 16 bits
        styles = style.unbind(1) if style.dim() == 3 else (style,) * len(layers)
        first, second, color = [layer.fold(s) for layer, s in zip(layers, styles, strict=True)]
        return SirenField(
            FoldedLayer(first.weight * self.point_scale, first.bias),
            second,
            color,
            self.density.weight[0] * self.density_scale,
            self.density.bias * self.density_scale,
            *((0.0, 0.0) if self.initial_radius is None else (self.initial_density, self.initial_radius)),
        )

    def style_weights(self) -> tuple[Tensor, ...]:
        """[A_g, A_b] of every FiLM layer, [2 · width, style_dim]: what a style is multiplied by."""
        films = [cast("FilmSiren", film) for film in (*self.layers, self.color)]
        return tuple(torch.cat([film.gain.weight, film.shift.weight]) for film in films)

    def raw_density(self, points: Tensor, style: Tensor) -> Tensor:
        """Raw density [B, N].

        Args:
            points: [B, N, 3] in scene units.
            style: [B, style_dim], or [B, 3, style_dim] with one style a FiLM layer.
        """
        field = self.fold(style)
        no_color = FoldedLayer(field.color.weight[:, :0], field.color.bias[:, :0])  # a third of the arithmetic
        return evaluate_siren_field(field._replace(color=no_color), points, precision=self.precision)[0]

    def features(self, ray: RenderedRays, settings: VolumeSettings) -> Tensor:
        """Features of rays [B, R, features] from composited activations."""
        if settings.last_back:  # weights then add up to 1
            features = nn.functional.linear(ray.colors, self.output.weight, self.output.bias)
        else:
            features = nn.functional.linear(ray.colors, self.output.weight) + self.output.bias * ray.opacity[..., None]
        return features + (1 - ray.opacity[..., None]) if settings.white_back else features

    def forward(
        self, rays: Rays, style: Tensor, settings: VolumeSettings, draws: RayDraws
    ) -> tuple[Tensor, RenderedRays]:
        """Features [B, R, features] of rays, and what they are made of: composited activations, depth, weights."""
        ray = render_rays(
            rays.origins,
            rays.directions,
            self.fold(style),
            draws,
            settings.t_near,
            settings.t_far,
            activation=settings.density_activation,
            last_back=settings.last_back,
            precision=self.precision,
        )
        return self.features(ray, settings), ray
