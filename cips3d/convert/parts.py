"""Published files as the parts of a converted checkpoint: which network of which file becomes which part."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cips3d.checkpoints.torch_file import read_torch_file
from cips3d.convert.detect import (
    DISCRIMINATOR,
    Contents,
    Network,
    averages_of,
    contents_of,
    detect_system,
    is_discriminator,
    system_name,
    with_averages,
)
from cips3d.convert.state import shortened
from cips3d.errors import UserError

AVERAGED = re.compile(r"(^|[^a-z])ema(?![a-z])")  # in the name of a network or of a file
DISCRIMINATORS_NAME = re.compile(r"d|.*disc.*")  # of a network in a file
DISCRIMINATOR_OF = {"cips": "stylegan2-discriminator"}  # others have their own
PART_NAMES = {"generator": "generator", "generator_ema": "averaged generator", "discriminator": "discriminator"}


@dataclass(frozen=True)
class Part:
    """A network on its way into a part of the result."""

    network: Network
    system: str
    file: Path


def gather(
    file: Path, loaded: Any, *, ema: Path | None = None, discriminator: Path | None = None, given: str | None = None
) -> tuple[dict[str, Part], Contents]:
    """The networks of all files by the parts of the result, and what else the first file holds.

    Args:
        file: the published checkpoint.
        loaded: what is in it.
        ema: the averaged generator's, where it is a file of its own.
        discriminator: the discriminator's, likewise.
        given: the system of the generators; None: it is detected.

    Raises:
        UserError: a file cannot be read, or does not hold what it should.
    """
    if averages_of(loaded) is not None:
        raise UserError(f"{file} holds averages without names; give the file of the generator, and this one with --ema")
    contents = contents_in(file, loaded)
    parts: dict[str, Part] = {}
    for network in contents.networks:
        system = system_of(network, file, given)
        name = part_name(network, system, file)
        if name in parts:
            first = parts[name].network.label
            raise UserError(f"{file}: both {first} and {network.label} could be the {PART_NAMES[name]}")
        parts[name] = Part(network, system, file)
    if ema is not None:
        parts["generator_ema"] = averaged_part(ema, parts, given)
        _check_same_system(parts)
    if discriminator is not None:
        parts["discriminator"] = lone_part(discriminator, None, discriminator=True)
    return {name: parts[name] for name in PART_NAMES if name in parts}, contents


def _check_same_system(parts: dict[str, Part]) -> None:
    """Raise `UserError` for the average of a generator of another system."""
    if "generator" not in parts:
        return
    generator, average = parts["generator"], parts["generator_ema"]
    if generator.system != average.system:
        raise UserError(
            f"--ema {average.file} is a generator of {system_name(average.system)}, and {generator.file} one of "
            f"{system_name(generator.system)}; give the average of the same generator"
        )


def contents_in(path: Path, loaded: Any) -> Contents:
    """The networks of a file, of which there is at least one."""
    try:
        contents = contents_of(loaded)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not contents.networks:
        names = [name for name in contents.others if name]
        raise UserError(f"{path} holds no network{f', only {shortened(names)}' if names else ''}")
    return contents


def system_of(network: Network, path: Path, given: str | None = None) -> str:
    """The system of a network: as given, or detected."""
    if given is not None:
        judges = DISCRIMINATORS_NAME.fullmatch(last_name(network)) is not None and not is_discriminator(given)
        return DISCRIMINATOR_OF.get(given, f"{given}{DISCRIMINATOR}") if judges else given
    try:
        return detect_system(network.state)
    except UserError as error:
        raise UserError(f"{path}: {f'{network.label}: ' if network.label else ''}{error}") from None


def last_name(network: Network) -> str:
    return network.label.rpartition(".")[2].lower()


def part_name(network: Network, system: str, path: Path) -> str:
    """The part of the result that a network becomes.

    Averages are told by the network's name or, where it has none, by the file's.
    """
    if is_discriminator(system):
        return "discriminator"
    return "generator_ema" if AVERAGED.search(last_name(network) or path.stem.lower()) else "generator"


def averaged_part(path: Path, parts: dict[str, Part], given: str | None) -> Part:
    """The averaged generator of --ema: averages without names go onto the generator."""
    loaded = read_torch_file(path)
    averages = averages_of(loaded)
    if averages is None:
        return lone_part(path, given, discriminator=False)
    if "generator" not in parts:
        raise UserError(f"--ema {path} holds averages without names; give it with the file of the generator itself")
    try:
        network = with_averages(parts["generator"].network, averages)
    except UserError as error:
        raise UserError(f"--ema {path} does not go with {parts['generator'].file}: {error}") from None
    return Part(network, parts["generator"].system, path)


def lone_part(path: Path, given: str | None, *, discriminator: bool) -> Part:
    """The one network of its kind in a file; of a generator and its average, the average."""
    networks = contents_in(path, read_torch_file(path)).networks
    systems = [(network, system_of(network, path, given)) for network in networks]
    fitting = [Part(network, system, path) for network, system in systems if is_discriminator(system) == discriminator]
    averaged = [part for part in fitting if part_name(part.network, part.system, path) == "generator_ema"]
    chosen = averaged if len(averaged) == 1 else fitting
    if len(chosen) != 1:
        kind = "discriminator" if discriminator else "generator"
        raise UserError(f"{path} holds {len(chosen) or 'no'} {kind}{'s' if chosen else ''} where one is needed")
    return chosen[0]
