"""The page of one browser: its controls, its mouse, and the picture behind them."""

from __future__ import annotations

import io
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from cips3d.errors import UserError
from cips3d.files import printable
from cips3d.process.devices import memory_explained
from cips3d.rendering.frame_sequence import kinds_of
from cips3d.rendering.loading import LoadedGenerator, load_generator
from cips3d.rendering.views import PictureKind
from cips3d.viewing.blending import Blend
from cips3d.viewing.orbit import FARTHEST, NEAREST, Orbit, all_limits, orbit_at, trained_limits
from cips3d.viewing.pacing import Pacing
from cips3d.viewing.session import Frame, Session, Snapshot
from cips3d.viewing.shots import Shot, Studio
from cips3d.viewing.turns import Turns

if TYPE_CHECKING:
    import viser

KIND_NAMES: dict[PictureKind, str] = {"image": "Picture", "aux": "NeRF", "depth": "Depth", "normals": "Normals"}
SHARE_NAMES = {"shape": "Shape", "appearance": "Appearance", "face": "Share"}
LARGEST_SEED = 2**53 - 1  # the largest integer that a browser counts to
RANDOM_SEEDS = 100_000  # short enough to be noted down

MARGIN = 36  # grey level beside the picture: the panel's
HIDING_DEPTH = 0.05  # scene units; the page's own marks, at the head, lie behind a picture as near as this
LARGEST_PNG = 512**2  # pixels; larger pictures go to the browser as JPEG, which is sooner done
JPEG_QUALITY = 92
PROBLEM = "This checkpoint cannot be shown"

CENTRE = (0.0, 0.0, 0.0)  # of the head
NOTICED = 0.02  # scene units by which a browser's camera may be off before it is put right


@dataclass(frozen=True)
class Exhibit:
    """What all browsers are shown."""

    loaded: LoadedGenerator
    first_shot: Shot
    largest: int
    """side in pixels of the finest pictures"""
    face: tuple[Tensor, ...] | None = None
    """styles of one face that stand for the seed None"""
    second: Path | None = None
    """a second checkpoint to begin with"""
    may_open_files: bool = True
    """the page takes a path; for pages that only this machine reaches"""


class Page:
    """Controls of one browser, on one side, and its pictures, on the other.

    The browser's camera is read and put in the server's event loop alone, where pages are made too: its messages come
    there, and would otherwise replace what is known of the camera in the middle of a change.

    Args:
        client: the browser.
        exhibit: what it is shown.
        turns: where pictures are made.
    """

    def __init__(self, client: viser.ClientHandle, exhibit: Exhibit, turns: Turns) -> None:
        self._client, self._exhibit, self._turns = client, exhibit, turns
        loaded = exhibit.loaded
        self._is_3d = loaded.generator.is_3d
        self._limits = trained_limits(loaded.poses)
        self._studio = Studio(loaded, exhibit.face)
        pacing = Pacing(exhibit.largest, only=loaded.generator.fixed_resolution is not None)
        self.session = Session(self._studio, pacing, self._show, self._complain, turns.clock)
        self._shot = exhibit.first_shot
        self._shot_lock = threading.Lock()
        self._sending = threading.Lock()  # by the pictures' thread, or the event loop's
        self._last: Frame | None = None
        self._aspect = client.camera.aspect
        self._path: viser.GuiTextHandle | None = None
        self._is_in_place = False  # the browser's camera has come to the first shot's
        with client.atomic():
            self._build()
        if exhibit.second is not None:
            threading.Thread(target=self._open_second, args=(exhibit.second,), daemon=True).start()
        client.camera.on_update(self._camera_moved)
        if self._is_3d:
            client.camera.min_orbit_distance, client.camera.max_orbit_distance = NEAREST, FARTHEST
        turns.add(self.session)
        self.session.ask(self._shot)
        turns.wake()

    def leave(self) -> None:
        """The browser has gone."""
        self.session.has_left = True
        self._turns.remove(self.session)

    @property
    def path(self) -> str:
        """The text in the browser's field for a second checkpoint; empty where there is no such field."""
        return "" if self._path is None else self._path.value

    # Controls

    def _build(self) -> None:
        gui = self._client.gui
        if self._is_3d:
            gui.add_markdown("**Drag** the picture to turn the head, **scroll** to come nearer.")
        else:
            gui.add_markdown("This model makes flat pictures: the mouse does not turn them.")
        with gui.add_folder("Face"):
            self._build_face()
        with gui.add_folder("Mix with a second face"):
            self._build_mixing()
        if self._exhibit.may_open_files or self._exhibit.second is not None:
            with gui.add_folder("Mix with a second checkpoint", expand_by_default=self._exhibit.second is not None):
                self._build_second()
        with gui.add_folder("Picture"):
            self._build_picture()
        self._status = gui.add_markdown("")
        self._problem = gui.add_markdown("", visible=False)

    def _build_face(self) -> None:
        gui, shot = self._client.gui, self._shot
        is_given = shot.seed is None
        seed = gui.add_number(
            "Seed", shot.seed or 0, min=0, max=LARGEST_SEED, step=1, disabled=is_given, hint="Every number is a face"
        )
        another = gui.add_button("Another face", color="gray", disabled=is_given, hint="A seed at random")

        def draw(_: object) -> None:
            seed.value = random.randrange(RANDOM_SEEDS)  # type: ignore[misc]  # mypy takes it for read-only

        seed.on_update(lambda _: self._choose(seed=_seed_of(seed.value)))
        another.on_click(draw)
        if self._exhibit.face is not None:
            given = gui.add_checkbox("Given face", is_given, hint="Off: the face of the seed")

            def give(_: object) -> None:
                seed.disabled = another.disabled = given.value
                self._choose(seed=None if given.value else _seed_of(seed.value))

            given.on_update(give)
        most = max(1.0, shot.truncation)
        truncation = gui.add_slider(
            "Truncation",
            0.0,
            most,
            0.05,
            shot.truncation,
            hint="1: the face as it comes; nearer to 0: a more typical one",
        )
        truncation.on_update(lambda _: self._choose(truncation=_held(truncation.value, most)))

    def _build_mixing(self) -> None:
        gui, shot = self._client.gui, self._shot
        second = gui.add_number("Seed", shot.second_seed, min=0, max=LARGEST_SEED, step=1, hint="Of the second face")
        second.on_update(lambda _: self._choose(second_seed=_seed_of(second.value)))
        sliders = [
            gui.add_slider(SHARE_NAMES[part], 0.0, 1.0, 0.05, share, hint="0: the first face's; 1: the second face's")
            for part, share in zip(shot.parts, shot.shares, strict=True)
        ]
        for slider in sliders:
            slider.on_update(lambda _: self._choose(shares=tuple(_held(each.value) for each in sliders)))

    def _build_second(self) -> None:
        gui = self._client.gui
        if self._exhibit.may_open_files:
            self._path = gui.add_text(
                "File",
                "" if self._exhibit.second is None else printable(str(self._exhibit.second)),
                hint="A run folder or a checkpoint, best of a training that went on from this one",
            )
            button = gui.add_button("Open", color="gray")

            def open_typed(_: object) -> None:
                path = os.path.expanduser(self.path.strip())  # noqa: PTH111 - Path's raises for the home of nobody
                self._open_second(Path(path))

            button.on_click(open_typed)
        self._model_share = gui.add_slider(
            "Weight",
            0.0,
            1.0,
            0.05,
            self._shot.model_share,
            disabled=True,
            hint="0: the first checkpoint's weights; 1: the second one's",
        )
        self._model_share.on_update(lambda _: self._choose(model_share=_held(self._model_share.value)))
        self._second_said = gui.add_markdown("")

    def _build_picture(self) -> None:
        gui = self._client.gui
        kinds = {KIND_NAMES[kind]: kind for kind in kinds_of(self._exhibit.loaded.generator)}
        if len(kinds) > 1:
            shown = gui.add_dropdown("Show", tuple(kinds), hint="Depth: near is bright. Normals: blue faces the camera")
            shown.on_update(lambda _: self._choose(kind=kinds[shown.value]))
        if self._is_3d:
            limited = gui.add_checkbox("Trained views", True, hint="Off: look at the head from all around")

            async def limit(_: object) -> None:
                self._limits = (trained_limits if limited.value else all_limits)(self._exhibit.loaded.poses)
                self._go_to(self._limits.held(self._shot.orbit))

            async def front(_: object) -> None:
                self._go_to(trained_limits(self._exhibit.loaded.poses).front)

            limited.on_update(limit)
            gui.add_button("Look from the front", color="gray").on_click(front)
        gui.add_button(
            "Save picture",
            hint=f"As a PNG of {self._exhibit.largest} x {self._exhibit.largest} pixels",
        ).on_click(lambda _: self._save())

    # What the person does

    def _choose(self, **changes: object) -> None:
        """Want another shot."""
        with self._shot_lock:
            self._shot = replace(self._shot, **changes)  # type: ignore[arg-type]  # callers name its fields
            changed = self.session.ask(self._shot)
        if changed:
            self._turns.wake()

    async def _camera_moved(self, camera: viser.CameraHandle) -> None:
        """Follow the mouse, within the limits; the browser's camera is put back where it left them."""
        if camera.aspect != self._aspect:
            self._aspect = camera.aspect
            if self._last is not None:
                self._send()
        if not self._is_3d:
            return
        at_home = _is_near(camera.look_at, CENTRE)
        if not self._is_in_place:  # browsers come with a camera of their own
            self._is_in_place = at_home and _is_near(camera.position, self._shot.orbit.position)
            if not self._is_in_place:
                self._place(self._shot.orbit)
            return
        try:
            held = self._limits.held(orbit_at(camera.position.tolist(), camera.look_at.tolist()))
        except ValueError:  # a browser that went astray: it looks from nowhere, or from what it looks at
            self._place(self._shot.orbit)
            return
        self._choose(orbit=held)
        if not (at_home and _is_near(camera.position, held.position)):
            self._place(held)

    def _go_to(self, orbit: Orbit) -> None:
        """Look from there."""
        self._place(orbit)
        self._choose(orbit=orbit)

    def _place(self, orbit: Orbit) -> None:
        """Put the browser's camera there."""
        camera = self._client.camera
        camera.position = orbit.position
        camera.look_at = CENTRE

    def _open_second(self, path: Path) -> None:
        """Take another checkpoint as the second one; where it cannot be, say why and stay as before."""
        self._second_said.content = f"Opening {_plain(str(path))} ..."
        device = self._exhibit.loaded.device
        try:
            with memory_explained(f"{device} has too little memory for another model; serve on another --device"):
                blend = Blend(self._exhibit.loaded, load_generator(path, device))
        except (UserError, OSError) as error:  # the latter: a name that no file can have
            self._second_said.content = f"⚠️ {_plain(str(error))}."
            return
        self._studio.blend = blend
        self._second_said.content = f"Opened {_plain(path.name)}{blend.second.at_step}: move *Weight* to come to it."
        self._model_share.disabled = False
        with self._shot_lock:
            self.session.ask(self._shot, anew=True)
        self._turns.wake()

    def _save(self) -> None:
        """Take the shot in full size and send it as a file."""
        with self._shot_lock:
            shot = self._shot
        task = Snapshot(
            self._studio,
            shot,
            self._exhibit.largest,
            self._send_file(shot),
            self._complain,
            lambda: self.session.has_left,
        )
        self._turns.add(task)

    def _send_file(self, shot: Shot) -> Callable[[np.ndarray], None]:
        def send(pixels: np.ndarray) -> None:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, format="PNG")
            self._client.send_file_download(file_name(shot), file.getvalue(), save_immediately=True)

        return send

    # What the person sees

    def _show(self, shown: Frame) -> None:
        self._last = shown
        self._send()
        self._problem.visible = False
        if shown.finest:
            side, moving = len(shown.pixels), self.session.pacing.moving
            pace = f" ({moving} × {moving} while moving)" if moving < side else ""
            self._status.content = f"{side} × {side} pixels{pace}"

    def _send(self) -> None:
        """Send the last picture in the window's shape; what is sent last is the newest of both."""
        if self.session.has_left:
            return
        with self._sending:
            assert self._last is not None
            canvas = centred(self._last.pixels, self._aspect)
            self._client.scene.set_background_image(
                canvas,
                format="png" if canvas.shape[0] * canvas.shape[1] <= LARGEST_PNG else "jpeg",
                jpeg_quality=JPEG_QUALITY,
                depth=np.full((1, 1), HIDING_DEPTH),
            )
            self._client.flush()

    def _complain(self, sentence: str) -> None:
        self._problem.content = f"⚠️ {_plain(sentence)}."
        self._problem.visible = True


WIDEST = 8.0  # or highest: a page may claim any shape, and pictures take memory


def centred(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """A picture in the middle of a canvas of another shape.

    Args:
        pixels: [side, side, 3] in 0 to 255.
        aspect: the canvas's width / height. What no window has is taken for `WIDEST`, or for a square.
    """
    aspect = float(np.clip(np.nan_to_num(aspect, nan=1.0), 1 / WIDEST, WIDEST))
    side = len(pixels)
    width, height = max(side, round(side * aspect)), max(side, round(side / aspect))
    canvas = np.full((height, width, 3), MARGIN, dtype=np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    canvas[top : top + side, left : left + side] = pixels
    return canvas


def _is_near(position: np.ndarray, other: tuple[float, float, float]) -> bool:
    return bool(np.abs(position - np.asarray(other)).max() <= NOTICED)


def file_name(shot: Shot) -> str:
    """The name of a saved picture: which face, and what of it."""
    face = "face" if shot.seed is None else f"seed-{shot.seed}"
    mixed = f"-with-{shot.second_seed}" if any(shot.shares) else ""
    kind = "" if shot.kind == "image" else f"-{shot.kind}"
    return f"{face}{mixed}{kind}.png"


def show_problem(client: viser.ClientHandle, sentence: str) -> None:
    """The page of a checkpoint that cannot be shown."""
    said = f"{_plain(sentence)}."
    client.scene.set_background_image(np.full((1, 1, 3), MARGIN, dtype=np.uint8), format="png")
    client.gui.add_markdown(f"**{PROBLEM}:** {said}")
    with client.gui.add_modal(PROBLEM):
        client.gui.add_markdown(f"{said}\n\nEnd the viewer (Ctrl-C in its terminal) and start it with another one.")


def _held(value: float, most: float = 1.0) -> float:
    """A number from 0 to `most`: browsers hand on what is typed before they hold it in its range themselves."""
    return min(max(0.0, float(value)), most)  # 0 of what is no number


def _seed_of(value: float) -> int:
    """A seed, the nearest one to what is typed."""
    return min(max(0, int(value)), LARGEST_SEED)


def _plain(sentence: str) -> str:
    """Text whose signs Markdown leaves as they are."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|~" else letter for letter in printable(sentence))
