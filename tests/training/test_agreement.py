"""What processes that train together must have in common, and what all of them are told."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cips3d.cameras import PoseDistribution
from cips3d.checkpoints import trained
from cips3d.data.heads import SyntheticHeads, load_heads
from cips3d.errors import UserError
from cips3d.process.signals import StopRequest
from cips3d.training.agreement import check_settings, checkpoint_of_all, networks_of_all, pictures_of_all
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes, SharedError
from cips3d.training.loop import train
from cips3d.training.objectives import StepReport


@dataclass(frozen=True)
class Others(Processes):
    """The first of two processes, and what the other one has where they compare."""

    world_size: int = 2
    other: Callable[[Any], Any] = lambda own: own

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.add_(self.other(tensor.clone()))

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other(value)]

    def from_first(self, value: Any) -> Any:
        return value


def test_the_same_settings(small_config: TrainConfig) -> None:
    check_settings(small_config, Processes())
    check_settings(small_config, Others())
    with pytest.raises(
        SharedError, match=r"process 1 has other settings than the first one \(--seed is 3, and not 0\); start all with"
    ):
        check_settings(small_config, Others(other=lambda own: {**own, "--seed": 3}))
    for flag, own in (("--stages.0.lr-nerf", 0.001), ("--reports.keep", 2), ("--adam-betas", [0.0, 0.999])):
        with pytest.raises(SharedError, match=rf"\({flag} is 9, and not {re.escape(str(own))}\)"):
            check_settings(small_config, Others(other=lambda plain, flag=flag: {**plain, flag: 9}))
    with pytest.raises(SharedError, match=r"\(--of-another-version is 1, and not None\)"):
        check_settings(small_config, Others(other=lambda plain: {**plain, "--of-another-version": 1}))


def test_the_same_pictures(small_config: TrainConfig) -> None:
    stop = StopRequest()
    source = pictures_of_all(small_config, 8, Others(), stop)
    assert source is not None and source.resolution == 8
    count = len(source)
    fewer = Others(other=lambda own: own and (own[0] - 1, "another digest"))
    with pytest.raises(SharedError, match=f"process 1 finds {count - 1} pictures in --data where .* finds {count};"):
        pictures_of_all(small_config, 8, fewer, stop)
    with pytest.raises(SharedError, match=f"process 1 finds pictures of other names .* finds {count};"):
        pictures_of_all(small_config, 8, Others(other=lambda own: own and (own[0], "another digest")), stop)
    with pytest.raises(SharedError, match=r"^in process 1: --data is gone$"):
        pictures_of_all(small_config, 8, Others(other=lambda own: "--data is gone" if own is None else own), stop)
    stop.signal = signal.SIGTERM
    assert pictures_of_all(small_config, 8, Others(), stop) is None  # what the first one has heard


def test_heads_are_seen_by_the_cameras_of_training(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "cache"))
    poses = PoseDistribution("uniform")
    config = replace(small_config, data=None, heads=3, poses=poses, fov_degrees=30.0)
    source = pictures_of_all(config, 8, Processes(), StopRequest())
    assert isinstance(source, SyntheticHeads)
    assert source.folder == load_heads(8, 3, poses=poses, fov_degrees=30.0, progress=False).folder


def test_the_same_checkpoint(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = train(small_config)
    assert checkpoint_of_all(folder, Others())[1]["step"] == 6
    with pytest.raises(SharedError, match=r"process 1 reads another file at .*step-00000006\.pt than the first one"):
        checkpoint_of_all(folder, Others(other=lambda own: own and "another digest"))
    with pytest.raises(SharedError, match=r"process 1 reads another file at .*step-00000006\.pt than the first one"):
        networks_of_all(folder, Others(other=lambda own: own and "another digest"))
    assert networks_of_all(folder, Others()).file == trained.find_checkpoint(folder)
    newest = trained.find_checkpoint(folder)

    @dataclass(frozen=True)
    class Second(Others):
        """The second of two processes."""

        rank: int = 1

        def from_first(self, value: Any) -> Any:
            return newest, None

        def gather(self, value: Any) -> list[Any]:
            return [self.other(value), value]

    with monkeypatch.context() as patch:  # its disk does not show the newest file yet
        patch.setattr(trained, "list_checkpoints", lambda _: [])
        path, checkpoint = checkpoint_of_all(folder, Second())
        assert path == newest and checkpoint["step"] == 6
    newest.unlink()
    with pytest.raises(SharedError, match=r"in process 1: checkpoint .* does not exist"):
        checkpoint_of_all(folder, Second(other=lambda _: None))


def test_mistakes_of_one_are_told_to_all() -> None:
    def mistaken() -> None:
        raise UserError("photos/ does not exist") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for processes in (Processes(), Others()):
        assert processes.by_first(lambda: 3) == processes.by_all(lambda: 3) == 3
        for together in (processes.by_first, processes.by_all):
            with pytest.raises(SharedError, match=r"^photos/ does not exist$") as raised:
                together(mistaken)
            assert isinstance(raised.value.__cause__, OSError)
    with pytest.raises(SharedError, match=r"^in process 1: the disk is gone$"):
        Others(other=lambda _: "the disk is gone").by_all(lambda: 3)


def test_errors_of_the_system_that_a_user_can_mend_are_told_to_all(tmp_path: Path) -> None:
    for processes in (Processes(), Others()):
        with pytest.raises(SharedError, match="is too long a name for a file"):
            processes.by_all(lambda: (tmp_path / ("x" * 300)).stat())
        with pytest.raises(SharedError, match=r"^the disk is full$") as raised:
            processes.by_first(fill_the_disk)
        assert isinstance(raised.value.__cause__, OSError)
        with pytest.raises(FileNotFoundError):  # a bug, as far as anybody knows
            processes.by_first(lambda: (tmp_path / "x").stat())


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_curves_are_means_over_all_processes() -> None:
    scalars = {"d/loss": torch.tensor(1.0), "g/loss": torch.tensor(3.0, dtype=torch.float64)}
    report = StepReport(dict(scalars))
    report.average(Processes())
    assert report.scalars == scalars
    report.average(Others(other=lambda own: own + 2))
    assert {name: value.item() for name, value in report.scalars.items()} == {"d/loss": 2, "g/loss": 4}


def test_processes_that_differ_start_no_run(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cips3d.training.loop.join_processes", lambda _: Others(other=lambda own: own and {"--preset": "ffhq"})
    )
    with pytest.raises(SharedError, match="process 1 has other settings"):
        train(replace(small_config))
    assert small_config.out is not None and not small_config.out.exists()
