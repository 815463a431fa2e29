"""All metrics at once, as training asks for them."""

from __future__ import annotations

import math
import sys
import urllib.error
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from evaluation.analytic import Analytic, Flat, loaded_of, sphere
from evaluation.fidelity_library import TINY, open_torch_fidelity
from torch import Tensor

from cips3d.data.heads import SyntheticHeads, load_heads
from cips3d.errors import UserError
from cips3d.evaluation import evaluate
from cips3d.evaluation.catalogue import METRICS, VALUES, MetricName, chosen_metrics, deciding_value, is_better
from cips3d.evaluation.chirality import ChiralityClassifier
from cips3d.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate_generator, evaluate_images
from cips3d.evaluation.fidelity import FeatureNetworks
from cips3d.evaluation.frechet import features_of, frechet_distance
from cips3d.evaluation.image_network import ImageNetwork, seeded
from cips3d.evaluation.image_sets import GeneratedImages, SourceImages
from cips3d.evaluation.judges import Judge, Teaching
from cips3d.evaluation.perceptual import lpips_map
from cips3d.evaluation.pose import PoseRegressor
from cips3d.evaluation.smoothness import DepthSmoothness
from cips3d.evaluation.views import FaceSample
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig

IMAGES = 40
WITHOUT_DATA = ("consistency", "smoothness", "pose", "symmetry", "chirality")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def settings(cache: Path) -> EvaluationSettings:
    return EvaluationSettings(images=IMAGES, faces=3, cache=cache, teaching=Teaching(heads=64, held_out=64, steps=2))


@pytest.fixture(scope="module")
def heads(cache: Path) -> SyntheticHeads:
    return load_heads(32, IMAGES, cache=cache, progress=False)


BALL = loaded_of(Analytic(sphere(0.08)))


def test_every_3d_metric(settings: EvaluationSettings) -> None:
    found = evaluate_generator(BALL, WITHOUT_DATA, settings)
    promised = [value for name in WITHOUT_DATA for value in METRICS[name].values]
    assert list(found.values) == promised
    assert all(math.isfinite(value) for value in found.values.values())
    assert set(found.curves) == {"pose_seen_yaw", "pose_seen_pitch", "mirror_symmetry", "chirality_mirrored"}
    assert all(len(curve.x) == len(curve.y) > 2 for curve in found.curves.values())
    assert list(found.seconds) == list(WITHOUT_DATA)


def test_generators_of_double_precision(settings: EvaluationSettings, heads: SyntheticHeads) -> None:
    """Their networks and cameras are float64, those that judge them float32."""
    torch.manual_seed(0)
    small = CIPS3DConfig(z_shape_dim=4, shape_style_dim=4, nerf_width=8, z_appearance_dim=4, inr_width=8)
    generator = CIPS3D(small).eval()
    of_float, of_double = (
        evaluate_generator(
            replace(BALL, generator=generator.to(dtype)), (*WITHOUT_DATA, "frechet"), settings, real=heads
        )
        for dtype in (torch.float32, torch.float64)
    )
    for name in ("consistency_psnr", "depth_roughness", "mirror_symmetry", "frechet"):
        assert of_double.values[name] == pytest.approx(of_float.values[name], rel=1e-2)


def test_pictures_and_faces_are_those_that_are_asked_for(
    settings: EvaluationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[GeneratedImages] = []
    looked_at: list[FaceSample] = []
    monkeypatch.setattr(evaluate, "evaluate_images", lambda images, *_, **__: made.append(images) or Evaluation())
    monkeypatch.setattr(
        evaluate, "depth_smoothness", lambda _, faces: looked_at.append(faces) or DepthSmoothness(1.0, 0.0)
    )
    chosen = replace(settings, images=5, faces=2, seed=4, truncation=0.7, resolution=16)
    evaluate_generator(BALL, ("smoothness",), chosen)
    assert [(images.count, images.seed, images.truncation, images.resolution) for images in made] == [(5, 4, 0.7, 16)]
    assert looked_at == [FaceSample(2, 4, 0.7, 16)]


def test_is_reproducible_and_changes_nothing(settings: EvaluationSettings, heads: SyntheticHeads) -> None:
    names = ("consistency", "frechet")
    first = evaluate_generator(BALL, names, settings, real=heads)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    second = evaluate_generator(BALL, names, settings, real=heads)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.values == second.values


def test_features_that_cannot_be_kept(
    settings: EvaluationSettings, heads: SyntheticHeads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told before anything is generated."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(GeneratedImages, "__getitem__", lambda *_: pytest.fail("a picture was generated"))
    with pytest.raises((UserError, OSError)):
        evaluate_generator(BALL, ["frechet"], replace(settings, cache=tmp_path / "file"), real=heads)


def test_frechet_of_generated_pictures(settings: EvaluationSettings, heads: SyntheticHeads) -> None:
    found = evaluate_generator(BALL, ["frechet"], settings, real=heads)
    made, real = (
        features_of([torch.stack([images[i] for i in range(IMAGES)]).float() / 127.5 - 1])
        for images in (GeneratedImages(BALL, IMAGES), heads)
    )
    assert found.values["frechet"] == pytest.approx(frechet_distance(made, real), rel=1e-4)  # float32 features
    same = evaluate_images(SourceImages(heads), ["frechet"], settings, real=heads)
    assert same.values["frechet"] == pytest.approx(0, abs=1e-3)


def test_features_of_other_real_pictures_are_not_taken(settings: EvaluationSettings, cache: Path) -> None:
    found = []
    for seed in (0, 1, 0):
        real = load_heads(32, IMAGES, seed, cache=cache, progress=False)
        found.append(evaluate_generator(BALL, ["frechet"], settings, real=real).values["frechet"])
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("constant", "value"),
    [("RANDOM_CONV_FORMAT", 2), ("RANDOM_CONV_SEED", 6), ("RANDOM_CONV_CHANNELS", (3, 32, 48, 16))],
)
def test_features_of_other_convolutions_are_not_taken(
    settings: EvaluationSettings, heads: SyntheticHeads, monkeypatch: pytest.MonkeyPatch, constant: str, value: object
) -> None:
    titles: list[str] = []
    batches = evaluate._batches
    monkeypatch.setattr(
        evaluate, "_batches", lambda _, title, chosen: titles.append(title) or batches(_, title, chosen)
    )

    def looked_at() -> list[str]:
        titles.clear()
        evaluate_images(SourceImages(heads), ["frechet"], settings, real=heads)
        return titles

    looked_at()
    assert looked_at() == ["generating"]
    monkeypatch.setattr(f"cips3d.evaluation.frechet.{constant}", value)
    assert looked_at() == ["real pictures", "generating"]


@pytest.mark.parametrize(("name", "network"), [("pose", PoseRegressor), ("chirality", ChiralityClassifier)])
def test_judges_are_of_the_model_s_lens(
    settings: EvaluationSettings, monkeypatch: pytest.MonkeyPatch, name: str, network: type[ImageNetwork]
) -> None:
    asked: list[float] = []

    def judge(resolution: int, *, fov_degrees: float, **_: object) -> Judge:
        asked.append(fov_degrees)
        return Judge(seeded(network, 0).eval(), 32, quality=1.0)

    monkeypatch.setattr(evaluate, f"{name}_judge", judge)
    evaluate_generator(replace(BALL, fov_degrees=20.0), [name], settings)
    assert asked == [20.0]


def test_fidelity_of_generated_pictures(settings: EvaluationSettings, heads: SyntheticHeads, cache: Path) -> None:
    open_torch_fidelity()
    by_tiny = EvaluationSettings(images=IMAGES, cache=cache, networks=FeatureNetworks(extractor=TINY))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = evaluate_generator(BALL, ["fid", "kid", "pr"], by_tiny, real=heads)
    assert list(found.values) == ["fid", "kid", "kid_std", "precision", "recall"]
    assert found.values["fid"] > 0
    assert torch.equal(torch.get_rng_state(), before)  # torch-fidelity's data loader draws from it


class TestLPIPS:
    def test_is_averaged_with_consistency(self, settings: EvaluationSettings, monkeypatch: pytest.MonkeyPatch) -> None:
        class LPIPS(torch.nn.Module):
            def __init__(self, **settings: object) -> None:
                super().__init__()
                assert settings == {"net": "alex", "spatial": True, "verbose": False}

            def forward(self, a: Tensor, b: Tensor) -> Tensor:
                return torch.full_like(a[:, :1], 0.125)

        monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=LPIPS))
        found = evaluate_generator(BALL, ["lpips", "consistency"], settings)
        assert found.values["consistency_lpips"] == pytest.approx(0.125)
        assert found.values["consistency_psnr"] > 30

    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "lpips", None)
        with pytest.raises(UserError, match="pip install lpips"):
            lpips_map()

    def test_weights_cannot_be_downloaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(**settings: object) -> None:
            raise urllib.error.URLError("no route to host")

        monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=offline))
        with pytest.raises(UserError, match=r"AlexNet.*cannot be downloaded \(no route to host\); put alexnet.*\.pth"):
            lpips_map()

    def test_small_pictures(self, settings: EvaluationSettings) -> None:
        """Said before anything is measured."""

        def fail(*_: object) -> None:
            raise AssertionError("pictures were looked at")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cips3d.evaluation.evaluate.evaluate_images", fail)
            with pytest.raises(UserError, match="16 pixels are too small for lpips; give --resolution 32 or more"):
                evaluate_generator(BALL, ["consistency", "lpips"], replace(settings, resolution=16))


class TestMistakes:
    def test_2d_models(self, settings: EvaluationSettings) -> None:
        for name, metric in METRICS.items():
            if metric.needs_3d:
                with pytest.raises(UserError, match=f"{name} needs a 3-D model, and Flat is 2-D; choose metrics"):
                    evaluate_generator(loaded_of(Flat()), [name], settings)

    def test_2d_models_have_pictures(self, settings: EvaluationSettings, heads: SyntheticHeads) -> None:
        found = evaluate_generator(loaded_of(Flat()), ["frechet"], settings, real=heads)
        assert found.values["frechet"] > 0

    def test_sets_of_pictures(self, heads: SyntheticHeads) -> None:
        with pytest.raises(UserError, match="symmetry turns the camera and needs a model"):
            evaluate_images(SourceImages(heads), ["symmetry"])

    def test_without_data(self, settings: EvaluationSettings) -> None:
        with pytest.raises(UserError, match="frechet compares with real pictures; give --data"):
            evaluate_generator(BALL, ["frechet"], settings)

    def test_too_few(self, settings: EvaluationSettings, heads: SyntheticHeads) -> None:
        with pytest.raises(UserError, match="1 picture is too few for frechet; it takes 2 or more"):
            evaluate_generator(BALL, ["frechet"], EvaluationSettings(images=1, cache=settings.cache), real=heads)

    def test_unknown(self, settings: EvaluationSettings) -> None:
        with pytest.raises(UserError, match="--metrics fvd is unknown; choose out of fid,kid"):
            evaluate_generator(BALL, ["fid", "fvd"], settings)


class TestCatalogue:
    def test_names(self) -> None:
        assert chosen_metrics(["kid", "fid", "kid"]) == ["kid", "fid"]
        assert sum(len(metric.values) for metric in METRICS.values()) == len(VALUES)
        assert get_args(MetricName) == tuple(METRICS)

    def test_what_decides(self) -> None:
        assert deciding_value(["symmetry", "consistency", "fid"]) == "consistency_psnr"
        assert deciding_value(["fid", "kid"]) == "fid"
        assert deciding_value(["pose"]) == "pose_error_degrees"
        assert deciding_value(["symmetry"]) is None

    def test_better(self) -> None:
        assert is_better("fid", 5.0, None)
        assert is_better("fid", 5.0, 6.0)
        assert not is_better("fid", 6.0, 6.0)
        assert is_better("consistency_psnr", 31.0, 30.0)
        assert not is_better("consistency_psnr", 29.0, 30.0)
        assert not is_better("fid", math.nan, None)
        assert is_better("fid", 5.0, math.nan)
        with pytest.raises(ValueError, match="mirror_symmetry"):
            is_better("mirror_symmetry", 0.5, 0.4)

    def test_evaluation_holds_nothing_at_first(self) -> None:
        assert Evaluation() == Evaluation({}, {}, {})
