"""The published CIPS generators' state dicts, read into `CIPS` and written from it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cips3d.convert.state import load_renamed, parameter_names, renamed, shape_of
from cips3d.convert.styled_layers import (
    count_layers,
    mapping_names,
    styled_conv_names,
    to_rgb_names,
    unwrapped,
    wrapped,
)
from cips3d.errors import UserError
from cips3d.models.cips import CIPS, PUBLISHED_WIDTHS, CIPSConfig, Coordinates, Variant

GENERATOR = "a CIPS generator"


def cips_reference_names(config: CIPSConfig) -> dict[str, str]:
    """Names of our parameters -> names in the published state dict."""
    names = mapping_names(config.mapping_layers) | parameter_names("network.fourier", "lff.ffm.conv")
    names["network.embedding"] = "emb.input"
    widths = config.block_widths
    if config.variant == "skip":
        names |= styled_conv_names("network.first", "conv1")
        for k in range(len(widths)):
            names |= styled_conv_names(f"network.blocks.{k}.conv1", f"linears.{2 * k}")
            names |= styled_conv_names(f"network.blocks.{k}.conv2", f"linears.{2 * k + 1}")
            names |= to_rgb_names(f"network.blocks.{k}.to_rgb", f"to_rgbs.{k}")
        return names
    names |= styled_conv_names("network.first", "linears.0")
    for k, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
        for conv in ("conv1", "conv2"):
            names |= styled_conv_names(f"network.blocks.{k}.{conv}", f"linears.{k + 1}.{conv}")
        if before != width:
            names[f"network.blocks.{k}.shortcut.weight"] = f"linears.{k + 1}.skip.0.weight"
    return names | to_rgb_names("network.to_rgb", "to_rgb_last")


def cips_config_from_reference(state: Mapping[str, Tensor], *, mapping_lr_multiplier: float = 0.01) -> CIPSConfig:
    """Variant and dimensions of a published generator, read off the names and shapes of its state dict."""
    variant: Variant = "residual" if any(key.startswith("to_rgb_last.") for key in state) else "skip"
    if variant == "skip":
        blocks = count_layers(state, "linears.{}.conv.weight", GENERATOR) // 2
        lasts = [f"linears.{2 * k + 1}.conv.weight" for k in range(max(1, blocks))]
    else:
        blocks = count_layers(state, "linears.{}.conv2.conv.weight", GENERATOR, first=1)
        lasts = [f"linears.{k + 1}.conv2.conv.weight" for k in range(max(1, blocks))]
    style_dim, z_dim = shape_of(state, "style.1.weight", 2, GENERATOR)
    hidden, coordinates = shape_of(state, "lff.ffm.conv.weight", 4, GENERATOR)[:2]
    resolution = shape_of(state, "emb.input", 4, GENERATOR)[-1]
    widths = tuple(shape_of(state, key, 5, GENERATOR)[1] for key in lasts)
    published = PUBLISHED_WIDTHS[variant][: max(0, resolution.bit_length() - 2)]
    return CIPSConfig(
        resolution=resolution,
        variant=variant,
        coordinates=_checked_coordinates(coordinates),
        hidden=hidden,
        widths=None if widths == published else widths,
        z_dim=z_dim,
        style_dim=style_dim,
        mapping_layers=count_layers(state, "style.{}.weight", GENERATOR, first=1),
        mapping_lr_multiplier=mapping_lr_multiplier,
    )


def _checked_coordinates(count: int) -> Coordinates:
    if count == 2:
        return 2
    if count == 3:
        return 3
    raise UserError(
        f"the state dict is not that of {GENERATOR}: it takes {count} coordinates where 2 (of a plane) or 3 (of a "
        "cylinder) are needed"
    )


def cips_from_reference(state: Mapping[str, Tensor], *, mapping_lr_multiplier: float = 0.01) -> CIPS:
    """A `CIPS` with the weights of a published state dict, of the skip variant or the residual one.

    Args:
        state: names and tensors as the original's `state_dict()` gives them.
        mapping_lr_multiplier: of the training (`lr_mlp`), which no shape tells; 0.01 as published.

    Returns:
        The generator in training mode, as a new one is: the full square takes the embedding as it is stored.

    Raises:
        UserError: keys are missing, unknown, or of a shape that does not fit.
    """
    config = cips_config_from_reference(state, mapping_lr_multiplier=mapping_lr_multiplier)
    generator = CIPS(config)
    load_renamed(generator, unwrapped(state, GENERATOR), cips_reference_names(config), GENERATOR)
    return generator


def cips_to_reference(generator: CIPS) -> dict[str, Tensor]:
    """The published state dict of a generator: the inverse of `cips_from_reference`."""
    return wrapped(renamed(generator, cips_reference_names(generator.config)))
