"""The published pi-GAN discriminators' state dicts, read into `PiGANDiscriminator` and written from it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cips3d.convert.state import count_keys, load_renamed, parameter_names, renamed, require_keys, shape_of
from cips3d.errors import UserError
from cips3d.models.pigan_discriminator import RESOLUTION_MIN, PiGANDiscriminator, PiGANDiscriminatorConfig

WHAT = "a pi-GAN discriminator"
POSE_OUTPUTS = 2
UNUSED = ("pose_layer.weight", "pose_layer.bias")  # of the strided discriminators with one output; never applied


def pigan_discriminator_reference_names(config: PiGANDiscriminatorConfig) -> dict[str, str]:
    """Names of our parameters -> names in the published state dict, in the order of the original's parameters."""
    names: dict[str, str] = {}

    downwards = sorted(config.channels, reverse=True)  # the published layers are numbered from the largest on
    inner = ".conv" if config.coord_conv else ""
    for k, resolution in enumerate(downwards[:-1]):
        ours, original = f"blocks.{resolution}", f"layers.{k}"
        names |= parameter_names(f"{ours}.conv1", f"{original}.network.0{inner}")
        names |= parameter_names(f"{ours}.conv2", f"{original}.network.2{inner}")
        if config.strided or config.channels[resolution] != config.channels[resolution // 2]:
            names |= parameter_names(f"{ours}.shortcut", f"{original}.proj")
    for k, resolution in enumerate(downwards):
        names |= parameter_names(f"from_rgb.{resolution}", f"fromRGB.{k}.model.0")
    names |= parameter_names("output", "final_layer")
    return names


def pigan_discriminator_config_from_reference(
    state: Mapping[str, Tensor], *, strided: bool | None = None
) -> PiGANDiscriminatorConfig:
    """Widths and kind of a published discriminator; see `pigan_discriminator_from_reference`."""
    entries = count_keys(state, r"fromRGB\.\d+\.model\.0\.weight")
    from_rgb = [f"fromRGB.{k}.model.0.weight" for k in range(max(entries, 2))]
    require_keys(state, (*from_rgb, "final_layer.weight"), WHAT)
    widths = [shape_of(state, key, 4, WHAT)[0] for key in from_rgb]
    outputs = shape_of(state, "final_layer.weight", 4, WHAT)[0]
    if outputs == 2:
        raise UserError(f"the state dict is not that of {WHAT}: final_layer.weight has 2 outputs, not 1, 3 or more")
    predicts_pose = outputs > 1
    return PiGANDiscriminatorConfig(
        channels={RESOLUTION_MIN << (entries - 1 - k): width for k, width in enumerate(widths)},
        strided=_is_strided(state, widths, strided),
        coord_conv="layers.0.network.0.conv.weight" in state,
        predict_pose=predicts_pose,
        latent_dim=outputs - 1 - POSE_OUTPUTS if predicts_pose else 0,
    )


def pigan_discriminator_from_reference(state: Mapping[str, Tensor], strided: bool | None = None) -> PiGANDiscriminator:
    """A `PiGANDiscriminator` with the weights of a published state dict; all else is read off keys and shapes.

    The layer `pose_layer`, which some of the originals carry and never apply, is left out.

    Args:
        state: names and tensors as the original's `state_dict()` gives them.
        strided: whether blocks halve the resolution by a stride or by pooling. Only needed where no two neighbouring
            widths are equal: in all published ones some are, and strided blocks alone have a shortcut layer there.

    Raises:
        UserError: keys are missing, unknown, or of a shape that does not fit, or `strided` is needed or contradicts.
    """
    config = pigan_discriminator_config_from_reference(state, strided=strided)
    discriminator = PiGANDiscriminator(config)
    needed = {key: value for key, value in state.items() if key not in UNUSED}
    load_renamed(discriminator, needed, pigan_discriminator_reference_names(config), WHAT)
    return discriminator


def pigan_discriminator_to_reference(discriminator: PiGANDiscriminator) -> dict[str, Tensor]:
    """The published state dict of a discriminator: the inverse of `pigan_discriminator_from_reference`.

    The never-applied layer of the strided discriminators with one output gets zeros.
    """
    config = discriminator.config
    state = renamed(discriminator, pigan_discriminator_reference_names(config))
    if config.strided and not config.predict_pose:
        width = config.channels[RESOLUTION_MIN]
        weight, bias = UNUSED
        state[weight], state[bias] = torch.zeros(width, POSE_OUTPUTS), torch.zeros(width)
    return state


def _is_strided(state: Mapping[str, Tensor], widths: list[int], given: bool | None) -> bool:
    """Whether shortcuts have a layer where they would need none to match widths."""
    same = [k for k, (a, b) in enumerate(zip(widths, widths[1:], strict=False)) if a == b]
    found = {f"layers.{k}.proj.weight" in state for k in same}
    if len(found) > 1:
        raise UserError(
            f"the state dict is not that of {WHAT}: some shortcuts between equal widths have a layer, others do not"
        )
    if not found:
        if given is None:
            raise UserError(
                "this pi-GAN discriminator may be strided or pooled, since no two neighbouring widths are equal; "
                'give cips3d.convert.from_reference(state, "pigan-discriminator", strided=...) True or False'
            )
        return given
    strided = found.pop()
    if given is not None and given != strided:
        raise UserError(f"strided={given} contradicts the state dict, whose blocks are {_kind(strided)}")
    return strided


def _kind(strided: bool) -> str:
    return "strided" if strided else "pooled"
