"""pi-GAN (arXiv 2012.00926): the published curricula."""

from __future__ import annotations

import math
from dataclasses import replace

from cips3d.cameras import PoseDistribution
from cips3d.models.pigan import PiGANConfig
from cips3d.models.pigan_discriminator import PiGANDiscriminatorConfig
from cips3d.models.volume import VolumeSettings
from cips3d.training.config import Stage, TrainConfig

_STAGE_64 = Stage(
    resolution=64,
    steps=200_000,
    batch_size=56,
    lr_nerf=6e-5,
    lr_inr=0.0,
    lr_mapping=6e-5,
    lr_discriminator=2e-4,
    aux_weight=0.0,
    pose_weight=15.0,
    fade_steps=10_000,
)

# Faces: 12 + 12 samples, pose loss, top-k.
PIGAN_CELEBA = TrainConfig(
    preset="pigan-celeba",
    workers=4,
    x_flip=True,
    stages=(_STAGE_64,),
    generator=PiGANConfig(),
    discriminator=PiGANDiscriminatorConfig.celeba(),
    volume=VolumeSettings(samples=12),
    adam_betas=(0.0, 0.9),
    r1_gamma=0.2,
    r1_every=1,
    top_k=0.6,
    ema_decay=0.999,
    slow_ema_decay=0.9999,
    ema_start=0,
    ema_warmup=True,
)

# Cats: a deeper volume, uniform poses, no pose loss.
PIGAN_CATS = replace(
    PIGAN_CELEBA,
    preset="pigan-cats",
    stages=(replace(_STAGE_64, batch_size=28, pose_weight=0.0),),
    discriminator=PiGANDiscriminatorConfig.cats(),
    volume=VolumeSettings(samples=24, t_near=0.8, t_far=1.2),
    poses=PoseDistribution(kind="uniform", yaw_std=0.5, pitch_std=0.4),
)

_CARLA_32 = replace(
    _STAGE_64,
    resolution=32,
    steps=10_000,
    batch_size=30,
    lr_nerf=4e-5,
    lr_mapping=4e-5,
    lr_discriminator=4e-4,
    pose_weight=0.0,
)
CARLA_PITCH = math.pi / 4 * 85 / 90

# Cars from all around on white: three resolutions, 48 samples.
PIGAN_CARLA = replace(
    PIGAN_CELEBA,
    preset="pigan-carla",
    x_flip=False,
    stages=(
        _CARLA_32,
        replace(
            _CARLA_32,
            resolution=64,
            steps=45_000,
            batch_size=14,
            lr_nerf=2e-5,
            lr_mapping=2e-5,
            lr_discriminator=2e-4,
        ),
        replace(
            _CARLA_32,
            resolution=128,
            steps=145_000,
            batch_size=10,
            lr_nerf=1e-5,
            lr_mapping=1e-5,
            lr_discriminator=1e-4,
        ),
    ),
    generator=PiGANConfig.tall_siren(),
    discriminator=PiGANDiscriminatorConfig.carla(),
    volume=VolumeSettings(samples=48, t_near=0.7, t_far=1.3, white_back=True),
    poses=PoseDistribution(kind="spherical_uniform", yaw_std=math.pi, pitch_mean=CARLA_PITCH, pitch_std=CARLA_PITCH),
    fov_degrees=30.0,
    clip_gradient=1.0,
    r1_gamma=10.0,
    top_k=1.0,
)

PRESETS = (PIGAN_CELEBA, PIGAN_CATS, PIGAN_CARLA)
