"""The faces that measures look at."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from inversion.small_models import small

from cips3d.cameras import PoseDistribution
from cips3d.evaluation.views import FACES_AT_ONCE, FaceSample, equal_angles, resized, seen_from
from cips3d.rendering import LoadedGenerator, Look, render_views, styles_of_seeds


def seen_by(loaded: LoadedGenerator) -> tuple[list[int], torch.Tensor]:
    """How many faces came together, and all pictures."""
    faces, yaw = FaceSample(2 * FACES_AT_ONCE + 1), equal_angles(0.3, 3)
    parts = [views.image for views in seen_from(loaded, faces, torch.zeros(3), yaw, title="test")]
    return [len(part) for part in parts], torch.cat(parts)


def test_some_faces_at_a_time() -> None:
    counts, pictures = seen_by(small("cips3d"))
    assert counts == [FACES_AT_ONCE, FACES_AT_ONCE, 1]
    assert pictures.shape == (2 * FACES_AT_ONCE + 1, 3, 3, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_those_of_a_gpu_are_the_same_cuda() -> None:
    """Rendered ahead, in the same order."""
    loaded = small("cips3d")
    counts, pictures = seen_by(replace(loaded, generator=copy.deepcopy(loaded.generator).to("cuda")))
    assert counts == [FACES_AT_ONCE, FACES_AT_ONCE, 1]
    torch.testing.assert_close(pictures, seen_by(loaded)[1], atol=5e-3, rtol=0)


def test_typical_faces() -> None:
    """With ψ = 0, all are the mean one."""
    faces, front = FaceSample(2, truncation=0.0), torch.zeros(1)
    (views,) = seen_from(small("cips3d"), faces, front, front, title="test")
    torch.testing.assert_close(views.image[0], views.image[1])
    (others,) = seen_from(small("cips3d"), replace(faces, truncation=1.0), front, front, title="test")
    assert not torch.allclose(others.image[0], others.image[1])


@pytest.mark.parametrize(("kind", "front"), [("gaussian", math.pi / 4), ("spherical_uniform", math.pi / 3)])
def test_angles_are_counted_from_the_median_training_camera(kind: Any, front: float) -> None:
    loaded = replace(small("cips3d"), poses=PoseDistribution(kind, yaw_mean=1.9, pitch_mean=math.pi / 4))
    pitch, yaw = torch.tensor([0.0, 0.1]), torch.tensor([0.0, -0.3])
    (seen,) = seen_from(loaded, FaceSample(1), pitch, yaw, title="test")
    styles = styles_of_seeds(loaded, FaceSample(1).seeds())
    torch.testing.assert_close(seen.image, render_views(loaded, styles, front + pitch, 1.9 + yaw, Look(8)).image)


def test_pictures_of_other_sides() -> None:
    """Every pixel counts in a smaller picture; between the pixels of a larger one, colours are mixed."""
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2).expand(1, 3, 4, 4)
    torch.testing.assert_close(resized(checks, 2), torch.zeros(1, 3, 2, 2))
    torch.testing.assert_close(resized(checks[..., :2, :2], 4)[0, 0, 0], torch.tensor([1.0, 0.5, -0.5, -1.0]))
    assert resized(checks, 4) is checks
