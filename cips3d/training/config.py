"""The configuration of a training run: typed data that the command line, the presets and checkpoints share."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cips3d.cameras import PoseDistribution
from cips3d.data.source import HEADS_COUNT
from cips3d.evaluation.catalogue import MetricName, deciding_value
from cips3d.models.cips3d import CIPS3DConfig
from cips3d.models.family import (
    AnyDiscriminatorConfig,
    AnyGeneratorConfig,
)
from cips3d.models.residual_discriminator import ResidualDiscriminatorConfig
from cips3d.models.volume import VolumeSettings
from cips3d.ops import Precision
from cips3d.plain import from_plain, to_plain
from cips3d.training.losses import LossName

AmpKind = Literal["none", "bf16", "fp16"]
Augmentation = Literal["color", "translation", "cutout"]


@dataclass(frozen=True)
class Stage:
    """One stage of progressive training."""

    resolution: int
    """side of the pictures"""
    steps: int
    """length of the stage"""
    batch_size: int
    """images a step, over all processes"""
    lr_nerf: float
    """learning rate of the volume: NeRF and auxiliary colour layer"""
    lr_inr: float
    """learning rate of what paints pixels: the INR, CIPS's layers, StyleGAN2's convolutions"""
    lr_mapping: float
    """learning rate of the mapping networks"""
    lr_discriminator: float
    """learning rate of the discriminators"""
    aux_weight: float = 1.0
    """weight w of the auxiliary discriminator's losses and penalties, of which the mean (main + w aux)/2 counts; 0: it
    is off, and main counts alone"""
    pose_weight: float = 0.0
    """weight of the pose loss (needs --discriminator.predict-pose); 0: none"""
    pose_augment: tuple[Augmentation, ...] = ()
    """augmentations of the images that cameras are read off, in a pass of its own: where the colour or the place of
    something tells the camera, heads need not turn. Without a name after it: the images as they are, as in pi-GAN"""
    freeze_nerf: bool = False
    """freeze the NeRF, its mapping and the auxiliary colour layer, from their averages (EMA) so far"""
    fade_steps: int = 0
    """steps over which the discriminators' new blocks fade in"""
    diff_augment: tuple[Augmentation, ...] = ()
    """differentiable augmentations of what the discriminators see, but for the pictures of the gradient penalty"""
    density_noise: float = 1.0
    """standard deviation of the density noise before it fades"""
    crop: int | None = None
    """side of random parts of the pictures that both networks train on, for generators of pixel coordinates (CIPS);
    None: whole pictures"""
    grad_points: int | None = None
    """only so many random rays an image carry gradients; None: all"""
    accumulation: int = 1
    """parts that a batch is split into, one after the other, to save memory"""


@dataclass(frozen=True)
class Amp:
    """Mixed precision, network by network. Sine layers amplify rounding: leave the NeRF in float32 if unsure."""

    nerf: AmpKind = "none"
    """the volume: 16-bit products as with --precision fast; bf16 or fp16 only says whether losses are scaled"""
    inr: AmpKind = "none"
    """the pixels"""
    discriminator: AmpKind = "none"
    """all discriminators"""


@dataclass(frozen=True)
class Reports:
    """What a run writes down, and when."""

    pictures_every: int = 1000
    """steps between grids of pictures"""
    checkpoint_every: int = 1000
    """steps between checkpoints"""
    keep: int = 2
    """newest checkpoints kept, besides the best"""
    scalars_every: int = 20
    """steps between points of the curves"""
    metrics: tuple[MetricName, ...] = ("frechet",)
    """what the averaged generator is measured by (`python -m cips3d.evaluate --help` explains each); the first one
    for which larger or smaller is better decides which checkpoint is the best. Without a name after it: nothing"""
    metrics_interval: int = 100_000
    """real pictures shown between measurements, besides one before the first step and one after the last; 0: never"""
    metrics_images: int = 2048
    """pictures generated for a measurement by fid, kid, is, pr or frechet, to compare with all real ones"""
    inception: Path | None = None
    """file of Inception's weights, for fid, kid and is; default: downloaded"""
    vgg: Path | None = None
    """file of VGG16's weights, for pr; default: downloaded"""
    faces: int = 8
    """different z in the grids of pictures"""
    enlarge_to: int = 96
    """small pictures are enlarged by whole factors up to this side"""
    turntable_frames: int = 48
    """frames of the turntable at the end"""

    def enlarged(self, resolution: int) -> int:
        """The whole factor by which pictures are enlarged."""
        return max(1, self.enlarge_to // resolution)

    @property
    def animation_columns(self) -> int:
        """Pictures a row of the animation at the end: it is twice as wide as high, as screens are."""
        return math.ceil(math.sqrt(2 * self.faces))

    @property
    def measures(self) -> bool:
        """Whether anything is ever measured."""
        return self.metrics_interval > 0 and len(self.metrics) > 0

    @property
    def deciding_value(self) -> str | None:
        """The figure that tells which checkpoint is the best; None where none does."""
        return deciding_value(self.metrics)


@dataclass(frozen=True)
class TrainConfig:
    """Train a generator on a folder or zip of images, or on synthetic heads."""

    data: str | None = None
    """folder or zip of images; default: synthetic heads, made at the first use, for which the word heads stands too"""
    preset: str = "tiny"
    """the defaults of everything below: tiny, heads64, ffhq, afhq or finetune (CIPS-3D), pigan-celeba, pigan-cats,
    pigan-carla, cips-ffhq or stylegan2-256"""
    out: Path | None = None
    """folder of the run; default: a new one under runs/"""
    steps: int | None = None
    """length of the run; longer or shorter than the preset's stages together: the last stage is stretched or cut.
    Stages that are cut off do not come back with --resume; to train the first part of a schedule, stop it by Ctrl-C"""
    batch_size: int | None = None
    """images a step over all processes, in every stage; default: the stages' own"""
    resolution: int | None = None
    """side of the final pictures; default: the last stage's. Later stages are left out"""
    seed: int = 0
    """seed of everything random"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    resume: Path | None = None
    """run folder or checkpoint to go on with"""
    init_from: Path | None = None
    """run folder or checkpoint to start from (fine-tuning): its weights, not its progress"""

    x_flip: bool = False
    """also train on mirrored images"""
    heads: int = HEADS_COUNT
    """synthetic heads made when no data are given"""
    workers: int = 0
    """processes that read images"""

    stages: tuple[Stage, ...] = ()
    """stages, one after the other"""
    generator: AnyGeneratorConfig = field(default_factory=CIPS3DConfig)
    discriminator: AnyDiscriminatorConfig = field(default_factory=ResidualDiscriminatorConfig)
    volume: VolumeSettings = field(default_factory=VolumeSettings)
    poses: PoseDistribution = field(default_factory=PoseDistribution)
    fov_degrees: float = 12.0
    """cameras' angle of view; synthetic heads are seen with it too"""

    loss: LossName = "logistic"
    """adversarial loss"""
    adam_betas: tuple[float, float] = (0.0, 0.999)
    """Adam's decays of the mean gradient and of its square"""
    lazy_correction: bool = False
    """regularisers take Adam steps of their own, and its rates and decays are corrected for these, with
    c = k/(k + 1) of a regulariser's interval k, as in StyleGAN2"""
    clip_gradient: float | None = 10.0
    """largest gradient norm of a network; larger ones are scaled down to it. None: as they come"""
    r1_gamma: float = 10.0
    """weight γ of R1: ½·γ·‖∇D‖² on real images"""
    r1_every: int = 1
    """steps between R1 penalties, which are multiplied by it"""
    r2_gamma: float = 0.0
    """weight of R2, the same on generated images, at R1's steps"""
    gradient_penalty: float = 0.0
    """weight of WGAN-GP's (‖∇D‖ - 1)² between real and generated images"""
    path_length_weight: float = 0.0
    """weight of path length regularisation (StyleGAN2: 2); 0: none"""
    path_length_every: int = 4
    """steps between path length penalties, which are multiplied by it"""
    style_mixing: float = 0.0
    """share of generated images whose later layers follow a second z"""
    latent_weight: float = 0.0
    """weight of the squared error of the z that pi-GAN's discriminators read off generated images; 0: none"""
    top_k: float = 1.0
    """the generator learns from the best-judged share max(0.99^(step/2000), top_k) of its images; 1: from all"""
    ada_target: float = 0.0
    """adaptive discriminator augmentation holds E[sign D(real)] here (StyleGAN2-ADA: 0.6); 0: none"""
    ada_kimg: float = 500.0
    """thousands of images over which its probability can go from 0 to 1"""
    ema_decay: float = 0.999
    """decay of the generator's average"""
    ema_start: int = 1000
    """step up to which the average is a plain copy"""
    ema_warmup: bool = False
    """the decay begins smaller, (1 + t)/(10 + t) in step t from the start on, so that the average forgets sooner"""
    slow_ema_decay: float = 0.0
    """decay of a second, slower average (pi-GAN: 0.9999), kept in checkpoints; 0: none"""
    density_noise_steps: int = 5000
    """step at which the density noise has faded to 0; of each stage, where it restarts"""
    density_noise_restarts: bool = False
    """the density noise fades anew in every stage, as in CIPS-3D, whose stages were runs of their own"""
    cooldown: float = 0.0
    """share of the run over which learning rates fall linearly towards 0, but not below a twentieth"""
    reuse_fakes: bool = False
    """one generated batch serves both networks' updates of a step, instead of two"""
    precision: Precision | None = None
    """of float32 products: highest (convolutions too), high (as TF32) or fast (16 bits); None: as PyTorch is set"""
    amp: Amp = field(default_factory=Amp)
    reports: Reports = field(default_factory=Reports)

    def to_json(self) -> str:
        return json.dumps(to_plain(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The inverse of `to_json`; raises ValueError where the text does not describe a configuration."""
        return from_plain(cls, json.loads(text))

    @property
    def discriminator_interval(self) -> int | None:
        """Steps between R1 and R2 penalties, where Adam is corrected for them."""
        penalised = max(self.r1_gamma, self.r2_gamma) > 0
        return self.r1_every if self.lazy_correction and penalised else None

    @property
    def generator_interval(self) -> int | None:
        """Steps between path length penalties, where Adam is corrected for them."""
        return self.path_length_every if self.lazy_correction and self.path_length_weight > 0 else None

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)
