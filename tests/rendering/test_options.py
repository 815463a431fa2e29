"""What the command cannot be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from rendering.command import RenderCommand

from cips3d.render import main


@pytest.mark.parametrize(
    ("flags", "out", "message"),
    [
        (["--seeds", "x"], "a.png", "--seeds 'x'"),
        (["--mix", "x"], "a.png", "--mix 'x'"),
        (["--resolution", "0"], "a.png", "--resolution 0"),
        (["--resolution", "30000"], "a.png", "a lower --resolution"),
        (["--resolution", "1", "--kind", "normals"], "a.png", "--resolution 1"),
        (["--fov", "180"], "a.png", "--fov 180"),
        (["--fov", "nan"], "a.png", "--fov nan"),
        (["--fov", "1e-20"], "a.png", "--fov 1e-20 is no angle of view; give degrees from 1e-15 to 179.99999"),
        (["--fov", "179.9999999"], "a.png", "--fov 180"),
        (["--truncation", "inf"], "a.png", "--truncation inf"),
        (["--batch-size", "0"], "a.png", "--batch-size 0"),
        (["--pitch", "1.6"], "a.png", "--pitch 1.6"),
        (["--yaw", "nan"], "a.png", "--yaw nan"),
        (["--yaw", "1e300"], "a.png", "--yaw 1e+300 is no direction"),
        (["--yaw"], "a.png", "--yaw"),
        (["--device", "tpu"], "a.png", "--device tpu"),
        ([], "a.bmp", "a.bmp"),
        ([], "a.pn", ".png or .webp"),
        (["--mix", "1"], "a", "a is a folder, and --mix makes one table"),
        (["--resolution", "70000"], "a", "a lower --resolution"),
        ([], "a.gif", "add --trajectory"),
        ([], "a.mp4", "add --trajectory"),
        (["--frames", "3"], "a.png", "--frames is for"),
        (["--fps", "12"], "a.png", "--fps 12 is for an animation, and --out"),
        (["--fps", "12", "--trajectory", "yaw"], "a.png", "--fps 12 is for an animation"),
        (["--trajectory", "spiral"], "a.gif", "--trajectory spiral is unknown; give one of front, yaw"),
        (["--trajectory", "none.json"], "a.gif", "none.json cannot be read"),
        (["--trajectory", "none.json", "--yaw", "0"], "a.gif", "--yaw is not for"),
        (["--trajectory", "none.json", "--frames", "3"], "a.gif", "--frames is not for"),
        (["--trajectory", "yaw"], "a.avi", ".gif or .mp4"),
        (["--trajectory", "yaw", "--yaw", "0.3"], "a.gif", "--yaw 0.3"),
        (["--trajectory", "yaw", "--pitch", "0", "0.3"], "a.gif", "--pitch 0 0.3 is more than"),
        (["--trajectory", "front", "--yaw", "0", "0.3"], "a.gif", "--yaw 0 0.3 is more than"),
        (["--trajectory", "circle", "--pitch", "0", "1.6"], "a.gif", "--pitch 1.6 goes over a pole"),
        (["--trajectory", "yaw", "--frames", "1"], "a.gif", "--frames 1"),
        (["--trajectory", "yaw", "--frames", "2"], "a.gif", "--frames 2 is no animation; give 3 or more"),
        (["--trajectory", "circle", "--frames", "1"], "a.gif", "--frames 1 is no animation; give 2 or more"),
        (["--trajectory", "yaw", "--frames", "0"], "a.png", "--frames 0"),
        (["--trajectory", "yaw", "--frames", "1000000000000"], "a.mp4", "--frames 1000000000000 is too many"),
        (["--trajectory", "yaw", "--fps", "100"], "a.gif", "--fps 100"),
        (["--trajectory", "yaw", "--distance", "1", "2"], "a.gif", "--distance is for"),
        (["--distance", "1", "2"], "a.png", "--distance is for"),
        (["--trajectory", "dolly", "--distance", "2", "1"], "a.gif", "--distance 2 1"),
        (["--trajectory", "dolly", "--distance", "1", "1e7"], "a.gif", "both from 0.001 to 10000"),
        (["--trajectory", "yaw", "--frames", "3", "--resolution", "70000"], "a.gif", "a lower --resolution"),
        (["--interpolate", "both", "--seeds", "1"], "a.gif", "--interpolate goes nowhere"),
        (["--interpolate", "both", "--yaw", "0", "1"], "a.gif", "--interpolate without a --trajectory"),
        (["--interpolate", "both", "--mix", "1"], "a.gif", "--mix and --interpolate"),
        (["--mix", "1", "--trajectory", "yaw"], "a.png", "no room for the frames of --mix"),
        (["--mix", "1", "--yaw", "0", "1"], "a.png", "--yaw 0 1"),
        (["--mix-layer", "1"], "a.png", "--mix-layer is for"),
        (["--mix", "1", "--mix-layer", "5"], "a.png", "--mix-layer 5"),
    ],
)
def test_one_clear_line(command: RenderCommand, flags: list[str], out: str, message: str) -> None:
    assert message in command(*flags, out=out, fails=True)


@pytest.mark.parametrize("out", ["", "."])
def test_the_current_folder_is_not_filled(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    """An empty name, as of a variable that a script forgot to set, means it too."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([str(run_folder), "--out", out, "--device", "cpu"]) == 2
    assert "--out names no folder other than the current one; give one" in capsys.readouterr().err
    assert not list(Path().iterdir())
