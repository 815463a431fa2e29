"""What the build makes, and says."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from building.scripts import ROOT, build, resources, toolchain

from cips3d.ops.kernel_sources import digest


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
  PyModule_AddStringConstant(module, "sources", CIPS3D_SOURCES);
  return module;
}
"""


@pytest.fixture
def tiny_package(tmp_path: Path) -> Path:
    """A package that is built as cips3d is, with one kernel of one line."""
    folder = tmp_path / "tiny package"
    (folder / "csrc").mkdir(parents=True)
    (folder / build.DIGEST.parent).mkdir(parents=True)
    files = (
        "setup.py",
        "build_kernels.py",
        "toolchain.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "cips3d/__init__.py",
    )
    for name in (*files, build.DIGEST):
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


def test_modules_that_are_gone_are_in_no_wheel(tiny_package: Path) -> None:
    """What an earlier build has left of them."""
    module = tiny_package / "cips3d" / "retired.py"
    module.write_text("")
    for number in range(2):
        assert build_distribution("wheel", tiny_package, CIPS3D_CUDA="0").returncode == 0
        with zipfile.ZipFile(only(tiny_package / "dist", "*.whl")) as archive:
            assert ("cips3d/retired.py" in archive.namelist()) is (number == 0)
        module.unlink(missing_ok=True)


def test_mistakes_end_the_build_with_one_sentence(tiny_package: Path) -> None:
    result = build_distribution("wheel", tiny_package, CIPS3D_CUDA="maybe")
    assert result.returncode == 1
    assert result.stderr == "error: CIPS3D_CUDA is 0 or 1, not 'maybe'\n"
    without_nvcc = "import runpy, toolchain; toolchain.USUAL_FOLDERS = (); runpy.run_path('setup.py')"
    result = run_python(
        without_nvcc, tiny_package, CIPS3D_CUDA="1", CUDA_HOME="", CUDA_PATH="", CONDA_PREFIX="", PATH=""
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: CIPS3D_CUDA=1 asks for CUDA kernels, but ")
    assert result.stderr.count("\n") == 1


def test_nvcc_builds_a_module_that_needs_neither_torch_nor_a_driver(tiny_package: Path) -> None:
    try:
        toolchain.find_toolchain(os.environ)
    except toolchain.Unavailable as error:
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
    assert not any(name.startswith(("csrc", "build_kernels", "toolchain")) for name in names)
    assert (tiny_package / module).read_bytes() == (tiny_package / "installed" / module).read_bytes()

    code = "import sys; from cips3d import _cuda; _cuda.scale(); print(_cuda.architectures, 'torch' in sys.modules)"
    imported = run_python(code + "; print(_cuda.sources)", tiny_package / "installed")
    assert imported.stdout.split() == ["80;90+PTX", "False", digest(tiny_package / "csrc")], imported.stderr
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
    files = ("setup.py", "build_kernels.py", "toolchain.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
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
