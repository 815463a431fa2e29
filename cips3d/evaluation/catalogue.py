"""Which metrics there are, what each means and which direction is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cips3d.errors import UserError

Better = Literal["smaller", "larger", "neither"]
MetricName = Literal[
    "fid",
    "kid",
    "is",
    "pr",
    "frechet",
    "consistency",
    "lpips",
    "smoothness",
    "pose",
    "symmetry",
    "chirality",
]


@dataclass(frozen=True)
class Value:
    """A figure that a metric gives."""

    meaning: str
    better: Better


@dataclass(frozen=True)
class Metric:
    """A metric that can be chosen by name."""

    meaning: str
    values: dict[str, Value]
    """by their names in results; the first one with a direction stands for the metric"""
    needs_data: bool = False
    needs_3d: bool = False
    needs_heads: bool = False
    """says something about models of synthetic heads only"""
    least_images: int = 1
    """pictures that there must be, of real ones too where it compares with them"""
    least_side: int = 1
    """pixels that pictures must have"""


METRICS: dict[str, Metric] = {
    "fid": Metric(
        "Fréchet distance of Inception features to the real pictures of --data (torch-fidelity)",
        {"fid": Value("Fréchet inception distance", "smaller")},
        needs_data=True,
        least_images=2,
    ),
    "kid": Metric(
        "squared MMD of Inception features to those of --data; less biased for few pictures (torch-fidelity)",
        {
            "kid": Value("kernel inception distance", "smaller"),
            "kid_std": Value("its standard deviation over random subsets, not of the sets", "neither"),
        },
        needs_data=True,
        least_images=2,
    ),
    "is": Metric(
        "inception score: sure and varied classes; says little about faces (torch-fidelity)",
        {
            "inception_score": Value("inception score", "larger"),
            "inception_score_std": Value("its standard deviation over splits", "neither"),
        },
        least_images=10,  # splits
    ),
    "pr": Metric(
        "precision (how many generated pictures could be real) and recall (how many of --data could be generated) "
        "by VGG16 features (torch-fidelity)",
        {"precision": Value("precision", "larger"), "recall": Value("recall", "larger")},
        needs_data=True,
        least_images=4,  # one and its three neighbours
    ),
    "frechet": Metric(
        "Fréchet distance of fixed random convolutions' features to those of --data: needs no download, ranks models "
        "of one data set at one resolution",
        {"frechet": Value("Fréchet distance of random convolution features", "smaller")},
        needs_data=True,
        least_images=2,
    ),
    "consistency": Metric(
        "multi-view consistency: views warped by depth into their neighbours and compared; share that overlaps",
        {
            "consistency_psnr": Value("agreement of neighbouring views, dB", "larger"),
            "consistency_overlap": Value("share of pixels seen in both, 0 to 1", "larger"),
        },
        needs_3d=True,
    ),
    "lpips": Metric(
        "the same by LPIPS, a perceptual distance (package lpips)",
        {"consistency_lpips": Value("perceptual difference of neighbouring views", "smaller")},
        needs_3d=True,
        least_side=32,  # AlexNet has nothing left of smaller pictures
    ),
    "smoothness": Metric(
        "depth smoothness: second differences of depth along a surface, in thousandths of a ray's length",
        {
            "depth_roughness": Value("unevenness of surfaces, 1/1000 of a ray", "smaller"),
            "depth_edges": Value("share of neighbouring pixels where depth jumps", "neither"),
        },
        needs_3d=True,
    ),
    "pose": Metric(
        "pose accuracy on synthetic heads: yaw and pitch that a taught network sees against those requested",
        {
            "pose_error_degrees": Value("seen against requested angles, degrees RMS", "smaller"),
            "pose_yaw_slope": Value("seen yaw over requested yaw; 1 is right", "neither"),
            "pose_yaw_correlation": Value("of seen and requested yaw", "larger"),
            "pose_pitch_slope": Value("seen pitch over requested pitch; 1 is right", "neither"),
            "pose_pitch_correlation": Value("of seen and requested pitch", "larger"),
            "pose_judge_error_degrees": Value("the network's own error on held-out heads, degrees RMS", "neither"),
        },
        needs_3d=True,
        needs_heads=True,
    ),
    "symmetry": Metric(
        "mirror symmetry index: likeness of the picture at + yaw to the flipped one at - yaw; 1 symmetric, 0 as unlike "
        "as another face; compare with that of real faces",
        {"mirror_symmetry": Value("1 symmetric, 0 as unlike as another face", "neither")},
        needs_3d=True,
    ),
    "chirality": Metric(
        "on synthetic heads: views that a taught network takes for mirror images, and pairs of views at + yaw and "
        "- yaw about which it changes its mind",
        {
            "chirality_mirrored": Value("share of views that look mirrored", "smaller"),
            "chirality_changes": Value("share of ± yaw pairs of different handedness", "smaller"),
            "chirality_judge_accuracy": Value("the network's own share of right calls on held-out heads", "neither"),
        },
        needs_3d=True,
        needs_heads=True,
    ),
}

VALUES: dict[str, Value] = {name: value for metric in METRICS.values() for name, value in metric.values.items()}


def chosen_metrics(names: Sequence[str], argument: str = "--metrics") -> list[str]:
    """The names, each once and in the order given.

    Args:
        names: what is asked for.
        argument: what the user calls it, for messages.

    Raises:
        UserError: there is no such metric.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise UserError(
            f"{argument} {','.join(unknown) or 'with no name'} is unknown; choose out of {','.join(METRICS)}"
        )
    return list(dict.fromkeys(names))


def check_counts(names: Sequence[str], generated: int, real: int | None = None) -> None:
    """Raise `UserError` where a set of pictures is too small for a metric.

    Args:
        names: the metrics.
        generated: how many pictures are measured.
        real: how many there are to compare with.
    """
    for name in names:
        metric = METRICS[name]
        count = generated if real is None or not metric.needs_data else min(generated, real)
        if count < metric.least_images:
            pictures = "1 picture is" if count == 1 else f"{count} pictures are"
            raise UserError(f"{pictures} too few for {name}; it takes {metric.least_images} or more")


def check_side(names: Sequence[str], side: int) -> None:
    """Raise `UserError` where pictures of `side` pixels are too small for a metric."""
    for name in names:
        if side < METRICS[name].least_side:
            raise UserError(
                f"pictures of {side} pixels are too small for {name}; give --resolution {METRICS[name].least_side} or "
                f"more, or leave {name} out"
            )


def deciding_value(names: Sequence[str]) -> str | None:
    """The value that tells the better of two models: of the first metric that has one; None where none has."""
    return next(
        (name for metric in names for name, value in METRICS[metric].values.items() if value.better != "neither"), None
    )


def is_better(name: str, value: float, best: float | None) -> bool:
    """Whether a value beats the best so far (None: there is none); what is not a number never does.

    Raises:
        ValueError: neither direction of the value is better.
    """
    better = VALUES[name].better
    if better == "neither":
        raise ValueError(f"name must be of a value with a better direction, got {name}")
    if math.isnan(value):
        return False
    if best is None or math.isnan(best):
        return True
    return value < best if better == "smaller" else value > best
