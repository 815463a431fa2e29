"""Which kernels take what, and how they are called."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from ops.backends import Backend

from cips3d.ops import kernels
from cips3d.ops.kernel_sources import digest


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not"),
    [
        ("80;90", [(8, 0), (8, 6), (8, 9), (9, 0)], [(7, 5), (10, 0), (12, 0)]),
        ("86", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("90a;120", [(9, 0), (12, 0), (12, 1)], [(8, 9), (10, 0)]),
        ("80;89+PTX", [(8, 0), (8, 9), (9, 0), (12, 0)], [(7, 5)]),
        ("89+PTX", [(8, 9), (10, 0)], [(8, 6), (8, 0)]),
        ("80;86;120+PTX", [(8, 6), (8, 9)], [(8, 7)]),  # 8.7 is Tegra's
        ("87", [(8, 7)], [(8, 6), (8, 9)]),
        ("80+PTX", [(8, 7)], []),
        ("", [], [(8, 0)]),
    ],
)
def test_code_for_a_device(architectures: str, runs: list[tuple[int, int]], does_not: list[tuple[int, int]]) -> None:
    """Machine code from its minor version on, PTX everywhere from its version on."""
    assert all(kernels.runs_on_capability(architectures, *capability) for capability in runs)
    assert not any(kernels.runs_on_capability(architectures, *capability) for capability in does_not)


def test_modules_of_other_sources_are_not_used(tmp_path: Path) -> None:
    """Of another copy of the package, or of sources that have changed since."""
    csrc = kernels.PACKAGE.parent / "csrc"

    def misplaced(folder: Path, sources: str) -> str | None:
        module = ModuleType("_cuda")
        module.__file__, module.sources = str(folder / "_cuda.so"), sources  # type: ignore[attr-defined]
        return kernels._misplaced(module)

    made = digest(csrc) if csrc.is_dir() else ""
    assert misplaced(kernels.PACKAGE, made) is None
    assert "has no compiled kernels" in str(misplaced(tmp_path, made))
    if csrc.is_dir():
        assert f"made of other sources than those in {csrc}; install again" in str(misplaced(kernels.PACKAGE, "0123"))


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text("1")
    found = [digest(tmp_path)]
    (tmp_path / "a.cu").write_text("2")
    found.append(digest(tmp_path))
    (tmp_path / "a.cu").rename(tmp_path / "b.h")
    found.append(digest(tmp_path))
    (tmp_path / "notes.txt").write_text("other")
    assert len(set(found)) == 3 and digest(tmp_path) == found[-1]


def test_what_a_launch_refuses(kernel_backend: Backend) -> None:
    weights, values, sums = (torch.ones(shape, device=kernel_backend.device) for shape in ((3, 3), (3, 3, 4), (3, 4)))

    def launch(*tensors: torch.Tensor, samples: int = 3) -> None:
        kernels.launch("accumulate", torch.float32, *tensors, 3, samples, 4)

    launch(weights, values, sums)
    for tensors in ((weights.t(), values, sums), (weights, values.to("meta"), sums)):
        with pytest.raises(RuntimeError, match=r"accumulate: tensors must be contiguous and on one device: \[3, 3\]"):
            launch(*tensors)
    with pytest.raises(RuntimeError, match=r"accumulate: more than 2\^31 values .* \(\[3, 3\] strides \[3, 1\]"):
        launch(weights, values, sums, samples=1 << 30)


def test_emulations_are_left_in_any_order() -> None:
    x, cpu, modules = torch.ones(1), torch.device("cpu"), [ModuleType("first"), ModuleType("second")]
    first, second = (kernels.emulation(module) for module in modules)
    assert not kernels.take(x)
    first.__enter__()
    second.__enter__()
    assert kernels.take(x) and kernels.module_for(cpu) is modules[1]
    first.__exit__(None, None, None)
    assert kernels.module_for(cpu) is modules[1]
    with kernels.emulation(modules[0]):
        assert kernels.module_for(cpu) is modules[0]
    assert kernels.module_for(cpu) is modules[1]
    with kernels.disabled():
        with kernels.disabled():
            assert not kernels.take(x)
        assert not kernels.take(x)
    assert kernels.take(x) and not kernels.take(x.double())
    second.__exit__(None, None, None)
    assert not kernels.take(x)
    with pytest.raises(RuntimeError, match="no kernels on cpu"):
        kernels.module_for(cpu)
