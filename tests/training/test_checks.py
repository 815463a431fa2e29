"""Numbers that make no sense are refused before anything is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cips3d.errors import UserError
from cips3d.files import is_disk_full
from cips3d.train import parse
from cips3d.training.checks import check_batches
from cips3d.training.config import TrainConfig
from cips3d.training.loop import train
from cips3d.training.resolving import resolved


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": -1}, "--workers -1 makes no sense; give a number from 0 to 1024"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 10**23}, f"--seed {10**23} makes no sense; give a number from 0 to {2**63 - 1}"),
        ({"seed": 10**400}, "--seed 1000"),
        ({"style_mixing": 5.0}, "--style-mixing 5 makes no sense; give a number from 0 to 1"),
        ({"workers": 4000}, "--workers 4000 makes no sense; give a number from 0 to 1024"),
        ({"ada_target": float("nan")}, "--ada-target nan makes no sense; give a number from 0 to 1"),
        ({"ema_start": -1}, "--ema-start -1"),
        ({"density_noise_steps": -5}, "--density-noise-steps -5 makes no sense; give 0 or more"),
        ({"r1_every": 0}, "--r1-every 0 makes no sense; give 1 or more"),
        ({"adam_betas": (1.0, 0.5)}, "--adam-betas 1"),
        ({"ema_decay": 2.0}, "--ema-decay 2 makes no sense; give a number from 0 to 1"),
        ({"ema_decay": float("nan")}, "--ema-decay nan"),
        ({"top_k": 0.0}, "--top-k 0"),
        ({"cooldown": 2.0}, "--cooldown 2"),
        ({"fov_degrees": 0.0}, "--fov-degrees 0"),
        ({"stages.lr_nerf": -1.0}, r"--stages\.0\.lr-nerf -1"),
        ({"clip_gradient": -1.0}, "--clip-gradient -1"),
        ({"heads": 0}, "--heads 0"),
        ({"ada_target": 0.6, "ada_kimg": 0.0}, "--ada-kimg 0"),
        ({"reports.keep": 0}, r"--reports\.keep 0 makes no sense; give 1 or more"),
        ({"reports.pictures_every": 0}, r"--reports\.pictures-every 0"),
        ({"reports.checkpoint_every": 0}, r"--reports\.checkpoint-every 0"),
        ({"reports.scalars_every": 0}, r"--reports\.scalars-every 0"),
        ({"reports.faces": 0}, r"--reports\.faces 0"),
        ({"reports.faces": 1000}, r"--reports\.faces 1000 at 8 pixels would make \.png pictures of 98254 x 684, more"),
        ({"reports.turntable_frames": 0}, r"--reports\.turntable-frames 0"),
        ({"stages.lr_inr": float("inf")}, r"--stages\.0\.lr-inr inf"),
        ({"stages.steps": 0}, r"--stages\.0\.steps 0 makes no sense; give 1 or more"),
        ({"stages.steps": -5}, r"--stages\.0\.steps -5"),
        ({"stages.accumulation": 0}, r"--stages\.0\.accumulation 0"),
        ({"stages.accumulation": -1}, r"--stages\.0\.accumulation -1"),
    ],
)
def test_what_makes_no_sense(small_config: TrainConfig, change: dict[str, Any], words: str) -> None:
    of = {name.partition(".")[2]: value for name, value in change.items() if "." in name}
    if "reports" in next(iter(change)):
        change = {"reports": replace(small_config.reports, **of)}
    elif of:
        change = {"stages": (replace(small_config.stages[0], **of),)}
    with pytest.raises(UserError, match=words):
        train(replace(small_config, **change))
    assert small_config.out is not None and not small_config.out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "tiny", "--stages.0.accumulation", "2"], "pass --no-reuse-fakes"),
        (["--preset", "cips-ffhq", "--stages.0.pose-weight", "1"], "needs cameras, which cips does not have"),
        (["--preset", "ffhq", "--stages.0.pose-weight", "1"], "pass --discriminator.predict-pose"),
        (["--preset", "pigan-celeba", "--resolution", "512"], "do not fit this discriminator"),
        (["--preset", "cips-ffhq", "--stages.0.crop", "0"], r"--stages\.0\.crop 0 makes no sense; give 1 or more"),
        (["--preset", "tiny", "--stages.0.grad-points", "0"], r"--stages\.0\.grad-points 0"),
        (
            ["--preset", "tiny", "--stages.0.resolution", "24"],
            "pictures of 24 pixels do not fit this discriminator, which takes powers of two from 8 to 128",
        ),
        (
            ["--preset", "ffhq", "--discriminator.no-progressive"],
            "pictures of 32 pixels do not fit this discriminator, which takes 256 alone; give all stages one size",
        ),
        (
            ["--preset", "stylegan2-256", "--resolution", "16", "--stages.0.fade-steps", "10"],
            r"--stages\.N\.fade-steps 10 needs a discriminator that grows; give 0",
        ),
        (
            ["--preset", "stylegan2-256", "--resolution", "16", "--stages.0.grad-points", "10"],
            r"--stages\.N\.grad-points 10 is for rays through a volume, which stylegan2 does not have",
        ),
        (["--preset", "cips-ffhq", "--stages.0.grad-points", "10"], "which cips does not have"),
        (
            ["--preset", "pigan-celeba", "--latent-weight", "1", "--discriminator.latent-dim", "3"],
            r"--latent-weight 1 needs a discriminator that predicts z, pi-GAN's with --discriminator\.latent-dim 256",
        ),
        (
            ["--preset", "tiny", "--discriminator.aux-channels", "4", "8", "8", "8"],
            r"--stages\.N\.aux-weight 1 has pictures of 32 pixels judged by an auxiliary discriminator of 8",
        ),
        (
            ["--preset", "pigan-celeba", "--stages.0.aux-weight", "1"],
            r"--stages\.N\.aux-weight 1 needs an auxiliary image.*pigan does not have; give 0",
        ),
        (
            ["--preset", "cips-ffhq", "--resolution", "64", "--stages.0.crop", "4"],
            r"--stages\.N\.crop 4 is no part.*; give a power of two from 8 to 64",
        ),
        (
            ["--preset", "cips-ffhq", "--resolution", "64", "--stages.0.crop", "128"],
            r"--stages\.N\.crop 128 is no part",
        ),
        (["--preset", "tiny", "--stages.0.crop", "8"], r"--stages\.N\.crop 8 is for generators of pixel coordinates"),
        (["--preset", "pigan-celeba", "--stages.0.freeze-nerf"], r"--stages\.N\.freeze-nerf is for cips3d"),
        (["--preset", "pigan-celeba", "--generator.box-side", "nan"], "box_side must be a positive length"),
        (["--preset", "pigan-celeba", "--generator.grid-init-std", "nan"], "grid_init_std nan makes no sense"),
        (
            ["--preset", "cips-ffhq", "--generator.mapping-lr-multiplier", "nan"],
            "mapping_lr_multiplier nan is no positive number",
        ),
        (["--preset", "tiny", "--poses.yaw-std", "-1"], "yaw_std -1 makes no sense; give 0 or more"),
        (["--preset", "tiny", "--poses.pitch-std", "nan"], "pitch_std nan"),
        (["--preset", "tiny", "--volume.t-near", "2"], r"t_far 1\.1 leaves no ray behind t_near 2"),
        (["--preset", "tiny", "--volume.t-far", "nan"], "t_far nan makes no sense; give a finite number"),
        (["--preset", "tiny", "--volume.samples", "2"], "samples 2 is too few to resample from"),
        (["--preset", "tiny", "--volume.samples", "0"], "samples 0 makes no sense; give 1 or more"),
        (["--preset", "tiny", "--generator.nerf-width", "0"], "nerf_width 0 makes no sense; give 1 or more"),
        (["--preset", "tiny", "--generator.inr-blocks", "-1"], "inr_blocks -1"),
        (
            ["--preset", "ffhq", "--generator.inr-blocks", "2"],
            "inr_rgb_from 3 makes no sense; give a number from 0 to 1",
        ),
        (["--preset", "ffhq", "--generator.inr-skip-from", "0"], "inr_skip_from 0 makes no sense; give 1 or more"),
        (["--preset", "tiny", "--generator.rgb-init", "-1"], "rgb_init -1"),
    ],
)
def test_remedies_name_what_there_is(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolved(parse(arguments))


def test_an_auxiliary_discriminator_that_is_not_there_compares_nothing() -> None:
    groups = ["--discriminator.aux-minibatch-std-group", "3"]
    check_batches(resolved(parse(["--preset", "stylegan2-256", *groups])), world_size=1)
    with pytest.raises(UserError, match=r"--batch-size \d+ leaves \d+ images to be compared in groups of 3"):
        check_batches(resolved(parse(["--preset", "tiny", *groups])), world_size=1)  # it has one


@pytest.mark.parametrize("name", ["tiny", "heads64", "ffhq", "cips-ffhq", "stylegan2-256"])
def test_larger_pictures_than_the_preset_s(name: str) -> None:
    """Discriminators grow with them."""
    config = resolved(parse(["--preset", name, "--resolution", "512"]))
    assert config.stages[-1].resolution == 512
    assert config.discriminator.resolution_max >= 512


def test_a_disk_that_is_full_while_a_checkpoint_is_written() -> None:
    """As torch says it, in two ways."""
    assert is_disk_full(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2408192 vs 2408084"))
    assert is_disk_full(RuntimeError("PytorchStreamWriter failed writing file data/0"))
    assert not is_disk_full(RuntimeError("another"))
