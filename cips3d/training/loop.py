"""The training loop: data in, steps, reports and checkpoints out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

from cips3d.checkpoints.networks import load_networks
from cips3d.checkpoints.trained import (
    BEST,
    CHECKPOINT_FOLDER,
    DIVERGED,
    checkpoint_name,
    find_checkpoint,
    keep_checkpoints,
    load_checkpoint,
    remove_left_overs,
    save_checkpoint,
)
from cips3d.data.heads import SyntheticHeads
from cips3d.data.images import ImageFiles
from cips3d.data.loader import TrainingImages
from cips3d.data.source import contents_of, open_training_source
from cips3d.errors import UserError
from cips3d.files import only_writer
from cips3d.ops.precision import matmul_precision
from cips3d.process.devices import memory_explained
from cips3d.process.signals import StopRequest, stop_on_signals
from cips3d.process.versions import versions
from cips3d.training.checks import check_batches
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes, join_processes
from cips3d.training.ending import how_to_go_on, in_words
from cips3d.training.measuring import check_real_images, measure, new_best, prepare_metrics
from cips3d.training.report import Reporter, as_loaded
from cips3d.training.resolving import resolved
from cips3d.training.run_folder import (
    check_newest,
    make_run_folder,
    run_folder_of,
    write_configuration,
)
from cips3d.training.schedule import StepPlan, plan_at
from cips3d.training.state import TrainingState
from cips3d.training.step import StepReport, TrainingStep

MOST_SKIPPED_IN_A_ROW = 10

T = TypeVar("T")


class TrainingDiverged(UserError):
    """Losses or gradients stayed non-finite; the checkpoints from before are all there."""


def train(config: TrainConfig) -> tuple[Path, int]:
    """Train as `config` says, in this process or in all that torchrun started.

    Returns:
        the run's folder, and the exit code: 0, or 128 + the signal that ended the run early.

    Raises:
        UserError: something outside the program is wrong; what had been trained is saved, by one process after any
            error, by several where all of them meet it at the same place.
    """
    processes = join_processes(config.device)
    try:
        config = resolved(config)
        with matmul_precision(config.precision), started(config, processes) as training:
            return training.folder, training.run()
    finally:
        processes.leave()


def started(config: TrainConfig, processes: Processes) -> Training:
    """A run before its first step; where memory has no room even for the networks, nothing can be saved or resumed."""
    with memory_explained(
        f"{processes.device} has too little memory for the networks; give smaller ones (--generator..., "
        "--discriminator...), or end what else takes its memory"
    ):
        return Training(config, processes)


class Training:
    """A run: its state, its data, its folder."""

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        self.config = config
        self.processes = processes
        check_batches(config, processes.world_size)
        if config.reports.measures:
            self._by_first(lambda: prepare_metrics(config.reports))
        checkpoint = self._checkpoint_to_continue()
        self.state = TrainingState(config, processes)
        if checkpoint is not None:
            self._restore(checkpoint)
        elif config.init_from is not None:
            self.state.start_from(load_networks(config.init_from))
        processes.broadcast(self.state.generator)
        processes.broadcast(self.state.discriminator)
        self.step = TrainingStep(self.state, config)
        self.source: ImageFiles | SyntheticHeads | None = None
        self.images: TrainingImages | None = None  # of `opened_stage`
        self.opened_stage = -1
        self.alone = ExitStack()  # holds the lock that keeps other processes out of the folder
        self.reporter: Reporter | None = None
        self.failed_together = False  # all processes failed at the same place
        self.skipped_in_a_row = 0  # steps left out up to now, but for those with a loss scale to blame
        self.within_step = False
        try:
            self._open_data(plan_at(config, self.state.step))  # before a folder is made: bad data leaves nothing behind
            self.folder = self._by_first(self._make_folder)
            if not (self.folder / CHECKPOINT_FOLDER / BEST).is_file():  # it was left in another run's folder
                self.state.best = None
            if processes.is_first:
                self.reporter = Reporter(self.folder, config, self.state.step)
        except BaseException:
            self.close(failed=True)
            raise
        # The step of which the folder has a checkpoint.
        self.saved_step = self.state.step if checkpoint is not None and config.out is None else None

    def __enter__(self) -> Training:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close(failed=error is not None)

    def close(self, *, failed: bool) -> None:
        """Let go of the data, the curves and the folder."""
        if self.images is not None:
            self.images.close()
        if self.reporter is not None:
            try:
                self.reporter.close()
            except OSError:  # of curves that could not be written; what ended the run has already said why
                if not failed:
                    raise
        self.alone.close()

    def run(self) -> int:
        """Train to the end or to a signal; returns the exit code."""
        if self.reporter is not None:
            assert self.source is not None
            self.reporter.begin(self.state, self.source)
            self._compare_data()
        with stop_on_signals() as stop:
            try:
                self._train(stop)
                self._finish()
            except TrainingDiverged:
                raise
            except Exception as error:
                self._rescue()
                sentence = in_words(error, self.processes.device)
                if sentence is None:
                    raise
                raise UserError(f"{sentence}; {self._how_to_go_on()}") from error
            return stop.exit_code

    def _train(self, stop: StopRequest) -> None:
        """Step by step, to the end or to a signal."""
        if self.saved_step is None:
            self._save()  # from here on, whatever ends the run, it can be resumed
        if self.state.step == 0:
            self._report_when_due(plan_at(self.config, 0), since=-1)  # what there was before anything was learned
        while self.state.step < self.config.total_steps:
            now = plan_at(self.config, self.state.step)
            self._enter_stage(now)
            assert self.images is not None
            real, mistake = self._next_images()
            stopped, failed = self.processes.any_of(bool(stop), mistake is not None)
            if failed:
                self.failed_together = True
                raise mistake or UserError("another process could not read its pictures; its message says which")
            if stopped:
                return
            assert real is not None
            self.within_step = True
            report = self.step(real, now)
            self.within_step = False
            since, self.state.position = self.state.position, self.images.position
            self.state.step += 1
            self._count_skipped(report)
            self._report(report, now, since)

    def _next_images(self) -> tuple[Tensor | None, UserError | None]:
        """Real pictures, or why there are none."""
        assert self.images is not None
        try:
            return next(self.images).to(self.processes.device, non_blocking=True), None
        except UserError as error:
            return None, error

    def _enter_stage(self, now: StepPlan) -> None:
        if self.opened_stage != now.stage_index:
            self._open_data(now)
        if self.state.stage_index != now.stage_index:
            self.state.enter_stage(now.stage_index, now.stage)

    def _open_data(self, now: StepPlan) -> None:
        """Images at the stage's resolution, from the position where the run stands."""
        resolution = now.stage.resolution
        if self.source is None or self.source.resolution != resolution:

            def open_source() -> None:
                self.source = open_training_source(
                    self.config.data, resolution, heads=self.config.heads, poses=self.config.poses
                )

            self._by_first(open_source)  # it prepares what is then read by all
            if not self.processes.is_first:
                open_source()
            assert self.source is not None
            if self.config.reports.measures:
                check_real_images(self.config.reports, self.source)
        batch = now.stage.batch_size // self.processes.world_size
        if self.images is not None:
            self.images.close()
        self.images = TrainingImages(
            self.source,
            batch,
            seed=self.config.seed,
            x_flip=self.config.x_flip,
            workers=self.config.workers,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            position=self.state.position,
        )
        self.opened_stage = now.stage_index

    def _compare_data(self) -> None:
        """Say so where a run goes on with other pictures than before."""
        assert self.reporter is not None
        assert self.source is not None
        before, now = self.state.contents, contents_of(self.source)
        if before is not None and before != now:
            self.reporter.say(
                f"these are not the pictures of the first {self.state.step} steps ({before[0]:,} then, {now[0]:,} "
                "now): from here on they come in an order of their own"
            )
        self.state.contents = now

    def _count_skipped(self, report: StepReport) -> None:
        if report.finite:
            self.skipped_in_a_row = 0
            return
        self.state.skipped += 1
        if not report.overflow:
            self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            path = self._save(DIVERGED)  # finite weights, but who knows how good they are
            assert self.saved_step is not None
            raise TrainingDiverged(
                f"losses or gradients were not finite in {self.skipped_in_a_row} steps in a row, up to step "
                f"{self.state.step}, whose weights are in {path}; lower the learning rates (--stages.N.lr-...) or, "
                "with --amp.nerf, --amp.inr or --amp.discriminator, use bf16 or none, and from the checkpoint before "
                f"them, of step {self.saved_step}, {how_to_go_on(self.folder, self.config, self.saved_step)}"
            )

    def _report(self, report: StepReport, now: StepPlan, since: int) -> None:
        """Write curves, pictures, measurements and checkpoints, as far as they are due at this step."""
        if self.reporter is not None:
            self.reporter.step(report, now, self.state)
        self._report_when_due(now, since)
        assert self.saved_step is not None
        every, step = self.config.reports.checkpoint_every, self.state.step
        is_due = step // every > self.saved_step // every and step < self.config.total_steps  # the end has its own
        if is_due and self.skipped_in_a_row == 0:
            self._save()

    def _report_when_due(self, now: StepPlan, since: int) -> None:
        """Pictures and metrics of the averaged generator, where they are due; `since`: images seen at the last look."""
        reports, step, seen = self.config.reports, self.state.step, self.state.position
        is_last = step == self.config.total_steps
        if self.reporter is not None and (step % reports.pictures_every == 0 or is_last):
            self.reporter.pictures(self.state.generator_ema, now.stage.resolution, step)
        if reports.measures and (is_last or seen // reports.metrics_interval > since // reports.metrics_interval):
            self._measure(now.stage.resolution)

    def _measure(self, resolution: int) -> None:
        """Measure the averaged generator; the best so far is kept."""
        if self._by_first(lambda: self._measured(resolution)):
            self._save(BEST)

    def _measured(self, resolution: int) -> bool:
        """Measure and write it down, in the first process; True where this is the best so far."""
        assert self.reporter is not None
        assert self.source is not None
        with self.reporter.pause():
            loaded = as_loaded(self.state.generator_ema, self.config, resolution, self.state.step)
            measurement = measure(loaded, self.config, self.source, self.state.position)
            best = new_best(self.state.best, measurement, self.config.reports)
            is_best = best is not None and self.state.step > 0  # what learned nothing is smooth and consistent
            if is_best:
                self.state.best = best
            self.reporter.measured(measurement, is_best)
        return is_best

    def _save(self, name: str | None = None) -> Path:
        """Write a checkpoint; every process takes part, the first one writes."""
        path = self.folder / CHECKPOINT_FOLDER / (name or checkpoint_name(self.state.step))
        state = self.state.state_dict()
        if self.processes.is_first:
            save_checkpoint(path, {"config": self.config.to_json(), "versions": versions(), **state})
            if self.skipped_in_a_row == 0:  # else it may be a divergence, which pushes out nothing from before
                keep_checkpoints(path.parent, self.config.reports.keep)
        self.processes.wait()
        if name is None:
            self.saved_step = self.state.step
        return path

    def _rescue(self) -> None:
        """Save what was trained since the last checkpoint, whatever ended the run.

        A step that the error ended is not counted, but may have changed networks and random states: going on makes it
        once more, and the run is not exactly what it would have been without the error.

        Several processes save only if all of them failed at the same place: a save needs all of them.
        """
        alone = self.processes.world_size == 1
        if self.saved_step == self.state.step or not (alone or self.failed_together):
            return
        try:
            said = f"{self._save()} holds what was trained; {self._how_to_go_on()}"
            if self.within_step:
                said += (
                    f" (step {self.state.step + 1} was half done; it is made once more, from where the error left it)"
                )
        except (OSError, RuntimeError, UserError) as error:
            said = f"what was trained since the last checkpoint could not be saved: {error}"
        if self.reporter is not None:
            self.reporter.say(said)

    def _how_to_go_on(self) -> str:
        return how_to_go_on(self.folder, self.config, self.state.step)

    def _finish(self) -> None:
        path = self._save()
        if self.reporter is None:
            return
        if self.state.step < self.config.total_steps:
            self.reporter.say(f"stopped after step {self.state.step}; {self._how_to_go_on()}")
        else:
            animation = self.reporter.animation(self.state.generator_ema, self.config.stages[-1].resolution)
            self.reporter.say(
                f"done: checkpoint {path}, pictures in {self.reporter.picture_folder}, {animation.stem} {animation}"
            )

    def _checkpoint_to_continue(self) -> dict[str, Any] | None:
        path = self.config.resume
        return None if path is None else load_checkpoint(find_checkpoint(path))

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.state.load_state_dict(checkpoint)
        if self.state.step >= self.config.total_steps:
            raise UserError(
                f"--resume {self.config.resume} has finished its {self.state.step} steps; "
                "give a larger --steps to train on"
            )
        now = plan_at(self.config, self.state.step)
        if self.state.stage_index == now.stage_index:
            self.state.enter_stage(now.stage_index, now.stage)

    def _make_folder(self) -> Path:
        """The run's folder; a run that goes on keeps its own."""
        if self.config.resume is not None and self.config.out is None:
            folder = run_folder_of(find_checkpoint(self.config.resume))
            check_newest(folder / CHECKPOINT_FOLDER, self.config.resume, self.state.step)
        else:
            folder = make_run_folder(self.config)
        if not self.alone.enter_context(only_writer(folder)):
            raise UserError(f"another process is training in {folder}; wait for its end, or give --out")
        remove_left_overs(folder / CHECKPOINT_FOLDER)
        write_configuration(folder, self.config)
        return folder

    def _by_first(self, work: Callable[[], T]) -> T:
        """The result of work that the first process does alone, in all of them; its `UserError` is raised in all."""
        made: T | None = None
        failure: UserError | None = None
        if self.processes.is_first:
            try:
                made = work()
            except UserError as error:
                failure = error
        made, failure = self.processes.from_first((made, failure))
        if failure is not None:
            self.failed_together = True
            raise failure
        return cast(T, made)
