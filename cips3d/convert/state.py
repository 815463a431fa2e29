"""State dicts by the names of another system: read into a module, and written from one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cips3d.errors import UserError

MINIBATCH_STD_GROUP = 4  # the published group where minibatch statistics are on; no weight tells it
PARALLEL_PREFIX = "module."  # of the names in networks that were saved from under DataParallel


def without_parallel_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state by the names of the network itself, where it was saved from under DataParallel."""
    if state and all(name.startswith(PARALLEL_PREFIX) for name in state):
        return {name.removeprefix(PARALLEL_PREFIX): value for name, value in state.items()}
    return dict(state)


def require_keys(state: Mapping[str, Tensor], keys: Iterable[str], what: str) -> None:
    """Raise `UserError` unless all keys are there."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise UserError(f"the state dict is not that of {what}: {listed(missing)} missing")


def shape_of(state: Mapping[str, Tensor], key: str, dimensions: int, what: str) -> tuple[int, ...]:
    """The shape of an entry.

    Raises:
        UserError: it is missing, empty, or has another number of dimensions.
    """
    require_keys(state, [key], what)
    if state[key].dim() != dimensions:
        raise misshapen(what, key, state[key], f"{dimensions} dimensions are")
    if state[key].numel() == 0:
        raise misshapen(what, key, state[key], "sizes above 0 are")
    return tuple(state[key].shape)


def misshapen(what: str, key: str, value: Tensor, needed: str) -> UserError:
    found = list(value.shape)
    return UserError(f"the state dict is not that of {what}: {key} has shape {found} where {needed} needed")


def parameter_names(ours: str, original: str) -> dict[str, str]:
    """The names of a layer's weight and bias -> those in the published state dict."""
    return {f"{ours}.{kind}": f"{original}.{kind}" for kind in ("weight", "bias")}


def count_keys(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many keys match a regular expression as a whole."""
    return sum(re.fullmatch(pattern, key) is not None for key in state)


def load_renamed(module: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], what: str) -> None:
    """Fill `module` from `state`, where parameter `ours` is called `names[ours]`.

    Raises:
        UserError: keys are missing or left over, or a shape does not fit.
    """
    require_keys(state, names.values(), what)
    left_over = sorted(set(state) - set(names.values()))
    if left_over:
        raise UserError(f"the state dict is not that of {what}: {listed(left_over)} unknown")
    parameters = module.state_dict()
    with torch.no_grad():
        for ours, original in names.items():
            if parameters[ours].shape != state[original].shape:
                raise misshapen(what, original, state[original], f"{list(parameters[ours].shape)} is")
            parameters[ours].copy_(state[original])


def renamed(module: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Copies of a module's weights, where parameter `ours` is called `names[ours]`: the inverse of `load_renamed`."""
    state = module.state_dict()
    return {original: state[ours].detach().clone() for ours, original in names.items()}


def require_published(what: str, settings: Mapping[str, tuple[object, object]]) -> None:
    """Raise `UserError`, naming them, where settings that no state dict tells are not the published ones.

    Args:
        what: network is to be written.
        settings: its value and the published one, by name.
    """
    others = [
        f"{name} {_shown(ours)} (published: {_shown(published)})"
        for name, (ours, published) in settings.items()
        if not _same(ours, published)
    ]
    if others:
        raise UserError(
            f"{what} with {', '.join(others)} has no published state dict; write one that has the published values"
        )


def published_group(is_used: bool) -> int:
    """`minibatch_std_group` of a published discriminator with minibatch statistics, or of one without."""
    return MINIBATCH_STD_GROUP if is_used else 0


def _same(ours: object, published: object) -> bool:
    if isinstance(ours, float) and isinstance(published, float):
        return math.isclose(ours, published, rel_tol=1e-6)  # as much as is shown of them
    return ours == published


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def shortened(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def listed(names: list[str]) -> str:
    """The first few names as the subject of a sentence, with its verb: "a is", "a, b are"."""
    return f"{shortened(names)} {'are' if len(names) > 1 else 'is'}"
