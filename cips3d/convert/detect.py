"""What a published checkpoint holds: which networks, of which system, and of what size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cips3d.checkpoints.restricted_pickle import InertObject
from cips3d.convert.state import shortened, without_parallel_prefix
from cips3d.errors import UserError
from cips3d.models.cips import CIPSConfig
from cips3d.models.cips3d import CIPS3DConfig
from cips3d.models.family import AnyDiscriminatorConfig, AnyGeneratorConfig
from cips3d.models.pigan import PiGANConfig
from cips3d.models.residual_discriminator import ResidualDiscriminatorConfig
from cips3d.models.stylegan2 import StyleGAN2Config

DISCRIMINATOR = "-discriminator"  # ends the names of their systems

# Keys (patterns) that the state dicts of one system have, and those of no other.
SIGNATURES: dict[str, tuple[str, ...]] = {
    "cips3d": (r"inr_net\.network\.4\.mod1\.weight",),
    "cips3d-discriminator": (r"((main|aux)_disc\.)?conv_in\.4\.equal_conv\.weight",),
    "pigan": (r"siren\.color_layer_sine\.layer\.weight",),
    "pigan-discriminator": (r"fromRGB\.0\.model\.0\.weight", r"final_layer\.weight"),
    "cips": (r"lff\.ffm\.conv\.weight", r"emb\.input"),
    "stylegan2": (r"input\.input", r"to_rgb1\.conv\.weight"),
    "stylegan2-discriminator": (r"convs\.0\.0\.weight", r"final_linear\.0\.weight"),
}

SYSTEM_NAMES = {"cips3d": "CIPS-3D", "pigan": "pi-GAN", "cips": "CIPS", "stylegan2": "StyleGAN2"}

MAX_DEPTH = 4  # of dictionaries in each other
MAX_NAME = 200  # letters
MAX_ENTRIES = 1000  # that are dictionaries or no tensors; dictionaries that hold each other would go on for ever
MAX_WEIGHTS = 100_000  # tensors in all networks of a file, which may share parts, and the same dictionary
MAX_MODULES = 10_000  # parts of a network that was saved whole; modules that hold each other would go on for ever


@dataclass(frozen=True)
class Network:
    """Weights that a file holds under a name."""

    label: str
    """where in the file they are, with dots; empty: they are all that it holds"""
    state: dict[str, Tensor]
    """by the original's names, in its order"""
    module: InertObject | None = None
    """the network itself, where it was saved whole"""


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    networks: tuple[Network, ...]
    others: tuple[str, ...]
    """names of what is not a network: optimizers, arguments"""
    step: int | None
    """training steps taken, where the file tells"""


def contents_of(loaded: Any) -> Contents:
    """The networks in what `read_torch_file` gives.

    Raises:
        UserError: there are absurdly many entries, or a network that was saved whole has absurdly many parts.
    """
    networks, others = _collected(loaded, "", 0)
    return Contents(tuple(networks), tuple(others), _step_of(loaded))


def _collected(value: Any, label: str, depth: int) -> tuple[list[Network], list[str]]:
    """The networks at and below an entry, and the names of all else there."""
    if _is_module(value):
        return [Network(label, _named(module_state(value)), value)], []
    if not isinstance(value, dict) or "param_groups" in value or depth == MAX_DEPTH:
        return [], [label]
    networks: list[Network] = []
    others: list[str] = []
    tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
    for key, item in value.items():
        if key not in tensors:
            found, left = _collected(item, f"{label}.{_printed(key)}" if label else _printed(key), depth + 1)
            networks += found
            others += left
            if sum(len(network.state) for network in networks) > MAX_WEIGHTS:
                raise UserError(f"its networks have more than {MAX_WEIGHTS} weights, which is absurd")
        if len(networks) + len(others) > MAX_ENTRIES:
            raise UserError(f"it has more than {MAX_ENTRIES} entries, which is absurd")
    if networks:
        return networks, others + [f"{label}.{_printed(key)}" if label else _printed(key) for key in tensors]
    if tensors:
        return [Network(label, _named(tensors))], others
    return [], [label] if label else others


def _is_module(value: Any) -> bool:
    return isinstance(value, InertObject) and isinstance(value.attributes.get("_modules"), dict)


def _printed(key: object) -> str:
    """A name that can be shown: what a file says must not play with the terminal."""
    name = str(key)
    return name if name.isprintable() and len(name) <= MAX_NAME else f"{name[:MAX_NAME]!r}"


def _named(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the names of the network itself."""
    for name in state:
        if _printed(name) != name:
            raise UserError(f"it holds weights of an absurd name, {_printed(name)}")
    return without_parallel_prefix(state)


def _step_of(loaded: Any) -> int | None:
    """Steps, as pi-GAN's modules count them and CIPS-3D's checkpoints note them beside the networks."""
    attributes = loaded.attributes if isinstance(loaded, InertObject) else loaded
    if not isinstance(attributes, dict):
        return None
    beside = attributes.get("state_dict")
    candidates = [attributes.get("step"), beside.get("step") if isinstance(beside, dict) else None]
    steps = [step for step in candidates if type(step) is int and 0 <= step < 1 << 63]
    return steps[0] if steps else None


def module_parts(module: InertObject) -> Iterator[tuple[str, InertObject]]:
    """A module that was saved whole and all modules in it with their names, in the order of torch's `modules()`.

    Raises:
        UserError: there are absurdly many.
    """
    waiting, count = [("", module)], 0
    while waiting:
        name, part = waiting.pop()
        count += 1
        if count > MAX_MODULES:
            raise UserError(f"its network has more than {MAX_MODULES} parts, which is absurd")
        if len(name) > MAX_NAME:  # parts may lie in each other, and names grow
            raise UserError(f"its network has a part of an absurd name, {_printed(name)}")
        yield name, part
        children = [(key, child) for key, child in part.attributes["_modules"].items() if _is_module(child)]
        waiting += [(f"{name}.{key}" if name else str(key), child) for key, child in reversed(children)]


def module_parameters(module: InertObject) -> dict[str, Tensor]:
    """The parameters of a module that was saved whole, in the order of torch's `parameters()`."""
    return dict(_held(module, "_parameters"))


def module_state(module: InertObject) -> dict[str, Tensor]:
    """The state dict of a module that was saved whole."""
    return dict(_held(module, "_parameters", "_buffers"))


def _held(module: InertObject, *kinds: str) -> Iterator[tuple[str, Tensor]]:
    count = 0
    for name, part in module_parts(module):
        passing = part.attributes.get("_non_persistent_buffers_set")
        for kind in kinds:
            held = part.attributes.get(kind)
            for key, value in held.items() if isinstance(held, dict) else ():
                if isinstance(value, Tensor) and not (isinstance(passing, set) and key in passing):
                    count += 1
                    if count > MAX_WEIGHTS:
                        raise UserError(f"its network has more than {MAX_WEIGHTS} weights, which is absurd")
                    yield (f"{name}.{key}" if name else str(key)), value


def averages_of(loaded: Any) -> list[Tensor] | None:
    """The averaged parameters, without names, of an `ExponentialMovingAverage` of torch_ema or of its state dict."""
    attributes = loaded.attributes if isinstance(loaded, InertObject) else loaded
    shadows = attributes.get("shadow_params") if isinstance(attributes, dict) else None
    if isinstance(shadows, list) and shadows and all(isinstance(shadow, Tensor) for shadow in shadows):
        return shadows
    return None


def with_averages(network: Network, averages: list[Tensor]) -> Network:
    """The network with its averaged parameters, which lie in the parameters' order.

    Raises:
        UserError: there are more or fewer, or one has another shape.
    """
    parameters = network.state if network.module is None else without_parallel_prefix(module_parameters(network.module))
    if len(averages) != len(parameters):
        raise UserError(f"it averages {len(averages)} parameters where the generator has {len(parameters)}")
    for (name, parameter), average in zip(parameters.items(), averages, strict=True):
        if parameter.shape != average.shape:
            raise UserError(
                f"its average of {name} has shape {list(average.shape)} where {list(parameter.shape)} is needed"
            )
    return replace(network, state={**network.state, **dict(zip(parameters, averages, strict=True))})


def box_side_of(module: InertObject) -> float | None:
    """Side of the cube that a pi-GAN generator which was saved whole scales to [-1, 1]³; None: it does not."""
    for _, part in module_parts(module):
        scale = part.attributes.get("scale_factor")
        if part.kind.name == "UniformBoxWarp":
            return 2 / scale if isinstance(scale, float) and scale > 0 else PiGANConfig.box_side
    return None


def detect_system(state: Mapping[str, Tensor]) -> str:
    """The system whose state dict this is: one of `SIGNATURES`.

    Raises:
        UserError: it is none that this package knows.
    """
    matching = [
        system
        for system, patterns in SIGNATURES.items()
        if all(any(re.fullmatch(pattern, key) for key in state) for pattern in patterns)
    ]
    if not matching:
        raise UserError(
            f"its weights {shortened(list(state))} are those of no system known here; known are {', '.join(SIGNATURES)}"
        )
    if len(matching) > 1:
        raise UserError(f"its weights could be those of {' or '.join(matching)}; choose one with --system")
    return matching[0]


def is_discriminator(system: str) -> bool:
    return system.endswith(DISCRIMINATOR)


def system_name(system: str) -> str:
    """The published name of a system."""
    return SYSTEM_NAMES[system.removesuffix(DISCRIMINATOR)]


def describe(config: AnyGeneratorConfig | AnyDiscriminatorConfig) -> str:
    """The dimensions of a network, in words."""
    if isinstance(config, CIPS3DConfig):
        inr = f"{config.inr_blocks} blocks of {config.inr_width}"
        return f"{config.nerf_width}-wide NeRF, {config.features} features, {inr}"
    if isinstance(config, PiGANConfig):
        grid = "" if config.grid_resolution is None else f"{config.grid_resolution}³ embeddings, "
        box = f"a box of {config.box_side:g}" if config.box_warp else "no box"
        return f"{config.layers} layers of {config.width}, {grid}{box}"
    if isinstance(config, CIPSConfig):
        size = f"{config.resolution} x {config.resolution}"
        return f"{config.variant} variant, {size}, blocks of {_run(config.block_widths)}"
    if isinstance(config, StyleGAN2Config):
        return f"{config.resolution} x {config.resolution}, {_run(config.channels.values())} channels"
    size = f"{config.resolution_max} x {config.resolution_max}"
    if isinstance(config, ResidualDiscriminatorConfig):
        aux = "" if config.aux_channels is None else f"; auxiliary {_run(config.aux_channels.values())}"
        sizes = f"up to {size}" if config.progressive else size
        return f"{sizes}, {_run(config.main_channels.values())} channels{aux}"
    kind = f"{'strided' if config.strided else 'pooled'}{', coordinates' if config.coord_conv else ''}"
    return f"up to {size}, {kind}, {config.outputs} output{'s' if config.outputs > 1 else ''}"


def _run(widths: Iterable[int]) -> str:
    """Widths in their order, each once: 512, 512, 512, 256 as 512-256."""
    shown: list[int] = []
    for width in widths:
        if not shown or shown[-1] != width:
            shown.append(width)
    return "-".join(str(width) for width in shown)
