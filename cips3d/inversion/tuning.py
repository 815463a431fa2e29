"""Pivotal tuning: the generator's weights bent until a face that it nearly has is the photograph's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cips3d.checkpoints.converted import Converted, Source
from cips3d.checkpoints.rendering_settings import RenderingSettings
from cips3d.errors import UserError
from cips3d.inversion.losses import PictureLoss, picture_loss
from cips3d.inversion.objective import Objective, Record, seen_by
from cips3d.models.family import GENERATORS, AnyGenerator
from cips3d.models.generator import styles_of
from cips3d.plain import to_plain
from cips3d.rendering import LoadedGenerator

STAGE = "weights"
RATE = 3e-4  # of Adam, as published
LOCALITY = 0.1  # weight of the term that holds other faces where they are, as published


@dataclass(frozen=True, eq=False)
class Pivot:
    """A face and a camera, such as those that weights are tuned around."""

    styles: tuple[Tensor, ...]
    """of one face"""
    pitch: Tensor
    """[1] radians"""
    yaw: Tensor
    """[1] radians"""

    def picture(self, by: LoadedGenerator, resolution: int) -> Tensor:
        """[1, 3, resolution, resolution] in [-1, 1]"""
        return seen_by(by, self.styles, self.pitch, self.yaw, resolution)


def tune(
    objective: Objective, pivot: Pivot, *, steps: int, seed: int, progress: bool, stop: Callable[[], bool]
) -> LoadedGenerator:
    """A copy of the generator whose picture of the pivot is nearer to the photograph: as it was at the step that came
    nearest, since the first ones lead away from it.

    Minimises loss(G'(pivot), photo) + 0.1 · loss(G'(w), G(w)) over the weights of volume and pixels; the mapping stays
    as it is. w lies anywhere between the pivot and a random face, seen by a random camera as in training: faces nearby
    and other sides of this one are held.

    Args:
        steps: of Adam.
        seed: chooses faces and cameras of the second term.
        progress: show a bar with losses on stderr.
        stop: asked before every step; where it is true, the nearest so far is returned.

    Source: pivotal tuning (arXiv 2106.05744), sections 3.2 and 3.3; there, w is at a fixed distance from the pivot.
    """
    original = objective.loaded
    generator = copy.deepcopy(original.generator)
    tuned = replace(original, generator=generator)
    weights = _trained(generator)
    optimizer = torch.optim.Adam(weights, lr=RATE)
    nearest = _Nearest(weights)
    random = torch.Generator().manual_seed(seed)
    with tqdm(total=steps, desc=STAGE, unit="step", disable=not progress, leave=False) as bar:
        for _ in range(steps):
            if stop():
                break
            nearby = _nearby(original, pivot, random)  # first: its copies to the GPU wait for work under way
            losses = _distance(objective, tuned, pivot)
            nearest.offer(losses.total)
            locality = LOCALITY * _change(objective, tuned, nearby)
            optimizer.zero_grad()
            (losses.total + locality).sum().backward()
            optimizer.step()
            pixel, perceptual, changed = torch.cat([*losses, locality]).detach().tolist()  # one transfer
            record = Record(STAGE, pixel, perceptual, locality=changed)
            objective.records.append(record)
            bar.set_postfix(loss=f"{record.total:.4f}", pixel=f"{record.pixel:.4f}", refresh=False)
            bar.update()
    generator.requires_grad_(False)
    nearest.offer(_distance(objective, tuned, pivot).total)
    nearest.take()
    return tuned


class _Nearest:
    """The weights of the smallest loss so far, compared where they are: nobody waits for the GPU."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self.weights = weights
        self.loss = torch.full_like(weights[0].detach().flatten()[0], math.inf)
        self.kept = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def offer(self, loss: Tensor) -> None:
        """The loss [1] of the weights as they are now."""
        is_smaller = loss[0] < self.loss
        self.loss = torch.where(is_smaller, loss[0], self.loss)
        for kept, weight in zip(self.kept, self.weights, strict=True):
            kept.copy_(torch.where(is_smaller, weight, kept))

    @torch.no_grad()
    def take(self) -> None:
        """Put the kept weights in place."""
        for kept, weight in zip(self.kept, self.weights, strict=True):
            weight.copy_(kept)


def _distance(objective: Objective, tuned: LoadedGenerator, pivot: Pivot) -> PictureLoss:
    """How far the pivot's picture is from the photograph."""
    picture = pivot.picture(tuned, objective.resolution)
    return picture_loss(picture, objective.photo, objective.perceptual, objective.perceptual_weight)


def _trained(generator: AnyGenerator) -> list[nn.Parameter]:
    """The weights of volume and pixels, which now carry gradients."""
    groups = generator.parameter_groups()
    weights = [weight for module in (*groups.nerf, *groups.inr) for weight in module.parameters()]
    for weight in weights:
        weight.requires_grad_()
    return weights


@torch.no_grad()
def _nearby(original: LoadedGenerator, pivot: Pivot, random: torch.Generator) -> Pivot:
    """A face between the pivot and a random one, seen by a random camera."""
    other = original.generator.mapping(*original.generator.sample_z(1, generator=random))
    share = float(torch.rand(1, generator=random))
    styles = styles_of(other, [torch.lerp(p, o, share) for p, o in zip(pivot.styles, other, strict=True)])
    pitch, yaw = (angle.to(original.device) for angle in original.poses.sample(1, generator=random))
    return Pivot(styles, pitch, yaw)


def _change(objective: Objective, tuned: LoadedGenerator, face: Pivot) -> Tensor:
    """How much a face has changed [1]."""
    with torch.no_grad():
        before = face.picture(objective.loaded, objective.resolution)
    after = face.picture(tuned, objective.resolution)
    return picture_loss(after, before, objective.perceptual, objective.perceptual_weight).total


def as_converted(loaded: LoadedGenerator, sources: tuple[Source, ...] = ()) -> Converted:
    """A generator as a checkpoint that `load_generator` reads.

    Args:
        loaded: what pictures are made with.
        sources: the files that it comes from.

    Raises:
        UserError: the generator is none of the family's.
    """
    config: Any = getattr(loaded.generator, "config", None)
    if type(config) not in GENERATORS:
        raise UserError(f"{type(loaded.generator).__name__} is no model of the family that could be saved")
    trained = loaded.trained_settings or loaded.settings
    return Converted(
        system=config.system,
        rendering=RenderingSettings(trained, loaded.fov_degrees, loaded.resolution, loaded.poses),
        sources=sources,
        generator_config=to_plain(config),
        discriminator_config=None,
        step=loaded.step,
        states={"generator_ema": loaded.generator.state_dict()},
    )
