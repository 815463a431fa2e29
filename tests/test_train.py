"""The command: flags on top of presets, mistakes in one sentence, real photographs."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from checkpoints.small_runs import write_run
from PIL import Image
from skimage import data

from cips3d import train as command
from cips3d.cameras import PoseDistribution
from cips3d.checkpoints.trained import find_checkpoint, load_checkpoint, save_checkpoint
from cips3d.errors import UserError
from cips3d.training.config import TrainConfig
from cips3d.training.loop import train
from cips3d.training.presets import PRESETS
from cips3d.training.resolving import resolved

QUICK = ("--reports.faces", "2", "--reports.turntable-frames", "2", "--reports.metrics-interval", "0")


def test_flags_go_on_top_of_the_preset() -> None:
    config = command.parse(["--preset", "ffhq", "--seed", "7", "--generator.inr-width", "64"])
    assert config.preset == "ffhq" and config.seed == 7
    assert config.generator.inr_width == 64
    assert config.stages == PRESETS["ffhq"].stages


def test_default_preset_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.parse([]).preset == "tiny"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert command.parse([]).preset == "heads64"
    assert command.parse(["--device", "cpu"]).preset == "tiny"


def test_resume_takes_the_run_s_own_settings(small_config: TrainConfig) -> None:
    folder, _ = train(small_config)
    config = command.parse(["--resume", str(folder), "--steps", "9"])
    assert config.generator == small_config.generator
    assert config.steps == 9 and config.resume == folder


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--preset", "ffhq"), "--preset ffhq is not that of --resume"),
        (("--seed", "5"), "--seed 5 is not that of --resume"),
        (("--init-from", "elsewhere"), "--init-from elsewhere starts a run"),
        (("--data", "photos", "--heads", "9"), "--heads 9 counts synthetic heads"),
        (("--heads", "9"), "--heads 9 counts synthetic heads"),  # the run has photographs
    ],
)
def test_a_run_goes_on_as_itself(
    small_config: TrainConfig, capfd: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str
) -> None:
    folder, _ = train(replace(small_config, steps=3))
    assert command.main(["--resume", str(folder), *flags]) == 2
    assert words in capfd.readouterr().err.splitlines()[-1]
    own = ("--preset", small_config.preset, "--seed", str(small_config.seed))
    assert command.parse(["--resume", str(folder), *own]) == command.parse(["--resume", str(folder)])


def test_heads_are_the_data_that_no_flag_names() -> None:
    named = resolved(command.parse(["--preset", "tiny", "--data", "heads", "--heads", "9"]))
    assert named == resolved(command.parse(["--preset", "tiny", "--heads", "9"]))
    assert resolved(command.parse(["--preset", "tiny", "--data", "./heads"])).data == "./heads"  # a folder


def test_help_names_every_preset() -> None:
    flag = next(field for field in fields(TrainConfig) if field.name == "preset")
    told = inspect.getsource(TrainConfig).split("preset: str")[1].split("out: Path")[0]
    assert flag.default in PRESETS
    assert set(re.findall(r"[a-z0-9-]+", told)) >= set(PRESETS)


def test_init_from_takes_the_networks(small_config: TrainConfig) -> None:
    folder, _ = train(small_config)
    config = command.parse(["--preset", "finetune", "--init-from", str(folder)])
    assert config.generator == small_config.generator
    assert config.stages == PRESETS["finetune"].stages
    trained = TrainConfig.from_json(load_checkpoint(find_checkpoint(folder))["config"])
    assert resolved(config).stages[-1].resolution == trained.stages[-1].resolution  # the model's own, not the preset's


def test_init_from_takes_the_cameras(small_config: TrainConfig, tmp_path: Path) -> None:
    """And the size of the pictures where there is one stage to have it."""
    trained = replace(
        small_config,
        fov_degrees=20.0,
        poses=PoseDistribution("uniform", yaw_std=0.7),
        volume=replace(small_config.volume, samples=5),
    )
    folder = str(write_run(tmp_path / "trained", trained))
    for preset, resolution in (("finetune", 8), ("tiny", None)):
        config = command.parse(["--preset", preset, "--init-from", folder])
        assert (config.fov_degrees, config.poses, config.volume) == (20.0, trained.poses, trained.volume)
        assert (config.generator, config.discriminator) == (trained.generator, trained.discriminator)
        assert config.resolution == resolution


def test_init_from_another_system(small_config: TrainConfig) -> None:
    """A preset's rates and losses are for the networks of its own system: pi-GAN's would leave an INR as it is."""
    folder = str(small_config.out)
    write_run(Path(folder), small_config)
    with pytest.raises(UserError, match=r"run is a cips3d, and --preset pigan-cats is for pigan; give --preset fine"):
        command.parse(["--preset", "pigan-cats", "--init-from", folder])
    command.parse(["--preset", "finetune", "--init-from", folder])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--preset", "tyny"], "--preset tyny"),
        (["--resolution", "4"], "--resolution 4"),
        (["--resume", "no/such/run"], "no/such/run"),
        (["--preset", "finetune"], "--init-from"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--seed", "99999999999999999999999"], "--seed 99999999999999999999999"),
        (["--stages.0.steps", "0"], "--stages.0.steps 0"),
        (["--poses.yaw-std", "nan"], "yaw_std nan"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and words in error
    assert "\n" not in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_data_that_have_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_folder: Path) -> None:
    """`--data` as it was typed may mean something else, or nothing, from another folder."""
    monkeypatch.chdir(photo_folder.parent)
    arguments = ["--preset", "tiny", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "run"), *QUICK]
    assert command.main([*arguments, "--data", photo_folder.name]) == 0
    monkeypatch.chdir(tmp_path)
    resumed = ["--resume", str(tmp_path / "run"), "--steps", "2"]
    with pytest.raises(UserError, match=f"was trained on --data {photo_folder.name}, which is not there, seen from"):
        command.parse(resumed)
    assert command.main([*resumed, "--data", str(photo_folder)]) == 0


def test_unknown_flag_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--stps", "3"])
    assert stopped.value.code == 2
    assert "--stps" in capsys.readouterr().err


def test_settings_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    for content in ({"config": '{"colour": 1}'}, {"config": None}, {}):
        save_checkpoint(path, content)
        with pytest.raises(UserError, match="other settings"):
            command.config_of(path)


def test_real_photographs(tmp_path: Path) -> None:
    """A hundred small grey photographs of faces go all the way: decoded, enlarged, trained on."""
    photos = tmp_path / "lfw"
    photos.mkdir()
    for k, face in enumerate(data.lfw_subset()[:100]):  # [200, 25, 25], the first half are faces
        Image.fromarray((face * 255).astype("uint8")).save(photos / f"{k:03d}.png")
    out = tmp_path / "run"
    arguments = ["--data", str(photos), "--preset", "tiny", "--steps", "3", "--device", "cpu", "--out", str(out)]
    assert command.main([*arguments, *QUICK]) == 0
    state = load_checkpoint(find_checkpoint(out))
    assert state["step"] == 3 and state["position"] == 24
    with Image.open(out / "pictures" / "00000003.png") as grid:
        assert grid.convert("L").getextrema()[1] > 0
