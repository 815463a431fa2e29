"""Checks of a training run's configuration: numbers out of range, and choices that do not go together."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cips3d.cameras.camera import TRAINING_FOV
from cips3d.errors import LARGEST_COUNT, UserError, require_range
from cips3d.evaluation.catalogue import METRICS, chosen_metrics
from cips3d.models.family import AnyDiscriminatorConfig, generator_class
from cips3d.pictures import MAX_PIXELS, MAX_SIDE, grid_size
from cips3d.rendering.seeds import SEED_LIMIT
from cips3d.training.config import Stage, TrainConfig

LABELS = 256  # pixels, more than the names of rows take beside a grid of pictures
MOST_WORKERS = 1024  # processes that read pictures
RATES = ("lr_nerf", "lr_inr", "lr_mapping", "lr_discriminator")


def check_numbers(config: TrainConfig) -> None:
    """Raise `UserError` for the first number that is outside of its range, or is none."""
    for flag, value, least, most in _numbers(config):
        require_range(f"--{flag.replace('_', '-')}", value, least, most)


def _numbers(config: TrainConfig) -> Iterator[tuple[str, float, float, float]]:
    """Flags, values, and the least and the largest that is allowed."""
    most, below_one = math.inf, 0.99999
    yield "seed", config.seed, 0, SEED_LIMIT - 1
    penalties = ("r1_gamma", "r2_gamma", "gradient_penalty", "path_length_weight", "latent_weight")
    yield "workers", config.workers, 0, MOST_WORKERS
    from_zero = ("ema_start", "density_noise_steps", *penalties)
    yield from ((name, getattr(config, name), 0, most) for name in from_zero)
    yield from ((name, getattr(config, name), 1, most) for name in ("r1_every", "path_length_every", "heads"))
    counts = ("pictures_every", "checkpoint_every", "keep", "scalars_every", "faces", "enlarge_to", "turntable_frames")
    yield from ((f"reports.{name}", getattr(config.reports, name), 1, most) for name in counts)
    if config.clip_gradient is not None:
        yield "clip_gradient", config.clip_gradient, 1e-9, most
    shares = ("ema_decay", "slow_ema_decay", "cooldown", "style_mixing", "ada_target")
    yield from ((name, getattr(config, name), 0, 1) for name in shares)
    if config.ada_target > 0:
        yield "ada_kimg", config.ada_kimg, 1e-3, most
    yield "top_k", config.top_k, 1e-3, 1
    yield "fov_degrees", config.fov_degrees, *TRAINING_FOV
    yield from (("adam_betas", beta, 0, below_one) for beta in config.adam_betas)
    for index, stage in enumerate(config.stages):
        yield from ((f"stages.{index}.{name}", getattr(stage, name), 1, most) for name in ("steps", "accumulation"))
        for name in ("grad_points", "crop"):
            if getattr(stage, name) is not None:
                yield f"stages.{index}.{name}", getattr(stage, name), 1, most
        weights = ("aux_weight", "pose_weight", "fade_steps", "density_noise")
        yield from ((f"stages.{index}.{name}", getattr(stage, name), 0, most) for name in weights)
        yield from ((f"stages.{index}.{name}", getattr(stage, name), 0, 1e3) for name in RATES)


def check_stage(stage: Stage, config: TrainConfig) -> None:
    """Raise `UserError` where a stage cannot be trained."""
    if stage.batch_size < 1:
        raise UserError(f"--batch-size {stage.batch_size} holds no image; give 1 or more")
    require_range("--batch-size", stage.batch_size, 1, LARGEST_COUNT)
    if stage.batch_size % stage.accumulation:
        raise UserError(
            f"--batch-size {stage.batch_size} cannot be split into {stage.accumulation} equal parts "
            "(--stages.N.accumulation); give a multiple of it"
        )
    if config.reuse_fakes and stage.accumulation > 1:
        raise UserError(
            "a batch in parts cannot be reused as a whole; pass --no-reuse-fakes, or leave --stages.N.accumulation at 1"
        )
    if config.loss == "relativistic" and config.top_k < 1:
        raise UserError(f"--top-k {config.top_k:g} leaves images without the one they are compared with; give 1")
    check_stage_suits_networks(stage, config)


def check_stage_suits_networks(stage: Stage, config: TrainConfig) -> None:
    """Raise `UserError` where a stage asks for what the generator or discriminator does not have."""
    kind = generator_class(config.generator)
    discriminator = config.discriminator
    name = config.generator.system
    if stage.pose_weight > 0 and not kind.is_3d:
        raise UserError(
            f"--stages.N.pose-weight {stage.pose_weight:g} needs cameras, which {name} does not have; give 0"
        )
    if stage.pose_weight > 0 and not discriminator.predict_pose:
        raise UserError(
            f"--stages.N.pose-weight {stage.pose_weight:g} needs a discriminator that predicts poses; "
            "pass --discriminator.predict-pose, or give 0"
        )
    if stage.aux_weight > 0 and not (kind.has_aux_image and discriminator.has_aux):
        raise UserError(
            f"--stages.N.aux-weight {stage.aux_weight:g} needs an auxiliary image and a discriminator of it, which "
            f"this {name} does not have; give 0"
        )
    if stage.crop is not None and not kind.has_windows:
        raise UserError(
            f"--stages.N.crop {stage.crop} is for generators of pixel coordinates, such as cips; "
            f"leave it out for {name}"
        )
    if stage.grad_points is not None and not kind.is_3d:
        raise UserError(
            f"--stages.N.grad-points {stage.grad_points} is for rays through a volume, which {name} does not have; "
            "leave it out"
        )
    if stage.fade_steps > 0 and not discriminator.progressive:
        raise UserError(
            f"--stages.N.fade-steps {stage.fade_steps} needs a discriminator that grows; give 0, "
            "or pass --discriminator.progressive"
        )
    if stage.freeze_nerf and not kind.has_aux_image:  # elsewhere nothing, or nothing but a volume, would be left
        raise UserError(
            "--stages.N.freeze-nerf is for cips3d, whose INR goes on learning; pass --stages.N.no-freeze-nerf for "
            f"{name}"
        )
    z_width = sum(config.generator.z_dims)
    if config.latent_weight > 0 and discriminator.latent_dim != z_width:
        raise UserError(
            f"--latent-weight {config.latent_weight:g} needs a discriminator that predicts z, pi-GAN's with "
            f"--discriminator.latent-dim {z_width}, the width of z; leave it out"
        )
    _check_side(stage, discriminator)
    if kind.has_one_size and stage.resolution != config.stages[-1].resolution:
        raise UserError(
            f"stages of {stage.resolution} and {config.stages[-1].resolution} cannot share {name}, whose pictures "
            "have one size; give all stages one resolution"
        )


def _check_side(stage: Stage, discriminator: AnyDiscriminatorConfig) -> None:
    """Raise `UserError` where a stage's pictures, or the parts of them, cannot enter the discriminator."""
    side, largest = stage.crop or stage.resolution, discriminator.resolution_max
    if stage.crop is not None and (not 8 <= side <= stage.resolution or side & (side - 1)):
        raise UserError(
            f"--stages.N.crop {side} is no part of the pictures that can be trained on; give a power of two from 8 to "
            f"{stage.resolution}, or leave it out"
        )
    if not 8 <= side <= largest or side & (side - 1):
        raise UserError(
            f"pictures of {side} pixels do not fit this discriminator, which takes powers of two from 8 to {largest}; "
            "give --resolution or --stages.N.crop one of these"
        )
    if not discriminator.progressive and side != largest:
        raise UserError(
            f"pictures of {side} pixels do not fit this discriminator, which takes {largest} alone; "
            "give all stages one size, or pass --discriminator.progressive"
        )
    aux = discriminator.aux_resolution_max
    if stage.aux_weight > 0 and (side > aux if discriminator.progressive else side != aux):
        raise UserError(
            f"--stages.N.aux-weight {stage.aux_weight:g} has pictures of {side} pixels judged by an auxiliary "
            f"discriminator of {aux}; give --discriminator.aux-channels up to {side}, or the weight 0"
        )


def check_pictures(config: TrainConfig) -> None:
    """Raise `UserError` where so many faces are to be shown that no file could hold a run's pictures."""
    reports = config.reports
    kind = generator_class(config.generator)
    rows = 6 + kind.has_aux_image if kind.is_3d else 4  # as `face_rows` makes them
    last = config.stages[-1].resolution
    shown = [(".png", rows * reports.faces, reports.faces, stage.resolution) for stage in config.stages]
    shown.append((".webp", reports.faces, reports.animation_columns, last))
    for ending, count, columns, side in shown:
        width, height = grid_size(count, columns, side, side, reports.enlarged(side))
        limit = MAX_SIDE[ending]
        width += LABELS
        if max(width, height) > limit or width * height > MAX_PIXELS:
            raise UserError(
                f"--reports.faces {reports.faces} at {side} pixels would make {ending} pictures of {width} x {height}, "
                f"more than {limit} a side or {MAX_PIXELS // 10**6} million in all; give fewer, or a smaller "
                "--reports.enlarge-to"
            )


def check_metrics(config: TrainConfig) -> None:
    """Raise `UserError` for metrics that cannot be measured in this run."""
    reports = config.reports
    if reports.metrics_interval < 0:
        raise UserError(
            f"--reports.metrics-interval {reports.metrics_interval} is no number of pictures; give 1 or more, "
            "or 0 for never"
        )
    if not reports.measures:
        return
    if reports.metrics_images < 1:
        raise UserError(f"--reports.metrics-images {reports.metrics_images} shows nothing; give 1 or more")
    for name in chosen_metrics(reports.metrics, "--reports.metrics"):
        metric = METRICS[name]
        if metric.needs_3d and not generator_class(config.generator).is_3d:
            raise UserError(
                f"--reports.metrics {name} needs a 3-D generator, and {config.generator.system} has no camera; "
                "choose metrics of images, such as frechet"
            )
        if metric.needs_heads and config.data is not None:
            raise UserError(
                f"--reports.metrics {name} knows synthetic heads only; leave it out, or --data {config.data}, "
                "to train on such heads"
            )
        if reports.metrics_images < metric.least_images:
            raise UserError(
                f"--reports.metrics-images {reports.metrics_images} is too few for {name}; give {metric.least_images} "
                "or more"
            )
        smallest = min(stage.resolution for stage in config.stages)
        if smallest < metric.least_side:
            raise UserError(
                f"--reports.metrics {name} takes pictures of {metric.least_side} pixels or more, and a stage has "
                f"{smallest}; leave it out"
            )


def check_batches(config: TrainConfig, world_size: int) -> None:
    """Raise `UserError` where a batch cannot be shared by all processes, or a share not be split into parts."""
    for stage in config.stages:
        parts = world_size * stage.accumulation
        if stage.batch_size % parts:
            in_parts = "" if stage.accumulation == 1 else f" in {stage.accumulation} parts"
            raise UserError(
                f"--batch-size {stage.batch_size} cannot be shared by {world_size} processes{in_parts}; "
                f"give a multiple of {parts}"
            )
        images = stage.batch_size // parts
        for group in config.discriminator.minibatch_std_groups:
            if images % min(images, group):
                raise UserError(
                    f"--batch-size {stage.batch_size} leaves {images} images to be compared in groups of {group}; "
                    f"give a multiple of {parts * group}"
                )
