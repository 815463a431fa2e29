"""What a browser asks to see, and the picture of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cips3d import pictures
from cips3d.models.generator import styles_of, truncated
from cips3d.process.devices import memory_explained
from cips3d.rendering.frame_sequence import take_pictures
from cips3d.rendering.loading import LoadedGenerator
from cips3d.rendering.seeds import styles_of_seeds
from cips3d.rendering.style_paths import style_parts
from cips3d.rendering.views import Look, PictureKind
from cips3d.viewing.blending import Blend
from cips3d.viewing.orbit import Orbit, trained_limits

# Parts of styles that have a share of the second face each; styles of other parts are mixed as a whole.
SEPARATE_PARTS = ("shape", "appearance")


@dataclass(frozen=True)
class Shot:
    """Everything that a picture depends on, apart from the models and its size."""

    orbit: Orbit
    seed: int | None = 0
    """of the face; None: the one whose styles were given"""
    second_seed: int = 1
    """of the face that is mixed in"""
    shares: tuple[float, ...] = (0.0,)
    """of the second face, in each of `parts`: 0 none, 1 all"""
    truncation: float = 1.0
    kind: PictureKind = "image"
    model_share: float = 0.0
    """of the second checkpoint"""

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of styles that can be mixed separately; ("face",) where only the whole can."""
        return SEPARATE_PARTS if len(self.shares) == len(SEPARATE_PARTS) else ("face",)


class GivenUpError(Exception):
    """Nobody waits for the picture any more."""


class Studio:
    """Takes the shots of one browser.

    Args:
        loaded: the model.
        face: styles of one face, which `Shot.seed` None stands for.
    """

    def __init__(self, loaded: LoadedGenerator, face: tuple[Tensor, ...] | None = None) -> None:
        if face is not None and any(len(part) != 1 for part in face):
            raise ValueError(f"face must be styles of one face, got {len(face[0])}")
        self.loaded = loaded
        self.face = face
        self.blend: Blend | None = None
        """the way to a second checkpoint"""

    @property
    def first_shot(self) -> Shot:
        """The face from the front, with a share of every part that can be mixed separately."""
        orbit = trained_limits(self.loaded.poses).front
        parts = style_parts(styles_of_seeds(self.loaded, [0]))
        shares = (0.0,) * (len(SEPARATE_PARTS) if parts == SEPARATE_PARTS else 1)
        return Shot(orbit, 0 if self.face is None else None, shares=shares)

    def model(self, shot: Shot) -> LoadedGenerator:
        """The model between the checkpoints."""
        return self.loaded if self.blend is None else self.blend.at(shot.model_share)

    @torch.no_grad()
    def styles(self, shot: Shot) -> tuple[Tensor, ...]:
        """Styles of one face: (1 - share) of the first and share of the second face, part by part."""
        model = self.model(shot)
        first = self._face(model, shot.seed, shot.truncation)
        if not any(shot.shares):
            return first
        second = self._face(model, shot.second_seed, shot.truncation)
        shares = shot.shares if len(shot.shares) == len(first) else shot.shares * len(first)
        return styles_of(first, [torch.lerp(a, b, share) for a, b, share in zip(first, second, shares, strict=True)])

    def take(self, shot: Shot, resolution: int, unwanted: Callable[[], bool] = lambda: False) -> np.ndarray:
        """The picture, [resolution, resolution, 3] in 0 to 255.

        Args:
            shot: what.
            resolution: side in pixels.
            unwanted: asked while the picture is made; once it says True, the picture is given up.

        Raises:
            GivenUpError: it is not wanted any more.
            UserError: the model gives no numbers, or there is too little memory.
        """
        model = self.model(shot)
        cameras = shot.orbit.cameras(model.fov_degrees)
        small_memory = (
            f"{model.device} has too little memory for {resolution} x {resolution} pixels; "
            "start the viewer with a lower --resolution"
        )
        with memory_explained(small_memory), given_up_when(unwanted, model.generator):
            shown = take_pictures(model, self.styles(shot), cameras, Look(resolution, (shot.kind,)))
        pixels: np.ndarray = pictures.to_uint8(shown[0, 0]).permute(1, 2, 0).numpy()
        return pixels

    def _face(self, model: LoadedGenerator, seed: int | None, truncation: float) -> tuple[Tensor, ...]:
        if seed is not None:
            return styles_of_seeds(model, [seed], truncation)
        if self.face is None:
            raise ValueError("seed must be an integer where no styles were given, got None")
        return self.face if truncation == 1 else truncated(self.face, model.mean_styles, truncation)


@contextmanager
def given_up_when(unwanted: Callable[[], bool], network: nn.Module) -> Iterator[None]:
    """Leave with `GivenUpError` when a layer of the network begins and `unwanted` says True.

    Pictures consist of many parts (rays in chunks, layers of convolutions), so that none is computed for long after
    it was given up. Other threads may use the network meanwhile.
    """
    owner = threading.get_ident()

    def ask(*_: object) -> None:
        if threading.get_ident() == owner and unwanted():
            raise GivenUpError

    hooks = [layer.register_forward_pre_hook(ask) for layer in network.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
