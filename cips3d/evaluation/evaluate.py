"""All metrics of a generator, or of a set of pictures, at once: for the command and for training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cips3d.data.heads import SyntheticHeads
from cips3d.data.heads.dataset import cache_folder
from cips3d.data.images import ImageFiles
from cips3d.errors import UserError
from cips3d.evaluation.cache import cached
from cips3d.evaluation.catalogue import METRICS, check_counts, check_side, chosen_metrics
from cips3d.evaluation.chirality import chirality
from cips3d.evaluation.consistency import DifferenceMap, view_consistency
from cips3d.evaluation.fidelity import BATCH_SIZE, FIDELITY_METRICS, FeatureNetworks, fidelity
from cips3d.evaluation.frechet import features_of, frechet_distance, random_conv_digest
from cips3d.evaluation.image_network import Network
from cips3d.evaluation.image_sets import GeneratedImages, SourceImages, WithProgress, identity, size_of
from cips3d.evaluation.judges import Judge, Teaching, chirality_judge, pose_judge
from cips3d.evaluation.perceptual import lpips_map
from cips3d.evaluation.pose import pose_accuracy
from cips3d.evaluation.smoothness import depth_smoothness
from cips3d.evaluation.symmetry import mirror_symmetry
from cips3d.evaluation.views import IMAGES_INSTEAD, FaceSample
from cips3d.pictures import from_uint8
from cips3d.rendering import LoadedGenerator, check_is_3d

RealImages = ImageFiles | SyntheticHeads


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is looked at, and by whom."""

    images: int = 50_000
    """pictures generated for the metrics that compare sets of pictures"""
    faces: int = 32
    """faces that 3-D metrics look at"""
    seed: int = 0
    """of everything random"""
    truncation: float = 1.0
    """ψ"""
    resolution: int | None = None
    """side of the pictures; None: the model's"""
    batch_size: int = BATCH_SIZE
    """pictures in memory together where networks look at them"""
    networks: FeatureNetworks = field(default_factory=FeatureNetworks)
    teaching: Teaching = field(default_factory=Teaching)
    cache: Path | None = None
    """folder of real features and taught networks; None: `cache_folder()`"""
    progress: bool = False
    """show bars on stderr"""


@dataclass(frozen=True)
class Curve:
    """A value over an angle."""

    x: list[float]
    """radians from the front"""
    y: list[float]


@dataclass(frozen=True)
class Evaluation:
    """Results of metrics."""

    values: dict[str, float] = field(default_factory=dict)
    """by the names in `catalogue.VALUES`; not a number where a metric has nothing to look at"""
    curves: dict[str, Curve] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """what each metric took"""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def evaluate_generator(
    loaded: LoadedGenerator,
    metrics: Sequence[str],
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    real: RealImages | None = None,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Measure a generator; neither it nor the global random numbers are changed.

    Args:
        loaded: any generator; averaged weights are what one wants to measure.
        metrics: names of `catalogue.METRICS`.
        settings: how.
        real: pictures, at the resolution of those generated, that fid, kid, pr and frechet compare with.
        device: where networks that look at pictures run; None: the generator's.

    Raises:
        UserError: a metric is unknown, needs a 3-D model or real pictures, or something that is not installed.
    """
    names = chosen_metrics(metrics)
    for name in names:
        if METRICS[name].needs_3d:
            check_is_3d(loaded, name, IMAGES_INSTEAD)
    check_side(names, settings.resolution or loaded.resolution)
    images = GeneratedImages(
        loaded,
        settings.images,
        seed=settings.seed,
        truncation=settings.truncation,
        resolution=settings.resolution,
    )
    with torch.random.fork_rng(devices=[]):
        # Report what is missing before the work begins.
        distance = lpips_map(loaded.device) if "lpips" in names else None
        evaluation = evaluate_images(images, of_images(names), settings, real=real, device=device or loaded.device)
        for name in names:
            if METRICS[name].needs_3d:
                with evaluation.timed(name):
                    _VIEW_METRICS[name](_Subject(loaded, settings, evaluation, distance))
    return evaluation


def of_images(names: Sequence[str]) -> list[str]:
    """The metrics that compare sets of pictures, whatever these come from."""
    return [name for name in names if not METRICS[name].needs_3d]


def evaluate_images(
    images: Dataset,
    metrics: Sequence[str],
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    real: RealImages | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Measure a set of pictures uint8 [3, R, R]; arguments as in `evaluate_generator`.

    Raises:
        UserError: a metric needs a model, real pictures, or something that is not installed.
    """
    for name in metrics:
        if METRICS[name].needs_3d:
            raise UserError(f"{name} turns the camera and needs a model; leave it out for a set of pictures")
        if METRICS[name].needs_data and real is None:
            raise UserError(f"{name} compares with real pictures; give --data FOLDER, a zip, or the word heads")
    check_counts(metrics, size_of(images), None if real is None else len(real))
    with torch.random.fork_rng(devices=[]):  # data loaders draw a seed each time
        return _measure_images(images, metrics, settings, real, device)


def _measure_images(
    images: Dataset,
    metrics: Sequence[str],
    settings: EvaluationSettings,
    real: RealImages | None,
    device: torch.device | str,
) -> Evaluation:
    evaluation = Evaluation()
    by_fidelity = [name for name in metrics if name in FIDELITY_METRICS]
    if by_fidelity:
        with evaluation.timed("+".join(by_fidelity)):
            found = fidelity(
                images,
                by_fidelity,
                real=real,
                networks=settings.networks,
                device=device,
                batch_size=settings.batch_size,
                seed=settings.seed,
                cache=settings.cache,
                progress=settings.progress,
            )
            evaluation.values.update(found)
    if "frechet" in metrics:
        assert real is not None
        with evaluation.timed("frechet"):
            evaluation.values["frechet"] = _frechet(images, real, settings)
    return evaluation


def _frechet(images: Dataset, real: RealImages, settings: EvaluationSettings) -> float:
    """The real pictures' features are kept, as those of torch-fidelity are."""
    folder = (settings.cache or cache_folder()) / "features"
    file = folder / f"{identity(real)}-random-conv-{random_conv_digest()}.pt"

    def made() -> dict[str, Tensor]:
        return {"features": features_of(_batches(SourceImages(real), "real pictures", settings))}

    of_real = cached(file, made)["features"]  # first: where they cannot be kept, nothing has been generated in vain
    return frechet_distance(features_of(_batches(images, "generating", settings)), of_real)


def _batches(images: Dataset, title: str, settings: EvaluationSettings) -> Iterator[Tensor]:
    """[B, 3, R, R] in [-1, 1]"""
    with tqdm(total=size_of(images), desc=title, unit="picture", disable=not settings.progress, leave=False) as bar:
        for batch in DataLoader(WithProgress(images, bar), batch_size=settings.batch_size):
            yield from_uint8(batch)


@dataclass(frozen=True)
class _Subject:
    """What 3-D metrics measure, how, and where their results go."""

    loaded: LoadedGenerator
    settings: EvaluationSettings
    evaluation: Evaluation
    distance: DifferenceMap | None

    @property
    def faces(self) -> FaceSample:
        chosen = self.settings
        return FaceSample(chosen.faces, chosen.seed, chosen.truncation, chosen.resolution, progress=chosen.progress)

    @property
    def resolution(self) -> int:
        return self.faces.resolution_of(self.loaded)

    def taught(self, judge: Callable[..., Judge[Network]]) -> Judge[Network]:
        """The judge of models of this resolution and angle of view."""
        return judge(
            self.resolution,
            fov_degrees=self.loaded.fov_degrees,
            teaching=self.settings.teaching,
            cache=self.settings.cache,
            progress=self.settings.progress,
        )

    def add(self, **values: float) -> None:
        self.evaluation.values.update(values)

    def add_curve(self, name: str, x: list[float], y: list[float]) -> None:
        self.evaluation.curves[name] = Curve(x, y)


def _consistency(subject: _Subject) -> None:
    """Both metrics that warp views, in one pass: consistency and LPIPS."""
    if "consistency_psnr" in subject.evaluation.values:
        return
    found = view_consistency(subject.loaded, subject.faces, distance=subject.distance)
    subject.add(consistency_psnr=found.psnr, consistency_overlap=found.overlap)
    if found.perceptual is not None:
        subject.add(consistency_lpips=found.perceptual)


def _smoothness(subject: _Subject) -> None:
    found = depth_smoothness(subject.loaded, subject.faces)
    subject.add(depth_roughness=found.roughness, depth_edges=found.edges)


def _pose(subject: _Subject) -> None:
    judge = subject.taught(pose_judge)
    found = pose_accuracy(subject.loaded, judge.network, subject.faces, resolution=judge.resolution)
    subject.add(
        pose_error_degrees=found.error_degrees,
        pose_yaw_slope=found.yaw.slope,
        pose_yaw_correlation=found.yaw.correlation,
        pose_pitch_slope=found.pitch.slope,
        pose_pitch_correlation=found.pitch.correlation,
        pose_judge_error_degrees=judge.quality,
    )
    subject.add_curve("pose_seen_yaw", found.yaw.requested, found.yaw.seen)
    subject.add_curve("pose_seen_pitch", found.pitch.requested, found.pitch.seen)


def _symmetry(subject: _Subject) -> None:
    found = mirror_symmetry(subject.loaded, subject.faces)
    subject.add(mirror_symmetry=found.index)
    subject.add_curve("mirror_symmetry", found.yaws, found.by_yaw)


def _chirality(subject: _Subject) -> None:
    judge = subject.taught(chirality_judge)
    found = chirality(subject.loaded, judge.network, subject.faces, resolution=judge.resolution)
    subject.add(
        chirality_mirrored=found.mirrored, chirality_changes=found.changes, chirality_judge_accuracy=judge.quality
    )
    subject.add_curve("chirality_mirrored", found.yaws, found.mirrored_by_yaw)


_VIEW_METRICS: dict[str, Callable[[_Subject], None]] = {
    "consistency": _consistency,
    "lpips": _consistency,
    "smoothness": _smoothness,
    "pose": _pose,
    "symmetry": _symmetry,
    "chirality": _chirality,
}
