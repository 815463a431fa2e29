"""The published CIPS-3D generator's state dict, read into `CIPS3D` and written from it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
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
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig

WHAT = "a CIPS-3D generator"

UNUSED = re.compile(r"inr_net\.network\.\d+\.mod[12]\.norm\.(weight|bias)")  # carried by checkpoints, never applied

# Of a configuration, what neither names nor shapes tell, and what matters after training: read as published.
UNTOLD = ("inr_skip_from", "inr_rgb_from", "point_scale", "density_scale", "initial_radius")


def generator_reference_names(config: CIPS3DConfig) -> dict[str, str]:
    """Names of our parameters -> names in the published state dict."""
    names: dict[str, str] = {}

    film = {"nerf.layers.0": "siren.network.0", "nerf.layers.1": "siren.network.1"}
    for ours, original in (film | {"nerf.color": "siren.color_layer_sine"}).items():
        names |= parameter_names(f"{ours}.linear", f"{original}.linear")
        names |= parameter_names(f"{ours}.gain", f"{original}.gain_fc")
        names |= parameter_names(f"{ours}.shift", f"{original}.bias_fc")
    names |= parameter_names("nerf.density", "siren.final_layer")
    names |= parameter_names("nerf.output", "siren.color_layer_linear.0")
    for k in range(config.shape_mapping_layers):
        names |= parameter_names(f"shape_mapping.linears.{k}", f"mapping_network_nerf.base_net.{2 * k}")
    for block in range(config.inr_blocks):
        size = 4 << block  # the published blocks are named after resolutions
        for k in range(2):
            ours, original = f"inr.layers.{2 * block + k}", f"inr_net.network.{size}.mod{k + 1}"
            names[f"{ours}.weight"] = f"{original}.weight"
            names |= parameter_names(f"{ours}.modulation", f"{original}.modulation")
        if block >= config.inr_rgb_from:
            names |= parameter_names(f"inr.to_rgb.{block - config.inr_rgb_from}", f"inr_net.to_rgbs.{size}.linear")
    for k in range(config.appearance_mapping_layers):
        names |= parameter_names(f"appearance_mapping.linears.{k}", f"mapping_network_inr.base_net.{3 * k}")
        names |= parameter_names(f"appearance_mapping.norms.{k}", f"mapping_network_inr.base_net.{3 * k + 1}")
    names |= parameter_names("aux_to_rgb", "aux_to_rbg.0")  # spelled so in the published code
    return names


def cips3d_config_from_reference(state: Mapping[str, Tensor]) -> CIPS3DConfig:
    """Dimensions of a published generator, read off the shapes of its state dict."""
    corners = {  # and their dimensions
        "siren.network.1.linear.weight": 2,
        "siren.color_layer_linear.0.weight": 2,
        "mapping_network_nerf.base_net.0.weight": 2,
        "mapping_network_inr.base_net.0.weight": 2,
        "inr_net.network.4.mod2.weight": 3,
    }
    require_keys(state, corners, WHAT)
    nerf, output, shape_map, appearance_map, inr = (shape_of(state, key, n, WHAT) for key, n in corners.items())
    return CIPS3DConfig(
        z_shape_dim=shape_map[1],
        shape_style_dim=shape_map[0],
        shape_mapping_layers=count_keys(state, r"mapping_network_nerf\.base_net\.\d+\.weight"),
        nerf_width=nerf[0],
        nerf_color_width=output[1],
        features=output[0],
        z_appearance_dim=appearance_map[1],
        appearance_style_dim=appearance_map[0],
        appearance_mapping_layers=count_keys(state, r"mapping_network_inr\.base_net\.\d+\.weight") // 2,
        inr_width=inr[-1],
        inr_blocks=count_keys(state, r"inr_net\.network\.\d+\.mod1\.weight"),
    )


def generator_from_reference(state: Mapping[str, Tensor]) -> CIPS3D:
    """A `CIPS3D` with the weights of a published state dict.

    Raises:
        UserError: keys are missing, unknown, or of a shape that does not fit.
    """
    config = cips3d_config_from_reference(state)
    unused_rgb = {
        f"inr_net.to_rgbs.{4 << b}.linear.{kind}" for b in range(config.inr_rgb_from) for kind in ("weight", "bias")
    }
    needed = {key: value for key, value in state.items() if not UNUSED.fullmatch(key) and key not in unused_rgb}
    # The published weights have a leading dimension of one.
    needed = {
        key: value[0] if re.fullmatch(r"inr_net\.network\.\d+\.mod[12]\.weight", key) else value
        for key, value in needed.items()
    }
    generator = CIPS3D(config)
    load_renamed(generator, needed, generator_reference_names(config), WHAT)
    return generator


def generator_to_reference(generator: CIPS3D) -> dict[str, Tensor]:
    """The published state dict of a generator: the inverse of `generator_from_reference`.

    The never-applied LayerNorms and colour layers of the published network get ones and zeros.

    Raises:
        UserError: a setting that no state dict tells is not the published one.
    """
    config = generator.config
    require_published(WHAT, _untold(config))
    state = renamed(generator, generator_reference_names(config))
    for block in range(config.inr_blocks):
        for k in (1, 2):
            key = f"inr_net.network.{4 << block}.mod{k}"
            state[f"{key}.norm.weight"] = torch.ones(state[f"{key}.weight"].shape[0])
            state[f"{key}.norm.bias"] = torch.zeros(state[f"{key}.weight"].shape[0])
            state[f"{key}.weight"] = state[f"{key}.weight"][None]
        if block < config.inr_rgb_from:
            state[f"inr_net.to_rgbs.{4 << block}.linear.weight"] = torch.zeros(3, config.inr_width)
            state[f"inr_net.to_rgbs.{4 << block}.linear.bias"] = torch.zeros(3)
    return state


def _untold(config: CIPS3DConfig) -> dict[str, tuple[object, object]]:
    """Values of `UNTOLD`, the configuration's and the published ones, where they matter."""
    settings = {name: (getattr(config, name), getattr(CIPS3DConfig, name)) for name in UNTOLD}
    if min(settings["inr_skip_from"]) >= config.inr_blocks:  # no block adds its input, by either
        del settings["inr_skip_from"]
    if config.initial_radius == 0:  # as None: no ball
        del settings["initial_radius"]
    return settings
