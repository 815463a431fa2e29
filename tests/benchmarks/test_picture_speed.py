"""Whole pictures, the NeRF branch and what is compiled: every line that is promised, with what it is compared with."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace

import compile_speed
import eager_speed
import nerf_speed
import picture_cases
import pytest
import render_speed
import torch
import warpgroup_speed
from figures import Results
from nerf_speed import CIPS3DVolumes, PiGANVolumes
from op_cases import GROUPS
from picture_cases import multiply_adds
from picture_speed import work_of
from timing import Ceilings, Stopwatch, Timing

from cips3d.models.cips3d import CIPS3DConfig
from cips3d.models.pigan import PiGANConfig

CPU = torch.device("cpu")
NARROW = CIPS3DConfig(
    z_shape_dim=4,
    shape_style_dim=4,
    shape_mapping_layers=1,
    nerf_width=8,
    nerf_color_width=4,
    features=4,
    z_appearance_dim=4,
    appearance_style_dim=4,
    appearance_mapping_layers=1,
    inr_width=8,
    inr_blocks=2,
    inr_skip_from=1,
    inr_rgb_from=0,
)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile gives the function as it is, at once."""
    for module in (picture_cases, nerf_speed):
        monkeypatch.setattr(module, "compiled_by_torch", lambda function: function)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("no_compile", [False, True])
def test_pictures_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_compile: bool
) -> None:
    """As on a GPU, for every resolution."""
    monkeypatch.setattr(render_speed, "measure_ceilings", lambda _: Ceilings(1e9, {"float16": 1e9}))
    path = tmp_path / "record.json"
    given = {"batch_size": 2, "samples": 3, "resolutions": [4, 6], "repeats": 1}
    arguments = argparse.Namespace(**given, no_compile=no_compile, json=path)
    assert render_speed.compare(CPU, arguments, NARROW) == 0
    record = json.loads(path.read_text())
    assert (record["batch_size"], record["samples"]) == (2, 3)
    for name in ("render_4", "render_6"):
        for end in ("", "_high", "_accurate"):
            line = record["results"][f"{name}{end}"]
            assert line["ratio_vs_eager"] > 0 and line["fraction_of_limit"] > 0 and line["flops_per_second"] > 0
            assert (line["ratio_vs_compile"] is None) is no_compile
        assert record["results"][f"{name}_published"]["ms"] > 0
        assert (f"{name}_best_bf16_compiled" in record["results"]) is not no_compile
    assert "| images/s |" in capsys.readouterr().out


def test_products_of_pictures() -> None:
    """Three 16-bit products stand for one, everywhere in the picture."""
    pictures = picture_cases.Pictures(CPU, 2, 4, samples=3, config=NARROW)
    fast, accurate = work_of(pictures, "fast"), work_of(pictures, "highest")
    assert fast.flops == accurate.flops == 2 * 2 * multiply_adds(NARROW, 4, 3)
    assert (fast.passes, accurate.passes) == (1, 3)


@pytest.mark.usefixtures("uncompiled")
def test_nerf_lines() -> None:
    stopwatch = Stopwatch(CPU, repeats=1, warm_up=0)
    names = [f"nerf_{direction}_256" for direction in ("forward", "step", "backward")]
    lines = dict(nerf_speed.nerf_256(stopwatch, Ceilings(1e9, {"float16": 1e9})))
    assert list(lines) == [*names, *(f"{name}_accurate" for name in names)]
    assert list(dict(nerf_speed.compiled_nerf_256(stopwatch))) == names


def test_pigan_lines() -> None:
    stopwatch = Stopwatch(CPU, repeats=1, warm_up=0)
    names = [f"pigan_{direction}_64" for direction in ("forward", "step", "backward")]
    lines = dict(nerf_speed.pigan_64(stopwatch, Ceilings(1e9, {"float16": 1e9}), PiGANConfig(layers=2, width=8)))
    assert list(lines) == [*names, *(f"{name}_accurate" for name in names)]


def test_products_of_the_nerf() -> None:
    """A product of the forward is one of the gradient of its input and one of that of its weight."""
    assert nerf_speed.PRODUCTS == {"forward": 1, "step": 3, "backward": 2}
    assert CIPS3DVolumes(CPU).flops == 2 * 8 * 8 * 24 * 128 * (128 + 64)
    assert PiGANVolumes(CPU).flops == 2 * 4 * 4 * 24 * (7 * 256 * 256 + 259 * 256)


def test_every_op_has_its_turn_with_the_compiler() -> None:
    """But for the INR layer by layer, whose formulations are those of the whole one."""
    chosen = [*compile_speed.FIRST, *compile_speed.SECOND]
    expected = {
        (group, case.name)
        for group, build in GROUPS.items()
        for case in build(CPU, small=True)
        if "layer_by_layer" not in case.name
    }
    assert {(group, name) for group, name, _ in chosen} == expected
    names = [part.name for part in compile_speed.parts(Stopwatch(CPU), Ceilings(1.0, {}), Results(lambda _: None))]
    assert len(set(names)) == len(names)
    assert names[:3] == ["film_siren, compiled", "render_256, compiled", "nerf_256, compiled"]


def test_both_kinds_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable; it is what it was afterwards, and what it refused is refused still."""
    asked = "modulated_inr,clusters,render_rays_backward,split_matmul,streamed_field"
    monkeypatch.setenv(warpgroup_speed.VARIABLE, asked)
    seen: list[str | None] = []

    class Watch:
        device = CPU

        def __call__(self, run: object) -> Timing:
            seen.append(os.environ.get(warpgroup_speed.VARIABLE))
            return Timing(1.0, 0.0)

    results = Results(lambda _: None)
    ceilings = Ceilings(1e9, {"float16": 1e9})
    parts = warpgroup_speed.parts(Watch(), ceilings, results)  # type: ignore[arg-type]
    assert [part.name for part in parts] == [f"warpgroups of {op}" for op in asked.split(",")]
    for part in parts:
        part.measure()
    for name, result in warpgroup_speed.picture_lines(Watch(), ceilings):  # type: ignore[arg-type]
        results.add(name, result)
    assert list(results) == [
        *(
            f"modulated_inr{mode}_{kind}_forward"
            for kind in ("without_warpgroups", "warpgroups", "without_clusters", "clusters")
            for mode in ("", "_fast")
        ),
        "nerf_backward_256_without_warpgroups",
        "nerf_backward_256_warpgroups",
        "split_matmul_without_warpgroups_forward",
        "split_matmul_without_warpgroups_backward",
        "split_matmul_warpgroups_forward",
        "split_matmul_warpgroups_backward",
        *(f"pigan_{way}_64_{kind}" for kind in ("without_warpgroups", "warpgroups") for way in ("forward", "backward")),
        "render_256_without_warpgroups",
        "render_256_warpgroups",
    ]
    assert results["modulated_inr_warpgroups_forward"].difference == 0  # plain PyTorch here, twice
    others = ["0"] * 3 + ["render_rays_backward"] * 3 + ["0"] * 2 + ["split_matmul"] * 2
    others += ["0"] * 3 + ["streamed_field"] * 3
    of_inr = ["0", "modulated_inr", "modulated_inr", "modulated_inr,clusters"]
    assert seen == [*(value for value in of_inr for _ in range(2)), *others, "0", asked]
    assert os.environ[warpgroup_speed.VARIABLE] == asked
    monkeypatch.delenv(warpgroup_speed.VARIABLE)
    assert warpgroup_speed.allowed() == list(warpgroup_speed.OPS)
    with monkeypatch.context() as patch:
        compiled = SimpleNamespace(render_rays_backward_has_warpgroups=lambda: False)
        patch.setattr(warpgroup_speed.kernels, "compiled", lambda: compiled)
        assert warpgroup_speed.allowed() == [op for op in warpgroup_speed.OPS if op != "render_rays_backward"]
    with warpgroup_speed.asked_for("0"):
        assert warpgroup_speed.allowed() == [] and not warpgroup_speed.are_compared(CPU)
        assert warpgroup_speed.parts(Watch(), ceilings, results) == []  # type: ignore[arg-type]
    assert warpgroup_speed.VARIABLE not in os.environ


def test_kernels_that_give_something_else_are_found() -> None:
    comparison = warpgroup_speed.Comparison("render_rays", CPU)
    assert comparison.difference([torch.ones(3)]) is None
    assert comparison.difference([torch.full((3,), 1.01)]) == pytest.approx(0.01)
    for wrong in (torch.full((3,), 1.5), torch.full((3,), float("nan"))):
        with pytest.raises(RuntimeError, match="with warpgroups, render_rays gives something else"):
            comparison.difference([wrong])


def test_every_part_against_eager_has_a_name_of_its_own() -> None:
    names = [p.name for p in eager_speed.parts(Stopwatch(CPU), Ceilings(1.0, {}), Results(lambda _: None))]
    assert len(set(names)) == len(names) and {*GROUPS, "nerf_256", "render_256", "train_step_256"} <= set(names)
    assert names[-len(eager_speed.LATER) :] == [*eager_speed.LATER] and "render_256 with warpgroups" in names
