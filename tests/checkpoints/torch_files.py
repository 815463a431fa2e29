"""Files as `torch.save` writes them, made by hand around pickles of any kind."""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from cips3d.checkpoints.torch_file import LEGACY_MAGIC, LEGACY_PROTOCOL

Writer = Callable[[Path, bytes], None]


def write_zip(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None) -> None:
    """A file in the zip format whose object is a given pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, value in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", value)
        archive.writestr("archive/version", "3\n")


def write_legacy(path: Path, pickled: bytes, storages: Mapping[str, tuple[int, bytes]] | None = None) -> None:
    """A file in the format before whose object is a given pickle; storages have a number of elements and bytes."""
    storages = storages or {}
    header = (LEGACY_MAGIC, LEGACY_PROTOCOL, {"protocol_version": 1001, "little_endian": True})
    content = b"".join(pickle.dumps(part, protocol=2) for part in header) + pickled
    content += pickle.dumps(list(storages), protocol=2)
    for numel, value in storages.values():
        content += numel.to_bytes(8, "little") + value
    path.write_bytes(content)


def write_plain(path: Path, pickled: bytes) -> None:
    path.write_bytes(pickled)


@contextmanager
def stand_in_classes(**names: str) -> Iterator[dict[str, type]]:
    """Classes that pickles find under given names while the context lasts: `stand_in_classes(Siren="siren.siren")`."""
    made: dict[str, type] = {}
    modules: dict[str, ModuleType | None] = {}
    for name, module in names.items():
        base = object if module.startswith("torch_ema") else nn.Module
        made[name] = type(name, (base,), {"__module__": module})
        for parent in (module.partition(".")[0], module):
            modules.setdefault(parent, sys.modules.get(parent))
            sys.modules[parent] = ModuleType(parent)
    for name, module in names.items():
        setattr(sys.modules[module], name, made[name])
    try:
        yield made
    finally:
        for module, before in modules.items():
            del sys.modules[module]
            if before is not None:
                sys.modules[module] = before


def module_of(state: Mapping[str, Tensor], classes: Mapping[str, type]) -> nn.Module:
    """A tree of modules with the parameters of a state dict; `classes` gives those of some paths ("" is the root)."""

    def made(path: str) -> nn.Module:
        return classes.get(path, nn.Module)()

    root = made("")
    for name, value in state.items():
        *parents, leaf = name.split(".")
        module, path = root, ""
        for parent in parents:
            path = f"{path}.{parent}" if path else parent
            if not hasattr(module, parent):
                module.add_module(parent, made(path))
            module = getattr(module, parent)
        module.register_parameter(leaf, nn.Parameter(value))
    return root
