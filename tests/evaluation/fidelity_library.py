"""torch-fidelity for tests, with feature extractors that are known in closed form and need no download."""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

TINY = "cips3d-tiny"  # names that the extractors are registered by
CLASSES = "cips3d-classes"
CLASS_COUNT = 4
MISSING = "no torch-fidelity: pip install 'cips3d[eval]'"
SUPPRESSION = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def open_torch_fidelity() -> ModuleType:
    """The library, or a skip where it is not installed."""
    with contextlib.suppress(ImportError):
        import_torchvision()
    library = pytest.importorskip("torch_fidelity", reason=MISSING)
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if TINY not in FEATURE_EXTRACTORS_REGISTRY:
        library.register_feature_extractor(TINY, _extractor(library, tiny_features))
        library.register_feature_extractor(CLASSES, _extractor(library, class_logits))
    return library


def import_torchvision() -> None:
    """Import torchvision even where its compiled part does not fit.

    Its wheels on the package index are built for CUDA. Beside a CPU build of torch the compiled part cannot be loaded,
    and the import fails at operators that it would have declared; once they are declared, the rest is all there.
    """
    try:
        import torchvision
    except RuntimeError:
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", SUPPRESSION)
        import torchvision  # noqa: F401


def tiny_features(images: Tensor) -> Tensor:
    """[B, 6] mean and standard deviation of the colours of uint8 images."""
    values = images.float().flatten(2) / 255
    return torch.cat([values.mean(2), values.std(2)], dim=1)


def class_logits(images: Tensor) -> Tensor:
    """[B, 4] logits that are sure of the class ⌊red / 64⌋ of the first pixel."""
    return 100 * torch.nn.functional.one_hot(images[:, 0, 0, 0].long() // 64, CLASS_COUNT).float()


def _extractor(library: ModuleType, features: Any) -> type:
    """An extractor of torch-fidelity's kind around a function."""

    class Extractor(library.FeatureExtractorBase):  # type: ignore[misc, name-defined]
        def __init__(self, name: str, features_list: list[str], **settings: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("all",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "all"

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return (features(images),)

    return Extractor
