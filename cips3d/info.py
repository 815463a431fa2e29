"""The command that tells versions, devices, and what computes each operation: `python -m cips3d.info`."""

from __future__ import annotations

import ctypes
import importlib
import json
import pkgutil
import platform
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

import cips3d
import cips3d.ops
from cips3d.ops import kernels, library
from cips3d.process.ending import exit_on_user_error
from cips3d.process.versions import processor

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
DRIVER_RELEASE = Path("/proc/driver/nvidia/version")

Backend = Literal["kernel", "reference"]

DESCRIPTION = """\
Print versions and devices, and for each operation that has a kernel what computes it: the kernel or plain PyTorch (the
reference), and why not the kernel. Paste it into a bug report.
"""


@dataclass(frozen=True)
class InfoConfig:
    """How to print it."""

    json: bool = False
    """As JSON."""


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver, as far as it answers."""

    cuda: str | None
    """The newest CUDA version that it supports."""
    release: str | None
    """Its own version."""
    why_not: str | None
    """Why it does not answer."""


@dataclass(frozen=True)
class Kernels:
    """The compiled module."""

    path: str | None
    architectures: list[str]
    dtypes: list[str]
    """What the kernels compute, those of 16 bits in activations and features; the reference computes all others."""
    why_not: str | None
    """Why there is none."""


@dataclass(frozen=True)
class Device:
    """Where tensors can be."""

    name: str
    hardware: str
    capability: str | None
    memory_bytes: int | None
    backend: Backend
    why_not_kernel: str | None


@dataclass(frozen=True)
class Info:
    """Everything that is printed."""

    cips3d: str
    cips3d_path: str
    python: str
    python_path: str
    platform: str
    torch: str
    torch_cuda: str | None
    why_no_cuda_device: str | None
    driver: Driver
    kernels: Kernels
    devices: list[Device]
    operations: dict[str, dict[str, Backend]]
    """Operation -> device -> what computes it there."""


def collect() -> Info:
    """Look at everything there is to know; each call looks again."""
    devices, why_no_cuda_device = find_devices()
    return Info(
        cips3d=cips3d.__version__,
        cips3d_path=str(Path(cips3d.__file__).parent),
        python=platform.python_version(),
        python_path=sys.executable,
        platform=platform.platform(),
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        why_no_cuda_device=why_no_cuda_device,
        driver=find_driver(),
        kernels=find_kernels(),
        devices=devices,
        operations={name: {device.name: device.backend for device in devices} for name in operations()},
    )


def operations() -> list[str]:
    """The operations that have a kernel, with all modules of `cips3d.ops` loaded."""
    for module in pkgutil.iter_modules(cips3d.ops.__path__):
        importlib.import_module(f"cips3d.ops.{module.name}")
    return sorted(library.OPS)


def find_kernels() -> Kernels:
    """The compiled module, or why there is none."""
    module = kernels.compiled()
    return Kernels(
        path=None if module is None else module.__file__,
        architectures=[] if module is None else list(filter(None, module.architectures.split(";"))),
        dtypes=[str(dtype).removeprefix("torch.") for dtype in kernels.DTYPE_CODES],
        why_not=kernels.why_not_compiled(),
    )


def find_devices() -> tuple[list[Device], str | None]:
    """The processor and the CUDA devices that PyTorch finds, and where it finds none of these, why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    devices = [_device(torch.device("cpu"), processor(), None, None)]
    if not available:
        if torch.version.cuda is None:
            return devices, "this PyTorch was built without CUDA"
        told = " ".join(str(warning.message) for warning in caught)
        return devices, "PyTorch finds none" + (f": {' '.join(told.split())}" if told else "")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        devices.append(_device(torch.device("cuda", index), properties.name, capability, properties.total_memory))
    return devices, None


def _device(device: torch.device, hardware: str, capability: str | None, memory_bytes: int | None) -> Device:
    reason = kernels.why_not_on(device)
    backend: Backend = "kernel" if reason is None else "reference"
    return Device(str(device), hardware, capability, memory_bytes, backend, reason)


def find_driver() -> Driver:
    """Ask NVIDIA's driver for its versions; no device is touched."""
    try:
        library_handle = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return Driver(None, None, f"{DRIVER_LIBRARY} cannot be loaded")
    number = ctypes.c_int()
    error = library_handle.cuDriverGetVersion(ctypes.byref(number))
    if error != 0:
        return Driver(None, None, f"{DRIVER_LIBRARY} reports error {error}")
    found = re.search(r"Module.*?\s(\d+\.[\d.]+)\s", DRIVER_RELEASE.read_text()) if DRIVER_RELEASE.exists() else None
    return Driver(f"{number.value // 1000}.{number.value % 1000 // 10}", found[1] if found else None, None)


def as_text(info: Info) -> str:
    """`Info` for people."""
    built = f"built for CUDA {info.torch_cuda}" if info.torch_cuda else "built without CUDA"
    rows = [
        ("cips3d", f"{info.cips3d}  {info.cips3d_path}"),
        ("Python", f"{info.python}  {info.python_path}"),
        ("system", info.platform),
        ("PyTorch", f"{info.torch}  {built}"),
        ("driver", _driver_text(info.driver)),
        ("kernels", _kernels_text(info.kernels)),
        *((device.name, _device_text(device)) for device in info.devices),
    ]
    if info.why_no_cuda_device:
        rows.append(("cuda", f"no device: {info.why_no_cuda_device}"))
    lines = _aligned(rows)
    names = [device.name for device in info.devices]
    heading = ("operation", *names)
    lines += ["", *_aligned([heading, *((name, *(on[d] for d in names)) for name, on in info.operations.items())])]
    for device in info.devices:
        if device.why_not_kernel is not None:
            lines.append(f"no kernels on {device.name}: {device.why_not_kernel}")
    if any(device.backend == "kernel" for device in info.devices):
        dtypes = ", ".join(info.kernels.dtypes)
        lines.append(f"kernels compute {dtypes} (16 bits in activations and features); the reference all else")
    return "\n".join(lines)


def _driver_text(driver: Driver) -> str:
    if driver.why_not is not None:
        return f"none: {driver.why_not}"
    return f"{driver.release or 'of unknown release'}, for CUDA up to {driver.cuda}"


def _kernels_text(found: Kernels) -> str:
    if found.why_not is not None:
        return f"none: {found.why_not}"
    return f"compiled for {' '.join(found.architectures)}  {found.path}"


def _device_text(device: Device) -> str:
    text = device.hardware
    if device.capability is not None:
        text += f", compute capability {device.capability}"
    if device.memory_bytes is not None:
        text += f", {device.memory_bytes / 2**30:.0f} GiB"
    return text


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, every column but the last as wide as its longest text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line (default: this process's), print and return the exit code."""

    def command() -> int:
        config = tyro.cli(InfoConfig, prog="python -m cips3d.info", description=DESCRIPTION, args=argv)
        info = collect()
        print(json.dumps(asdict(info), indent=2) if config.json else as_text(info))
        return 0

    return exit_on_user_error(command)


if __name__ == "__main__":
    sys.exit(main())
