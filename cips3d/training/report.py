"""What a run shows: the progress bar, curves, grids of pictures, the turntable."""

from __future__ import annotations

import errno
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cips3d.cameras.trajectories import yaw_sweep
from cips3d.checkpoints.rendering_settings import volume_of_pictures
from cips3d.data.heads import SyntheticHeads
from cips3d.data.images import ImageFiles
from cips3d.data.source import contents_of
from cips3d.models.family import AnyGenerator
from cips3d.models.generator import truncated
from cips3d.pictures import depth_image, image_grid, save_image, to_uint8
from cips3d.pictures.animations import save_animation
from cips3d.rendering import LoadedGenerator, Look, PictureKind, render_views, styles_of_seeds
from cips3d.rendering.style_paths import spline_weights
from cips3d.training.config import TrainConfig
from cips3d.training.measuring import Measurement
from cips3d.training.run_folder import (
    METRICS_FILE,
    SCALARS_FILE,
    append_measurement,
    append_scalars,
    append_to_log,
    cut_records,
)
from cips3d.training.schedule import StepPlan
from cips3d.training.state import TrainingState
from cips3d.training.step import StepReport

MEAN_SAMPLES = 2048  # z whose mean style the truncated row leans towards
TRUNCATION = 0.7
TILT, TURN, SWING = 0.25, 0.4, 0.6  # radians from the front: pitch of the tilted row, ± yaw pair, turntable
TURNTABLE_FPS = 24
BAR_SECONDS = 0.5  # between two updates of the bar on a terminal
LOG_SECONDS = 15.0  # the same where the output is a file


class Reporter:
    """Shows and records one run; lives in the first process only."""

    def __init__(self, folder: Path, config: TrainConfig, step: int, *, is_measured: bool) -> None:
        self.folder = folder
        self.picture_folder = folder / "pictures"
        self.config = config
        # Records up to this step were written before its checkpoint and stay, but for a measurement that is made anew.
        cut_records(folder / SCALARS_FILE, step)
        cut_records(folder / METRICS_FILE, step if is_measured else step - 1)
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step > 0 else 0)
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
        """A line above the progress bar, and in log.txt."""
        with suppress(OSError):  # on a full disk, which ends the run by itself, the line is still said
            append_to_log(self.folder, line)
        try:
            self.bar.write(line, file=sys.stderr)
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal has been closed, and the run was told to live on
                raise

    def begin(self, state: TrainingState, source: ImageFiles | SyntheticHeads) -> None:
        """Say what is trained, on which data and device."""
        counts = {
            name: sum(p.numel() for p in network.parameters())
            for name, network in (("generator", state.generator), ("discriminators", state.discriminator))
        }
        sizes = ", ".join(f"{name} {count:,} parameters" for name, count in counts.items())
        self.say(f"{self.folder}: preset {self.config.preset}, {sizes}, on {state.processes.device}")
        self.say(source.report())
        before, now = state.contents, contents_of(source)
        if before is not None and before != now:
            self.say(
                f"these are not the pictures of the first {state.step} steps ({before[0]:,} then, {now[0]:,} now): "
                "from here on they come in an order of their own"
            )
        self.writer.add_text("config", f"```json\n{self.config.to_json()}\n```", state.step)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Inside, time is not counted: the reported speed is that of training alone."""
        started = time.perf_counter()
        yield
        self.time_since += time.perf_counter() - started

    def measured(self, measurement: Measurement, is_best: bool) -> None:
        """Values of metrics, in TensorBoard, in metrics.jsonl and above the bar."""
        for name, value in measurement.values.items():
            self.writer.add_scalar(f"metrics/{name}", value, measurement.step)
        append_measurement(self.folder, measurement)
        values = ", ".join(f"{name} {value:.4g}" for name, value in measurement.values.items())
        self.say(f"step {measurement.step}: {values}{' (the best so far)' if is_best else ''}")

    def step(self, report: StepReport, now: StepPlan, state: TrainingState) -> None:
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
        append_scalars(self.folder, state.step, figures)
        shown = {"img/s": f"{speed:.1f}", "D": f"{figures.get('d/loss', math.nan):.2f}"}
        if "g/loss" in figures:
            shown["G"] = f"{figures['g/loss']:.2f}"
        if state.skipped:
            shown["skipped"] = str(state.skipped)
        self.bar.set_postfix(shown, refresh=False)

    def pictures(self, generator: AnyGenerator, resolution: int, step: int) -> None:
        """The same faces seen in every way that tells something, as a PNG and in TensorBoard."""
        faces, enlarge = self.config.reports.faces, self.config.reports.enlarged(resolution)
        with self.pause():
            rows = face_rows(as_loaded(generator, self.config, resolution, step), faces)
            grid = image_grid(torch.cat(list(rows.values())), columns=faces, row_labels=list(rows), enlarge=enlarge)
            save_image(self.picture_folder / f"{step:08d}.png", grid)
            for name, images in rows.items():
                self.writer.add_images(name.replace(" ", "_"), to_uint8(images), step)

    def animation(self, generator: AnyGenerator, resolution: int) -> Path:
        """The faces swinging from side to side, or each turning into the next in 2-D, as an animated WebP."""
        reports = self.config.reports
        loaded = as_loaded(generator, self.config, resolution, self.config.total_steps)
        swing = turntable if generator.is_3d else interpolation
        frames = [
            image_grid(images, columns=reports.animation_columns, enlarge=reports.enlarged(resolution))
            for images in swing(loaded, reports.faces, reports.turntable_frames)
        ]
        path = self.folder / f"{swing.__name__}.webp"
        save_animation(path, frames, TURNTABLE_FPS)
        return path


def as_loaded(generator: AnyGenerator, config: TrainConfig, resolution: int, step: int) -> LoadedGenerator:
    """The generator in training, as the rendering functions take it."""
    volume = volume_of_pictures(config.generator, config.volume)
    return LoadedGenerator(generator, volume, config.fov_degrees, resolution, config.poses, step)


def turntable(loaded: LoadedGenerator, faces: int, frames: int) -> tuple[Tensor, ...]:
    """Frames [faces, 3, R, R] of the seeds 0, 1, ... swinging from side to side."""
    yaw = loaded.poses.yaw_mean + yaw_sweep((-SWING, SWING), frames)
    pitch = torch.full_like(yaw, loaded.poses.front_pitch)
    styles = styles_of_seeds(loaded, range(faces))
    return render_views(loaded, styles, pitch, yaw, Look(loaded.resolution), progress=True).image.unbind(1)


def interpolation(loaded: LoadedGenerator, faces: int, frames: int) -> tuple[Tensor, ...]:
    """Frames [faces, 3, R, R] in which the picture of every seed turns into the next one's, there and back.

    style_k = s + w_k (s' - s), with the weights w of a closed way through two keys (`spline_weights`).
    """
    own, other = styles_of_seeds(loaded, range(faces)), styles_of_seeds(loaded, range(1, faces + 1))
    front = front_view(loaded)
    shares = spline_weights(2, frames)[:, 1].tolist()
    return tuple(
        render_views(loaded, truncated(other, own, share), *front, Look(loaded.resolution)).image[:, 0]
        for share in shares
    )


def front_view(loaded: LoadedGenerator) -> tuple[Tensor, Tensor]:
    """Pitch and yaw [1] of the camera in front."""
    return torch.tensor([loaded.poses.front_pitch]), torch.tensor([loaded.poses.yaw_mean])


def face_rows(loaded: LoadedGenerator, faces: int) -> dict[str, Tensor]:
    """Rows of pictures [faces, 3, R, R] by name; the pair of turned views shows mirrored hair at a glance.

    The faces are those of the seeds 0, 1, ..., as in `python -m cips3d.render`.
    """
    styles = styles_of_seeds(loaded, range(faces))
    rows = rows_of_views(loaded, styles) if loaded.generator.is_3d else rows_of_styles(loaded, styles)
    towards_mean = truncated(styles, loaded.generator.mean_styles(MEAN_SAMPLES), TRUNCATION)
    in_front = render_views(loaded, towards_mean, *front_view(loaded), Look(loaded.resolution))
    rows[f"truncated {TRUNCATION}"] = in_front.image[:, 0]
    return rows


def rows_of_views(loaded: LoadedGenerator, styles: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The faces from the front, from above, from both sides, as the volume alone and as depth."""
    poses, settings = loaded.poses, loaded.settings
    yaw = poses.yaw_mean + torch.tensor([0.0, 0.0, -TURN, TURN])
    pitch = poses.front_pitch + torch.tensor([0.0, -TILT, 0.0, 0.0])
    kinds: tuple[PictureKind, ...] = ("image", "aux", "depth") if loaded.generator.has_aux_image else ("image", "depth")
    views = render_views(loaded, styles, pitch, yaw, Look(loaded.resolution, kinds))
    assert views.depth is not None
    names = ("front", "tilted", f"yaw {-TURN:+.1f}", f"yaw {TURN:+.1f}")
    rows = dict(zip(names, views.image.unbind(1), strict=True))
    if views.aux_image is not None:
        rows["auxiliary"] = views.aux_image[:, 0]
    rows["depth"] = depth_image(views.depth[:, 0], settings.t_near, settings.t_far)
    return rows


def rows_of_styles(loaded: LoadedGenerator, styles: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The pictures, the same with other noise, and with the next one's later layers (style mixing)."""
    generator, front = loaded.generator, front_view(loaded)
    faces = len(styles[0])

    def row(shown: tuple[Tensor, ...], jitter: bool = False) -> Tensor:
        random = torch.Generator(loaded.device).manual_seed(0) if jitter else None
        views = render_views(loaded, shown, *front, Look(loaded.resolution, jitter=jitter), generator=random)
        return views.image[:, 0]

    rows = {"image": row(styles), "random noise": row(styles, jitter=True)}
    following = styles_of_seeds(loaded, range(1, faces + 1))
    rows["mixed"] = row(generator.mixed(styles, following, generator.style_layers // 2))
    return rows
