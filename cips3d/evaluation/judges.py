"""Networks taught on synthetic heads that judge generated ones, made once and kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic

import torch

from cips3d.cameras import PoseDistribution
from cips3d.data.heads import SyntheticHeads, load_heads
from cips3d.data.heads.dataset import FORMAT as HEADS_FORMAT
from cips3d.data.heads.dataset import FOV_DEGREES, cache_folder, described_fov
from cips3d.evaluation.cache import cached
from cips3d.evaluation.chirality import ChiralityClassifier, chirality_accuracy, train_chirality_classifier
from cips3d.evaluation.image_network import Network, all_pixels, seeded
from cips3d.evaluation.pose import PoseRegressor, poses_from_front, train_pose_regressor
from cips3d.pictures import from_uint8

FORMAT = 1  # counted up whenever a judge would be taught otherwise
RESOLUTIONS = (32, 64)  # sides of the pictures that judges look at; others are resized
TEACHING_SEED, HELD_OUT_SEED = 2000, 3000  # heads that training (seed 0) never sees
WIDE = PoseDistribution("uniform", yaw_std=0.9, pitch_std=0.45)  # wider than what generators are asked for
REQUESTED = PoseDistribution("uniform", yaw_std=0.6, pitch_std=0.3)  # as wide as what generators are asked for


@dataclass(frozen=True)
class Teaching:
    """How much a judge is taught."""

    heads: int = 3072
    """synthetic heads to learn from"""
    held_out: int = 512
    """others to be examined on"""
    steps: int = 900
    """updates of 64 pictures"""


@dataclass(frozen=True, eq=False)
class Judge(Generic[Network]):
    """A network, and how well it judges."""

    network: Network
    resolution: int
    """side of the pictures that it looks at"""
    quality: float
    """on held-out heads: a regressor's error in degrees, a classifier's share of right calls"""


def judge_resolution(resolution: int) -> int:
    """The side of pictures at which a model of this resolution is judged."""
    return RESOLUTIONS[0] if resolution < RESOLUTIONS[1] else RESOLUTIONS[1]


def pose_judge(
    resolution: int,
    *,
    fov_degrees: float = FOV_DEGREES,
    teaching: Teaching = Teaching(),
    cache: Path | None = None,
    progress: bool = False,
) -> Judge[PoseRegressor]:
    """A pose regressor for a model of this resolution and angle of view.

    Its quality is √(mean of |seen - true|²) in degrees.
    """

    def teach(heads: SyntheticHeads) -> PoseRegressor:
        return train_pose_regressor(heads, steps=teaching.steps, progress=progress)

    return _judge("pose", PoseRegressor, teach, _pose_error, resolution, fov_degrees, teaching, cache, progress)


def chirality_judge(
    resolution: int,
    *,
    fov_degrees: float = FOV_DEGREES,
    teaching: Teaching = Teaching(),
    cache: Path | None = None,
    progress: bool = False,
) -> Judge[ChiralityClassifier]:
    """A chirality classifier for a model of this resolution and angle of view.

    Its quality is the share of right calls.
    """

    def teach(heads: SyntheticHeads) -> ChiralityClassifier:
        return train_chirality_classifier(heads, steps=teaching.steps, progress=progress)

    return _judge(
        "chirality",
        ChiralityClassifier,
        teach,
        chirality_accuracy,
        resolution,
        fov_degrees,
        teaching,
        cache,
        progress,
    )


@torch.no_grad()
def _pose_error(regressor: PoseRegressor, heads: SyntheticHeads) -> float:
    seen = regressor(from_uint8(all_pixels(heads)))
    return math.degrees((seen - poses_from_front(heads)).square().sum(1).mean().sqrt())


def _judge(
    name: str,
    blank: Callable[[], Network],
    teach: Callable[[SyntheticHeads], Network],
    examine: Callable[[Network, SyntheticHeads], float],
    resolution: int,
    fov_degrees: float,
    teaching: Teaching,
    cache: Path | None,
    progress: bool,
) -> Judge[Network]:
    """The judge in the cache, or a new one."""
    side = judge_resolution(resolution)
    made = {
        "format": FORMAT,
        "heads_format": HEADS_FORMAT,
        "resolution": side,
        **described_fov(fov_degrees),
        **asdict(teaching),
    }
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]

    def taught() -> dict[str, Any]:
        def heads(count: int, seed: int, poses: PoseDistribution) -> SyntheticHeads:
            return load_heads(side, count, seed, cache=cache, poses=poses, fov_degrees=fov_degrees, progress=progress)

        network = teach(heads(teaching.heads, TEACHING_SEED, WIDE))
        held_out = heads(teaching.held_out, HELD_OUT_SEED, REQUESTED)
        return {"weights": network.state_dict(), "quality": examine(network, held_out)}

    content = cached((cache or cache_folder()) / "judges" / f"{name}-{side}-{digest}.pt", taught)
    network = seeded(blank, 0)
    network.load_state_dict(content["weights"])
    return Judge(network.eval(), side, content["quality"])
