"""The check of what ptxas says of the kernels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from building.scripts import resources

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
    summary, heading, *spilling = printed.err.splitlines()
    assert summary == "1 of 2 kernels spill registers:" and heading == printed.out.splitlines()[0]
    assert [row.split()[0] for row in spilling] == ["90"]
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
