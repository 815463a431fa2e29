"""The published pi-GAN generators' state dicts, read into `PiGAN` and written from it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cips3d.convert.state import (
    count_keys,
    load_renamed,
    parameter_names,
    renamed,
    require_keys,
    require_published,
    shape_of,
)
from cips3d.errors import UserError
from cips3d.models.pigan import PiGAN, PiGANConfig

WHAT = "a pi-GAN generator"
GRID_KEY = "siren.spatial_embeddings"


def pigan_reference_names(config: PiGANConfig) -> dict[str, str]:
    """Names of our parameters -> names in the published state dict, in the order of the original's parameters.

    That order is also the one in which the published averages (`ema.pth`) list their tensors without names.
    """
    names = {} if config.grid_resolution is None else {"nerf.grid.embeddings": GRID_KEY}
    for k in range(config.layers):
        names |= parameter_names(f"nerf.layers.{k}", f"siren.network.{k}.layer")
    names |= parameter_names("nerf.density", "siren.final_layer")
    names |= parameter_names("nerf.color", "siren.color_layer_sine.layer")
    names |= parameter_names("nerf.output", "siren.color_layer_linear.0")
    for k in range(config.mapping_layers):
        original = f"siren.mapping_network.network.{2 * k}"  # activations lie between
        names |= parameter_names(f"style_mapping.linears.{k}", original)
    return names


def pigan_config_from_reference(state: Mapping[str, Tensor], *, box_warp: bool | None = None) -> PiGANConfig:
    """Dimensions of a published generator, read off the shapes of its state dict; see `pigan_from_reference`."""
    first_key, mapping_key = "siren.network.0.layer.weight", "siren.mapping_network.network.0.weight"
    require_keys(state, (first_key, mapping_key), WHAT)
    width, _ = shape_of(state, first_key, 2, WHAT)
    mapping_width, z_dim = shape_of(state, mapping_key, 2, WHAT)
    grid: tuple[int, ...] | None = None
    if GRID_KEY in state:
        grid = shape_of(state, GRID_KEY, 5, WHAT)
        if box_warp is False:
            raise UserError(
                f"box_warp=False (--no-box-warp) does not go with {GRID_KEY}: the grid fills the warped box"
            )
    return PiGANConfig(
        z_dim=z_dim,
        width=width,
        layers=count_keys(state, r"siren\.network\.\d+\.layer\.weight"),
        mapping_width=mapping_width,
        mapping_layers=count_keys(state, r"siren\.mapping_network\.network\.\d+\.weight"),
        box_warp=box_warp is not False,
        grid_resolution=None if grid is None else grid[-1],
        grid_width=PiGANConfig.grid_width if grid is None else grid[1],
    )


def pigan_from_reference(state: Mapping[str, Tensor], box_warp: bool | None = None) -> PiGAN:
    """A `PiGAN` with the weights of a published state dict; dimensions and variant are read off keys and shapes.

    Args:
        state: names and tensors as the original's `state_dict()` gives them.
        box_warp: points are scaled by 2/0.24 (SPATIALSIRENBASELINE: CelebA and Cats) or not (TALLSIREN: CARLA). The
            weights do not tell these two apart; None takes them for the former. The variants with a grid of embeddings
            always warp.

    Raises:
        UserError: keys are missing, unknown, or of a shape that does not fit; or there is a grid, but no box warp.
    """
    config = pigan_config_from_reference(state, box_warp=box_warp)
    generator = PiGAN(config)
    load_renamed(generator, state, pigan_reference_names(config), WHAT)
    return generator


def pigan_to_reference(generator: PiGAN) -> dict[str, Tensor]:
    """The published state dict of a generator: the inverse of `pigan_from_reference`.

    Raises:
        UserError: points are scaled to another box than the published one, which no state dict tells.
    """
    config = generator.config
    if config.box_warp:
        require_published(WHAT, {"box_side": (config.box_side, PiGANConfig.box_side)})
    return renamed(generator, pigan_reference_names(config))
