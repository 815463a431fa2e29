"""The build: what it compiles for and with, what it says, and what it makes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


build = load(ROOT / "build_kernels.py")
resources = load(ROOT / ".ci" / "check_resources.py")


def architectures(*names: str) -> tuple[object, ...]:
    return tuple(build.Architecture(int(name.removesuffix("+PTX")), name.endswith("+PTX")) for name in names)


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
    monkeypatch.setattr(build, "USUAL_FOLDERS", (tmp_path / "usual",))
    script(tmp_path / "tools" / "g++", "")
    return {"PATH": str(tmp_path / "tools")}


# What to compile for.


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
    assert [str(architecture) for architecture in build.parse_architectures(text)] == expected


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
    with pytest.raises(build.BuildError, match=f"^CIPS3D_CUDA_ARCHS .*{message}"):
        build.parse_architectures(text)


def test_default_architectures_are_those_that_nvcc_knows() -> None:
    known = [75, 80, 86, 87, 89, 90, 100, 103, 120, 121]
    assert build.choose_architectures("", "nvcc", known) == architectures("80", "86", "89", "90", "100", "120+PTX")
    assert build.choose_architectures("", "nvcc", [70, 75, 80, 86]) == architectures("80", "86+PTX")
    assert build.choose_architectures("87", "nvcc", known) == architectures("87")
    with pytest.raises(build.BuildError, match=r"names 120, but /x/nvcc knows only 80, 90$"):
        build.choose_architectures("80;120", "/x/nvcc", [90, 80])
    with pytest.raises(build.Unavailable, match="knows no architecture of"):
        build.choose_architectures("", "nvcc", [60, 70])


def test_a_generation_shares_the_front_end_of_the_compiler() -> None:
    assert build.gencode_flags(architectures("80", "86", "89", "90", "100", "120+PTX")) == [
        "-gencode=arch=compute_80,code=[sm_80,sm_86,sm_89]",
        "-gencode=arch=compute_90,code=[sm_90]",
        "-gencode=arch=compute_100,code=[sm_100]",
        "-gencode=arch=compute_120,code=[sm_120,compute_120]",
    ]
    # Code for 9.0 alone has warpgroups; PTX for it would run on nothing newer.
    assert build.gencode_flags(architectures("80", "90"), warpgroups=True) == [
        "-gencode=arch=compute_80,code=[sm_80]",
        "-gencode=arch=compute_90a,code=[sm_90a]",
    ]
    assert build.gencode_flags(architectures("90+PTX"), warpgroups=True) == [
        "-gencode=arch=compute_90a,code=[sm_90a]",
        "-gencode=arch=compute_90,code=[compute_90]",
    ]
    # PTX that is asked for is of the architecture itself.
    assert build.gencode_flags(architectures("80", "86+PTX", "89")) == [
        "-gencode=arch=compute_80,code=[sm_80,sm_89]",
        "-gencode=arch=compute_86,code=[sm_86,compute_86]",
    ]


# What to compile with.


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
        assert build.find_nvcc(environ) == (str(place), [code])
        place.unlink()
    with pytest.raises(build.Unavailable, match="no nvcc was found"):
        build.find_nvcc(environ)


def test_links_to_nvcc_are_followed_and_scripts_are_called(tmp_path: Path, bare: dict[str, str]) -> None:
    real = fake_nvcc(tmp_path / "cuda-13.0" / "bin" / "nvcc", 80)
    link = tmp_path / "tools" / "nvcc"
    link.symlink_to(real)
    assert build.find_nvcc(bare)[0] == str(real)
    link.unlink()
    script(link, f'exec {real} "$@"')
    assert build.find_nvcc(bare) == (str(link), [80])
    link.unlink()
    launcher = fake_nvcc(tmp_path / "ccache", 80)  # chooses what to run by the name it is called by
    link.symlink_to(launcher)
    assert build.find_nvcc(bare)[0] == str(link)


def test_an_nvcc_that_does_not_answer_is_passed_over_and_named(tmp_path: Path, bare: dict[str, str]) -> None:
    broken = script(tmp_path / "tools" / "nvcc", "exec /nowhere/nvcc")
    with pytest.raises(build.Unavailable, match=f"no nvcc was found that works .{broken} does not"):
        build.find_nvcc(bare)
    working = fake_nvcc(tmp_path / "usual" / "cuda" / "bin" / "nvcc", 80)
    assert build.find_nvcc(bare) == (str(working), [80])


def test_the_host_compiler_is_chosen(tmp_path: Path, bare: dict[str, str]) -> None:
    assert build.find_host_compiler(bare) == ()
    script(tmp_path / "tools" / "icpx", "")
    assert build.find_host_compiler(bare | {"CXX": "ccache icpx -O2"}) == ("-ccbin", "icpx")
    assert build.find_host_compiler(bare | {"CXX": "icpx", "NVCC_CCBIN": "g++"}) == ()  # nvcc reads it
    assert build.find_host_compiler({"PATH": "", "NVCC_PREPEND_FLAGS": "-ccbin=/x/g++"}) == ()
    with pytest.raises(build.Unavailable, match=r"the C\+\+ compiler g\+\+-99 that CXX names was not found"):
        build.find_host_compiler(bare | {"CXX": "g++-99"})
    (tmp_path / "tools" / "g++").rename(tmp_path / "tools" / "clang++")
    assert build.find_host_compiler(bare) == ("-ccbin", "clang++")
    with pytest.raises(build.Unavailable, match=r"no C\+\+ compiler was found"):
        build.find_host_compiler({"PATH": ""})


def test_the_plan_follows_the_environment(
    tmp_path: Path, bare: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform != "linux":
        pytest.skip("kernels are compiled on Linux only")
    missing = build.plan(bare)
    assert missing == (
        "cips3d is installed without CUDA kernels, because no nvcc was found (in CUDA_HOME, CUDA_PATH, PATH, "
        "CONDA_PREFIX, /usr/local/cuda*); to have them, install the CUDA toolkit or set CUDA_HOME and install again"
    )
    with pytest.raises(build.BuildError, match=r"^CIPS3D_CUDA=1 asks for CUDA kernels, but no nvcc was found"):
        build.plan(bare | {"CIPS3D_CUDA": "1"})
    with pytest.raises(build.BuildError, match=r"^CIPS3D_CUDA is 0 or 1, not 'yes'$"):
        build.plan(bare | {"CIPS3D_CUDA": "yes"})

    nvcc = fake_nvcc(tmp_path / "tools" / "nvcc", 80, 90)
    found = build.Toolchain(str(nvcc), architectures("80", "90+PTX"), warpgroups=True)
    assert build.plan(bare) == build.plan(bare | {"CIPS3D_CUDA": "1"}) == found
    fake_nvcc(nvcc, 80, 90, release="11.8")
    assert not build.plan(bare).warpgroups
    assert build.plan(bare | {"CIPS3D_CUDA_ARCHS": "90"}).architectures == architectures("90")
    assert build.plan(bare | {"NVCC_APPEND_FLAGS": "-G", "HOME": "/"}).variables == ("NVCC_APPEND_FLAGS=-G",)
    with pytest.raises(build.BuildError, match="'fast' is not"):
        build.plan(bare | {"CIPS3D_CUDA_ARCHS": "fast"})
    assert "because CIPS3D_CUDA=0 asks for that" in build.plan(bare | {"CIPS3D_CUDA": "0"})

    monkeypatch.setattr(build.sysconfig, "get_path", lambda _name: str(tmp_path))
    assert "because Python's own headers (Python.h) are not there" in build.plan(bare)
    (tmp_path / "tools" / "g++").unlink()
    assert "because no C++ compiler was found; to have them, install g++" in build.plan(bare)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "because they are compiled on Linux only" in build.plan(bare)


# How to compile.


def ninja_lines(jobs: int, sources: tuple[str, ...] = ("csrc/a.cu", "csrc/b.cu", "csrc/bindings.cpp")) -> list[str]:
    flags, variables = ("-ccbin", "clang++"), ("NVCC_APPEND_FLAGS=-G -g",)
    toolchain = build.Toolchain("/opt/my cuda/bin/nvcc", architectures("80", "90+PTX"), flags, variables)
    folder, module = Path("/build/my $folder"), Path("/build/_cuda.so")
    return build.ninja_file(toolchain, sources, folder, module, ["/py include"], jobs).splitlines()


def test_commands_have_the_flags_that_the_kernels_need() -> None:
    kernel, bindings, link = (line for line in ninja_lines(jobs=2) if line.startswith("  command = "))
    for command in (kernel, bindings):
        assert "env 'NVCC_APPEND_FLAGS=-G -g' '/opt/my cuda/bin/nvcc' -ccbin clang++ " in command
        for flag in ("-std=c++17", "-Werror all-warnings", "-Xcompiler -Wall,-fPIC,-fvisibility=hidden"):
            assert flag in command
    for flag in ("-O3", "-lineinfo", "-Xptxas -v", "-Xfatbin -compress-all", "code=[sm_90,compute_90]"):
        assert flag in kernel
    assert "fast_math" not in kernel and "--threads" not in kernel
    assert """'-DCIPS3D_ARCHITECTURES="80;90+PTX"'""" in bindings
    assert "-isystem '/py include'" in bindings
    assert "-shared -cudart static" in link
    assert "build /build/my$ $$folder/a.cu.o | /build/my$ $$folder/a.cu.o.log: kernel csrc/a.cu" in ninja_lines(jobs=2)


def test_spare_cores_go_to_the_architectures_of_a_file() -> None:
    assert any("--threads 2" in line for line in ninja_lines(jobs=4))
    assert any("--threads 2" in line for line in ninja_lines(jobs=64))  # there are no more architectures


def test_max_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 2, 5}, raising=False)
    assert build.parallel_jobs({}) == 3
    assert build.parallel_jobs({"MAX_JOBS": "7"}) == 7
    for wrong in ("0", "-1", "many"):
        with pytest.raises(build.BuildError, match=f"MAX_JOBS is a number of at least 1, not '{wrong}'"):
            build.parallel_jobs({"MAX_JOBS": wrong})


# What the build makes, and says.


def run_python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a folder; of the build's variables, only those given are set."""
    ours = ("CIPS3D_", "NVCC_", "MAX_JOBS", "PYTHONPATH", "SETUPTOOLS_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environ, capture_output=True, text=True, timeout=300
    )


def build_distribution(kind: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    code = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
    return run_python(code, folder, **variables)


TINY_KERNEL = """
__global__ void scale_kernel(float* x, float factor) { x[blockIdx.x * blockDim.x + threadIdx.x] *= factor; }
void scale(float* x) { scale_kernel<<<1, 32>>>(x, 2.0f); }
"""

TINY_BINDINGS = """
#include <Python.h>
void scale(float* x);
static PyObject* call(PyObject*, PyObject*) { scale(nullptr); Py_RETURN_NONE; }
static PyMethodDef methods[] = {{"scale", call, METH_NOARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__cuda() {
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "architectures", CIPS3D_ARCHITECTURES);
  return module;
}
"""


@pytest.fixture
def tiny_package(tmp_path: Path) -> Path:
    """A package that is built as cips3d is, with one kernel of one line."""
    folder = tmp_path / "tiny package"
    (folder / "csrc").mkdir(parents=True)
    (folder / "cips3d").mkdir()
    for name in ("setup.py", "build_kernels.py", "pyproject.toml", "README.md", "LICENSE", "cips3d/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "csrc" / "scale.cu").write_text(TINY_KERNEL)
    (folder / "csrc" / "bindings.cpp").write_text(TINY_BINDINGS)
    return folder


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_a_package_without_kernels_is_pure_and_says_so_once(tiny_package: Path) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    earlier = tiny_package / "cips3d" / f"_cuda{suffix}"
    earlier.touch()
    result = build_distribution("wheel", tiny_package, CIPS3D_CUDA="0")
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count("cips3d is installed without CUDA kernels, because") == 1
    assert only(tiny_package / "dist", "*.whl").name.endswith("-py3-none-any.whl")
    assert not earlier.exists()


def test_mistakes_end_the_build_with_one_sentence(tiny_package: Path) -> None:
    result = build_distribution("wheel", tiny_package, CIPS3D_CUDA="maybe")
    assert result.returncode == 1
    assert result.stderr == "error: CIPS3D_CUDA is 0 or 1, not 'maybe'\n"
    without_nvcc = "import runpy, build_kernels; build_kernels.USUAL_FOLDERS = (); runpy.run_path('setup.py')"
    result = run_python(
        without_nvcc, tiny_package, CIPS3D_CUDA="1", CUDA_HOME="", CUDA_PATH="", CONDA_PREFIX="", PATH=""
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: CIPS3D_CUDA=1 asks for CUDA kernels, but ")
    assert result.stderr.count("\n") == 1


def test_nvcc_builds_a_module_that_needs_neither_torch_nor_a_driver(tiny_package: Path) -> None:
    try:
        build.find_toolchain(os.environ)
    except build.Unavailable as error:
        pytest.skip(f"no nvcc: {error}")
    report = tiny_package / "reports" / "kernels.txt"
    variables = {"CIPS3D_CUDA": "1", "CIPS3D_CUDA_ARCHS": "80,90+PTX", "CIPS3D_BUILD_REPORT": str(report)}
    result = build_distribution("wheel", tiny_package, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    wheel = only(tiny_package / "dist", "*.whl")
    assert "-linux_" in wheel.name and "-none-any" not in wheel.name

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tiny_package / "installed")
    (module,) = [name for name in names if name.startswith("cips3d/_cuda.")]
    assert not any(name.startswith(("csrc", "build_kernels")) for name in names)
    assert (tiny_package / module).read_bytes() == (tiny_package / "installed" / module).read_bytes()

    code = "import sys; from cips3d import _cuda; _cuda.scale(); print(_cuda.architectures, 'torch' in sys.modules)"
    imported = run_python(code, tiny_package / "installed")
    assert imported.stdout.split() == ["80;90+PTX", "False"], imported.stderr
    if shutil.which("nm"):
        exported = subprocess.run(
            ["nm", "-D", "--defined-only", module], cwd=tiny_package, capture_output=True, text=True
        )
        assert [line.split()[-1] for line in exported.stdout.splitlines()] == ["PyInit__cuda"]

    kernels = resources.read_report(report.read_text())
    assert sorted(kernel.architecture for kernel in kernels) == [80, 90]
    assert all(kernel.source == "csrc/scale.cu" and kernel.registers and kernel.spills == 0 for kernel in kernels)

    # The second time, only what has changed is compiled; what the compiler says of a mistake is shown.
    (tiny_package / "csrc" / "wrong.cu").write_text("__global__ void wrong_kernel() { int unused; }")
    result = build_distribution("wheel", tiny_package, **variables)
    assert result.returncode == 1
    assert "compiling csrc/wrong.cu" in result.stdout and "compiling csrc/scale.cu" not in result.stdout
    assert 'csrc/wrong.cu(1): error #177-D: variable "unused" was declared but never referenced' in result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: the CUDA kernels do not compile, as shown above")
    assert "Traceback" not in result.stderr


def test_the_source_distribution_holds_all_that_building_and_testing_take(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    folders = ("cips3d", "csrc", "tests", "benchmarks", ".ci")
    for name in folders:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "*.so"))
    files = ("setup.py", "build_kernels.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
    for name in files:
        shutil.copy(ROOT / name, copy)
    expected = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    (copy / "csrc" / "left_over.so").touch()
    result = build_distribution("sdist", copy, CIPS3D_CUDA="0")
    assert result.returncode == 0, result.stderr
    with tarfile.open(only(copy / "dist", "*.tar.gz")) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert expected - packed == set()
    assert "csrc/left_over.so" not in packed


# The report of ptxas.

REPORT = """\
# csrc/scale.cu
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6cips3d40_GLOBAL__N__46be8b36_8_scale_cu_c19c741112scale_kernelIfEEvPT_' for 'sm_80'
ptxas info    : Function properties for _ZN6cips3d40_GLOBAL__N__46be8b36_8_scale_cu_c19c741112scale_kernelIfEEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 32 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 35.727 ms
ptxas info    : Compiling entry function '_Z3addPf' for 'sm_90'
ptxas info    : Function properties for _Z3addPf
    16 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""  # noqa: E501


def test_a_spilling_kernel_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.txt").write_text(REPORT)
    assert resources.main([str(tmp_path)]) == 1
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines()]
    assert ["90", "255", "0", "16", "12", "4", "csrc/scale.cu:"] in [row[:7] for row in rows]
    assert ["80", "24", "32", "0", "0", "0", "csrc/scale.cu:"] in [row[:7] for row in rows]
    if shutil.which("c++filt") or shutil.which("cu++filt"):
        assert {row[-1] for row in rows[1:]} == {"scale_kernel<float>", "add"}
    assert printed.err == "1 of 2 kernels spill registers\n"
    assert resources.main([str(tmp_path / "report.txt"), "--architectures", "80"]) == 0


def test_matrix_instructions_that_do_not_overlap_fail_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The compiler says so in a line and goes on."""
    notice = (
        "ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
        "insufficient register resources for the wgmma pipeline in the function '_Z3addPf'\n"
    )
    good = REPORT.replace(
        "16 bytes stack frame, 12 bytes spill stores, 4", "0 bytes stack frame, 0 bytes spill stores, 0"
    )
    report = tmp_path / "report.txt"
    report.write_text(good)
    assert resources.main([str(report)]) == 0
    report.write_text(notice + good)
    assert resources.main([str(report)]) == 1
    assert "do not overlap: insufficient register resources" in capsys.readouterr().err


def test_a_report_that_lacks_something_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.txt"
    report.write_text(REPORT)
    assert resources.main([str(report), "--architectures", "80", "100"]) == 1
    assert "holds no kernel for sm_100" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no numbers for _Z3addPf on sm_90"):
        resources.read_report(REPORT.rpartition("ptxas info    : Used")[0])
    report.write_text("")
    assert resources.main([str(report)]) == 1
