"""The published CIPS-3D discriminators' state dicts, read into `ResidualDiscriminator` and written from it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from cips3d.convert.blur import blur_kernel, without_blur_kernels
from cips3d.convert.state import (
    load_renamed,
    parameter_names,
    published_group,
    renamed,
    require_keys,
    require_published,
    shape_of,
)
from cips3d.errors import UserError
from cips3d.models.residual_discriminator import RESOLUTION_MIN, ImageDiscriminator, ResidualDiscriminator

WHAT = "a CIPS-3D discriminator"
MAIN_PREFIX, AUX_PREFIX = "main_disc.", "aux_disc."  # of the published module that holds both
BLUR_KEY = re.compile(r"convs\.\d+\.(conv1|conv2|skip)\.down_blur\.kernel")


def discriminator_from_reference(state: Mapping[str, Tensor]) -> ResidualDiscriminator:
    """A `ResidualDiscriminator` with the weights of a published state dict; dimensions are read off the shapes.

    Keys with the prefixes main_disc. and aux_disc. give both parts; without them, there is only a main part.
    Published discriminators of less than the largest resolution of their channel table have entries from RGB that lead
    nowhere, which are left out. The constant blur kernels may be missing. Where they are there, they tell in which
    convolution blocks downsample; otherwise it is the second in a main part and the first in an auxiliary one.

    Raises:
        UserError: keys are missing, unknown, or of a shape that does not fit.
    """
    main, aux = _below(state, MAIN_PREFIX), _below(state, AUX_PREFIX)
    if not main and not aux:
        return ResidualDiscriminator(_part_from_reference(state, is_aux=False))
    if len(main) + len(aux) != len(state):
        first = next(key for key in state if not key.startswith((MAIN_PREFIX, AUX_PREFIX)))
        raise UserError(
            f"the state dict is not that of CIPS-3D discriminators: {first} has neither "
            f"the prefix {MAIN_PREFIX} nor {AUX_PREFIX}"
        )
    return ResidualDiscriminator(
        _part_from_reference(main, is_aux=False, prefix=MAIN_PREFIX),
        _part_from_reference(aux, is_aux=True, prefix=AUX_PREFIX) if aux else None,
    )


def discriminator_reference_names(discriminator: ResidualDiscriminator) -> dict[str, str]:
    """Names of our parameters -> names in the published state dict (prefixed where there are two parts)."""
    return {
        f"{name}.{ours}": prefix + original
        for name, prefix, part in _parts(discriminator)
        for ours, original in _part_names(part).items()
    }


def discriminator_to_reference(discriminator: ResidualDiscriminator) -> dict[str, Tensor]:
    """The published state dict, blur kernels included: the inverse of `discriminator_from_reference`.

    Raises:
        UserError: the published system has no such discriminator.
    """
    untold = (_untold(name, part) for name, _, part in _parts(discriminator))
    require_published(WHAT, {name: values for settings in untold for name, values in settings.items()})
    state = renamed(discriminator, discriminator_reference_names(discriminator))
    for _, prefix, part in _parts(discriminator):
        for resolution in part.blocks:
            for conv in ("conv1" if part.downsample_first else "conv2", "skip"):
                state[f"{prefix}convs.{resolution}.{conv}.down_blur.kernel"] = blur_kernel()
    return state


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _parts(discriminator: ResidualDiscriminator) -> list[tuple[str, str, ImageDiscriminator]]:
    """(our name, published prefix, module) of each part."""
    if discriminator.aux is None:
        return [("main", "", discriminator.main)]
    return [("main", MAIN_PREFIX, discriminator.main), ("aux", AUX_PREFIX, discriminator.aux)]


def _untold(name: str, part: ImageDiscriminator) -> dict[str, tuple[object, object]]:
    """A part's settings and the published ones, by attribute; the blur kernels show where it downsamples."""
    group, grows = part.minibatch_std_group, part.progressive or not part.blocks  # one entry serves one resolution
    return {
        f"{name}.minibatch_std_group": (group, published_group(group > 0)),
        f"{name}.predict_pose": (part.predict_pose, False),
        f"{name}.progressive": (grows, True),
    }


def _part_names(part: ImageDiscriminator) -> dict[str, str]:
    names: dict[str, str] = {}

    def activated(ours: str, original: str) -> None:
        names[f"{ours}.conv.weight"] = f"{original}.equal_conv.weight"
        names[f"{ours}.bias"] = f"{original}.flrelu.bias"

    for resolution in part.from_rgb:
        activated(f"from_rgb.{resolution}", f"conv_in.{resolution}")
    for resolution in part.blocks:
        for conv in ("conv1", "conv2"):
            activated(f"blocks.{resolution}.{conv}", f"convs.{resolution}.{conv}")
        names[f"blocks.{resolution}.skip.weight"] = f"convs.{resolution}.skip.equal_conv.weight"
    activated("final", "final_conv")
    return names | parameter_names("hidden", "space_linear") | parameter_names("output", "out_linear")


def _part_from_reference(state: Mapping[str, Tensor], *, is_aux: bool, prefix: str = "") -> ImageDiscriminator:
    what = f"{WHAT} (keys {prefix}*)" if prefix else WHAT
    blocks = (re.match(r"convs\.(\d+)\.", key) for key in state)
    resolution_max = max([RESOLUTION_MIN, *(int(match[1]) for match in blocks if match)])
    resolutions = [RESOLUTION_MIN << k for k in range((resolution_max // RESOLUTION_MIN).bit_length())]
    entries = ((re.match(r"conv_in\.(\d+)\.", key), key) for key in state)
    unused = {key for match, key in entries if match and int(match[1]) > resolution_max}
    state = {key: value for key, value in state.items() if key not in unused}
    from_rgb = {r: f"conv_in.{r}.equal_conv.weight" for r in resolutions}
    final = "final_conv.equal_conv.weight"
    require_keys(state, [*from_rgb.values(), final], what)
    channels = {r: shape_of(state, key, 4, what)[0] for r, key in from_rgb.items()}
    blurs = {key: value for key, value in state.items() if BLUR_KEY.fullmatch(key)}
    weights = without_blur_kernels(state, blurs, what)
    has_minibatch_std = shape_of(state, final, 4, what)[1] == channels[RESOLUTION_MIN] + 1
    part = ImageDiscriminator(
        resolutions[-1],
        channels,
        published_group(has_minibatch_std),
        downsample_first=_downsamples_first(blurs, is_aux),
    )
    load_renamed(part, weights, _part_names(part), what)
    return part


def _downsamples_first(blurs: Mapping[str, Tensor], is_aux: bool) -> bool:
    convs = {match[1] for key in blurs if (match := BLUR_KEY.fullmatch(key))} - {"skip"}
    if len(convs) > 1:
        raise UserError(
            "the state dict is not a CIPS-3D discriminator's: both convolutions of a block have blur kernels"
        )
    return convs == {"conv1"} if convs else is_aux
