"""Fixtures that tests of several folders share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import emulated_kernels
import numpy as np
import pytest
import torch
from checkpoints.small_runs import write_run
from ops.backends import Backend, open_backend
from PIL import Image

from cips3d.models.cips3d import CIPS3DConfig
from cips3d.models.residual_discriminator import ResidualDiscriminatorConfig, channel_table
from cips3d.models.volume import VolumeSettings
from cips3d.rendering import LoadedGenerator, load_generator
from cips3d.training.config import Reports, Stage, TrainConfig

# What a script starts in the background ignores Ctrl-C, and nohup a hangup; so would the commands that are tested here.
for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

WORKER = os.environ.get("PYTEST_XDIST_WORKER")  # of several processes that share the tests; None: there is one

if WORKER is not None:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile for the sanitizers while the tests before theirs run."""
    asked = any("test_sanitized_ops" in item.nodeid for item in session.items)
    if asked and not session.config.option.collectonly and WORKER in (None, "gw0"):
        emulated_kernels.build_ahead()


@pytest.fixture(params=["reference", "emulated", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The test runs once with every backend."""
    yield from open_backend(request.param, request.node.nodeid)


@pytest.fixture(params=["emulated", "cuda"])
def kernel_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The test runs once with every backend that has kernels."""
    yield from open_backend(request.param, request.node.nodeid)


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 colourful pictures of 20 x 16 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for k in range(12):
        coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((20, 16), Image.Resampling.BICUBIC).save(folder / f"{k:02d}.png")
    return folder


@pytest.fixture
def small_config(photo_folder: Path, tmp_path: Path) -> TrainConfig:
    """A run of 6 steps at 8² with the smallest networks that have every part."""
    return TrainConfig(
        data=str(photo_folder),
        out=tmp_path / "run",
        device="cpu",
        stages=(
            Stage(
                resolution=8,
                steps=6,
                batch_size=4,
                lr_nerf=1e-3,
                lr_inr=1e-3,
                lr_mapping=1e-3,
                lr_discriminator=2e-3,
            ),
        ),
        generator=CIPS3DConfig(
            z_shape_dim=4,
            shape_style_dim=6,
            shape_mapping_layers=2,
            nerf_width=8,
            nerf_color_width=6,
            features=5,
            z_appearance_dim=7,
            appearance_style_dim=8,
            appearance_mapping_layers=2,
            inr_width=8,
            inr_blocks=2,
            inr_skip_from=1,
            inr_rgb_from=0,
            density_scale=100.0,
        ),
        discriminator=ResidualDiscriminatorConfig(
            main_channels=channel_table(16, base=64, cap=8), aux_channels=channel_table(16, base=64, cap=4)
        ),
        volume=VolumeSettings(samples=4),
        x_flip=True,
        ema_start=2,
        density_noise_steps=4,
        r1_every=2,
        r1_gamma=1.0,
        reports=Reports(
            pictures_every=100, checkpoint_every=3, metrics_interval=0, faces=2, turntable_frames=4, scalars_every=2
        ),
    )


@pytest.fixture
def run_folder(small_config: TrainConfig, tmp_path: Path) -> Path:
    """A run of 8² pictures with one checkpoint."""
    return write_run(tmp_path / "run", small_config)


@pytest.fixture
def loaded(run_folder: Path) -> LoadedGenerator:
    return load_generator(run_folder)
