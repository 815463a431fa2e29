"""The command `python -m cips3d.viewer`."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from convert.small_networks import STYLEGAN2_CONFIG

from cips3d.cameras import PoseDistribution
from cips3d.errors import UserError
from cips3d.models.stylegan2 import StyleGAN2
from cips3d.models.volume import VolumeSettings
from cips3d.rendering import LoadedGenerator, latent_of, load_generator, styles_of_seeds, write_latent
from cips3d.rendering.latents import CameraAngles
from cips3d.viewer import Options, exhibit_of, main, resolution_of
from cips3d.viewing import server
from cips3d.viewing.orbit import Orbit, trained_limits

NO_VISER = "no viser: pip install 'cips3d[viewer]'"
PATIENCE = 60.0  # seconds until what does not happen counts as failed


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "damaged.pt"
    path.write_bytes(b"PK\3\4 and then nothing")
    return path


@pytest.fixture
def visitor(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Takes the place of the browser that the command opens: reads the page, and ends the command by Ctrl-C."""
    pytest.importorskip("viser", reason=NO_VISER)
    read: list[bytes] = []

    def visit(address: str) -> None:
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            read.append(answer.read())
        while signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # the command is not yet ready for it
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(
        "cips3d.viewer.webbrowser.open", lambda address: threading.Thread(target=visit, args=(address,)).start()
    )
    return read


def test_serves_this_machine_until_it_is_interrupted(
    visitor: list[bytes], run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_folder), "--port", "0", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("http://127.0.0.1:")
    assert "run at step 1200; Ctrl-C ends it\n" in printed.out
    assert printed.err == ""
    assert b"<html" in visitor[0]


def test_a_damaged_checkpoint_is_a_page_too(
    visitor: list[bytes], damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(damaged), "--port", "0", "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert "nothing to show; Ctrl-C ends it\n" in printed.out
    assert printed.err.startswith(f"error: {damaged} is not a complete checkpoint")
    assert printed.err.count("\n") == 1
    assert b"<html" in visitor[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "-1"], "--seed -1"),
        (["--seed", str(2**53)], f"--seed {2**53}"),
        (["--truncation", "nan"], "--truncation nan"),
        (["--truncation", "-0.5"], "--truncation -0.5"),
        (["--truncation", "1e300"], "--truncation 1e+300"),
        (["--resolution", "1"], "--resolution 1"),
        (["--resolution", "100000"], "--resolution 100000"),
        (["--port", "70000"], "--port 70000"),
        (["--host", "203.0.113.7"], "--host 203.0.113.7"),
        (["--host", ""], "--host  is not an address"),
        (["--host", f"{'x' * 64}.com"], "is not an address of this machine"),
        (["--device", "tpu"], "--device tpu"),
        (["--second", "nowhere"], "nowhere does not exist"),
        (["--latent", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["--latent", "a.safetensors", "--seed", "3"], "--latent takes the place of --seed"),
    ],
)
def test_mistakes_are_one_clear_line(
    run_folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    pytest.importorskip("viser", reason=NO_VISER)
    assert main([str(run_folder), "--no-open", *flags]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_missing_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("viser", reason=NO_VISER)
    assert main([str(tmp_path / "nowhere"), "--no-open"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_missing_library(run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    assert main([str(run_folder), "--no-open"]) == 2
    assert "pip install 'cips3d[viewer]'" in capsys.readouterr().err


def test_what_is_shown_first(run_folder: Path) -> None:
    loaded = load_generator(run_folder)
    exhibit = exhibit_of(Options(run_folder, seed=7, truncation=0.5, resolution=40, device="cpu"), loaded)
    assert (exhibit.first_shot.seed, exhibit.first_shot.truncation, exhibit.largest) == (7, 0.5, 40)
    assert exhibit.may_open_files
    assert not exhibit_of(Options(run_folder, host="0.0.0.0", device="cpu"), loaded).may_open_files


def test_a_face_that_was_found(run_folder: Path, tmp_path: Path) -> None:
    """It comes first, as it was seen, within the trained views."""
    loaded = load_generator(run_folder)
    styles = styles_of_seeds(loaded, [7])
    limits = trained_limits(loaded.poses)
    yaw, pitch = limits.yaw_middle + limits.yaw_reach / 2, limits.pitch[0] - 0.1
    path = tmp_path / "latent.safetensors"
    for camera, seen in ((CameraAngles(pitch, yaw, 12.0), Orbit(yaw, limits.pitch[0])), (None, limits.front)):
        write_latent(path, latent_of(loaded, styles, camera))
        exhibit = exhibit_of(Options(run_folder, latent=path, device="cpu"), loaded)
        assert exhibit.first_shot.seed is None
        assert exhibit.first_shot.orbit == seen
        assert exhibit.face is not None
        assert all(torch.equal(found, given) for found, given in zip(exhibit.face, styles, strict=True))


def test_a_latent_that_is_none(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"a\.safetensors is not a"):
        exhibit_of(Options(run_folder, latent=tmp_path / "a.safetensors", device="cpu"), load_generator(run_folder))


def test_sizes_of_pictures(run_folder: Path) -> None:
    loaded = load_generator(run_folder)
    assert resolution_of(Options(run_folder), loaded) == 256
    assert resolution_of(Options(run_folder, resolution=12), loaded) == 12
    flat = LoadedGenerator(StyleGAN2(STYLEGAN2_CONFIG), VolumeSettings(), 12.0, 16, PoseDistribution(), None)
    assert resolution_of(Options(run_folder), flat) == 16
    with pytest.raises(UserError, match=r"--resolution 12 is not that of this StyleGAN2; .* give 16"):
        resolution_of(Options(run_folder, resolution=12), flat)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("192.0.2.1", False)],
)
def test_who_may_open_files(host: str, expected: bool) -> None:
    assert server.is_loopback(host) is expected


def test_the_highest_ports_are_taken(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("viser", reason=NO_VISER)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(server, "HIGHEST_PORT", port)
        assert main([str(run_folder), "--no-open", "--port", str(port)]) == 2
    assert f"--port {port} is taken, as are all after it; give a lower one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "address"), [("me", "127.0.1.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")]
)
def test_the_address_that_is_told_answers(monkeypatch: pytest.MonkeyPatch, host: str, address: str) -> None:
    """Also of this machine's own name, by which pages could not be trusted."""
    pytest.importorskip("viser", reason=NO_VISER)
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *of, **how: resolve("127.0.1.1" if name == "me" else name, *of, **how)
    )
    opened = server.open_server(host, 0, "heads")
    try:
        told = server.address_of(opened)
        assert told == f"http://{address}:{opened.get_port()}"
        with urllib.request.urlopen(told, timeout=10) as page:
            assert page.status == 200
    finally:
        opened.stop()


def test_no_tunnel_to_elsewhere() -> None:
    pytest.importorskip("viser", reason=NO_VISER)
    opened = server.open_server("127.0.0.1", 0, "heads")
    try:
        assert opened.request_share_url() is None
        assert server.address_of(opened) == f"http://127.0.0.1:{opened.get_port()}"
    finally:
        opened.stop()


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for words in ("RUN_OR_CHECKPOINT", "Examples:", "--second", "--no-open", "--host", "Ctrl-C"):
        assert words in text
