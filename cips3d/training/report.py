"""What a run shows: the progress bar, curves, grids of pictures, the turntable."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cips3d.cameras import Cameras
from cips3d.data.images import ImageSource
from cips3d.models.generator import Generator, Rendering, Styles
from cips3d.pictures import depth_image, image_grid, save_animation, save_image, to_uint8
from cips3d.training.config import TrainConfig
from cips3d.training.schedule import Moment
from cips3d.training.state import TrainingState
from cips3d.training.step import StepReport

FACES_SEED = 71  # the z of all grids: the same faces from the first grid of a run to the last
MEAN_SAMPLES = 2048  # z whose mean style the truncated row leans towards
TRUNCATION = 0.7
TILT, TURN, SWING = 0.25, 0.4, 0.6  # radians from the front: pitch of the tilted row, ± yaw pair, turntable
TURNTABLE_FPS = 24
BAR_SECONDS = 0.5  # between two updates of the bar on a terminal
LOG_SECONDS = 15.0  # the same where the output is a file


class Reporter:
    """Shows and records one run; lives in the first process only."""

    def __init__(self, folder: Path, config: TrainConfig, step: int) -> None:
        self.folder = folder
        self.picture_folder = folder / "pictures"
        self.config = config
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        self.bar = tqdm(
            total=config.total_steps,
            initial=step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            mininterval=BAR_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
        )
        self.images_since, self.time_since = 0, time.perf_counter()

    def close(self) -> None:
        self.bar.close()
        self.writer.close()

    def say(self, line: str) -> None:
        """A line above the progress bar."""
        self.bar.write(line, file=sys.stderr)

    def begin(self, state: TrainingState, source: ImageSource | None) -> None:
        """What is trained, on what, where."""
        counts = {
            name: sum(p.numel() for p in network.parameters())
            for name, network in (("generator", state.generator), ("discriminators", state.discriminator))
        }
        sizes = ", ".join(f"{name} {count:,} parameters" for name, count in counts.items())
        self.say(f"{self.folder}: preset {self.config.preset}, {sizes}, on {state.processes.device}")
        if source is not None:
            report = getattr(source, "report", None)
            self.say(report() if report is not None else f"{len(source):,} synthetic heads")
        self.writer.add_text("config", f"```json\n{self.config.to_json()}\n```", state.step)

    def scalar(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)

    def step(self, report: StepReport, now: Moment, state: TrainingState) -> None:
        """Count a step; every now and then, write a point of each curve and renew the bar's figures."""
        self.bar.update()
        self.images_since += now.stage.batch_size
        if not report.finite:
            self.say(f"step {state.step}: a loss or gradient was not finite; the update is left out")
        if state.step % self.config.reports.scalars_every and report.finite:
            return
        names = list(report.scalars)
        values = torch.stack([report.scalars[name].float() for name in names]).tolist()  # one transfer
        figures = dict(zip(names, values, strict=True))
        seconds = time.perf_counter() - self.time_since
        figures["speed/images_per_second"] = speed = self.images_since / seconds
        self.images_since, self.time_since = 0, time.perf_counter()
        figures["schedule/resolution"] = now.stage.resolution
        figures["schedule/fade"] = now.fade
        figures["schedule/density_noise"] = now.density_noise
        figures["schedule/learning_rate_factor"] = now.rate
        figures["skipped_steps"] = state.skipped
        for name, value in figures.items():
            self.writer.add_scalar(name, value, state.step)
        shown = {"img/s": f"{speed:.1f}", "D": f"{figures.get('d/loss', math.nan):.2f}"}
        if "g/loss" in figures:
            shown["G"] = f"{figures['g/loss']:.2f}"
        if state.skipped:
            shown["skipped"] = str(state.skipped)
        self.bar.set_postfix(shown, refresh=False)

    def pictures(self, generator: Generator, resolution: int, step: int) -> None:
        """The same faces seen in every way that tells something, as a PNG and in TensorBoard."""
        started = time.perf_counter()
        rows = face_rows(generator, self.config, resolution)
        faces = self.config.reports.faces
        grid = image_grid(
            torch.cat(list(rows.values())), columns=faces, row_labels=list(rows), enlarge=self._enlarge(resolution)
        )
        save_image(self.picture_folder / f"{step:08d}.png", grid)
        for name, images in rows.items():
            self.writer.add_images(name.replace(" ", "_"), to_uint8(images), step)
        self.time_since += time.perf_counter() - started  # the speed is that of training

    def turntable(self, generator: Generator, resolution: int) -> Path:
        """The faces swinging from side to side, as an animated WebP."""
        config = self.config
        styles = fixed_styles(generator, config.reports.faces)
        count = config.reports.turntable_frames
        frames: list[Image.Image] = []
        for k in tqdm(range(count), desc="turntable", unit="frame", leave=False):
            yaw = SWING * math.sin(2 * math.pi * k / count)
            images = view(generator, config, styles, resolution, yaw=yaw).image
            columns = math.ceil(math.sqrt(len(images) * 2))  # twice as wide as high, as screens are
            frames.append(image_grid(images, columns=columns, enlarge=self._enlarge(resolution)))
        path = self.folder / "turntable.webp"
        save_animation(path, frames, TURNTABLE_FPS)
        return path

    def _enlarge(self, resolution: int) -> int:
        return max(1, self.config.reports.enlarge_to // resolution)


def face_rows(generator: Generator, config: TrainConfig, resolution: int) -> dict[str, Tensor]:
    """Rows of pictures [faces, 3, R, R] by name; the pair of turned views shows mirrored hair at a glance."""
    styles = fixed_styles(generator, config.reports.faces)
    front = view(generator, config, styles, resolution, aux=True)
    assert front.aux_image is not None
    mean = generator.mean_styles(MEAN_SAMPLES)
    truncated = styles.truncate(mean, TRUNCATION)
    return {
        "front": front.image,
        "tilted": view(generator, config, styles, resolution, pitch=-TILT).image,
        f"yaw {-TURN:+.1f}": view(generator, config, styles, resolution, yaw=-TURN).image,
        f"yaw {TURN:+.1f}": view(generator, config, styles, resolution, yaw=TURN).image,
        "auxiliary": front.aux_image,
        "depth": depth_image(front.filled_depth(config.volume.t_far), config.volume.t_near, config.volume.t_far),
        f"truncated {TRUNCATION}": view(generator, config, truncated, resolution).image,
    }


@torch.no_grad()
def fixed_styles(generator: Generator, count: int) -> Styles:
    """Styles of the faces that all grids of a run show."""
    z = generator.sample_z(count, generator=torch.Generator().manual_seed(FACES_SEED))
    return generator.mapping(*z)


@torch.no_grad()
def view(
    generator: Generator,
    config: TrainConfig,
    styles: Styles,
    resolution: int,
    *,
    yaw: float = 0.0,
    pitch: float = 0.0,
    aux: bool = False,
) -> Rendering:
    """All styles from one camera, `yaw` and `pitch` radians from the middle of the training poses, without jitter."""
    poses = config.poses
    angles = torch.tensor([[poses.pitch_mean + pitch, poses.yaw_mean + yaw]]).expand(len(styles.shape), 2)
    cameras = Cameras.from_angles(angles[:, 0], angles[:, 1], config.fov_degrees).to(generator.device)
    return generator.synthesis(
        styles, cameras, config.volume, resolution=resolution, return_aux=aux, jitter=False
    )
