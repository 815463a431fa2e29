"""The command `python -m cips3d.info`: what it prints is what the ops do."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from cips3d import __version__, info
from cips3d.ops import kernels, library


def compiled_for(architectures: str, refusal: str | None = None) -> ModuleType:
    """A module for some architectures, whose code starts on their devices unless the runtime says why not."""

    def multiprocessors(_device: int) -> int:
        if refusal is not None:
            raise RuntimeError(refusal)
        return 132

    module = ModuleType("cips3d._cuda")
    module.__file__ = "/site-packages/cips3d/_cuda.so"
    module.architectures = architectures  # type: ignore[attr-defined]
    module.multiprocessors = multiprocessors  # type: ignore[attr-defined]
    return module


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch reports one device of compute capability 9.0."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    properties = SimpleNamespace(name="H200", major=9, minor=0, total_memory=140 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)


def set_compiled(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None, why_not: str | None = None) -> None:
    monkeypatch.setattr(kernels, "_compiled", module)
    monkeypatch.setattr(kernels, "_why_not_compiled", why_not)


def test_a_fresh_process_lists_every_operation(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cips3d.info", "--json"]
    environ = os.environ | {"PYTHONPATH": str(Path(info.__file__).parents[1])}  # the package that is tested
    printed = json.loads(subprocess.check_output(command, cwd=tmp_path, env=environ, text=True, timeout=300))
    assert printed["cips3d"] == __version__
    assert printed["torch"] == torch.__version__
    assert set(printed["operations"]) == set(info.operations()) >= {"bias_leaky_relu", "bias_leaky_relu_backward"}
    assert printed["devices"][0]["name"] == "cpu"


def test_both_forms_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == asdict(info.collect())
    assert info.main([]) == 0
    assert capsys.readouterr().out == info.as_text(info.collect()) + "\n"


def test_the_processor_has_what_the_ops_take_there() -> None:
    x = torch.zeros(1)
    found = info.collect()
    assert not kernels.take(x)
    assert found.devices[0].backend == "reference"
    assert found.devices[0].why_not_kernel is not None
    assert {on["cpu"] for on in found.operations.values()} == {"reference"}
    with kernels.emulation(ModuleType("emulated")):
        found = info.collect()
        assert kernels.take(x)
    assert found.devices[0].backend == "kernel"
    assert found.devices[0].why_not_kernel is None
    assert {on["cpu"] for on in found.operations.values()} == {"kernel"}
    assert set(found.operations) == set(library.OPS)


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    set_compiled(monkeypatch, compiled_for("80;90;120+PTX"))
    found = info.collect()
    assert found.kernels.architectures == ["80", "90", "120+PTX"]
    gpu = found.devices[1]
    assert (gpu.name, gpu.hardware, gpu.capability, gpu.backend) == ("cuda:0", "H200", "9.0", "kernel")
    assert found.operations["bias_leaky_relu"] == {"cpu": "reference", "cuda:0": "kernel"}
    lines = info.as_text(found).splitlines()
    assert "kernels  compiled for 80 90 120+PTX  /site-packages/cips3d/_cuda.so" in lines
    assert "cuda:0   H200, compute capability 9.0, 140 GiB" in lines
    assert ["bias_leaky_relu", "reference", "kernel"] in [line.split() for line in lines]
    assert (
        lines[-1]
        == "kernels compute float32, float16, bfloat16 (16 bits in activations and features); the reference all else"
    )
    assert not any(line.startswith("no kernels on cuda:0") for line in lines)


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("module", "why_not", "expected"),
    [
        (None, "the compiled kernels cannot be loaded: no libstdc++", "cannot be loaded: no libstdc++"),
        (compiled_for("80"), None, "were compiled for 80, which a device of compute capability 9.0 cannot run"),
        (
            compiled_for("90", "driver too old"),
            None,
            "the kernels do not start there: driver too old; update the driver",
        ),
    ],
)
def test_a_gpu_without_kernels_says_why(
    module: ModuleType | None, why_not: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_compiled(monkeypatch, module, why_not)
    found = info.collect()
    assert found.devices[1].backend == "reference"
    assert set(found.operations["bias_leaky_relu"].values()) == {"reference"}
    (line,) = [line for line in info.as_text(found).splitlines() if line.startswith("no kernels on cuda:0: ")]
    assert expected in line


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_that_no_kernels_are_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    set_compiled(monkeypatch, compiled_for("80+PTX"))
    text = info.as_text(info.collect())
    assert "the kernels need compute capability 8.0 or newer, and the device has 7.5" in text


def test_no_device_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def driver_too_old() -> bool:
        warnings.warn("The NVIDIA driver on your system\nis too old", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", driver_too_old)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert info.collect().why_no_cuda_device == "PyTorch finds none: The NVIDIA driver on your system is too old"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "no device: this PyTorch was built without CUDA" in info.as_text(info.collect())


class FakeDriver:
    def __init__(self, error: int) -> None:
        self.error = error

    def cuDriverGetVersion(self, number: ctypes._CArgObject) -> int:
        ctypes.cast(number, ctypes.POINTER(ctypes.c_int))[0] = 12080
        return self.error


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06"),
        ("nothing known\n", None),
    ],
)
def test_the_driver_is_asked(text: str, release: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(info, "DRIVER_RELEASE", tmp_path / "version")
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: FakeDriver(error=0))
    assert info.find_driver() == info.Driver("12.8", release, None)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: FakeDriver(error=34))
    assert info.find_driver().why_not == f"{info.DRIVER_LIBRARY} reports error 34"


def test_a_missing_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "DRIVER_LIBRARY", "libcuda_that_is_not_there.so.1")
    found = info.find_driver()
    assert found == info.Driver(None, None, "libcuda_that_is_not_there.so.1 cannot be loaded")
