"""StyleGAN2 (arXiv 1912.04958): configuration F at 256²."""

from __future__ import annotations

from cips3d.models.channels import channel_table
from cips3d.models.residual_discriminator import ResidualDiscriminatorConfig
from cips3d.models.stylegan2 import StyleGAN2Config
from cips3d.training.config import Stage, TrainConfig

LEARNING_RATE = 0.002
BATCH = 32
EMA_IMAGES = 10_000  # over which the average forgets a half

# The published training: 25 million images, both lazy regularisers, style mixing; --ada-target 0.6 for small sets.
STYLEGAN2_256 = TrainConfig(
    preset="stylegan2-256",
    workers=4,
    x_flip=True,
    stages=(
        Stage(
            resolution=256,
            steps=25_000_000 // BATCH,
            batch_size=BATCH,
            lr_nerf=0.0,
            lr_inr=LEARNING_RATE,
            lr_mapping=LEARNING_RATE,
            lr_discriminator=LEARNING_RATE,
            aux_weight=0.0,
            density_noise=0.0,
        ),
    ),
    generator=StyleGAN2Config(channels=channel_table(256)),
    discriminator=ResidualDiscriminatorConfig(
        main_channels=channel_table(256), aux_channels=None, main_minibatch_std_group=4, progressive=False
    ),
    adam_betas=(0.0, 0.99),
    lazy_correction=True,
    clip_gradient=None,
    r1_gamma=10.0,
    r1_every=16,
    path_length_weight=2.0,
    path_length_every=4,
    style_mixing=0.9,
    ema_decay=0.5 ** (BATCH / EMA_IMAGES),
    ema_start=0,
    density_noise_steps=0,
)

PRESETS = (STYLEGAN2_256,)
