"""CIPS-3D: the published schedules, and small ones for small machines."""

from __future__ import annotations

from dataclasses import replace

from cips3d.models.channels import channel_table
from cips3d.models.cips3d import CIPS3DConfig
from cips3d.models.residual_discriminator import ResidualDiscriminatorConfig
from cips3d.models.volume import VolumeSettings
from cips3d.training.config import Augmentation, Reports, Stage, TrainConfig

ALL_AUGMENTATIONS: tuple[Augmentation, ...] = ("color", "translation", "cutout")

# Rays within the distances at which synthetic heads have visible surfaces (0.92 to 1.07): few samples lie close there.
_AROUND_HEADS = VolumeSettings(last_back=True, t_near=0.9, t_far=1.1)

# A few minutes on two CPU cores: noise to heads with hair, face and shirt that turn.
TINY = TrainConfig(
    preset="tiny",
    heads=3072,
    stages=(
        Stage(
            resolution=32,
            steps=1200,
            batch_size=8,
            lr_nerf=3e-4,
            lr_inr=7e-4,
            lr_mapping=2e-4,
            lr_discriminator=6e-3,
            pose_weight=7.5,
            pose_augment=ALL_AUGMENTATIONS,
        ),
    ),
    generator=CIPS3DConfig(
        z_shape_dim=32,
        shape_style_dim=32,
        shape_mapping_layers=3,
        nerf_width=32,
        nerf_color_width=32,
        features=32,
        z_appearance_dim=64,
        appearance_style_dim=64,
        appearance_mapping_layers=3,
        inr_width=64,
        inr_blocks=3,
        inr_skip_from=1,
        inr_rgb_from=0,
        density_scale=100.0,
        initial_radius=0.08,
        initial_density=300.0,
        rgb_init=0.12,
        aux_init=0.4,
    ),
    discriminator=ResidualDiscriminatorConfig(
        main_channels=channel_table(128, base=512, cap=64),
        aux_channels=channel_table(128, base=512, cap=32),
        predict_pose=True,
    ),
    volume=replace(_AROUND_HEADS, samples=8),
    adam_betas=(0.0, 0.99),
    r1_gamma=0.1,
    r1_every=4,
    ema_decay=0.995,
    ema_start=0,
    ema_warmup=True,
    density_noise_steps=500,
    cooldown=0.25,
    reuse_fakes=True,
    reports=Reports(
        pictures_every=100,
        checkpoint_every=250,
        metrics_interval=3200,
        metrics_images=256,
        scalars_every=5,
        turntable_frames=40,
    ),
)

# One GPU, an afternoon: the tiny recipe with room for eyes and mouths.
HEADS64 = replace(
    TINY,
    preset="heads64",
    heads=20_000,
    stages=(
        replace(TINY.stages[0], resolution=32, steps=20_000, batch_size=16, lr_discriminator=2e-3),
        replace(TINY.stages[0], resolution=64, steps=60_000, batch_size=16, lr_discriminator=2e-3, fade_steps=2000),
    ),
    generator=CIPS3DConfig(
        nerf_width=64,
        nerf_color_width=64,
        inr_width=128,
        inr_blocks=6,
        inr_skip_from=1,
        inr_rgb_from=0,
        z_shape_dim=128,
        z_appearance_dim=128,
        appearance_style_dim=128,
        appearance_mapping_layers=4,
        density_scale=100.0,
        initial_radius=0.08,
        initial_density=300.0,
        rgb_init=0.12,
        aux_init=0.4,
    ),
    discriminator=ResidualDiscriminatorConfig(
        main_channels=channel_table(256, base=4096, cap=256),
        aux_channels=channel_table(256, base=4096, cap=128),
        predict_pose=True,
    ),
    volume=_AROUND_HEADS,
    r1_gamma=1.0,
    ema_decay=0.999,
    ema_start=1000,
    density_noise_steps=5000,
    reports=Reports(),
)

_PUBLISHED_32 = Stage(
    resolution=32,
    steps=80_000,
    batch_size=32,
    lr_nerf=2e-4,
    lr_inr=2e-4,
    lr_mapping=2e-4,
    lr_discriminator=2e-3,
)
_PUBLISHED_128 = replace(
    _PUBLISHED_32,
    resolution=128,
    steps=800_000,
    lr_nerf=1e-4,
    lr_inr=1e-4,
    lr_mapping=1e-4,
    lr_discriminator=1e-3,
    fade_steps=10_000,
)
_PUBLISHED_256 = replace(
    _PUBLISHED_128,
    resolution=256,
    lr_discriminator=5e-4,
    aux_weight=0.0,
    freeze_nerf=True,
    diff_augment=ALL_AUGMENTATIONS,
    density_noise=0.0,
)

# The published training of CIPS-3D on FFHQ (arXiv 2110.09788): 8 processes of 4 images.
FFHQ = TrainConfig(
    preset="ffhq",
    workers=4,
    x_flip=True,
    density_noise_restarts=True,
    stages=(
        _PUBLISHED_32,
        replace(_PUBLISHED_32, resolution=64, steps=200_000, fade_steps=10_000),
        _PUBLISHED_128,
        _PUBLISHED_256,
    ),
)

# The same schedule for animal faces, with the published volume: deeper, and more samples. What is not published is the
# augmentation throughout: the set has a tenth of FFHQ's pictures.
AFHQ = replace(
    FFHQ,
    preset="afhq",
    stages=tuple(replace(stage, diff_augment=ALL_AUGMENTATIONS) for stage in FFHQ.stages),
    volume=VolumeSettings(samples=24, t_near=0.8, t_far=1.2),
)

# A new domain from a trained 256² model: the NeRF stays, the INR learns the new look.
FINETUNE = replace(FFHQ, preset="finetune", ema_start=0, stages=(replace(_PUBLISHED_256, steps=20_000, fade_steps=0),))

PRESETS = (TINY, HEADS64, FFHQ, AFHQ, FINETUNE)
