"""Names and shapes, in published state dicts, of the layers that StyleGAN2 and CIPS share."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from cips3d.convert.state import count_keys, misshapen, parameter_names, require_keys

MODULATED_WEIGHT = re.compile(r"(?!lff\.).*\bconv\.weight")  # [1, out, in, k, k]; ours has no leading 1
RGB_BIAS = re.compile(r"to_rgb\w*(\.\d+)?\.bias")  # [1, 3, 1, 1]; ours is [3]


def styled_conv_names(ours: str, original: str) -> dict[str, str]:
    """The names of a `StyledConv`'s parameters -> those in the published state dict."""
    return {
        f"{ours}.conv.weight": f"{original}.conv.weight",
        **parameter_names(f"{ours}.conv.modulation", f"{original}.conv.modulation"),
        f"{ours}.noise_strength": f"{original}.noise.weight",
        f"{ours}.bias": f"{original}.activate.bias",
    }


def to_rgb_names(ours: str, original: str) -> dict[str, str]:
    """The same of a `ToRGB`."""
    return {
        f"{ours}.conv.weight": f"{original}.conv.weight",
        **parameter_names(f"{ours}.conv.modulation", f"{original}.conv.modulation"),
        f"{ours}.bias": f"{original}.bias",
    }


def mapping_names(layers: int) -> dict[str, str]:
    """The same of a generator's `StyleMapping`; layer 0 of the published one is its pixel norm."""
    names: dict[str, str] = {}
    for k in range(layers):
        names |= parameter_names(f"style_mapping.linears.{k}", f"style.{k + 1}")
    return names


def count_layers(state: Mapping[str, Tensor], name: str, what: str, first: int = 0) -> int:
    """How many layers there are whose key is `name` with a number in place of its {}, from `first` on.

    Raises:
        UserError: they are not numbered without gaps. A number that is only believed could be as large as it likes.
    """
    count = count_keys(state, re.escape(name).replace(r"\{\}", r"\d+"))
    require_keys(state, (name.format(first + k) for k in range(count)), what)
    return count


def unwrapped(state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The state with shapes as ours are: without the dimensions of one that the published modules add.

    Raises:
        UserError: a weight or bias has not got them.
    """
    made = dict(state)
    for key, value in state.items():
        if MODULATED_WEIGHT.fullmatch(key):
            if value.dim() != 5 or len(value) != 1:
                raise misshapen(what, key, value, "[1, out, in, k, k] is")
            made[key] = value[0]
        elif RGB_BIAS.fullmatch(key):
            if value.shape != (1, 3, 1, 1):
                raise misshapen(what, key, value, "[1, 3, 1, 1] is")
            made[key] = value.view(3)
    return made


def wrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `unwrapped`."""
    made = dict(state)
    for key, value in state.items():
        if MODULATED_WEIGHT.fullmatch(key):
            made[key] = value[None]
        elif RGB_BIAS.fullmatch(key):
            made[key] = value.view(1, 3, 1, 1)
    return made
