"""What is counted of kernels, from what a module says of single instructions."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import instructions
import pytest
import torch
from instructions import Case, counts_of, measured, report

KERNEL = "_ZN6cips3d12_GLOBAL__N_111blur_kernelEPKf"


def counting(*counted: list[tuple[str, str, str, int, int, int]]) -> SimpleNamespace:
    answers = iter(counted)
    return SimpleNamespace(counted_ptx=lambda: next(answers))


def test_counts_by_line() -> None:
    module = counting(
        [
            (KERNEL, "a.cu:1", "add.f32", 10, 0, 0),
            (KERNEL, "a.cu:1", "ld.shared.v4.f32", 4, 24, 16),
            (KERNEL, "a.cu:2", "ld.global.f32", 2, 8, 8),
            (KERNEL, "a.cu:2", "cp.async.cg.shared.global", 2, 4, 4),
        ]
    )
    assert counts_of(module) == {  # type: ignore[arg-type]
        (KERNEL, "a.cu:1", "instructions"): 14,
        (KERNEL, "a.cu:1", "wavefronts"): 24,
        (KERNEL, "a.cu:1", "least"): 16,
        (KERNEL, "a.cu:2", "instructions"): 4,
        (KERNEL, "a.cu:2", "bytes"): 12 * 32,
    }


def test_what_a_launch_costs_once_drops_out(capsys: pytest.CaptureFixture[str]) -> None:
    def add(count: int) -> list[tuple[str, str, str, int, int, int]]:
        return [(KERNEL, "a.cu:1", "add.f32", count, 0, 0)]

    sizes = []

    def make(size: int):  # type: ignore[no-untyped-def]
        sizes.append(size)
        return lambda: torch.zeros(size, requires_grad=True) * 1

    case = Case("blur", "number", 100, make)
    once = 7
    module = counting([], add(once + 300), add(1), [], add(once + 600), add(201))
    found = dict(measured(module, case))  # type: ignore[arg-type]
    assert sizes == [100, 200]
    assert found == {
        "forward": Counter({(KERNEL, "a.cu:1", "instructions"): 300}),
        "backward": Counter({(KERNEL, "a.cu:1", "instructions"): 200}),
    }
    report(case, "forward", found["forward"], lines=1)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["blur", "forward", "number", "3.00", "-", "0.0", "blur_kernel"]
    assert second.split() == ["3.00", "a.cu:1"]


def test_cases_make_what_they_say() -> None:
    for case in instructions.CASES:
        assert case.make(case.size)().isfinite().all()
