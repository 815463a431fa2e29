"""Left or right: a classifier taught on synthetic heads and their mirror images, and what it says of generated faces.

Synthetic heads part their hair on one side, always. A generator that renders the two half-spaces as mirror images shows
the parting on the right side from one direction and on the wrong side from the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.data.images import ImageSource
from cips3d.evaluation.image_network import ImageNetwork, all_pixels, roughened, seeded, teach
from cips3d.evaluation.views import FaceSample, equal_angles, resized, seen_from
from cips3d.pictures import from_uint8
from cips3d.rendering import LoadedGenerator

LARGEST_YAW, VIEWS = 0.6, 9
BATCH = 64


class ChiralityClassifier(ImageNetwork):
    """Images [B, 3, R, R] in [-1, 1] -> logit [B, 1] of being mirrored."""

    def __init__(self) -> None:
        super().__init__(outputs=1)

    @torch.no_grad()
    def calls_mirrored(self, images: Tensor) -> Tensor:
        """[B] bool"""
        return torch.cat([self(batch)[:, 0] > 0 for batch in images.split(BATCH)])


def train_chirality_classifier(
    images: ImageSource, *, steps: int = 900, batch_size: int = BATCH, seed: int = 0, progress: bool = True
) -> ChiralityClassifier:
    """Teach a classifier on pictures of one handedness and their mirror images (AdamW, cross entropy, falling rate).

    Args:
        images: none of them mirrored, seen from both sides equally often.
        steps: updates.
        batch_size: pictures an update; a random half is mirrored.
        seed: of weights and draws.
        progress: show a bar on stderr.
    """
    generator = torch.Generator().manual_seed(seed)
    classifier = seeded(ChiralityClassifier, seed)
    pixels = all_pixels(images)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            index = torch.randint(len(pixels), (batch_size,), generator=generator)
            mirrored = torch.rand(batch_size, generator=generator) < 0.5
            batch = from_uint8(pixels[index])
            batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
            rough, order = roughened(batch, generator)
            yield rough, mirrored[order, None].float()

    teach(
        classifier,
        batches(),
        F.binary_cross_entropy_with_logits,
        steps=steps,
        title="chirality classifier",
        progress=progress,
    )
    return classifier


def chirality_accuracy(classifier: ChiralityClassifier, images: ImageSource) -> float:
    """Share of right calls, on pictures that the classifier has not seen and on their mirror images."""
    pixels = from_uint8(all_pixels(images))
    wrong = classifier.calls_mirrored(pixels).float().mean()
    right = classifier.calls_mirrored(pixels.flip(-1)).float().mean()
    return float((1 - wrong + right) / 2)


@dataclass(frozen=True)
class Chirality:
    """Which views of generated faces look mirrored."""

    mirrored: float
    """share of all views that are called mirrored: 0 for heads that are all as those that were taught"""
    changes: float
    """share of the pairs of views at + yaw and - yaw that are called differently: 1 for mirrored half-spaces"""
    yaws: list[float]
    """radians from the front"""
    mirrored_by_yaw: list[float]
    """share of faces called mirrored at each"""


@torch.no_grad()
def chirality(
    loaded: LoadedGenerator,
    classifier: ChiralityClassifier,
    faces: FaceSample,
    *,
    resolution: int,
    largest_yaw: float = LARGEST_YAW,
    views: int = VIEWS,
) -> Chirality:
    """Ask the classifier about the same faces from many sides.

    mirrored = mean over faces and yaws of [called mirrored]; changes = mean over faces and yaws θ > 0 of
    [the call at θ differs from that at -θ]. A classifier with accuracy a calls 1 - a of perfect views mirrored,
    and errs more often the less pictures look like heads: look at those it names before believing it.

    Args:
        loaded: a 3-D generator of synthetic heads.
        classifier: taught on them.
        faces: which faces.
        resolution: side of the pictures that the classifier was taught on.
        largest_yaw: radians; views are equally spaced from minus this to this.
        views: how many, at least 2.

    Raises:
        UserError: the model is 2-D.
    """
    if views < 2:
        raise ValueError(f"views must be at least 2, got {views}")
    yaw = equal_angles(largest_yaw, views)
    calls = torch.cat(
        [
            classifier.calls_mirrored(resized(seen.image.flatten(0, 1), resolution)).view(-1, views)
            for seen in seen_from(loaded, faces, torch.zeros(views), yaw, title="chirality")
        ]
    )  # [S, V]
    half = views // 2
    changes = calls[:, :half] != calls.flip(1)[:, :half]
    return Chirality(
        float(calls.float().mean()), float(changes.float().mean()), yaw.tolist(), calls.float().mean(0).tolist()
    )
