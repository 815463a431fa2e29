"""Every preset trains, stops, resumes exactly and shows its pictures, with its own networks made small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint
from cips3d.models.channels import channel_table
from cips3d.models.family import generator_class
from cips3d.models.pigan_discriminator import pigan_channel_table
from cips3d.plain import to_plain
from cips3d.render import main as render_command
from cips3d.train import main as train_command
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.loop import train
from cips3d.training.losses import LOSSES
from cips3d.training.presets import PRESETS, preset
from cips3d.training.resolving import resolved
from cips3d.training.schedule import plan_at
from cips3d.training.state import TrainingState
from cips3d.training.step import TrainingStep

SIDE = 8

# Fields of each configuration that make its networks small and leave everything else as it is.
SMALL: dict[str, dict[str, Any]] = {
    "cips3d": {
        "nerf_width": 16,
        "nerf_color_width": 8,
        "inr_width": 16,
        "z_shape_dim": 8,
        "z_appearance_dim": 8,
        "shape_style_dim": 8,
        "appearance_style_dim": 8,
    },
    "pigan": {"width": 16, "z_dim": 8, "mapping_width": 16, "layers": 3},
    "cips": {"hidden": 16, "widths": (16, 16), "z_dim": 8, "style_dim": 8},
    "stylegan2": {"channels": channel_table(SIDE, base=128, cap=16), "z_dim": 8, "style_dim": 8},
}


def small(name: str, folder: Path, data: Path) -> TrainConfig:
    """A preset with its schedule cut to a few steps at 8² and its networks narrowed."""
    config = preset(name)
    if config.discriminator.kind == "pigan":
        tables: dict[str, Any] = {"channels": pigan_channel_table(SIDE, base=64, cap=8), "latent_dim": 0}
    else:
        tables = {"main_channels": channel_table(SIDE, base=64, cap=8)}
        if config.discriminator.has_aux:
            tables["aux_channels"] = channel_table(SIDE, base=64, cap=4)
    return replace(
        config,
        out=folder,
        data=str(data),
        workers=0,
        resolution=SIDE,
        stages=tuple(replace(s, batch_size=4, grad_points=None) for s in config.stages),
        steps=4,
        generator=replace(config.generator, **SMALL[config.generator.system]),
        discriminator=replace(config.discriminator, **tables),
        volume=replace(config.volume, samples=4),
        reports=replace(
            config.reports, faces=2, turntable_frames=3, metrics_interval=0, checkpoint_every=2, pictures_every=100
        ),
    )


def flags_of(default: Any, wanted: Any, path: str = "") -> list[str]:
    """The command line that turns one configuration, as plain data, into another."""
    if default == wanted:
        return []
    if isinstance(default, dict) and isinstance(wanted, dict) and not path.endswith("aux_channels"):
        keys = [(key, f"{path}.{key}" if path else key) for key in default]
        # A table of channels has a flag for each resolution; those that are not wanted are made narrow.
        return [flag for key, name in keys for flag in flags_of(default[key], wanted.get(key, 4), name)]
    if isinstance(default, list) and default and isinstance(default[0], dict):
        parts = enumerate(zip(default, wanted, strict=True))
        return [flag for index, (a, b) in parts for flag in flags_of(a, b, f"{path}.{index}")]
    if isinstance(wanted, dict):
        wanted = [x for item in wanted.items() for x in item]
    values = wanted if isinstance(wanted, list) else [wanted]
    return ["--" + path.replace("_", "-"), *map(str, values)]


def commanded(name: str, folder: Path, data: Path) -> list[str]:
    """`small` as a command line."""
    return ["--preset", name, *flags_of(to_plain(preset(name)), to_plain(small(name, folder, data)))]


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("heads64", "afhq", "finetune")])
def test_every_preset_trains_and_resumes(name: str, tmp_path: Path, photo_folder: Path) -> None:
    """heads64, afhq and finetune have the networks and the loop of those that are run here."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_command(commanded(name, whole, photo_folder)) == 0
    assert train_command([*commanded(name, parts, photo_folder), "--steps", "2"]) == 0
    assert train_command(["--resume", str(parts), "--steps", "4"]) == 0
    a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (whole, parts))
    for network in ("generator", "generator_ema", "discriminator"):
        assert all(torch.equal(a[network][key], b[network][key]) for key in a[network]), network

    is_3d = generator_class(preset(name).generator).is_3d
    animation = whole / ("turntable.webp" if is_3d else "interpolation.webp")
    with Image.open(animation) as picture:
        assert getattr(picture, "n_frames", 1) > 1
    assert (whole / "pictures" / "00000004.png").is_file()
    out = tmp_path / "faces.png"
    assert render_command([str(whole), "--seeds", "0-1", "--out", str(out)]) == 0
    assert out.is_file()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_written_and_read(name: str) -> None:
    config = preset(name)
    assert TrainConfig.from_json(config.to_json()) == config
    assert resolved(config).total_steps == config.total_steps


@pytest.mark.parametrize("name", ["stylegan2-256", "cips-ffhq"])
def test_resolution_reshapes_networks_of_one_size(name: str) -> None:
    config = resolved(replace(preset(name), resolution=64))
    assert config.generator.resolution == config.discriminator.resolution_max == 64  # type: ignore[union-attr]


def test_cips_trains_on_parts_of_pictures(tmp_path: Path, photo_folder: Path) -> None:
    config = small("cips-ffhq", tmp_path / "run", photo_folder)
    config = replace(config, stages=(replace(config.stages[0], crop=8),))
    folder, code = train(config)
    assert code == 0
    stored = TrainConfig.from_json(load_checkpoint(find_checkpoint(folder))["config"])
    assert stored.discriminator.resolution_max == 8
    with Image.open(folder / "pictures" / "00000004.png") as picture:
        assert min(picture.size) > SIDE


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["tiny", "pigan-celeba", "pigan-cats", "cips-ffhq", "stylegan2-256"])
def test_every_model_takes_every_loss_and_regulariser(name: str, loss: Any, tmp_path: Path) -> None:
    config = small(name, tmp_path, tmp_path)
    config = replace(
        config,
        stages=tuple(replace(s, diff_augment=("color", "translation", "cutout")) for s in config.stages),
        loss=loss,
        top_k=1.0,
        r1_gamma=1.0,
        r2_gamma=1.0,
        gradient_penalty=1.0,
        path_length_weight=2.0,
        style_mixing=0.9,
        ada_target=0.6,
    )
    config = resolved(config)
    state = TrainingState(config, Processes())
    state.ada.p = 0.5
    state.enter_stage(0, config.stages[0])
    real = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    report = TrainingStep(state, config)(real, plan_at(config, 0))
    assert report.finite
    assert {"d/r1", "d/r2", "d/gradient_penalty", "g/path_length", "schedule/ada_p"} <= set(report.scalars)
    assert report.scalars["d/r2"] > 0 and report.scalars["g/path_length"] > 0
