"""Whole runs: resuming, stopping, diverging, several stages, what is written."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from training.runs import after_steps, assert_equal_states

from cips3d.cameras import PoseDistribution
from cips3d.checkpoints.converted import Converted, write_converted
from cips3d.checkpoints.networks import load_networks
from cips3d.checkpoints.trained import find_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from cips3d.data.heads import dataset
from cips3d.data.heads.dataset import render_block
from cips3d.data.loader import TrainingImages
from cips3d.data.source import open_training_source
from cips3d.errors import UserError
from cips3d.models.channels import channel_table
from cips3d.models.residual_discriminator import ResidualDiscriminatorConfig
from cips3d.plain import to_plain
from cips3d.training import agreement, loop, stage_images
from cips3d.training.checks import check_batches
from cips3d.training.config import TrainConfig
from cips3d.training.ending import TrainingDiverged
from cips3d.training.loop import train
from cips3d.training.objectives import Objectives
from cips3d.training.report import Reporter
from cips3d.training.run_folder import LOG_FILE, METRICS_FILE, SCALARS_FILE


def test_run_writes_everything(small_config: TrainConfig) -> None:
    reports = replace(small_config.reports, metrics_interval=12, metrics_images=8, pictures_every=4, keep=3)
    config = replace(small_config, reports=reports)
    folder, exit_code = train(config)
    assert exit_code == 0
    assert [p.stem for p in list_checkpoints(folder / "checkpoints")] == [f"step-0000000{k}" for k in (0, 3, 6)]
    assert load_checkpoint(folder / "checkpoints" / "best.pt")["best"]["value"] > 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    stored = json.loads((folder / "config.json").read_text())
    assert stored["versions"]["torch"] == torch.__version__
    assert TrainConfig.from_json(json.dumps(stored["config"])).generator == config.generator
    assert sorted(p.stem for p in (folder / "pictures").iterdir()) == ["00000000", "00000004", "00000006"]
    with Image.open(folder / "pictures" / "00000006.png") as grid:
        assert grid.height >= 7 * 96  # front, tilted, two yaws, auxiliary, depth, truncated
        assert 2 * 96 <= grid.width < 8 * 96  # two faces beside the rows' names
    with Image.open(folder / "turntable.webp") as turntable:
        assert getattr(turntable, "n_frames", 1) == 4
    assert list((folder / "tensorboard").glob("events.out.tfevents*"))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_is_the_uninterrupted_one(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    whole, _ = train(replace(small_config, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        after_steps(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        part, exit_code = train(replace(small_config, out=tmp_path / "part", workers=workers))
    assert exit_code == 128 + signal.SIGTERM
    assert load_checkpoint(find_checkpoint(part))["step"] == 4
    resumed, exit_code = train(replace(small_config, out=None, resume=part))
    assert exit_code == 0 and resumed.resolve() == part.resolve()
    assert_equal_states(load_checkpoint(find_checkpoint(whole)), load_checkpoint(find_checkpoint(resumed)))


def test_interrupt_says_how_to_go_on(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        after_steps(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        folder, exit_code = train(small_config)
        assert exit_code == 130
        assert f"--resume {folder}" in capfd.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("ending", ["signal", "error"])
def test_whatever_ends_a_run_before_its_first_step_it_can_be_resumed(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    def end(*_: object) -> None:
        if ending == "error":
            raise ZeroDivisionError
        os.kill(os.getpid(), signal.SIGTERM)

    reports = replace(small_config.reports, metrics_interval=8, metrics_images=6)
    config = replace(small_config, reports=reports)
    whole, _ = train(replace(config, out=tmp_path / "whole"))
    part = tmp_path / "part"
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "pictures", end)  # of the first look
        if ending == "error":
            with pytest.raises(ZeroDivisionError):
                train(replace(config, out=part))
        else:
            assert train(replace(config, out=part)) == (part, 128 + signal.SIGTERM)
    assert load_checkpoint(find_checkpoint(part))["step"] == 0
    train(replace(config, out=None, resume=part))
    assert_equal_states(load_checkpoint(find_checkpoint(whole)), load_checkpoint(find_checkpoint(part)))
    assert (whole / METRICS_FILE).read_bytes() == (part / METRICS_FILE).read_bytes()


@pytest.mark.parametrize(
    ("precision", "meant"), [(None, "highest"), ("highest", "highest"), ("high", "high"), ("fast", "medium")]
)
def test_precision_of_a_run(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, precision: Any, meant: str
) -> None:
    """Of every product in it, PyTorch's own too; afterwards all is as before, and a resumed run has it again."""
    seen: list[str] = []
    after_steps(monkeypatch, 2, lambda: seen.append(torch.get_float32_matmul_precision()))
    folder, _ = train(replace(small_config, precision=precision))
    assert seen == [meant]
    assert torch.get_float32_matmul_precision() == "highest"
    config = load_checkpoint(find_checkpoint(folder))["config"]
    assert TrainConfig.from_json(json.dumps(config) if isinstance(config, dict) else config).precision == precision


def two_stages(config: TrainConfig) -> TrainConfig:
    first = replace(config.stages[0], steps=3)
    second = replace(
        first,
        resolution=16,
        fade_steps=2,
        freeze_nerf=True,
        aux_weight=0.0,
        diff_augment=("color", "translation", "cutout"),
        grad_points=50,
    )
    return replace(config, stages=(first, second))


@pytest.mark.parametrize("steps", [3, 5])
def test_stages_and_resume(small_config: TrainConfig, tmp_path: Path, steps: int) -> None:
    """A run of two stages equals one that ended with the first stage, or within the second, and was resumed."""
    config = two_stages(small_config)
    whole, _ = train(replace(config, out=tmp_path / "whole"))
    first, _ = train(replace(config, out=tmp_path / "part", steps=steps))
    resumed, _ = train(replace(config, out=None, resume=first))
    a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (whole, resumed))
    assert_equal_states(a, b)
    assert a["stage_index"] == 1
    frozen = load_checkpoint(whole / "checkpoints" / "step-00000003.pt")
    for name, value in frozen["generator_ema"].items():
        if name.startswith(("nerf.", "shape_mapping.", "aux_to_rgb.")):
            assert torch.equal(a["generator"][name], value), name


@pytest.mark.parametrize(("resolution", "steps"), [(32, 8), (8, 8)])
def test_stages_that_were_reached_keep_their_size(small_config: TrainConfig, resolution: int, steps: int) -> None:
    """Another one would begin without fading in, and the record would tell of a training that there was not."""
    config = two_stages(small_config)
    folder, _ = train(replace(config, steps=5))
    with pytest.raises(UserError, match=r"has reached its stage of 16 pixels, which no flag .* --init-from .*run$"):
        train(replace(config, out=None, resume=folder, resolution=resolution, steps=steps))
    resumed, _ = train(replace(config, out=None, resume=folder, resolution=16, steps=6))
    assert load_checkpoint(find_checkpoint(resumed))["step"] == 6


def test_stages_to_come_may_change(small_config: TrainConfig) -> None:
    table = channel_table(32, base=64, cap=8)
    discriminator = ResidualDiscriminatorConfig(main_channels=table, aux_channels=table)
    config = replace(two_stages(small_config), discriminator=discriminator)
    folder, _ = train(replace(config, steps=2))
    train(replace(config, out=None, resume=folder, resolution=32, steps=4))
    state = load_checkpoint(find_checkpoint(folder))
    assert state["step"] == 4 and [s.resolution for s in TrainConfig.from_json(state["config"]).stages] == [8, 32]


def test_pictures_come_as_they_are_asked_for(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Asked(TrainingImages):
        def __init__(self, *arguments: Any, **others: Any) -> None:
            asked.update(others)
            super().__init__(*arguments, **others)

    def open_asked(*arguments: Any, **others: Any) -> Any:
        asked.update(others)
        return open_training_source(*arguments, **others)

    monkeypatch.setattr(stage_images, "TrainingImages", Asked)
    monkeypatch.setattr(agreement, "open_training_source", open_asked)
    config = replace(small_config, steps=1, seed=5, x_flip=True, workers=1, heads=7)
    config = replace(config, poses=PoseDistribution("uniform"), fov_degrees=20.0)
    train(config)
    for name in ("seed", "x_flip", "workers", "heads", "poses", "fov_degrees"):
        assert asked[name] == getattr(config, name), name


def test_every_stage_opens_its_pictures_once(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time, workers are started and read ahead."""
    opened = []

    class Opened(TrainingImages):
        def __init__(self, *arguments: Any, **others: Any) -> None:
            opened.append(others["position"])
            super().__init__(*arguments, **others)

    monkeypatch.setattr(stage_images, "TrainingImages", Opened)
    config = two_stages(small_config)
    folder, _ = train(replace(config, steps=5))
    assert opened == [0, 12]  # of 3 steps of 4 pictures
    train(replace(config, out=None, resume=folder))
    assert opened == [0, 12, 20]


def test_a_signal_ends_the_making_of_a_later_stages_heads(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes minutes where there are many; going on makes them, and nothing else differs."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("CIPS3D_CACHE", str(cache))
    config = replace(two_stages(small_config), data=None, heads=70)
    made: list[int] = []

    def render_and_stop(resolution: int, *others: Any) -> dict[str, torch.Tensor]:
        made.append(resolution)
        if resolution == 16:
            os.kill(os.getpid(), signal.SIGTERM)
        return render_block(resolution, *others)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "render_block", render_and_stop)
        part, exit_code = train(replace(config, out=tmp_path / "part"))
    assert exit_code == 128 + signal.SIGTERM and made == [8, 8, 16]  # of two blocks each
    assert [path.name[:8] for path in cache.iterdir()] == ["heads-8-"]
    assert load_checkpoint(find_checkpoint(part))["step"] == 3
    train(replace(config, out=None, resume=part))
    whole, _ = train(replace(config, out=tmp_path / "whole"))
    assert_equal_states(*(load_checkpoint(find_checkpoint(folder)) for folder in (whole, part)))


def test_fine_tuning_starts_from_the_average(small_config: TrainConfig, tmp_path: Path) -> None:
    trained, _ = train(replace(small_config, out=tmp_path / "trained"))
    still = replace(small_config.stages[0], steps=1, lr_nerf=0.0, lr_inr=0.0, lr_mapping=0.0)
    tuned, _ = train(replace(small_config, stages=(still,), out=tmp_path / "tuned", init_from=trained, ema_start=0))
    a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (trained, tuned))
    assert b["step"] == 1
    assert_equal_states(a["generator_ema"], b["generator"])


def explode(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    original = Objectives.discriminator

    def broken(self: Objectives, *arguments: Any) -> torch.Tensor:
        loss = original(self, *arguments)
        return loss * float("nan") if self.state.step >= after else loss

    monkeypatch.setattr(Objectives, "discriminator", broken)


def test_ten_bad_steps_stop_the_run(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is tried again, all checkpoints from before them are kept."""
    config = replace(small_config, steps=50, reports=replace(small_config.reports, checkpoint_every=2, keep=2))
    assert config.out is not None
    checkpoints = config.out / "checkpoints"
    with monkeypatch.context() as patch:
        explode(patch, after=5)
        for resume in (None, config.out, config.out):
            with pytest.raises(TrainingDiverged, match=r"10 steps in a row.* of step 4, go on with: .*--resume"):
                train(replace(config, out=None if resume else config.out, resume=resume))
            assert [path.stem for path in list_checkpoints(checkpoints)] == ["step-00000002", "step-00000004"]
    diverged = load_checkpoint(checkpoints / "diverged.pt")
    assert diverged["step"] == 15 and diverged["skipped"] == 10
    assert all(torch.isfinite(value).all() for value in diverged["generator"].values())
    train(replace(config, out=None, resume=config.out, steps=7))
    assert [path.stem for path in list_checkpoints(checkpoints)] == ["step-00000006", "step-00000007"]


def test_a_stop_among_bad_steps_pushes_no_checkpoint_out(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small_config, reports=replace(small_config.reports, checkpoint_every=2, keep=1))
    explode(monkeypatch, after=3)
    after_steps(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    folder, _ = train(config)
    kept = [path.stem for path in list_checkpoints(folder / "checkpoints")]
    assert kept == ["step-00000002", "step-00000005"]


def test_a_checkpoint_that_falls_among_bad_steps_is_made_up_for(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Objectives.generator

    def broken(self: Objectives, *arguments: Any) -> torch.Tensor:
        return original(self, *arguments) * (float("inf") if self.state.step == 2 else 1.0)

    monkeypatch.setattr(Objectives, "generator", broken)  # the third step's, after which a checkpoint is due
    reports = replace(small_config.reports, keep=9)
    folder, _ = train(replace(small_config, steps=5, reports=reports))
    kept = [path.stem for path in list_checkpoints(folder / "checkpoints")]
    assert kept == ["step-00000000", "step-00000004", "step-00000005"]


def test_single_bad_steps_are_counted(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Objectives.generator

    def broken(self: Objectives, *arguments: Any) -> torch.Tensor:
        return original(self, *arguments) * (float("inf") if self.state.step == 2 else 1.0)

    monkeypatch.setattr(Objectives, "generator", broken)
    folder, _ = train(small_config)
    assert load_checkpoint(find_checkpoint(folder))["skipped"] == 1
    assert "step 3: a loss or gradient was not finite" in (folder / LOG_FILE).read_text()
    lines = [json.loads(line) for line in (folder / SCALARS_FILE).read_text().splitlines()]
    assert [(line["step"], line["skipped_steps"]) for line in lines] == [(2, 0), (3, 1), (4, 1), (6, 1)]


def test_finished_run_asks_for_more_steps(small_config: TrainConfig) -> None:
    folder, _ = train(small_config)
    with pytest.raises(UserError, match="larger --steps"):
        train(replace(small_config, out=None, resume=folder))
    train(replace(small_config, out=None, resume=folder, steps=8))
    assert load_checkpoint(find_checkpoint(folder))["step"] == 8


def test_other_networks_are_refused(small_config: TrainConfig) -> None:
    folder, _ = train(replace(small_config, steps=1))
    wider = replace(small_config, generator=replace(small_config.generator, inr_width=16))
    with pytest.raises(UserError, match=r"networks differ.*inr.*\[5, 8\].*\[5, 16\]"):
        train(replace(wider, out=None, resume=folder))
    deeper = replace(small_config, discriminator=ResidualDiscriminatorConfig())
    with pytest.raises(UserError, match=r"networks differ.*Missing key.*\.\.\.\); leave out") as raised:
        train(replace(deeper, out=None, resume=folder))
    assert len(str(raised.value)) < 330


def test_contents_of_another_version(small_config: TrainConfig) -> None:
    folder, _ = train(replace(small_config, steps=2))
    state = load_checkpoint(find_checkpoint(folder))
    del state["ada"]
    save_checkpoint(find_checkpoint(folder), state)
    with pytest.raises(UserError, match=r"other contents \('ada' is not there\); train again"):
        train(replace(small_config, out=None, resume=folder, steps=4))


def test_a_step_is_saved_once(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one too, at which a checkpoint is due as well."""
    saved: list[str] = []
    save = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", lambda path, state: saved.append(path.name) or save(path, state))
    train(small_config)
    assert saved == [f"step-{step:08d}.pt" for step in (0, 3, 6)]


def test_batches_must_be_shared_equally(small_config: TrainConfig) -> None:
    check_batches(small_config, world_size=2)
    with pytest.raises(UserError, match="--batch-size 4 cannot be shared by 3 processes; give"):
        check_batches(small_config, world_size=3)
    grouped = replace(
        small_config,
        stages=(replace(small_config.stages[0], batch_size=6),),
        discriminator=replace(small_config.discriminator, main_minibatch_std_group=4),
    )
    with pytest.raises(UserError, match="groups of 4"):
        check_batches(grouped, world_size=1)


def test_training_starts_from_a_converted_checkpoint(small_config: TrainConfig, tmp_path: Path) -> None:
    trained, _ = train(small_config)
    networks = load_networks(trained)
    assert networks.discriminator is not None
    file = tmp_path / "published.safetensors"
    rendering = replace(networks.rendering, resolution=8)
    states = {"generator_ema": networks.averaged, "discriminator": networks.discriminator}
    configs = (to_plain(networks.generator_config), to_plain(networks.discriminator_config))
    write_converted(file, Converted("cips3d", rendering, (), *configs, states=states))
    still = replace(small_config.stages[0], steps=1, lr_nerf=0.0, lr_inr=0.0, lr_mapping=0.0)
    config = replace(small_config, out=tmp_path / "tuned", init_from=file, stages=(still,), ema_start=0)
    tuned = load_checkpoint(find_checkpoint(train(config)[0]))
    for key, value in networks.averaged.items():
        assert torch.equal(tuned["generator"][key], value), key
    write_converted(file, Converted("cips3d", rendering, (), configs[0], None, states={"generator": networks.averaged}))
    with pytest.raises(UserError, match="no discriminator"):
        train(replace(config, out=tmp_path / "none"))
