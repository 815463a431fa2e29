"""Gradients of pictures to the angles of the camera, through rays and volume."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from inversion.small_models import small
from ops.backends import Backend

from cips3d.cameras import Cameras
from cips3d.inversion.objective import seen_by
from cips3d.models.generator import styles_of
from cips3d.models.view import View
from cips3d.ops import kernels
from cips3d.rendering import LoadedGenerator

FRONT = math.pi / 2


def loss_of(loaded: LoadedGenerator, angles: torch.Tensor, side: int = 6) -> torch.Tensor:
    """How bright the upper left of a picture from pitch, yaw [2] is."""
    z = loaded.generator.sample_z(1, generator=torch.Generator().manual_seed(3))
    styles = loaded.generator.mapping(*(part.to(angles.dtype) for part in z))
    seen = seen_by(loaded, styles, angles[:1], angles[1:], side)
    weights = torch.linspace(1, -1, side, dtype=seen.dtype, device=seen.device)
    return (seen * weights * (weights[:, None] + 0.3)).mean()


@pytest.mark.parametrize("system", ["cips3d", "pigan"])
def test_against_differences(system: str) -> None:
    """In float64, without importance samples: their depths jump with the camera, and carry no gradient."""
    loaded = small(system)
    loaded = replace(loaded, settings=replace(loaded.settings, fine_samples=0), generator=loaded.generator.double())
    angles = torch.tensor([FRONT - 0.1, FRONT + 0.2], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss_of(loaded, angles), angles)
    with torch.no_grad():
        for k in range(2):
            step = torch.zeros(2, dtype=torch.float64)
            step[k] = 1e-6
            slope = (loss_of(loaded, angles + step) - loss_of(loaded, angles - step)) / 2e-6
            # Differences of float64 over steps of 1e-6 err by about 1e-9 of the values, which are below 1.
            assert float(gradient[k]) == pytest.approx(float(slope), rel=1e-4, abs=1e-8)
            assert abs(float(slope)) > 1e-5


@pytest.mark.parametrize("system", ["cips3d", "pigan"])
def test_kernels_give_those_of_plain_pytorch(system: str, kernel_backend: Backend) -> None:
    """With everything that is on by default, importance samples too."""
    loaded = small(system)
    loaded.generator.to(kernel_backend.device)
    angles = torch.tensor([FRONT - 0.1, FRONT + 0.2], device=kernel_backend.device, requires_grad=True)
    (found,) = torch.autograd.grad(loss_of(loaded, angles), angles)
    with kernels.disabled():
        (expected,) = torch.autograd.grad(loss_of(loaded, angles), angles)
    # Kernels split operands in two float16: gradients agree to about 1e-4 where sines have phases of tens of radians.
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=1e-6)
    assert float(expected.abs().min()) > 1e-5


def test_overshoot_is_cut_off_and_pulled_back() -> None:
    loaded = small("cips")
    styles = loaded.generator.mapping(*loaded.generator.sample_z(1, generator=torch.Generator().manual_seed(3)))
    strong = styles_of(styles, [(style * 6).requires_grad_() for style in styles])
    front = torch.tensor([FRONT])
    whole = loaded.generator.render(strong, View(8, Cameras.from_angles(front, front), jitter=False)).image
    assert float(whole.detach().abs().max()) > 1
    shown = seen_by(loaded, strong, front, front, 8)
    torch.testing.assert_close(shown, whole.clamp(-1, 1))
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad((shown * weights).sum(), strong)
    (expected,) = torch.autograd.grad((whole * weights).sum(), strong)
    torch.testing.assert_close(found, expected)
