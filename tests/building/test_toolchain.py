"""What the build compiles for and with: architectures, nvcc, the host's compiler."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from building.scripts import architectures, toolchain


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_nvcc(path: Path, *codes: int, release: str = "12.4") -> Path:
    """A program that answers --list-gpu-code and --version like nvcc."""
    version = f"echo 'Cuda compilation tools, release {release}, V{release}.131'\n"
    return script(path, version + "".join(f"echo sm_{code}\n" for code in codes))


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment in which g++ is on PATH and a CUDA toolkit is nowhere."""
    monkeypatch.setattr(toolchain, "USUAL_FOLDERS", (tmp_path / "usual",))
    script(tmp_path / "tools" / "g++", "")
    return {"PATH": str(tmp_path / "tools")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", ["90"]),
        ("80;90+PTX", ["80", "90+PTX"]),
        (" 120+PTX, 80 86,", ["80", "86", "120+PTX"]),
        ("90;80;90+PTX;90", ["80", "90+PTX"]),
    ],
)
def test_architectures_are_parsed(text: str, expected: list[str]) -> None:
    assert [str(architecture) for architecture in toolchain.parse_architectures(text)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("native", "'native' is not"),
        ("8.0", "'8.0' is not"),
        ("80;sm_90", "'sm_90' is not"),
        ("90a", "'90a' is not"),
        ("80+ptx", r"'80\+ptx' is not"),
        ("75;80", "names 75, but the kernels need 80 or newer"),
        (";", "names no architecture"),
    ],
)
def test_wrong_architectures_are_named(text: str, message: str) -> None:
    with pytest.raises(toolchain.BuildError, match=f"^CIPS3D_CUDA_ARCHS .*{message}"):
        toolchain.parse_architectures(text)


def test_default_architectures_are_those_that_nvcc_knows() -> None:
    known = [75, 80, 86, 87, 89, 90, 100, 103, 120, 121]
    assert toolchain.choose_architectures("", "nvcc", known) == architectures("80", "86", "89", "90", "100", "120+PTX")
    assert toolchain.choose_architectures("", "nvcc", [70, 75, 80, 86]) == architectures("80", "86+PTX")
    assert toolchain.choose_architectures("87", "nvcc", known) == architectures("87")
    with pytest.raises(toolchain.BuildError, match=r"names 120, but /x/nvcc compiles the kernels only for 80, 90$"):
        toolchain.choose_architectures("80;120", "/x/nvcc", [90, 75, 80])
    with pytest.raises(toolchain.Unavailable, match="knows no architecture of"):
        toolchain.choose_architectures("", "nvcc", [60, 70])


def test_nvcc_is_found_in_the_order_of_the_documentation(tmp_path: Path, bare: dict[str, str]) -> None:
    usual = tmp_path / "usual"
    places = [
        fake_nvcc(tmp_path / "home" / "bin" / "nvcc", 80),
        fake_nvcc(tmp_path / "path" / "bin" / "nvcc", 86),
        fake_nvcc(tmp_path / "tools" / "nvcc", 87),
        fake_nvcc(tmp_path / "conda" / "bin" / "nvcc", 89),
        fake_nvcc(usual / "cuda" / "bin" / "nvcc", 90),
        fake_nvcc(usual / "cuda-12.10" / "bin" / "nvcc", 100),
        fake_nvcc(usual / "cuda-12.9" / "bin" / "nvcc", 120),
    ]
    environ = bare | {
        "CUDA_HOME": str(tmp_path / "home"),
        "CUDA_PATH": str(tmp_path / "path"),
        "CONDA_PREFIX": str(tmp_path / "conda"),
    }
    for place, code in zip(places, [80, 86, 87, 89, 90, 100, 120], strict=True):
        assert toolchain.find_nvcc(environ) == (str(place), [code])
        place.unlink()
    with pytest.raises(toolchain.Unavailable, match="no nvcc was found"):
        toolchain.find_nvcc(environ)


def test_links_to_nvcc_are_followed_and_scripts_are_called(tmp_path: Path, bare: dict[str, str]) -> None:
    real = fake_nvcc(tmp_path / "cuda-13.0" / "bin" / "nvcc", 80)
    link = tmp_path / "tools" / "nvcc"
    link.symlink_to(real)
    assert toolchain.find_nvcc(bare)[0] == str(real)
    link.unlink()
    script(link, f'exec {real} "$@"')
    assert toolchain.find_nvcc(bare) == (str(link), [80])
    link.unlink()
    launcher = fake_nvcc(tmp_path / "ccache", 80)  # chooses what to run by the name it is called by
    link.symlink_to(launcher)
    assert toolchain.find_nvcc(bare)[0] == str(link)


def test_an_nvcc_that_does_not_answer_is_passed_over_and_named(tmp_path: Path, bare: dict[str, str]) -> None:
    broken = script(tmp_path / "tools" / "nvcc", "exec /nowhere/nvcc")
    with pytest.raises(toolchain.Unavailable, match=f"no nvcc was found that works .{broken} does not"):
        toolchain.find_nvcc(bare)
    working = fake_nvcc(tmp_path / "usual" / "cuda" / "bin" / "nvcc", 80)
    assert toolchain.find_nvcc(bare) == (str(working), [80])


def test_the_host_compiler_is_chosen(tmp_path: Path, bare: dict[str, str]) -> None:
    assert toolchain.find_host_compiler(bare) == ()
    script(tmp_path / "tools" / "icpx", "")
    assert toolchain.find_host_compiler(bare | {"CXX": "ccache icpx -O2"}) == ("-ccbin", "icpx")
    assert toolchain.find_host_compiler(bare | {"CXX": "icpx", "NVCC_CCBIN": "g++"}) == ()  # nvcc reads it
    assert toolchain.find_host_compiler({"PATH": "", "NVCC_PREPEND_FLAGS": "-ccbin=/x/g++"}) == ()
    with pytest.raises(toolchain.Unavailable, match=r"the C\+\+ compiler g\+\+-99 that CXX names was not found"):
        toolchain.find_host_compiler(bare | {"CXX": "g++-99"})
    (tmp_path / "tools" / "g++").rename(tmp_path / "tools" / "clang++")
    assert toolchain.find_host_compiler(bare) == ("-ccbin", "clang++")
    with pytest.raises(toolchain.Unavailable, match=r"no C\+\+ compiler was found"):
        toolchain.find_host_compiler({"PATH": ""})


def test_the_plan_follows_the_environment(
    tmp_path: Path, bare: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform != "linux":
        pytest.skip("kernels are compiled on Linux only")
    missing = toolchain.plan(bare)
    assert missing == (
        "cips3d is installed without CUDA kernels, because no nvcc was found (in CUDA_HOME, CUDA_PATH, PATH, "
        "CONDA_PREFIX, /usr/local/cuda*); to have them, install the CUDA toolkit or set CUDA_HOME and install again "
        "(pip install --force-reinstall --no-deps)"
    )
    with pytest.raises(toolchain.BuildError, match=r"^CIPS3D_CUDA=1 asks for CUDA kernels, but no nvcc was found"):
        toolchain.plan(bare | {"CIPS3D_CUDA": "1"})
    with pytest.raises(toolchain.BuildError, match=r"^CIPS3D_CUDA is 0 or 1, not 'yes'$"):
        toolchain.plan(bare | {"CIPS3D_CUDA": "yes"})

    nvcc = fake_nvcc(tmp_path / "tools" / "nvcc", 80, 90)
    found = toolchain.Toolchain(str(nvcc), architectures("80", "90+PTX"))
    assert toolchain.plan(bare) == toolchain.plan(bare | {"CIPS3D_CUDA": "1"}) == found
    identity = toolchain.plan(bare).identity
    assert identity == toolchain.plan(bare).identity
    fake_nvcc(nvcc, 80, 90, release="12.5")
    assert toolchain.plan(bare).identity != identity
    fake_nvcc(nvcc, 80, 90, release="11.8")
    assert toolchain.plan(bare).architectures == architectures("80+PTX")
    with pytest.raises(toolchain.BuildError, match=r"names 90, but .* compiles the kernels only for 80$"):
        toolchain.plan(bare | {"CIPS3D_CUDA_ARCHS": "90"})
    assert toolchain.plan(bare | {"NVCC_APPEND_FLAGS": "-G", "HOME": "/"}).variables == ("NVCC_APPEND_FLAGS=-G",)
    with pytest.raises(toolchain.BuildError, match="'fast' is not"):
        toolchain.plan(bare | {"CIPS3D_CUDA_ARCHS": "fast"})
    assert "because CIPS3D_CUDA=0 asks for that" in toolchain.plan(bare | {"CIPS3D_CUDA": "0"})

    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda _name: str(tmp_path))
    assert "because Python's own headers (Python.h) are not there" in toolchain.plan(bare)
    (tmp_path / "tools" / "g++").unlink()
    assert "because no C++ compiler was found; to have them, install g++" in toolchain.plan(bare)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "because they are compiled on Linux only" in toolchain.plan(bare)
