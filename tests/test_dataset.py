"""The command `python -m cips3d.dataset`: exit codes, what it prints, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cips3d import dataset
from cips3d.data import open_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (9, 8), (i, i, i)).save(folder / f"{i}.png")
    return folder


def test_a_set_is_prepared_and_reported(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "bad\n.png").write_bytes(b"")
    arguments = [str(photos), str(tmp_path / "set.zip"), "--resolution", "4"]
    assert dataset.main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [
        f"{tmp_path / 'set.zip'} is complete: 3 images of 4 x 4, png",
        "1 unreadable skipped:",
    ]
    assert printed[2].startswith("  bad\\n.png: no JPEG")
    assert len(open_images(tmp_path / "set.zip", 4)) == 3
    assert dataset.main(arguments) == 0
    assert f"{tmp_path / 'set.zip'} was complete already: 3 images" in capsys.readouterr().out


def test_a_single_picture_is_counted_as_one(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in (1, 2):
        (photos / f"{i}.png").unlink()
    assert dataset.main([str(photos), str(tmp_path / "set"), "--resolution", "4"]) == 0
    assert "is complete: 1 image of 4 x 4" in capsys.readouterr().out


def test_long_lists_of_unreadable_files_are_cut(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(25):
        (photos / f"bad{i:02}.png").write_bytes(b"")
    assert dataset.main([str(photos), str(tmp_path / "set"), "--format", "webp"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "25 unreadable skipped:"
    assert printed[-2].startswith("  bad19.png")
    assert printed[-1] == "  and 5 more, listed in the set's dataset.json"


def test_mistakes_end_with_code_2(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dataset.main([str(photos), str(photos / "set")]) == 2
    assert capsys.readouterr().err.startswith(f"error: DEST {photos / 'set'} lies within SOURCE")
    with pytest.raises(SystemExit) as caught:
        dataset.main([str(photos)])
    assert caught.value.code == 2


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        dataset.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Example: python -m cips3d.dataset ~/photos ffhq256.zip --resolution 256" in text
    for word in ("SOURCE", "DEST", "--resolution", "--format", "--workers", "--count", "--seed", "--fov-degrees"):
        assert word in text


def test_ctrl_c_ends_with_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """A real process, a real signal: it arrives when some of the pictures are written."""
    folder, destination = tmp_path / "photos", tmp_path / "set"
    folder.mkdir()
    picture = Image.effect_noise((700, 700), 90).convert("RGB")
    picture.save(folder / "000.png")
    for i in range(1, 100):
        os.link(folder / "000.png", folder / f"{i:03}.png")
    command = [sys.executable, "-m", "cips3d.dataset", str(folder), str(destination), "--resolution", "256"]
    process = subprocess.Popen(
        [*command, "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test in the background inherits "ignored"
    )
    while not list(destination.rglob("*.png")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; run the same command again to go on where it ended"
    assert "Traceback" not in err
    written = {path: path.stat().st_mtime_ns for path in destination.rglob("*.png")}
    assert 0 < len(written) < 100
    assert dataset.main([str(folder), str(destination), "--resolution", "256"]) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(list(destination.rglob("*.png"))) == 100
