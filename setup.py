"""The build: metadata is in pyproject.toml, and build_kernels.py compiles the kernels where toolchain.py finds nvcc."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, __version__, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # isolated builds leave the project's folder out

from build_kernels import MODULE, compile_kernels  # noqa: E402
from toolchain import BuildError, Toolchain, plan  # noqa: E402

# Older ones do not understand pyproject.toml; only pip's --no-build-isolation takes what happens to be installed.
OLDEST_SETUPTOOLS = 77
if int(__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    raise SystemExit(f"error: the build needs setuptools {OLDEST_SETUPTOOLS} or newer (pip install -U setuptools)")

try:
    PLANNED = plan(os.environ)
except BuildError as error:
    raise SystemExit(f"error: {error}") from None


class KernelExtension(Extension):
    """The module of the compiled kernels."""

    def __init__(self, toolchain: Toolchain) -> None:
        sources = [*sorted((ROOT / "csrc").glob("*.cu")), ROOT / "csrc" / "bindings.cpp"]
        super().__init__(MODULE, [path.relative_to(ROOT).as_posix() for path in sources])
        self.toolchain = toolchain


class BuildKernels(build_ext):
    """Compiles with nvcc. The module also goes beside the sources: Python that is started there imports those."""

    def run(self) -> None:
        super().run()
        self.copy_extensions_to_source()

    def build_extension(self, ext: KernelExtension) -> None:
        # Not in self.build_temp, which an editable installation throws away: only what has changed is compiled again.
        folder = ROOT / "build" / f"kernels-{sysconfig.get_config_var('SOABI')}"
        try:
            compile_kernels(ext.toolchain, ext.sources, folder, Path(self.get_ext_fullpath(ext.name)))
        except BuildError as error:
            raise CompileError(str(error)) from None


class BuildPackage(build_py):
    """Says when the kernels are left out, and then leaves none of an earlier build beside the sources."""

    def run(self) -> None:
        if isinstance(PLANNED, str):
            print(PLANNED, file=sys.stderr, flush=True)
            package, _, name = MODULE.rpartition(".")
            left_over = Path(self.get_package_dir(package), f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}")
            left_over.unlink(missing_ok=True)
        if not self.editable_mode:  # modules of an earlier build that are gone since
            shutil.rmtree(Path(self.build_lib, MODULE.partition(".")[0]), ignore_errors=True)
        super().run()


setup(
    ext_modules=[] if isinstance(PLANNED, str) else [KernelExtension(PLANNED)],  # without any, a pure Python wheel
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPackage},
)
