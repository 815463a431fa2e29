"""The page, in a real browser."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints.small_runs import write_run
from PIL import Image
from viewing.browser import Browser

from cips3d.models.stylegan2 import StyleGAN2, StyleGAN2Config
from cips3d.rendering import LoadedGenerator
from cips3d.training.config import TrainConfig
from cips3d.viewing import Exhibit, Gallery, open_server
from cips3d.viewing.orbit import trained_limits
from cips3d.viewing.page import Page, centred, file_name
from cips3d.viewing.session import Session
from cips3d.viewing.shots import Shot, Studio

LARGEST = 64


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Exhibit | str], Gallery]]:
    """Show something at a free port of this machine."""
    pytest.importorskip("viser", reason="no viser: pip install 'cips3d[viewer]'")
    opened: list[Gallery] = []

    def start(exhibit: Exhibit | str) -> Gallery:
        opened.append(Gallery(open_server("127.0.0.1", 0, "heads"), exhibit))
        return opened[-1]

    yield start
    for gallery in opened:
        gallery.close()


@pytest.fixture
def exhibit(loaded: LoadedGenerator) -> Exhibit:
    return Exhibit(loaded, dataclasses.replace(Studio(loaded).first_shot, truncation=0.7), LARGEST)


def visit(browser: Browser, gallery: Gallery) -> Page:
    """Open the page, and wait for its finest picture."""
    before = set(gallery.pages)
    browser.driver.get(gallery.address)
    browser.wait(lambda: set(gallery.pages) - before, "visitor")
    browser.wait(lambda: f"{LARGEST} × {LARGEST} pixels" in browser.text, "finest picture")
    (number,) = set(gallery.pages) - before
    return gallery.pages[number]


def wanted(session: Session) -> Shot:
    """What the browser asked for last."""
    assert session.wanted is not None
    return session.wanted


def test_shows_the_face_saves_it_and_asks_nobody_else(
    browser: Browser, serve: Callable[..., Gallery], exhibit: Exhibit
) -> None:
    gallery = serve(exhibit)
    browser.requested()  # forget those of earlier pages
    visit(browser, gallery)
    expected = Studio(exhibit.loaded).take(exhibit.first_shot, LARGEST)
    browser.wait(lambda: browser.shows(expected), "picture of the first face")
    for words in ("heads", "Drag", "Seed", "Truncation", "Shape", "Appearance", "second checkpoint", "Save picture"):
        assert words in browser.text, words
    browser.press("Save picture")
    saved = browser.downloads / "seed-0.png"
    browser.wait(saved.is_file, "file")
    with Image.open(saved) as picture:
        assert picture.format == "PNG"
        assert np.array_equal(np.asarray(picture), expected)
    place = gallery.address.partition("//")[2]
    assert {url.partition("//")[2].partition("/")[0] for url in browser.requested()} == {place}


def test_what_is_sent_last_has_the_shape_of_the_window(
    browser: Browser, serve: Callable[..., Gallery], exhibit: Exhibit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the window changes while another thread sends a picture."""
    page = visit(browser, serve(exhibit))
    sent: list[float] = []
    sending, may_send = threading.Event(), threading.Event()

    def send(canvas: np.ndarray, **_: object) -> None:
        if not sending.is_set():
            sending.set()
            may_send.wait(10)
        sent.append(canvas.shape[1] / canvas.shape[0])

    monkeypatch.setattr(page._client.scene, "set_background_image", send)
    monkeypatch.setattr(page, "_is_3d", False)  # the window's shape alone is looked at
    assert page._last is not None
    picture = threading.Thread(target=page._show, args=(page._last,))
    picture.start()
    assert sending.wait(10)
    window = threading.Thread(target=lambda: asyncio.run(page._camera_moved(SimpleNamespace(aspect=2.0))))
    window.start()
    window.join(0.3)  # without an order it is done now
    may_send.set()
    picture.join()
    window.join()
    assert len(sent) == 2 and sent[-1] == 2.0


def test_dragging_turns_the_head_within_the_trained_views(
    browser: Browser, serve: Callable[..., Gallery], exhibit: Exhibit
) -> None:
    session = visit(browser, serve(exhibit)).session
    front, studio = wanted(session), Studio(exhibit.loaded)
    browser.drag((25, 0), (0, 10))
    turned = browser.wait(lambda: wanted(session) if wanted(session) != front else None, "other view")
    # The picture follows the mouse: seen from further left (larger yaw is left of the front) and from above.
    assert turned.orbit.yaw > front.orbit.yaw
    assert turned.orbit.pitch <= front.orbit.pitch
    browser.wait(lambda: browser.shows(studio.take(wanted(session), LARGEST)), "picture of the other side")
    assert not browser.shows(studio.take(front, LARGEST))

    limits = trained_limits(exhibit.loaded.poses)
    end = limits.yaw_middle + limits.yaw_reach
    for _ in range(4):
        browser.move(80, 0)
    browser.wait(lambda: wanted(session).orbit.yaw == pytest.approx(end), "view at the limit")
    browser.move(-30, 0)
    browser.wait(lambda: wanted(session).orbit.yaw < end - 0.05, "way back from the limit")
    browser.let_go()

    browser.press("Look from the front")
    browser.wait(lambda: browser.shows(studio.take(front, LARGEST)), "picture from the front")


def test_numbers_are_held_in_their_range(
    browser: Browser, serve: Callable[..., Gallery], exhibit: Exhibit, tmp_path: Path
) -> None:
    """Browsers hand on what is typed as it is."""
    session = visit(browser, serve(exhibit)).session
    for label, typed, held in (
        ("Seed", "-5", {"seed": 0}),
        ("Seed", "3", {"seed": 3}),
        ("Truncation", "7", {"truncation": 1.0}),
        ("Truncation", "-2", {"truncation": 0.0}),
        ("Shape", "40", {"shares": (1.0, 0.0)}),
    ):
        browser.type(label, typed)
        browser.wait(
            lambda held=held: all(getattr(wanted(session), name) == value for name, value in held.items()),  # type: ignore[misc]
            f"{label} of {typed}",
        )
    studio = Studio(exhibit.loaded)
    browser.wait(lambda: browser.shows(studio.take(wanted(session), LARGEST)), "picture after all of it")
    assert "error" not in browser.text


@pytest.mark.parametrize("place", [(float("nan"), 0.0, 1.0), (float("inf"), 0.0, 1.0), (0.0, 0.0, 0.0)])
def test_a_camera_that_is_nowhere_is_put_back(
    browser: Browser, serve: Callable[..., Gallery], exhibit: Exhibit, place: tuple[float, ...]
) -> None:
    page = visit(browser, serve(exhibit))
    before = wanted(page.session)
    astray = SimpleNamespace(aspect=1.0, position=np.array(place), look_at=np.zeros(3))
    asyncio.run(page._camera_moved(astray))
    assert wanted(page.session) == before
    browser.drag((25, 0))
    browser.let_go()
    browser.wait(lambda: wanted(page.session).orbit.yaw > before.orbit.yaw, "view of a mouse that moves on")


def test_two_browsers_at_once(
    browser: Browser, serve: Callable[..., Gallery], exhibit: Exhibit, tmp_path: Path
) -> None:
    gallery, studio = serve(exhibit), Studio(exhibit.loaded)
    other = Browser(tmp_path / "other")
    try:
        visit(browser, gallery)
        visit(other, gallery)
        faces = [studio.take(dataclasses.replace(exhibit.first_shot, seed=seed), LARGEST) for seed in (0, 5, 8)]
        other.enter("Seed", "5")
        other.wait(lambda: other.shows(faces[1]), "face of seed 5")
        assert browser.shows(faces[0])
        browser.enter("Seed", "8")
        browser.wait(lambda: browser.shows(faces[2]), "face of seed 8")
        assert other.shows(faces[1])
        assert not other.shows(faces[2])
        assert len(gallery.pages) == 2
    finally:
        other.close()
    browser.wait(lambda: len(gallery.pages) == 1, "end of the other browser's visit")


def test_a_bad_checkpoint_gives_a_readable_page(browser: Browser, serve: Callable[..., Gallery]) -> None:
    sentence = "runs/my_heads*/step-00000100.pt is not a complete checkpoint of this package (RuntimeError)"
    browser.driver.get(serve(sentence).address)
    browser.wait(lambda: browser.text.count(f"{sentence}.") == 2, "sentence, in the middle and at the side")


def test_second_checkpoint(
    browser: Browser, serve: Callable[..., Gallery], exhibit: Exhibit, small_config: TrainConfig, tmp_path: Path
) -> None:
    narrow = dataclasses.replace(small_config, generator=dataclasses.replace(small_config.generator, inr_width=6))
    other, damaged = write_run(tmp_path / "narrow", narrow), tmp_path / "damaged.pt"
    damaged.write_bytes(b"PK\3\4 and then nothing")
    page = visit(browser, serve(dataclasses.replace(exhibit, second=damaged)))
    browser.wait(lambda: f"{damaged} is not a complete checkpoint" in browser.text, "sentence about the damaged one")
    browser.enter("File", str(other))
    browser.wait(lambda: page.path == str(other), "path")
    browser.press("Open")
    browser.wait(lambda: "inr_width is 6, not 8" in browser.text, "sentence about the other networks")
    for nowhere, said in (("~nobody-is-called-this/run", "does not exist"), ("a" * 300, "too long")):
        browser.enter("File", nowhere)
        browser.wait(lambda path=nowhere: page.path == path, "path")  # type: ignore[misc]
        browser.press("Open")
        browser.wait(lambda words=said: words in browser.text, f"sentence about {nowhere}")  # type: ignore[misc]
    browser.enter("File", str(tmp_path / "run"))
    browser.wait(lambda: page.path == str(tmp_path / "run"), "path")
    browser.press("Open")
    browser.wait(lambda: "Opened run at step 1200" in browser.text, "second checkpoint")
    browser.enter("Weight", "0.5")
    browser.wait(lambda: wanted(page.session).model_share == 0.5, "weight")


def test_too_little_memory_for_a_second_checkpoint(exhibit: Exhibit, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("cips3d.viewing.page.load_generator", fails)
    page = SimpleNamespace(_exhibit=exhibit, _second_said=SimpleNamespace(content=""))
    Page._open_second(page, Path("other"))  # type: ignore[arg-type]
    assert "cpu has too little memory for another model" in page._second_said.content


def test_pictures_thread_alone_computes(browser: Browser, serve: Callable[..., Gallery], exhibit: Exhibit) -> None:
    """Pages are made in the server's event loop, which serves everybody."""
    threads: set[str] = set()
    for layer in exhibit.loaded.generator.modules():
        layer.register_forward_pre_hook(lambda *_: threads.add(threading.current_thread().name))
    visit(browser, serve(exhibit))
    assert threads == {"pictures"}


def test_flat_models_are_not_turned(browser: Browser, serve: Callable[..., Gallery], loaded: LoadedGenerator) -> None:
    config = StyleGAN2Config(channels={4: 6, 8: 5, 16: 4, 32: 4, 64: 3}, z_dim=7, style_dim=8, mapping_layers=2)
    flat = dataclasses.replace(loaded, generator=StyleGAN2(config).requires_grad_(False).eval())
    studio = Studio(flat)
    page = visit(browser, serve(Exhibit(flat, studio.first_shot, LARGEST)))
    assert "flat pictures" in browser.text
    assert "Trained views" not in browser.text
    browser.drag((40, 0))
    browser.let_go()
    browser.enter("Seed", "3")
    browser.wait(lambda: wanted(page.session).seed == 3, "seed")
    assert wanted(page.session).orbit == studio.first_shot.orbit
    browser.wait(lambda: browser.shows(studio.take(wanted(page.session), LARGEST)), "picture of seed 3")


@pytest.mark.parametrize(("aspect", "size"), [(1.0, (4, 4)), (2.0, (4, 8)), (0.5, (8, 4)), (1.3, (4, 5))])
def test_the_picture_is_in_the_middle(aspect: float, size: tuple[int, int]) -> None:
    pixels = np.full((4, 4, 3), 200, np.uint8)
    canvas = centred(pixels, aspect)
    assert canvas.shape == (*size, 3)
    place = (canvas == 200).all(-1)
    assert place.sum() == 16
    rows, columns = np.nonzero(place)
    for places, length in ((rows, size[0]), (columns, size[1])):
        assert abs(places.min() - (length - 1 - places.max())) <= 1


def test_names_of_saved_pictures(exhibit: Exhibit) -> None:
    shot = exhibit.first_shot
    assert file_name(shot) == "seed-0.png"
    assert file_name(dataclasses.replace(shot, seed=None, kind="depth")) == "face-depth.png"
    assert file_name(dataclasses.replace(shot, shares=(0.0, 0.5), second_seed=7)) == "seed-0-with-7.png"


@pytest.mark.parametrize("aspect", [0.0, 1e-4, 1500.0, float("inf"), float("nan")])
def test_canvases_that_no_window_has(aspect: float) -> None:
    """A page may say anything of its size; it decides on no more memory than eight pictures."""
    canvas = centred(np.zeros((10, 10, 3), np.uint8), aspect)
    assert canvas.shape in ((80, 10, 3), (10, 80, 3), (10, 10, 3))
