"""A trained generator, ready to render."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cips3d.cameras import PoseDistribution
from cips3d.checkpoints.networks import Average, load_networks
from cips3d.checkpoints.rendering_settings import volume_of_pictures
from cips3d.errors import UserError
from cips3d.models.family import AnyGenerator
from cips3d.models.volume import VolumeSettings
from cips3d.ops.precision import Precision
from cips3d.process.devices import choose_device


@dataclass(frozen=True, eq=False)
class LoadedGenerator:
    """A generator and all else that its pictures depend on."""

    generator: AnyGenerator
    settings: VolumeSettings
    fov_degrees: float
    """the cameras' angle of view"""
    resolution: int
    """side of the pictures of the last stage of training; all models but StyleGAN2 render other sizes too"""
    poses: PoseDistribution
    """where the training cameras stood"""
    step: int | None
    """training steps taken, where the file tells"""
    lock_view: bool = False
    """colours do not change with the camera, of generators that have `has_view_dependence`"""
    trained_settings: VolumeSettings | None = None
    """those of training, where pictures are composited otherwise (`volume_of_pictures`); None: they are not"""

    @property
    def device(self) -> torch.device:
        return self.generator.device

    @property
    def at_step(self) -> str:
        """ " at step N", for sentences; nothing where the file does not tell."""
        return "" if self.step is None else f" at step {self.step}"

    @cached_property
    def mean_styles(self) -> tuple[Tensor, ...]:
        """The centre of truncation, computed when it is first needed."""
        return self.generator.mean_styles()


def check_is_3d(loaded: LoadedGenerator, what: str, remedy: str = "give another model") -> None:
    """Raise `UserError` for a model without cameras and volume."""
    if not loaded.generator.is_3d:
        raise UserError(f"{what} needs a 3-D model, and {type(loaded.generator).__name__} is 2-D; {remedy}")


def check_resolution_of(loaded: LoadedGenerator, resolution: int | None) -> None:
    """Raise `UserError` where a model of one size alone is asked for another --resolution; None: it is not asked."""
    fixed = loaded.generator.fixed_resolution
    if resolution is not None and fixed not in (None, resolution):
        name = type(loaded.generator).__name__
        raise UserError(f"--resolution {resolution} is not that of this {name}; leave it out or give {fixed}")


def load_generator(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    precision: Precision | None = None,
    average: Average = "fast",
) -> LoadedGenerator:
    """The averaged (EMA) generator of a training run or a converted checkpoint, ready to render.

    It has PyTorch's default dtype (meshes, metrics and inversion are for float32), is in evaluation mode, and its
    weights do not require gradients: `generator.requires_grad_().train()` to train them.
    `cips3d.checkpoints.networks.load_networks` gives the discriminator's too.

    Args:
        path: a run folder (its newest checkpoint is taken), a checkpoint file, or one that was converted.
        device: where it shall compute; "auto" is a GPU where there is one.
        precision: how exactly; None: as PyTorch is set (see `Generator.set_precision`).
        average: of a run that keeps a slower one too (pi-GAN's), which of them.

    Raises:
        UserError: nothing is there, it is not a checkpoint that this package can use, it has no such average, the model
            does not compute so, or there is no such device.
    """
    if isinstance(device, str) or device.type == "cuda":
        device = choose_device(str(device))
    networks = load_networks(path, average=average)
    rendering = networks.rendering
    generator = networks.generator().to(device)
    if precision is not None:
        generator.set_precision(precision)
    return LoadedGenerator(
        generator,
        volume_of_pictures(networks.generator_config, rendering.volume),
        rendering.fov_degrees,
        rendering.resolution,
        rendering.poses,
        networks.step,
        trained_settings=rendering.volume,
    )
