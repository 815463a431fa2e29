"""The training loop: data in, steps, reports and checkpoints out."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cips3d.checkpoints.trained import (
    BEST,
    CHECKPOINT_FOLDER,
    DIVERGED,
    checkpoint_name,
    keep_checkpoints,
    remove_left_overs,
    save_checkpoint,
)
from cips3d.data.source import contents_of
from cips3d.errors import UserError
from cips3d.files import only_writer
from cips3d.ops.precision import product_precision
from cips3d.process.devices import memory_explained
from cips3d.process.signals import Interrupted, StopRequest, stop_on_signals
from cips3d.process.versions import versions
from cips3d.training.agreement import check_settings, checkpoint_of_all, networks_of_all
from cips3d.training.checks import check_batches
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes, SharedError, join_processes
from cips3d.training.ending import TrainingDiverged, diverged, how_to_go_on, in_words
from cips3d.training.measuring import Best, compares_with_data, measure, new_best, prepare_metrics
from cips3d.training.report import Reporter, as_loaded
from cips3d.training.resolving import check_reached, resolved
from cips3d.training.run_folder import (
    check_newest,
    check_out,
    make_run_folder,
    run_folder_of,
    write_configuration,
)
from cips3d.training.schedule import StepPlan, plan_at
from cips3d.training.stage_images import StageImages
from cips3d.training.state import TrainingState
from cips3d.training.step import StepReport, TrainingStep

MOST_SKIPPED_IN_A_ROW = 10


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
        given = processes.by_all(lambda: resolved(config))
        with product_precision(given.precision), Training(given, processes) as training:
            outcome = training.folder, training.run()
    except BaseException as error:
        processes.leave(failed=True)
        if processes.has_lost_another(error):
            raise UserError("another process has ended; its message says why") from error
        raise
    processes.leave()
    return outcome


class Training:
    """A run: its state, its data, its folder."""

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        self.config = config
        self.processes = processes
        check_settings(config, processes)
        check_batches(config, processes.world_size)
        processes.by_first(lambda: check_out(config.out))
        if config.reports.measures:
            processes.by_first(lambda: prepare_metrics(config.reports))
        with memory_explained(
            f"{processes.device} has too little memory for the networks; give smaller ones (--generator..., "
            "--discriminator...), or end what else takes its memory"
        ):
            self.state = TrainingState(config, processes)
            self.resumed = self._fill_networks()
        self.step = TrainingStep(self.state, config)
        self.images = StageImages(config, processes)
        self.alone = ExitStack()  # holds the lock that keeps other processes out of the folder
        self.reporter: Reporter | None = None
        self.stop = StopRequest()
        self.skipped_in_a_row = 0  # steps left out up to now, but for those with a loss scale to blame
        self.within_step = False
        try:
            # Before a folder is made: bad data leaves nothing behind.
            self.images.open(plan_at(config, self.state.step), self.state.position, self.stop)
            self.folder = processes.by_first(self._make_folder)
            if not (self.folder / CHECKPOINT_FOLDER / BEST).is_file():  # it was left in another run's folder
                self.state.best = None
            processes.by_first(self._open_reporter)
        except BaseException:
            self.close(failed=True)
            raise
        # The step of which the folder has a checkpoint that `--resume` finds.
        newest = self.folder / CHECKPOINT_FOLDER / checkpoint_name(self.state.step)
        self.saved_step = self.state.step if processes.by_first(newest.is_file) else None

    def __enter__(self) -> Training:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close(failed=error is not None)

    def close(self, *, failed: bool) -> None:
        """Let go of the data, the curves and the folder."""
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
            self.reporter.begin(self.state, self.images.source)
        contents = contents_of(self.images.source)
        if self.state.contents not in (None, contents) and compares_with_data(self.config.reports):
            self.state.best = None  # its value was a distance to other pictures
        self.state.contents = contents
        with stop_on_signals() as self.stop:
            try:
                self._train()
                self._finish()
            except TrainingDiverged:
                raise
            except Exception as error:
                self._rescue(together=isinstance(error, SharedError))
                sentence = in_words(error, self.processes.device)
                if sentence is None:
                    raise
                raise UserError(f"{sentence}; {self._how_to_go_on()}") from error
            return max(self.processes.gather(self.stop.exit_code))  # one may have heard of it alone

    def _train(self) -> None:
        """Step by step, to the end or to a signal."""
        if self.saved_step is None:
            self._save()  # from here on, whatever ends the run, it can be resumed
        if not self._is_reported:  # nothing has been yet, or the run ended before it was done
            made = plan_at(self.config, max(0, self.state.step - 1))
            if not self._open_pictures(made):
                return
            self._report_when_due(made)
            if self._is_reported and self.state.step > 0:
                self._save()
        while self.state.step < self.config.total_steps:
            now = plan_at(self.config, self.state.step)
            if self.images.stage_index != now.stage_index:  # its pictures are prepared, which takes its time
                if self.processes.any_of(bool(self.stop))[0]:
                    return
                if self.saved_step != self.state.step and self.skipped_in_a_row == 0:
                    self._save()
            if not self._open_pictures(now):
                return
            if self.state.stage_index != now.stage_index:
                self.state.enter_stage(now.stage_index, now.stage)
            real, mistake = self.images.next()
            stopped, failed = self.processes.any_of(bool(self.stop), mistake is not None)
            if failed:
                others = "another process could not read its pictures; its message says which"
                raise SharedError(others if mistake is None else str(mistake)) from (mistake and mistake.__cause__)
            if stopped:
                return
            assert real is not None
            self.within_step = True
            report = self.step(real, now)
            self.within_step = False
            self.state.position = self.images.position
            self.state.step += 1
            self._count_skipped(report)
            self._report(report, now)

    def _open_pictures(self, now: StepPlan) -> bool:
        """Those of a stage, which may have to be made first; False where a signal came before."""
        return self.images.stage_index == now.stage_index or self.images.open(now, self.state.position, self.stop)

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
            way_on = how_to_go_on(self.folder, self.config, complete=False)
            raise diverged(self.skipped_in_a_row, self.state.step, path, self.saved_step, way_on)

    def _report(self, report: StepReport, now: StepPlan) -> None:
        """Write curves, pictures, measurements and checkpoints, as far as they are due at this step."""

        def show() -> None:
            assert self.reporter is not None
            self.reporter.step(report, now, self.state)

        if not report.finite or self.state.step % self.config.reports.scalars_every == 0:  # files are written
            report.average(self.processes)
            self.processes.by_first(show)
        elif self.processes.is_first:
            show()
        self._report_when_due(now)
        assert self.saved_step is not None
        every, step = self.config.reports.checkpoint_every, self.state.step
        is_due = step // every > self.saved_step // every and step < self.config.total_steps  # the end has its own
        if is_due and self.skipped_in_a_row == 0:
            self._save()

    @property
    def _is_reported(self) -> bool:
        """Whether the pictures and metrics that were due up to this step have been made."""
        return self.state.reported >= self.state.position

    @property
    def _is_complete(self) -> bool:
        """Whether nothing is left to train or to measure."""
        return self.state.step >= self.config.total_steps and self._is_reported

    def _report_when_due(self, now: StepPlan) -> None:
        """Pictures and metrics of the averaged generator, where they are due at this step.

        A signal ends measuring at once, since it may take longer than those wait who send SIGTERM. Both are made up for
        when the run goes on.
        """
        reports, step, seen, since = self.config.reports, self.state.step, self.state.position, self.state.reported
        is_last = step == self.config.total_steps
        best: Best | None = None
        if reports.measures and (is_last or seen // reports.metrics_interval > since // reports.metrics_interval):
            is_made, best = self.processes.by_first(lambda: self._measure(now.stage.resolution))
            if not is_made:
                return
        if step % reports.pictures_every == 0 or is_last:
            self.processes.by_first(lambda: self._draw(now.stage.resolution))
        self.state.reported = seen
        if best is not None:
            self.state.best = best
            self._save(BEST)

    def _draw(self, resolution: int) -> None:
        assert self.reporter is not None
        self.reporter.pictures(self.state.generator_ema, resolution, self.state.step)

    def _measure(self, resolution: int) -> tuple[bool, Best | None]:
        """Measure the averaged generator and write it down, in the first process.

        Returns:
            False where a signal came first; what was measured, where it is the best so far.
        """
        assert self.reporter is not None
        with self.reporter.pause():
            loaded = as_loaded(self.state.generator_ema, self.config, resolution, self.state.step)
            try:
                with self.stop.interrupting():
                    measurement = measure(loaded, self.config, self.images.source, self.state.position)
            except Interrupted:
                return False, None
            best = new_best(self.state.best, measurement, self.config.reports)
            if self.state.step == 0:  # what learned nothing is smooth and consistent
                best = None
            self.reporter.measured(measurement, is_best=best is not None)
        return True, best

    def _save(self, name: str | None = None) -> Path:
        """Write a checkpoint; every process takes part, the first one writes."""
        path = self.folder / CHECKPOINT_FOLDER / (name or checkpoint_name(self.state.step))
        state = self.state.state_dict()

        def write() -> None:
            save_checkpoint(path, {"config": self.config.to_json(), "versions": versions(), **state})
            if self.skipped_in_a_row == 0:  # else it may be a divergence, which pushes out nothing from before
                keep_checkpoints(path.parent, self.config.reports.keep)

        self.processes.by_first(write)
        if name is None:
            self.saved_step = self.state.step
        return path

    def _rescue(self, *, together: bool) -> None:
        """Save what was trained since the last checkpoint, whatever ended the run.

        A step that the error ended is not counted, but may have changed networks and random states: going on makes it
        once more, and the run is not exactly what it would have been without the error.

        Several processes save only if all of them failed together, at the same place: a save needs all of them.
        """
        alone = self.processes.world_size == 1
        if self.saved_step == self.state.step or not (alone or together):
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
        if self.saved_step is None:
            return f"nothing is saved: remove {self.folder}, and start again"
        return how_to_go_on(self.folder, self.config, complete=self._is_complete)

    def _finish(self) -> None:
        path = self._save()
        if self.reporter is None:
            return
        if not self._is_complete:
            self.reporter.say(f"stopped after step {self.state.step}; {self._how_to_go_on()}")
        else:
            animation = self.reporter.animation(self.state.generator_ema, self.config.stages[-1].resolution)
            self.reporter.say(
                f"done: checkpoint {path}, pictures in {self.reporter.picture_folder}, {animation.stem} {animation}"
            )

    def _fill_networks(self) -> Path | None:
        """With what they go on from, the same in every process; returns the checkpoint that was resumed."""
        resumed = None
        if self.config.resume is not None:
            resumed, checkpoint = checkpoint_of_all(self.config.resume, self.processes)
            self._restore(checkpoint)
        elif self.config.init_from is not None:
            self.state.start_from(networks_of_all(self.config.init_from, self.processes))
        self.processes.broadcast(self.state.generator)
        self.processes.broadcast(self.state.discriminator)
        return resumed

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        check_reached(self.config, TrainConfig.from_json(checkpoint["config"]), checkpoint.get("stage_index", -1))
        self.state.load_state_dict(checkpoint)
        if self._is_complete or self.state.step > self.config.total_steps:
            raise UserError(
                f"--resume {self.config.resume} has finished its {self.state.step} steps; "
                "give a larger --steps to train on"
            )
        now = plan_at(self.config, self.state.step)
        if self.state.stage_index == now.stage_index:
            self.state.enter_stage(now.stage_index, now.stage)

    def _open_reporter(self) -> None:
        self.reporter = Reporter(self.folder, self.config, self.state.step, is_measured=self._is_reported)

    def _make_folder(self) -> Path:
        """The run's folder; a run that goes on keeps its own."""
        if self.config.resume is not None and self.resumed is not None and self.config.out is None:
            folder = run_folder_of(self.resumed)
            check_newest(folder / CHECKPOINT_FOLDER, self.config.resume, self.state.step)
        else:
            folder = make_run_folder(self.config)
        if not self.alone.enter_context(only_writer(folder)):
            raise UserError(f"another process is training in {folder}; wait for its end, or give --out")
        remove_left_overs(folder / CHECKPOINT_FOLDER)
        write_configuration(folder, self.config)
        return folder
