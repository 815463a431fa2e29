"""A record says under which conditions its figures were measured."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import conditions
import pytest
import torch
from figures import Result, Results
from timing import Ceilings

from cips3d.errors import UserError


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the folders that figures depend on."""
    for name in ("csrc", "cips3d", "benchmarks", "benchmarks/results", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for arguments in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "First")):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    monkeypatch.setattr(conditions, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("folder", ["csrc", "cips3d", "benchmarks"])
def test_changes_of_what_is_measured_are_noted(checkout: Path, folder: str) -> None:
    commit = conditions.commit()
    assert commit is not None and len(commit) == 40
    (checkout / folder / "file").write_text("changed")
    assert conditions.commit() == f"{commit}+changes"


def test_other_changes_are_not(checkout: Path) -> None:
    """The record itself, above all."""
    commit = conditions.commit()
    (checkout / "benchmarks" / "results" / "suite_gpu.json").touch()
    (checkout / "tests" / "file").write_text("changed")
    assert conditions.commit() == commit


def test_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "ROOT", tmp_path)
    monkeypatch.delenv("CIPS3D_COMMIT", raising=False)
    assert conditions.commit() is None
    monkeypatch.setenv("CIPS3D_COMMIT", "abc")
    assert conditions.commit() == "abc"


def test_a_gpu_without_kernels_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain PyTorch would be held against itself."""
    monkeypatch.setattr(conditions, "choose_device", torch.device)
    monkeypatch.setattr(conditions.kernels, "why_not_on", lambda device: f"no kernels for {device}")
    with pytest.raises(UserError, match="no kernels for cuda:1"):
        conditions.prepared_device("cuda:1")
    assert conditions.prepared_device("cpu").type == "cpu"


def test_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = Ceilings(1e9, {"float32": 1e9})
    monkeypatch.setattr(conditions, "commit", lambda: "abc")
    about = conditions.about(torch.device("cpu"), ceilings)
    assert set(about["versions"]) == {"python", "torch", "cuda", "cudnn", "triton"}
    assert about["settings"]["compile_mode"].startswith("max-autotune")
    assert about["settings"]["matmul.allow_tf32"] is torch.backends.cuda.matmul.allow_tf32
    assert about["settings"]["cudnn.allow_tf32"] is torch.backends.cudnn.allow_tf32
    results = Results(conditions.keeping(tmp_path / "record.json", about))
    results.left_out.append("c")
    results.add("a", Result(ms=1.0))
    results.fail("b", "no reason")
    results.tests["ops"] = {"passed": 3, "seconds": 1.5}
    results.add_kernels("a", {"sine": 0.5})
    record = json.loads((tmp_path / "record.json").read_text())
    assert {"device", "driver", "ceilings"} <= set(record)
    assert record["commit"] == "abc"
    assert record["results"]["a"]["ms"] == 1.0
    assert {"ratio_vs_eager", "ratio_vs_compile", "fraction_of_limit", "peak_mb"} <= set(record["results"]["a"])
    assert (record["failures"], record["left_out"]) == ({"b": "no reason"}, ["c"])
    assert (record["tests"], record["kernels"]) == ({"ops": {"passed": 3, "seconds": 1.5}}, {"a": {"sine": 0.5}})
