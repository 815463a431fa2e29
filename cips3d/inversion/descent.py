"""Faces and cameras moved towards the photograph by their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from cips3d.cameras.poses import PITCH_MARGIN
from cips3d.errors import UserError
from cips3d.inversion.objective import Candidates, Objective, Record

BETAS = (0.9, 0.99)  # of Adam: losses have no noise
HOLD = 0.5  # share of a round's steps before its rates fall to 0


@dataclass(frozen=True)
class Round:
    """Some steps of gradient descent of several candidates, of which the best go on."""

    stage: str
    resolution: int
    """side of the pictures that are compared"""
    steps: int
    keep: int
    """candidates that go on"""
    coordinate_rate: float
    """of Adam, in standard deviations of styles"""
    angle_rate: float
    """of Adam, radians; 0 leaves cameras where they are"""


def descend(
    objective: Objective, start: Candidates, plan: Round, *, progress: bool, stop: Callable[[], bool]
) -> Candidates:
    """Minimise the objective from every candidate by Adam, and keep the best of where they end.

    Args:
        start: where to begin.
        plan: how.
        progress: show a bar with losses on stderr.
        stop: asked before every step; where it is true, the best so far are returned.

    Raises:
        UserError: no candidate has a loss that is a number.
    """
    coordinates = tuple(u.clone().requires_grad_() for u in start.coordinates)
    pitch, yaw = (angle.clone().requires_grad_(plan.angle_rate > 0) for angle in (start.pitch, start.yaw))
    moved = Candidates(coordinates, pitch, yaw)
    groups = [{"params": list(coordinates), "lr": plan.coordinate_rate}]
    if plan.angle_rate > 0:
        groups.append({"params": [pitch, yaw], "lr": plan.angle_rate})
    optimizer = torch.optim.Adam(groups, betas=BETAS)
    rates = [group["lr"] for group in optimizer.param_groups]
    with tqdm(total=plan.steps, desc=plan.stage, unit="step", disable=not progress, leave=False) as bar:
        for step in range(plan.steps):
            if stop():
                break
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * remaining(step / plan.steps)
            optimizer.zero_grad()
            best = _backward(objective, moved, plan)
            optimizer.step()
            with torch.no_grad():
                pitch.clamp_(PITCH_MARGIN, math.pi - PITCH_MARGIN)
            record = Record(plan.stage, *best.tolist())  # one transfer, when all of the step is under way
            objective.records.append(record)
            bar.set_postfix(loss=f"{record.total:.4f}", pixel=f"{record.pixel:.4f}", refresh=False)
            bar.update()
    with torch.no_grad():
        losses = objective.picture_losses(moved, plan.resolution).total + objective.prior_loss(moved)
    if not torch.isfinite(losses).any():
        raise UserError(f"the model's pictures are not numbers{objective.loaded.at_step}; give an earlier checkpoint")
    return moved.chosen(losses.nan_to_num(math.inf).argsort()[: plan.keep])


def _backward(objective: Objective, moved: Candidates, plan: Round) -> Tensor:
    """Gradients of every candidate's loss, and the losses [3] of the best: pixel, perceptual, prior."""
    losses = objective.picture_losses(moved, plan.resolution)
    prior = objective.prior_loss(moved)
    total = losses.total + prior
    total.sum().backward()
    best = total.detach().nan_to_num(math.inf).argmin(0, keepdim=True)
    return torch.stack([*losses, prior]).detach().index_select(1, best)[:, 0]


def remaining(share: float) -> float:
    """Factor on the rate after this share of the steps: 1 in the first half, then falling linearly to 0."""
    return min(1.0, (1 - share) / (1 - HOLD))
