"""How the build compiles: the commands, and how many at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from building.scripts import architectures, build, toolchain


def ninja_lines(
    jobs: int,
    sources: tuple[str, ...] = ("csrc/a.cu", "csrc/b.cu", "csrc/bindings.cpp"),
    appended: str = "-g -O2",
    identity: str = "0123",
) -> list[str]:
    flags, variables = ("-ccbin", "clang++"), (f"NVCC_APPEND_FLAGS={appended}",)
    chosen = toolchain.Toolchain("/opt/my cuda/bin/nvcc", architectures("80", "90+PTX"), flags, variables, identity)
    folder, module = Path("/build/my $folder"), Path("/build/_cuda.so")
    return build.ninja_file(chosen, sources, folder, module, ["/py include"], jobs).splitlines()


def test_a_generation_shares_the_front_end_of_the_compiler() -> None:
    assert build.gencode_flags(architectures("80", "86", "89", "90", "100", "120+PTX")) == [
        "-gencode=arch=compute_80,code=[sm_80,sm_86,sm_89]",
        "-gencode=arch=compute_90a,code=[sm_90a]",
        "-gencode=arch=compute_100,code=[sm_100]",
        "-gencode=arch=compute_120,code=[sm_120,compute_120]",
    ]
    # Code for 9.0 alone has warpgroups; PTX for it would run on nothing newer.
    assert build.gencode_flags(architectures("90+PTX")) == [
        "-gencode=arch=compute_90a,code=[sm_90a]",
        "-gencode=arch=compute_90,code=[compute_90]",
    ]
    # PTX that is asked for is of the architecture itself.
    assert build.gencode_flags(architectures("80", "86+PTX", "89")) == [
        "-gencode=arch=compute_80,code=[sm_80,sm_89]",
        "-gencode=arch=compute_86,code=[sm_86,compute_86]",
    ]


def test_commands_have_the_flags_that_the_kernels_need() -> None:
    kernel, bindings, link = (line for line in ninja_lines(jobs=2) if line.startswith("  command = "))
    for command in (kernel, bindings):
        assert "env CIPS3D_TOOLCHAIN=0123 'NVCC_APPEND_FLAGS=-g -O2' '/opt/my cuda/bin/nvcc' -ccbin clang++ " in command
        for flag in (
            "-std=c++17",
            "-Werror all-warnings",
            "-Xcompiler -Wall,-Wno-unused-function,-fPIC,-fvisibility=hidden",
        ):
            assert flag in command
    for flag in ("-O3", "-lineinfo", "-Xptxas -v", "-Xfatbin -compress-all", "code=[sm_90a]", "code=[compute_90]"):
        assert flag in kernel
    assert "fast_math" not in kernel and "--threads" not in kernel
    assert """'-DCIPS3D_ARCHITECTURES="80;90+PTX"'""" in bindings
    assert "-isystem '/py include'" in bindings
    assert "-shared -cudart static" in link
    assert "build /build/my$ $$folder/a.cu.o | /build/my$ $$folder/a.cu.o.log: kernel csrc/a.cu" in ninja_lines(jobs=2)


def test_what_a_debugger_needs() -> None:
    """Line numbers twice are a conflict, which is an error."""
    for flags in ("-G -g", "--device-debug"):
        assert not any("-lineinfo" in line for line in ninja_lines(2, appended=flags))


def test_another_compiler_of_the_same_name_compiles_again() -> None:
    before, now = (ninja_lines(2, identity=identity) for identity in ("0123", "4567"))
    changed = [line for line, other in zip(before, now, strict=True) if line != other]
    assert len(changed) == 3 and all(line.startswith("  command = ") for line in changed)


def test_spare_cores_go_to_the_architectures_of_a_file() -> None:
    assert any("--threads 2" in line for line in ninja_lines(jobs=4))
    assert any("--threads 2" in line for line in ninja_lines(jobs=64))  # there are no more architectures


def test_max_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 2, 5}, raising=False)
    assert build.parallel_jobs({}) == 3
    assert build.parallel_jobs({"MAX_JOBS": "7"}) == 7
    for wrong in ("0", "-1", "many"):
        with pytest.raises(toolchain.BuildError, match=f"MAX_JOBS is a number of at least 1, not '{wrong}'"):
            build.parallel_jobs({"MAX_JOBS": wrong})
