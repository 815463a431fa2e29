"""Measuring a run: how good the averaged generator is, and at which step it was the best."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch

from cips3d.errors import UserError
from cips3d.evaluation.catalogue import METRICS, is_better
from cips3d.evaluation.evaluate import EvaluationSettings, RealImages, evaluate_generator
from cips3d.evaluation.fidelity import FeatureNetworks, fetch_networks
from cips3d.evaluation.perceptual import lpips_map
from cips3d.rendering import LoadedGenerator
from cips3d.training.config import Reports, TrainConfig


@dataclass(frozen=True)
class Measurement:
    """The values of metrics at one step."""

    step: int
    images: int
    """real pictures that training had seen"""
    resolution: int
    """side of the pictures that were compared"""
    values: dict[str, float]
    """by the names in `cips3d.evaluation.catalogue.VALUES`"""


@dataclass(frozen=True)
class Best:
    """The best value of a run so far."""

    name: str
    """in `cips3d.evaluation.catalogue.VALUES`"""
    resolution: int
    images: int
    """pictures generated for it: distances between few pictures are larger"""
    value: float

    def compares_with(self, other: Best) -> bool:
        """Whether both measure the same thing."""
        return (self.name, self.resolution, self.images) == (other.name, other.resolution, other.images)


def new_best(best: Best | None, measurement: Measurement, reports: Reports) -> Best | None:
    """The deciding value of a measurement if it beats the best so far, otherwise None.

    The first measurement with this metric, resolution and number of pictures is the best.
    """
    name = reports.deciding_value
    if name is None:
        return None
    found = Best(name, measurement.resolution, reports.metrics_images, measurement.values[name])
    beaten = best.value if best is not None and best.compares_with(found) else None
    return found if is_better(name, found.value, beaten) else None


def compares_with_data(reports: Reports) -> bool:
    """Whether the deciding value is one of generated and real pictures."""
    return any(metric.needs_data and reports.deciding_value in metric.values for metric in METRICS.values())


@dataclass(frozen=True)
class _Networks(FeatureNetworks):
    flags: ClassVar[str] = "--reports."


def _networks(reports: Reports) -> FeatureNetworks:
    return _Networks(reports.inception, reports.vgg)


def prepare_metrics(reports: Reports) -> None:
    """Import the metrics' libraries and load their networks, downloading weights where that is needed.

    Raises:
        UserError: a library or weights are missing.
    """
    with torch.random.fork_rng(devices=[]):  # networks are made with random weights before they are loaded
        fetch_networks(reports.metrics, _networks(reports))
        if "lpips" in reports.metrics:
            lpips_map()


def check_real_images(reports: Reports, real: RealImages) -> None:
    """Raise `UserError` where there are too few pictures to compare with."""
    for name in reports.metrics:
        metric = METRICS[name]
        if metric.needs_data and len(real) < metric.least_images:
            raise UserError(
                f"--reports.metrics {name} compares with {metric.least_images} pictures or more, and --data holds "
                f"{len(real)}; give more of them, or --reports.metrics-interval 0"
            )


def measure(loaded: LoadedGenerator, config: TrainConfig, real: RealImages, images: int) -> Measurement:
    """Measure a generator in training by the metrics of its configuration, the same faces every time.

    Args:
        loaded: the averaged generator at a step, at the resolution of its stage.
        config: of the run.
        real: pictures of that resolution.
        images: real pictures that training has seen.

    Raises:
        UserError: the pictures are not numbers, or the cache folder cannot be written.
    """
    settings = EvaluationSettings(
        images=config.reports.metrics_images, networks=_networks(config.reports), progress=sys.stderr.isatty()
    )
    found = evaluate_generator(loaded, config.reports.metrics, settings, real=real)
    assert loaded.step is not None
    return Measurement(loaded.step, images, loaded.resolution, found.values)
