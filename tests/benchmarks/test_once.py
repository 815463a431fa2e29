"""What a profiler is given to look at."""

from __future__ import annotations

import sys

import once
import pytest
from op_cases import GROUPS


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["once.py", "--device", "cpu", *arguments])
    return once.command()


def test_what_is_asked_for_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--only", "composite", "nerf_backward", "render_256_high") == 0
    assert capsys.readouterr().out.split() == [
        *("composite_forward", "composite_backward", "nerf_backward_256", "nerf_backward_256_accurate"),
        "render_256_high",
    ]
    with pytest.raises(once.UserError, match="--only 'renders' begins no name"):
        run(monkeypatch, "--only", "composite_forward", "renders")


def test_names_are_those_of_the_tables() -> None:
    names = [name for name, _ in once.runs(once.prepared_device("cpu"))]
    assert len(names) == len(set(names)) > 2 * len(GROUPS)
    assert {"upfirdn2d_forward", "sample_importance", "nerf_forward_256", "render_256"} <= set(names)
