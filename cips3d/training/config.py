"""The configuration of a training run: typed data that the command line, the presets and checkpoints share."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cips3d.cameras import PoseDistribution
from cips3d.errors import UserError
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.models.generator import GeneratorConfig
from cips3d.models.volume import VolumeSettings
from cips3d.plain import from_plain, to_plain

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
    """learning rate of the NeRF and the auxiliary colour layer"""
    lr_inr: float
    """learning rate of the INR"""
    lr_mapping: float
    """learning rate of both mapping networks"""
    lr_discriminator: float
    """learning rate of the discriminators"""
    aux_weight: float = 1.0
    """weight of the auxiliary discriminator's losses; 0 switches it off"""
    pose_weight: float = 0.0
    """weight of the pose loss (needs --discriminator.predict-pose); 0: none"""
    freeze_nerf: bool = False
    """freeze the NeRF, its mapping and the auxiliary colour layer, from their averages (EMA) so far"""
    fade_steps: int = 0
    """steps over which the discriminators' new blocks fade in"""
    diff_augment: tuple[Augmentation, ...] = ()
    """differentiable augmentations of everything that the discriminators see"""
    density_noise: float = 1.0
    """standard deviation of the density noise at step 0"""
    grad_points: int | None = None
    """only so many random rays an image carry gradients; None: all"""
    accumulation: int = 1
    """parts that a batch is split into, one after the other, to save memory"""


@dataclass(frozen=True)
class Amp:
    """Mixed precision, network by network. Sine layers amplify rounding: leave the NeRF in float32 if unsure."""

    nerf: AmpKind = "none"
    inr: AmpKind = "none"
    discriminator: AmpKind = "none"


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
    score_every: int = 5000
    """steps between scores (see `score_images`), which choose the best checkpoint; 0: never"""
    score_images: int = 2048
    """images generated for a score: the Fréchet distance of random convolution features to as many real ones"""
    faces: int = 8
    """different z in the grids of pictures"""
    enlarge_to: int = 96
    """small pictures are enlarged by whole factors up to this side"""
    turntable_frames: int = 48
    """frames of the turntable at the end"""


@dataclass(frozen=True)
class TrainConfig:
    """Train a 3-D generator on a folder of images."""

    data: str | None = None
    """folder or zip of images; default: synthetic heads, made at the first use"""
    preset: str = "tiny"
    """tiny, heads64, ffhq, afhq or finetune: the defaults of everything below"""
    out: Path | None = None
    """folder of the run; default: a new one under runs/"""
    steps: int | None = None
    """length of the run; longer or shorter than the preset's stages together: the last stage is stretched or cut"""
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
    heads: int = 4096
    """synthetic heads made when no data are given"""
    workers: int = 0
    """processes that read images"""

    stages: tuple[Stage, ...] = ()
    """stages, one after the other"""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    volume: VolumeSettings = field(default_factory=VolumeSettings)
    poses: PoseDistribution = field(default_factory=PoseDistribution)
    fov_degrees: float = 12.0
    """cameras' angle of view"""

    adam_betas: tuple[float, float] = (0.0, 0.999)
    clip_gradient: float = 10.0
    """largest gradient norm of a network; larger ones are scaled down to it"""
    r1_gamma: float = 10.0
    """weight γ of R1: ½·γ·‖∇D‖² on real images"""
    r1_every: int = 1
    """steps between R1 penalties, which are multiplied by it"""
    ema_decay: float = 0.999
    """decay of the generator's average, min(decay, (1 + t)/(10 + t))"""
    ema_start: int = 1000
    """step up to which the average is a plain copy"""
    density_noise_steps: int = 5000
    """step at which the density noise has faded to 0"""
    cooldown: float = 0.0
    """share of the run over which learning rates fall linearly to a twentieth at the end"""
    reuse_fakes: bool = False
    """one generated batch serves both networks' updates of a step, instead of two"""
    amp: Amp = field(default_factory=Amp)
    reports: Reports = field(default_factory=Reports)

    def to_json(self) -> str:
        return json.dumps(to_plain(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The inverse of `to_json`; raises ValueError where the text does not describe a configuration."""
        return from_plain(cls, json.loads(text))

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


def settled(config: TrainConfig) -> TrainConfig:
    """Apply `--steps`, `--batch-size` and `--resolution` to the stages and check what can be checked.

    Raises:
        UserError: a value makes no sense; the flag is named.
    """
    stages = list(config.stages)
    if config.resolution is not None:
        stages = stages_up_to(stages, config.resolution)
    if config.batch_size is not None:
        stages = [replace(stage, batch_size=config.batch_size) for stage in stages]
    if config.steps is not None:
        stages = stages_of_length(stages, config.steps)
    for stage in stages:
        check_stage(stage, config)
    return replace(config, stages=tuple(stages), steps=None, batch_size=None, resolution=None)


def stages_up_to(stages: list[Stage], resolution: int) -> list[Stage]:
    """The stages below `resolution`, and one at it: the preset's own or the nearest one's settings."""
    if resolution < 8 or resolution & (resolution - 1):
        raise UserError(f"--resolution {resolution} cannot be trained; give a power of two from 8 on")
    lower = [stage for stage in stages if stage.resolution < resolution]
    same = [stage for stage in stages if stage.resolution == resolution]
    if not same:
        nearest = min(stages, key=lambda stage: (abs(stage.resolution - resolution), stage.resolution))
        same = [replace(nearest, resolution=resolution)]
        if nearest in lower and len(lower) == len(stages):  # above the preset: its last stage moves up
            lower.remove(nearest)
    return lower + same


def stages_of_length(stages: list[Stage], steps: int) -> list[Stage]:
    """The stages cut, or the last one stretched, to `steps` in all."""
    if steps < 1:
        raise UserError(f"--steps {steps} trains nothing; give 1 or more")
    fitted: list[Stage] = []
    for index, stage in enumerate(stages):
        left = steps - sum(s.steps for s in fitted)
        is_last = index + 1 == len(stages)
        if left > 0:
            fitted.append(replace(stage, steps=left if is_last else min(stage.steps, left)))
    return fitted


def check_stage(stage: Stage, config: TrainConfig) -> None:
    """Raise `UserError` where a stage cannot be trained."""
    if stage.batch_size < 1:
        raise UserError(f"--batch-size {stage.batch_size} holds no image; give 1 or more")
    if stage.batch_size % stage.accumulation:
        raise UserError(
            f"--batch-size {stage.batch_size} cannot be split into accumulation {stage.accumulation} equal parts; "
            "give a multiple of it"
        )
    if config.reuse_fakes and stage.accumulation > 1:
        raise UserError("--reuse-fakes keeps a whole batch in memory; leave it out, or accumulation at 1")
    if stage.pose_weight > 0 and not config.discriminator.predict_pose:
        raise UserError(
            f"pose_weight {stage.pose_weight} needs a discriminator that predicts poses; "
            "pass --discriminator.predict-pose, or set the stage's pose_weight to 0"
        )
    largest = max(config.discriminator.main_channels)
    if not 8 <= stage.resolution <= largest:
        raise UserError(
            f"resolution {stage.resolution} does not fit the discriminator's channels, which go from 8 to {largest}; "
            "give one of these, or set --discriminator channels up to it"
        )
    if config.volume.fine > 0 and config.volume.samples < 3:
        raise UserError(
            f"--volume.samples {config.volume.samples} is too few to resample from; give 3 or more, "
            "or --volume.fine-samples 0"
        )
