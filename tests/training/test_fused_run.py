"""Training through the kernels follows training in plain PyTorch: losses step by step, and over a whole run."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from ops.backends import Backend
from torch import Tensor

from cips3d.models.cips3d import CIPS3DConfig
from cips3d.models.residual_discriminator import ResidualDiscriminatorConfig, channel_table
from cips3d.models.volume import VolumeSettings
from cips3d.ops import Precision, kernels
from cips3d.training.config import Stage, TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.schedule import plan_at
from cips3d.training.state import TrainingState
from cips3d.training.step import TrainingStep

BATCH, SIDE, STEPS = 2, 8, 200
LOSSES = ("d/loss", "d/aux_loss", "g/loss", "g/aux_loss")
NORMS = ("d/gradient_norm", "g/gradient_norm")

CONFIG = TrainConfig(
    out=Path("nowhere"),
    device="cpu",
    stages=(
        Stage(
            resolution=SIDE,
            steps=STEPS,
            batch_size=BATCH,
            lr_nerf=5e-4,
            lr_inr=5e-4,
            lr_mapping=5e-4,
            lr_discriminator=1e-3,
        ),
    ),
    generator=CIPS3DConfig(
        z_shape_dim=4,
        shape_style_dim=8,
        shape_mapping_layers=2,
        nerf_width=16,
        nerf_color_width=16,
        features=8,
        z_appearance_dim=8,
        appearance_style_dim=8,
        appearance_mapping_layers=2,
        inr_width=16,
        inr_blocks=2,
        inr_skip_from=1,
        inr_rgb_from=0,
        density_scale=100.0,
        initial_radius=0.1,
    ),
    discriminator=ResidualDiscriminatorConfig(
        main_channels=channel_table(16, base=64, cap=8), aux_channels=channel_table(16, base=64, cap=4)
    ),
    volume=VolumeSettings(samples=3, last_back=True),
    density_noise_steps=50,
    reuse_fakes=True,
    r1_every=4,
    r1_gamma=1.0,
)


def real_images(step: int) -> Tensor:
    """Warm balls on a dark ground, which take the generator the whole run to learn: [B, 3, 8, 8]."""
    random = torch.Generator().manual_seed(step)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    centre = 0.3 * torch.rand(BATCH, 2, 1, 1, generator=random) - 0.15
    ball = torch.exp(-2 * ((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2))[:, None]
    color = torch.tensor([1.2, 0.6, 0.2]).view(1, 3, 1, 1) + 0.2 * torch.rand(BATCH, 3, 1, 1, generator=random)
    return (ball * color - 0.7).clamp(-1, 1)


def run(device: torch.device, steps: int, precision: Precision, *, on_kernels: bool) -> np.ndarray:
    """Losses, then norms of gradients, of every step: [steps, 6]."""
    with nullcontext() if on_kernels else kernels.disabled():
        state = TrainingState(CONFIG, Processes(device=device))
        state.generator.set_precision(nerf=precision)
        state.enter_stage(0, CONFIG.stages[0])
        step = TrainingStep(state, CONFIG)
        reports = [step(real_images(k).to(device), plan_at(CONFIG, k)) for k in range(steps)]
    assert all(report.finite for report in reports)
    return np.array([[float(report.scalars[name]) for name in LOSSES + NORMS] for report in reports])


def in_plain_pytorch(device: torch.device, steps: int) -> np.ndarray:
    return run(device, steps, "highest", on_kernels=False)


def test_first_steps(kernel_backend: Backend) -> None:
    """Step by step: a gradient with a wrong sign, or without one of its terms, moves these by 7e-5 and more.

    As far as products as accurate as float32's leave it, both runs are one. Weights changed by 1e-7 of themselves at
    the start change losses by 1e-7 and norms of gradients by 2e-6 within these steps; the limits leave room for sums in
    another order and, on a GPU, sines that are off by 5e-7. From step 30 on, Adam's division of small gradients by
    their own size has made chaos of it.
    """
    found = run(kernel_backend.device, 12, "highest", on_kernels=True)
    expected = in_plain_pytorch(kernel_backend.device, 12)
    off = np.abs(found - expected) / np.abs(expected)
    losses, norms = off[:, : len(LOSSES)], off[:, len(LOSSES) :]
    assert losses.max() < 1e-5, f"losses: {losses.max(1)}"
    assert norms.max() < 1e-4, f"norms of gradients: {norms.max(1)}"


def test_whole_run(kernel_backend: Backend) -> None:
    """200 steps with 16-bit operands: losses averaged over 20 steps, and over all of them.

    Rounded operands are off by 2e-4, about what weights changed by 3e-4 of themselves make of a plain run. Such runs,
    of six seeds, differ from the unchanged one by at most 0.035 in any loss averaged over 20 steps, 0.013 root mean
    square over all of these, and 0.011 averaged over the run (losses are around 1.4 and 0.7). A run whose gradients of
    a sine layer have the wrong sign is off by 0.2 to 0.6, 0.07 to 0.26 and 0.09 to 0.28.
    """
    found, expected = (
        run(kernel_backend.device, STEPS, "fast", on_kernels=True),
        in_plain_pytorch(kernel_backend.device, STEPS),
    )
    off = (found - expected)[:, : len(LOSSES)]
    averaged = off.reshape(STEPS // 20, 20, len(LOSSES)).mean(1)
    assert np.abs(averaged).max() < 0.07, f"20 steps: {np.abs(averaged).max(1)}"
    assert np.sqrt((averaged**2).mean()) < 0.03
    assert np.abs(off.mean(0)).max() < 0.025
    assert np.abs(off[:5] / expected[:5, : len(LOSSES)]).max() < 2e-3  # 5e-4 was seen with weights changed by 3e-4
