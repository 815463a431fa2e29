"""Rendering with a trained generator: load it, take the faces of seeds, look at them from chosen sides."""

from cips3d.rendering.latents import CameraAngles, Latent, latent_of, read_latent, styles_of_latents, write_latent
from cips3d.rendering.loading import LoadedGenerator, check_is_3d, check_resolution_of, load_generator
from cips3d.rendering.normals import normals_from_depth
from cips3d.rendering.seeds import parse_seeds, styles_of_seeds
from cips3d.rendering.style_paths import interpolated_styles, mixed_styles
from cips3d.rendering.views import BATCH_SIZE, Look, PictureKind, RenderedViews, render_pairs, render_views, volume_at

__all__ = [
    "BATCH_SIZE",
    "CameraAngles",
    "Latent",
    "LoadedGenerator",
    "Look",
    "PictureKind",
    "RenderedViews",
    "check_is_3d",
    "check_resolution_of",
    "interpolated_styles",
    "latent_of",
    "load_generator",
    "mixed_styles",
    "normals_from_depth",
    "parse_seeds",
    "read_latent",
    "render_pairs",
    "render_views",
    "styles_of_latents",
    "styles_of_seeds",
    "volume_at",
    "write_latent",
]
