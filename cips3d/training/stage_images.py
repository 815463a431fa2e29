"""The real images that a run trains on, stage by stage."""

from __future__ import annotations

from torch import Tensor

from cips3d.data.heads import SyntheticHeads
from cips3d.data.images import ImageFiles
from cips3d.data.loader import TrainingImages
from cips3d.errors import UserError
from cips3d.process.signals import StopRequest
from cips3d.training.agreement import pictures_of_all
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.measuring import check_real_images
from cips3d.training.schedule import StepPlan


class StageImages:
    """Batches of this process at the resolution of the stage that is open.

    Attributes:
        source: the pictures of the open stage.
        stage_index: of the open stage; -1 before the first one.
    """

    source: ImageFiles | SyntheticHeads

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        self.config = config
        self.processes = processes
        self.stage_index = -1
        self._batches: TrainingImages | None = None

    def open(self, now: StepPlan, position: int, stop: StopRequest) -> bool:
        """Go on at a moment of the schedule, from the picture on at which the run stands.

        Returns:
            False where a signal came before the pictures were made; then nothing has changed.

        Raises:
            SharedError: there are no pictures, or other processes find others.
            UserError: the metrics cannot be measured on them.
        """
        resolution = now.stage.resolution
        if self.stage_index < 0 or self.source.resolution != resolution:
            source = pictures_of_all(self.config, resolution, self.processes, stop)
            if source is None:
                return False
            self.source = source
            if self.config.reports.measures:
                check_real_images(self.config.reports, self.source)
        self.close()
        self._batches = TrainingImages(
            self.source,
            now.stage.batch_size // self.processes.world_size,
            seed=self.config.seed,
            x_flip=self.config.x_flip,
            workers=self.config.workers,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            position=position,
            device=self.processes.device,
        )
        self.stage_index = now.stage_index
        return True

    def next(self) -> tuple[Tensor | None, UserError | None]:
        """A batch [B, 3, H, W] in [-1, 1] on the device, or why there is none."""
        assert self._batches is not None
        try:
            return next(self._batches), None
        except UserError as error:
            return None, error

    @property
    def position(self) -> int:
        """How many pictures all processes have been handed since the run began."""
        assert self._batches is not None
        return self._batches.position

    def close(self) -> None:
        """End the processes that read ahead."""
        if self._batches is not None:
            self._batches.close()
