"""The command: published files of every kind go in, one safetensors file with the same weights comes out."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints.small_runs import write_checkpoint
from checkpoints.torch_files import module_of, stand_in_classes
from convert.small_networks import CIPS3D_CONFIG, CIPS3D_DISCRIMINATOR_CONFIG, PIGAN_CONFIG, SYSTEMS, made
from torch import Tensor, nn

from cips3d.checkpoints.converted import PARTS, Converted, read_converted
from cips3d.checkpoints.networks import load_networks
from cips3d.checkpoints.trained import save_checkpoint
from cips3d.convert import to_reference
from cips3d.convert.cips3d_discriminator import discriminator_to_reference
from cips3d.convert.command import main
from cips3d.convert.pigan import pigan_to_reference
from cips3d.errors import UserError
from cips3d.models.cips3d import CIPS3D
from cips3d.models.family import AnyDiscriminatorConfig, AnyGeneratorConfig, make_discriminator, make_generator
from cips3d.models.pigan import PiGAN
from cips3d.models.residual_discriminator import ResidualDiscriminator
from cips3d.models.volume import VolumeSettings
from cips3d.plain import from_plain
from cips3d.rendering import load_generator
from cips3d.training.config import TrainConfig

FAMILY = {"cips3d": "cips3d", "pigan": "pigan", "cips": "stylegan2", "stylegan2": "stylegan2"}  # whose discriminator
IGNORED = re.compile(r"\.mod[12]\.norm\.|to_rgbs\.(4|8|16)\.linear")  # what CIPS-3D carries and never applies


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> None:
    assert main(arguments) == 0


def check_weights(converted: Converted, part: str, module: nn.Module) -> None:
    """Bit for bit."""
    expected = module.state_dict()
    assert list(converted.states[part]) and converted.states[part].keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(converted.states[part][name], value), name


def rebuilt(converted: Converted, part: str) -> nn.Module:
    """The module that the file describes, with its weights."""
    kind, config = (
        (AnyDiscriminatorConfig, converted.discriminator_config)
        if part == "discriminator"
        else (AnyGeneratorConfig, converted.generator_config)
    )
    described: Any = from_plain(kind, config)  # type: ignore[arg-type]
    module = make_discriminator(described) if part == "discriminator" else make_generator(described)
    module.load_state_dict(converted.states[part])
    return module


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that the command ends with."""
    before = sorted(Path().iterdir())
    assert main(arguments) == 2
    captured = capsys.readouterr()
    error = captured.err.strip()
    assert error.startswith("error: ") and "\n" not in error and "Traceback" not in error
    assert sorted(Path().iterdir()) == before
    return error


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("system", SYSTEMS)
def test_state_dicts(system: str, is_zip: bool, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, original = made(system)
    torch.save(original, "weights.pth", _use_new_zipfile_serialization=is_zip)
    run("weights.pth", "out/weights.safetensors", *(["--box-warp"] if system == "pigan" else []))
    out = capsys.readouterr().out.splitlines()
    converted = read_converted("out/weights.safetensors")
    part = "discriminator" if system.endswith("-discriminator") else "generator"
    assert list(converted.states) == [part] and converted.system == system.removesuffix("-discriminator")
    check_weights(converted, part, module)
    assert type(rebuilt(converted, part)) is type(module)
    digest = hashlib.sha256(Path("weights.pth").read_bytes()).hexdigest()
    assert [(source.file, source.sha256) for source in converted.sources] == [("weights.pth", digest)]
    count = sum(parameter.numel() for parameter in module.parameters())
    assert len(out) == 2 and f"{part} of" in out[0] and f"{count} parameters, step unknown" in out[0]
    assert out[1] == f"out/weights.safetensors holds the {part}"


@pytest.mark.parametrize("main_first", [False, True])
@pytest.mark.parametrize("aux_first", [False, True, None])
def test_where_discriminators_downsample(main_first: bool, aux_first: bool | None, files: Path) -> None:
    """The blur kernels of the published file tell it, and no shape: it has to be written down."""
    config = replace(
        CIPS3D_DISCRIMINATOR_CONFIG,
        main_downsample_first=main_first,
        aux_downsample_first=aux_first is not False,
        **({"aux_channels": None} if aux_first is None else {}),
    )
    torch.manual_seed(0)
    discriminator = ResidualDiscriminator.from_config(config)
    assert discriminator.config == config
    torch.save(discriminator_to_reference(discriminator), "weights.pth")
    run("weights.pth", "out.safetensors")
    again = rebuilt(read_converted("out.safetensors"), "discriminator")
    image = torch.randn(2, 3, 16, 16)
    given = (image,) if aux_first is None else (image, image)
    expected, found = discriminator(*given), again(*given)
    for a, b in zip(*((x,) if isinstance(x, Tensor) else x for x in (expected, found)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("system", ["cips", "stylegan2"])
def test_all_networks_in_one_file(system: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (generator, g), (averaged, g_ema) = made(system), made(system)
    discriminator, d = made(f"{FAMILY[system]}-discriminator")
    optimizer = torch.optim.Adam(generator.parameters())
    sum(parameter.sum() for parameter in generator.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    generator, g = made(system)
    beside = {
        "g_optim": optimizer.state_dict(),
        "d_optim": optimizer.state_dict(),
        "args": argparse.Namespace(size=16),
        "ada_aug_p": 0.1,
        "latent_avg": torch.zeros(8),
    }
    torch.save({"g": g, "d": d, "g_ema": g_ema, **beside}, "550000.pt")
    run("550000.pt", "all.safetensors")
    converted = read_converted("all.safetensors")
    assert converted.system == system
    for part, module in zip(PARTS, (generator, averaged, discriminator), strict=True):
        check_weights(converted, part, module)
        rebuilt(converted, part)
    assert converted.generator_state is converted.states["generator_ema"]
    assert capsys.readouterr().out.endswith(
        "all.safetensors holds the generator, the averaged generator and the discriminator; "
        "left out: g_optim, d_optim, args and 2 more\n"
    )
    run("550000.pt", "told.safetensors", "--system", system)
    assert read_converted("told.safetensors").states.keys() == converted.states.keys()


def test_cips3d_in_separate_files(files: Path) -> None:
    networks = {"generator": made("cips3d"), "G_ema": made("cips3d"), "discriminator": made("cips3d-discriminator")}
    for name, (_, state) in networks.items():
        torch.save(state, f"{name}_model.pth")
    torch.save({**{name: state for name, (_, state) in networks.items()}, "state_dict": {"step": 42}}, "all.pth")
    run(
        "generator_model.pth", "a.safetensors", "--ema", "G_ema_model.pth", "--discriminator", "discriminator_model.pth"
    )
    run("all.pth", "b.safetensors")
    run("generator_model.pth", "c.safetensors", "--ema", "all.pth", "--discriminator", "all.pth")
    for name in "abc":
        converted = read_converted(f"{name}.safetensors")
        for part, (module, _) in zip(PARTS, networks.values(), strict=True):
            check_weights(converted, part, module)
    assert read_converted("b.safetensors").step == 42
    assert [source.file for source in read_converted("a.safetensors").sources] == [
        "generator_model.pth",
        "G_ema_model.pth",
        "discriminator_model.pth",
    ]
    run("G_ema_model.pth", "ema.safetensors")
    assert list(read_converted("ema.safetensors").states) == ["generator_ema"]


def save_pigan(generator: PiGAN, *, box: float | None, averages: list[Tensor], is_zip: bool = True) -> None:
    """generator.pth and ema.pth, as the published training writes them."""
    siren = "TALLSIREN" if box is None else "SPATIALSIRENBASELINE"
    names = {
        "ImplicitGenerator3d": "generators.generators",
        siren: "siren.siren",
        "UniformBoxWarp": "siren.siren",
        "ExponentialMovingAverage": "torch_ema.ema",
    }
    with stand_in_classes(**names) as classes:
        tree = module_of(pigan_to_reference(generator), {"": classes["ImplicitGenerator3d"], "siren": classes[siren]})
        if box is not None:
            warp = classes["UniformBoxWarp"]()
            warp.scale_factor = 2 / box
            tree.get_submodule("siren").add_module("gridwarper", warp)
        tree.step, tree.epoch, tree.device = 1000, 2, torch.device("cpu")  # type: ignore[assignment]
        tree.avg_frequencies = torch.zeros(1, 24)
        torch.save(tree, "generator.pth", _use_new_zipfile_serialization=is_zip)
        ema = classes["ExponentialMovingAverage"]()
        vars(ema).update(decay=0.999, num_updates=1000, shadow_params=averages, collected_params=[])
        torch.save(ema, "ema.pth", _use_new_zipfile_serialization=is_zip)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # which the older format saves beside modules
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(("box", "grid"), [(0.24, None), (0.3, None), (None, None), (0.24, 4)])
def test_pigan_s_whole_modules(box: float | None, grid: int | None, is_zip: bool, files: Path) -> None:
    config = replace(PIGAN_CONFIG, box_warp=box is not None, grid_resolution=grid)
    generator, averaged = PiGAN(config), PiGAN(config)
    save_pigan(generator, box=box, averages=list(pigan_to_reference(averaged).values()), is_zip=is_zip)
    assert "siren" not in sys.modules
    run("generator.pth", "out.safetensors", "--ema", "ema.pth")
    converted = read_converted("out.safetensors")
    check_weights(converted, "generator", generator)
    check_weights(converted, "generator_ema", averaged)
    described = from_plain(type(config), converted.generator_config)
    assert described == (config if box is None else replace(config, box_side=2 / (2 / box)))
    assert converted.step == 1000
    carla = VolumeSettings(samples=48, t_near=0.7, t_far=1.3, white_back=True)
    assert converted.rendering.volume == (carla if box is None else VolumeSettings())
    assert converted.rendering.fov_degrees == (30 if box is None else 12)


def test_pigan_s_state_dict_needs_to_be_told(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, state = made("pigan")
    torch.save(state, "g.pth")
    assert "--box-warp" in refusal(capsys, "g.pth", "out.safetensors")
    for flag, warped in (("--box-warp", True), ("--no-box-warp", False)):
        run("g.pth", f"{warped}.safetensors", flag)
        config = read_converted(f"{warped}.safetensors").generator_config
        assert config is not None and config["box_warp"] is warped


def test_rendering_defaults(files: Path) -> None:
    for system, options, expected in (
        ("cips3d", [], (12, 0.88, 12, 256)),
        ("cips3d", ["--preset", "afhq"], (24, 0.8, 12, 256)),
        ("pigan", ["--box-warp", "--preset", "pigan-cats"], (24, 0.8, 12, 64)),
        ("pigan", ["--no-box-warp"], (48, 0.7, 30, 128)),
        ("cips", [], (12, 0.88, 12, 8)),  # a picture has no depth; its resolution is the model's own
        ("stylegan2", [], (12, 0.88, 12, 16)),
    ):
        torch.save(made(system)[1], "g.pth")
        run("g.pth", "out.safetensors", "--overwrite", *options)
        found = read_converted("out.safetensors").rendering
        assert (found.volume.samples, found.volume.t_near, found.fov_degrees, found.resolution) == expected, system
        assert found.poses.yaw_mean == pytest.approx(math.pi / 2)


def test_mistakes_are_one_sentence(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, g = made("cips3d")
    other = {**g, "siren.final_layer.bias": torch.zeros(2)}
    torch.save(g, "g.pth")
    torch.save(other, "other.pth")
    torch.save({"a": g, "b": g}, "two.pth")
    torch.save({"encoder": {"x.weight": torch.zeros(1)}}, "unknown.pth")
    torch.save({"lr": 0.1, "step": 3}, "nothing.pth")
    torch.save({"shadow_params": [torch.zeros(1)], "decay": 0.9}, "ema.pth")
    torch.save(made("stylegan2")[1], "stylegan2.pth")
    torch.save(made("pigan")[1], "pigan.pth")
    torch.save(to_reference(CIPS3D(replace(CIPS3D_CONFIG, inr_width=10))), "wider.pth")
    save_checkpoint(Path("run.pt"), {"step": 3})
    Path("broken.pth").write_bytes(Path("g.pth").read_bytes()[:-100])
    Path("there.safetensors").write_text("mine")
    run("g.pth", "converted.safetensors")
    Path("folder.safetensors").mkdir()
    for arguments, words in (
        (["g.pth", "out.pth"], "must end in .safetensors"),
        (["g.pth", "there.safetensors"], "--overwrite"),
        (["g.pth", "folder.safetensors", "--overwrite"], "is a folder"),
        (["g.pth", "there.safetensors/out.safetensors"], "cannot be written"),
        (["missing.pth", "out.safetensors"], "missing.pth does not exist"),
        (["broken.pth", "out.safetensors"], "truncated"),
        (["unknown.pth", "out.safetensors"], "unknown.pth: encoder: its weights x.weight are those of no system"),
        (["nothing.pth", "out.safetensors"], "holds no network, only lr, step"),
        (["two.pth", "out.safetensors"], "both a and b could be the generator"),
        (["other.pth", "out.safetensors"], "other.pth: the state dict is not that of a CIPS-3D generator"),
        (["run.pt", "out.safetensors"], "run.pt does not describe a model of this version"),
        (["run.pt", "out.safetensors", "--preset", "ffhq"], "--preset is for published checkpoints, and run.pt is of"),
        (["run.pt", "out.safetensors", "--no-box-warp"], "--no-box-warp is for published checkpoints"),
        (["converted.safetensors", "out.safetensors"], "converted.safetensors is converted already; copy it"),
        (["there.safetensors", "out.safetensors"], "there.safetensors is not a complete converted checkpoint"),
        (["folder.safetensors", "out.safetensors"], "folder.safetensors holds no checkpoint"),
        (["g.pth", "out.safetensors", "--average", "slow"], "--average is for runs of this package"),
        (["ema.pth", "out.safetensors"], "averages without names"),
        (["g.pth", "out.safetensors", "--ema", "ema.pth"], "averages 1 parameters"),
        (["g.pth", "out.safetensors", "--ema", "nothing.pth"], "nothing.pth holds no network"),
        (["g.pth", "out.safetensors", "--ema", "wider.pth"], "other dimensions"),
        (
            ["g.pth", "out.safetensors", "--ema", "stylegan2.pth"],
            "--ema stylegan2.pth is a generator of StyleGAN2, and",
        ),
        (["g.pth", "out.safetensors", "--ema", "pigan.pth"], "--ema pigan.pth is a generator of pi-GAN, and g.pth one"),
        (["pigan.pth", "out.safetensors", "--ema", "g.pth", "--box-warp"], "and pigan.pth one of pi-GAN"),
        (["g.pth", "out.safetensors", "--discriminator", "g.pth"], "holds no discriminator where one is needed"),
        (["g.pth", "out.safetensors", "--system", "stylegan3"], "choose one of cips3d, "),
        (["g.pth", "out.safetensors", "--system", "pigan", "--box-warp"], "not that of a pi-GAN generator"),
        (["g.pth", "out.safetensors", "--box-warp"], "are for generators of pi-GAN"),
        (["g.pth", "out.safetensors", "--box-warp", "--no-box-warp"], "contradict"),
        (["g.pth", "out.safetensors", "--preset", "best"], "--preset best is unknown"),
        (["g.pth", "out.safetensors", "--preset", "pigan-cats"], "--preset pigan-cats is not one of CIPS-3D"),
    ):
        assert words in refusal(capsys, *arguments), arguments
    assert Path("there.safetensors").read_text() == "mine"
    run("g.pth", "there.safetensors", "--overwrite")
    assert read_converted("there.safetensors").system == "cips3d"


def test_shapes_that_make_no_network(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for system in SYSTEMS:
        _, state = made(system)
        for number, key in enumerate(state):
            if number % 5 == 0 and not IGNORED.search(key):  # some of all
                torch.save({**state, key: torch.zeros(13)}, "g.pth")
                options = ["--box-warp"] if system == "pigan" else []
                assert "g.pth: " in refusal(capsys, "g.pth", "out.safetensors", *options), key


def test_reading_other_files(files: Path) -> None:
    torch.save(made("stylegan2")[1], "g.pth")
    run("g.pth", "out.safetensors")
    whole = Path("out.safetensors").read_bytes()

    def refused(content: bytes | None, words: str) -> None:
        path = Path("file.safetensors")
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=words) as error:
            read_converted(path)
        assert "\n" not in str(error.value)

    refused(None, "does not exist")
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        refused(whole[:length], "truncated")
    refused(b"hello" * 10, "truncated")
    refused(safetensors.torch.save({"a": torch.zeros(1)}), "not a converted checkpoint")
    refused(whole.replace(b'"format_version":"1"', b'"format_version":"2"'), "newer version")
    refused(whole.replace(b'"generator.noises', b'"unknownly.noises'), "not a complete")
    header = int.from_bytes(whole[:8], "little")
    metadata = json.loads(whole[8 : 8 + header])["__metadata__"]
    refused(safetensors.torch.save({}, metadata), "not a complete")  # a configuration without weights
    with pytest.raises(UserError, match="folder"):
        read_converted(files)


def test_runs_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("cips3d.convert", run_name="__main__")
    assert stopped.value.code == 0
    assert "Examples:" in capsys.readouterr().out


def test_runs_of_this_package(files: Path, small_config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures, configurations and the discriminator are those of the run; what only training needs is left out."""
    torch.manual_seed(1)
    judge = ResidualDiscriminator.from_config(small_config.discriminator)
    write_checkpoint(
        Path("run/checkpoints/step-00001200.pt"),
        small_config,
        discriminator=judge.state_dict(),
        generator_slow_ema=None,
        optimizer_g={"state": torch.zeros(100_000)},
    )
    run("run", "mine.safetensors")
    assert (
        capsys.readouterr().out
        == "mine.safetensors holds the generator's average at step 1200, and the discriminator\n"
    )
    given, taken = load_networks("run"), load_networks("mine.safetensors")
    for name in ("generator_config", "discriminator_config", "rendering", "step"):
        assert getattr(taken, name) == getattr(given, name)
    for part in ("averaged", "discriminator"):
        states = getattr(given, part), getattr(taken, part)
        assert list(states[0]) and states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert Path("mine.safetensors").stat().st_size < Path("run/checkpoints/step-00001200.pt").stat().st_size - 400_000
    assert "run/checkpoints/step-00001200.pt holds no slow average" in refusal(
        capsys, "run", "other.safetensors", "--average", "slow"
    )
    with pytest.raises(UserError, match="average 'ema' is unknown; choose one of fast, slow"):
        load_networks("run", average="ema")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds one average"):
        load_networks("mine.safetensors", average="slow")


def test_the_slow_average(files: Path, small_config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    slow = make_generator(small_config.generator).state_dict()
    write_checkpoint(Path("a.pt"), small_config, generator_slow_ema=slow)
    run("a.pt", "slow.safetensors", "--average", "slow")
    assert "holds the generator's slow average at step 1200" in capsys.readouterr().out
    found = load_generator("slow.safetensors").generator.state_dict()
    assert all(torch.equal(found[name], slow[name]) for name in slow)
    same = load_generator("a.pt", average="slow").generator.state_dict()
    assert all(torch.equal(same[name], slow[name]) for name in slow)
    fast = load_generator("a.pt").generator.state_dict()
    assert not all(torch.equal(fast[name], slow[name]) for name in slow)
