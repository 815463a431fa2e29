"""What makes one head differ from another: the parameters and how they are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Index = int | slice | Tensor


class HairStyle(IntEnum):
    """What the hair does behind the face; the fringe in front is swept from the parting in every style."""

    SHORT = 0
    BOB = 1
    LONG = 2
    BUN = 3


class Hat(IntEnum):
    NONE = 0
    CAP = 1
    BEANIE = 2


class Glasses(IntEnum):
    NONE = 0
    ROUND = 1
    SQUARE = 2
    SUN = 3


@dataclass(frozen=True)
class HeadParameters:
    """A batch of heads. Lengths are in head units (`render.HEAD_UNITS` in a scene unit), colours are linear RGB."""

    # Skull and face, factors around 1 unless stated.
    width: Tensor  # [N]
    height: Tensor  # [N]
    depth: Tensor  # [N]
    face_length: Tensor  # [N]
    jaw_width: Tensor  # [N]
    chin_size: Tensor  # [N]
    cheek_size: Tensor  # [N]
    nose_length: Tensor  # [N]
    nose_width: Tensor  # [N]
    nose_depth: Tensor  # [N]
    ear_size: Tensor  # [N]
    neck_width: Tensor  # [N]
    shoulder_width: Tensor  # [N]
    # Eyes, brows and mouth.
    eye_distance: Tensor  # [N] from the middle of the face
    eye_size: Tensor  # [N] factor
    eye_openness: Tensor  # [N] factor
    eye_slant: Tensor  # [N] rise of the outer corner, slope
    gaze: Tensor  # [N, 2] shift of the irises to the right and up
    brow_height: Tensor  # [N] above the eye
    brow_thickness: Tensor  # [N]
    brow_slant: Tensor  # [N] slope
    mouth_width: Tensor  # [N] half width
    mouth_open: Tensor  # [N] gap between the lips
    smile: Tensor  # [N] rise of the corners
    lip_size: Tensor  # [N] factor
    beard: Tensor  # [N] 0 none, 1 full
    # Hair: the parting is on the right of the frontal picture (+x) and the fringe falls to the left, always.
    style: Tensor  # [N] HairStyle
    hair_top: Tensor  # [N] thickness above the skull
    hair_side: Tensor  # [N] thickness beside the skull
    parting: Tensor  # [N] x of the parting
    hairline: Tensor  # [N] y where the fringe starts at the parting
    fringe_drop: Tensor  # [N] how far the fringe falls on its way to the temple
    fringe_lift: Tensor  # [N] thickness of the fringe
    side_length: Tensor  # [N] y down to which short hair reaches beside the face
    hair_length: Tensor  # [N] y down to which long hair and bobs reach
    curl: Tensor  # [N] depth of the curls
    # Things worn and the colours of everything.
    hat: Tensor  # [N] Hat
    hat_height: Tensor  # [N] y of the hat's edge in the middle of the head
    hat_tilt: Tensor  # [N] slope of the edge to the side; negative, so that it shows the fringe
    glasses: Tensor  # [N] Glasses
    neckline: Tensor  # [N] depth of the shirt's cut-out
    stripes: Tensor  # [N] 0 plain, 1 striped
    skin_color: Tensor  # [N, 3]
    lip_color: Tensor  # [N, 3]
    hair_color: Tensor  # [N, 3]
    iris_color: Tensor  # [N, 3]
    shirt_color: Tensor  # [N, 3]
    stripe_color: Tensor  # [N, 3]
    hat_color: Tensor  # [N, 3]
    glasses_color: Tensor  # [N, 3]
    # Light (turns with the head, so that a point has one colour from everywhere) and background.
    light_direction: Tensor  # [N, 3] unit length, towards the lamp
    light_color: Tensor  # [N, 3]
    background_top: Tensor  # [N, 3]
    background_bottom: Tensor  # [N, 3]

    def __len__(self) -> int:
        return len(self.width)

    def __getitem__(self, index: Index) -> HeadParameters:
        """The heads at `index`; an integer gives a batch of one."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"head {index} of {len(self)}")
            index = slice(index, index + 1) if index != -1 else slice(index, None)
        return self._map(lambda value: value[index])

    def columns(self) -> HeadParameters:
        """The same with a last axis of 1, to be broadcast over points: [N] becomes [N, 1]."""
        return self._map(lambda value: value.unsqueeze(-1))

    def _map(self, function: Any) -> HeadParameters:
        return HeadParameters(**{field.name: function(getattr(self, field.name)) for field in fields(self)})


# sRGB colours as a painter would name them.
SKIN = ("f3cdb4", "eec09c", "e2ad86", "d29b72", "b97f55", "9a6440", "7a4a2e", "5f3925")
HAIR = (
    "1d1715",
    "1d1715",
    "2b1d15",
    "35241a",
    "46301f",
    "6b4426",
    "8f5f33",
    "b98a4c",
    "dcbc7c",
    "8d8d92",
    "c9c6c0",
    "a2401f",
    "c4682f",
)
DYED = ("c0508c", "3a77b5", "3f9a8a", "7a4fb0")
IRIS = ("4f7fb5", "5d8f63", "6b4526", "3d2616", "7f97a3", "8a6a33")
CLOTH = ("2f4b7c", "8a3040", "3f7a57", "dcd7ca", "35353d", "cf9438", "6d4f86", "4aa0a8", "b9583a", "9aa2ad", "e6a9a2")
FRAMES = ("18181b", "3a2418", "7c2430", "9c8350", "2b3d63")

DYED_SHARE = 0.05
HAT_SHARE = 0.16
GLASSES_SHARE = 0.22
BEARD_SHARE = 0.18
CURLY_SHARE = 0.25


def to_linear(color: Tensor) -> Tensor:
    """sRGB values to linear light, with the plain power law of 2.2."""
    return color.clamp(0, 1).pow(2.2)


def to_display(color: Tensor) -> Tensor:
    """Linear light to sRGB values, the inverse of `to_linear`."""
    return color.clamp(0, 1).pow(1 / 2.2)


def sample_heads(count: int, generator: torch.Generator) -> HeadParameters:
    """Draw `count` heads at random."""
    draw = _Draw(count, generator)
    style = draw.choice({HairStyle.SHORT: 0.42, HairStyle.BOB: 0.24, HairStyle.LONG: 0.24, HairStyle.BUN: 0.10})
    hat = draw.choice({Hat.NONE: 1 - HAT_SHARE, Hat.CAP: HAT_SHARE / 2, Hat.BEANIE: HAT_SHARE / 2})
    glasses = draw.choice(
        {
            Glasses.NONE: 1 - GLASSES_SHARE,
            Glasses.ROUND: 0.4 * GLASSES_SHARE,
            Glasses.SQUARE: 0.4 * GLASSES_SHARE,
            Glasses.SUN: 0.2 * GLASSES_SHARE,
        }
    )
    hatted = hat != Hat.NONE
    style = torch.where(hatted & (style == HairStyle.BUN), int(HairStyle.SHORT), style)
    short = (style == HairStyle.SHORT) | (style == HairStyle.BUN)
    long = style == HairStyle.LONG
    hair_side = torch.where(short, draw.uniform(0.02, 0.05), draw.uniform(0.07, 0.12))
    hair_length = torch.where(long, draw.uniform(-0.98, -0.66), draw.uniform(-0.52, -0.28))
    curl = draw.chance(CURLY_SHARE) * draw.uniform(0.012, 0.028)
    skin = draw.color(SKIN, blend=0.5)
    hair = torch.where(draw.chance(DYED_SHARE)[:, None] > 0, draw.color(DYED, 0.2), draw.color(HAIR, 0.35))
    flush = torch.tensor([0.86, 0.48, 0.47])
    sky = draw.background()
    return HeadParameters(
        width=draw.uniform(0.93, 1.08),
        height=draw.uniform(0.94, 1.05),
        depth=draw.uniform(0.95, 1.06),
        face_length=draw.uniform(0.93, 1.07),
        jaw_width=draw.uniform(0.85, 1.14),
        chin_size=draw.uniform(0.75, 1.25),
        cheek_size=draw.uniform(0.85, 1.15),
        nose_length=draw.uniform(0.85, 1.15),
        nose_width=draw.uniform(0.8, 1.3),
        nose_depth=draw.uniform(0.75, 1.25),
        ear_size=draw.uniform(0.85, 1.2),
        neck_width=draw.uniform(0.82, 1.15),
        shoulder_width=draw.uniform(0.85, 1.1),
        eye_distance=draw.uniform(0.157, 0.178),
        eye_size=draw.uniform(0.92, 1.15),
        eye_openness=draw.uniform(0.7, 1.05),
        eye_slant=draw.uniform(-0.1, 0.14),
        gaze=torch.stack([draw.uniform(-0.012, 0.012), draw.uniform(-0.006, 0.006)], dim=1),
        brow_height=draw.uniform(0.105, 0.14),
        brow_thickness=draw.uniform(0.014, 0.032),
        brow_slant=draw.uniform(-0.2, 0.1),
        mouth_width=draw.uniform(0.1, 0.145),
        mouth_open=draw.chance(0.3) * draw.uniform(0.012, 0.03),
        smile=draw.uniform(-0.005, 0.055),
        lip_size=draw.uniform(0.75, 1.25),
        beard=draw.chance(BEARD_SHARE) * short * draw.uniform(0.45, 1.0),
        style=style,
        hair_top=torch.where(hatted, draw.uniform(0.03, 0.05), draw.uniform(0.06, 0.14)),
        hair_side=torch.where(hatted, hair_side.clamp_max(0.085), hair_side),
        parting=draw.uniform(0.1, 0.22),
        hairline=draw.uniform(0.4, 0.48),
        fringe_drop=torch.where(hatted, draw.uniform(0.32, 0.42), draw.uniform(0.22, 0.4)),
        fringe_lift=torch.where(hatted, draw.uniform(0.02, 0.03), draw.uniform(0.04, 0.09)),
        side_length=draw.uniform(-0.12, 0.06),
        hair_length=hair_length,
        curl=torch.where(hatted, torch.zeros_like(curl), curl),
        hat=hat,
        hat_height=draw.uniform(0.3, 0.38),
        hat_tilt=draw.uniform(-0.16, -0.02),
        glasses=glasses,
        neckline=draw.uniform(0.0, 0.16),
        stripes=draw.chance(0.25),
        skin_color=skin,
        lip_color=skin * (flush * draw.uniform(0.85, 1.1)[:, None]),
        hair_color=hair,
        iris_color=draw.color(IRIS, 0.3),
        shirt_color=draw.color(CLOTH, 0.3),
        stripe_color=draw.color(CLOTH, 0.2),
        hat_color=draw.color(CLOTH, 0.3),
        glasses_color=draw.color(FRAMES, 0.2),
        light_direction=draw.light(),
        light_color=draw.uniform(0.85, 1.1)[:, None]
        * (1 + 0.05 * draw.normal(3)).clamp(0.9, 1.1)
        * torch.tensor([1.04, 1.0, 0.95]),
        background_top=sky,
        background_bottom=sky * draw.uniform(0.6, 1.0)[:, None],
    )


class _Draw:
    """Random numbers, choices and colours for a batch of heads."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator

    def uniform(self, low: float, high: float) -> Tensor:  # [N]
        return low + (high - low) * torch.rand(self.count, generator=self.generator)

    def normal(self, width: int) -> Tensor:  # [N, width]
        return torch.randn(self.count, width, generator=self.generator)

    def chance(self, probability: float) -> Tensor:  # [N] 0 or 1
        return (torch.rand(self.count, generator=self.generator) < probability).float()

    def choice(self, shares: dict[Any, float]) -> Tensor:  # [N] integers
        weights = torch.tensor(list(shares.values()))
        picked = torch.multinomial(weights, self.count, replacement=True, generator=self.generator)
        return torch.tensor([int(key) for key in shares])[picked]

    def color(self, palette: tuple[str, ...], blend: float) -> Tensor:
        """A colour of the palette, mixed by up to `blend` with another one; [N, 3] linear."""
        colors = torch.tensor([[int(name[i : i + 2], 16) / 255 for i in (0, 2, 4)] for name in palette])
        first, second = torch.randint(len(palette), (2, self.count), generator=self.generator)
        return to_linear(torch.lerp(colors[first], colors[second], self.uniform(0, blend)[:, None]))

    def light(self) -> Tensor:
        """A lamp somewhere above and in front, on either side."""
        side, height = self.uniform(-0.75, 0.75), self.uniform(0.35, 0.9)
        return F.normalize(torch.stack([side, height, torch.full_like(side, 0.9)], dim=1), dim=1)

    def background(self) -> Tensor:
        """A pale or medium colour of any hue, [N, 3] linear."""
        hue = 2 * math.pi * self.uniform(0, 1)
        wheel = torch.stack([torch.cos(hue + 2 * math.pi * channel / 3) for channel in range(3)], dim=1)
        return to_linear(self.uniform(0.42, 0.85)[:, None] + self.uniform(0, 0.1)[:, None] * wheel)
