"""Converted checkpoints: the networks of a published file in this package's names, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cips3d.checkpoints.rendering_settings import RenderingSettings
from cips3d.checkpoints.tensor_files import FileKind, check_version, open_tensors, tensors_in, write_tensors
from cips3d.plain import from_plain, to_plain

FORMAT = "cips3d converted checkpoint"
FORMAT_VERSION = 1
KIND = FileKind(
    "converted checkpoint",
    source="a file that python -m cips3d.convert wrote",
    renewal="convert the source once more",
    version=FORMAT_VERSION,
)
PARTS = ("generator", "generator_ema", "discriminator")  # prefixes of the tensors' names

State = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A file that weights came from."""

    file: str
    """its name, without folders"""
    sha256: str


@dataclass(frozen=True, eq=False)
class Converted:
    """What a converted checkpoint holds; state dicts are by the names of this package's modules."""

    system: str
    """cips3d, pigan, cips or stylegan2"""
    rendering: RenderingSettings
    sources: tuple[Source, ...]
    generator_config: dict[str, Any] | None
    """plain values of the generators' configuration (`cips3d.plain.from_plain` reads them)"""
    discriminator_config: dict[str, Any] | None
    """the same for the discriminator"""
    step: int | None = None
    """training steps taken, where the source tells"""
    states: dict[str, State] = field(default_factory=dict)
    """those of `PARTS` that there are"""

    @property
    def generator_state(self) -> State | None:
        """The averaged generator or, without it, the generator; None: there is neither."""
        return self.states.get("generator_ema", self.states.get("generator"))


def write_converted(path: Path, converted: Converted) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: the place cannot be written, or the disk is full.
    """
    tensors = {f"{part}.{name}": value for part, state in converted.states.items() for name, value in state.items()}
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "system": converted.system,
        "rendering": json.dumps(to_plain(converted.rendering)),
        "sources": json.dumps(to_plain(converted.sources)),
        "generator_config": json.dumps(converted.generator_config),
        "discriminator_config": json.dumps(converted.discriminator_config),
        "step": json.dumps(converted.step),
    }
    write_tensors(path, tensors, metadata)


def read_converted(path: str | Path) -> Converted:
    """Read a file that `python -m cips3d.convert` wrote.

    Raises:
        UserError: there is no such file, it is truncated, it is of another kind, or of a newer version.
    """
    with open_tensors(path, KIND) as file:
        metadata = file.metadata() or {}
        check_version(path, KIND, int(metadata["format_version"]) if metadata.get("format") == FORMAT else None)
        return _converted_of(metadata, tensors_in(file))


def _converted_of(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Converted:
    states: dict[str, State] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part not in PARTS:
            raise ValueError(f"unknown part {part}")
        states.setdefault(part, {})[rest] = value
    step = json.loads(metadata["step"])
    return Converted(
        system=metadata["system"],
        rendering=from_plain(RenderingSettings, json.loads(metadata["rendering"])),
        sources=from_plain(tuple[Source, ...], json.loads(metadata["sources"])),
        generator_config=_config_of(metadata, "generator", "generator" in states or "generator_ema" in states),
        discriminator_config=_config_of(metadata, "discriminator", "discriminator" in states),
        step=None if step is None else int(step),
        states=states,
    )


def _config_of(metadata: Mapping[str, str], part: str, is_there: bool) -> dict[str, Any] | None:
    config = json.loads(metadata[f"{part}_config"])
    if isinstance(config, dict) != is_there:
        raise ValueError(f"the weights and the configuration of the {part} do not go together")
    return config
