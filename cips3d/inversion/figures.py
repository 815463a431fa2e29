"""Pictures of an inversion: the losses step by step, and what was found beside the photograph."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cips3d import pictures
from cips3d.cameras import Cameras
from cips3d.inversion.objective import Record
from cips3d.inversion.stages import Inversion
from cips3d.models.generator import chosen
from cips3d.rendering import LoadedGenerator
from cips3d.rendering.frame_sequence import take_pictures
from cips3d.rendering.views import VIEW_YAWS, VISIBLE_SIDE, Look

DIFFERENCE_GAIN = 4  # differences are made this much stronger: those of a good likeness could not be seen

WIDTH, HEIGHT = 900, 480
LEFT, RIGHT, TOP, BOTTOM = 78, 20, 44, 40  # margins of the axes
TEXT = 15
PAPER, INK, GRID, MARK = (255, 255, 255), (40, 40, 40), (225, 225, 225), (150, 150, 150)
LINES = {  # a colour each, which people who see few colours can tell apart (M. Okabe and K. Ito, 2008)
    "total": (0, 0, 0),
    "pixel": (0, 114, 178),
    "perceptual": (213, 94, 0),
    "prior": (0, 158, 115),
    "locality": (204, 121, 167),
}
LOWEST_SHARE = 1e-4  # of the largest loss: what is below is drawn at the bottom


def loss_curve(records: Sequence[Record]) -> Image.Image:
    """The losses over all steps on a logarithmic scale, with the stages marked."""
    if not records:
        raise ValueError("records must hold at least one step, got none")
    drawn = {name: [getattr(record, name) for record in records] for name in LINES}
    drawn = {name: values for name, values in drawn.items() if any(value > 0 for value in values)}
    positive = [value for values in drawn.values() for value in values if 0 < value < math.inf] or [1.0]
    top = max(positive)
    low, high = math.floor(math.log10(max(min(positive), top * LOWEST_SHARE))), math.ceil(math.log10(top))
    low = min(low, high - 1)
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)

    def x_of(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(len(records) - 1, 1)

    def y_of(value: float) -> float:
        exponent = math.log10(min(max(value, 10.0**low), 10.0**high)) if math.isfinite(value) else high
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - exponent) / (high - low)

    for exponent in range(low, high + 1):
        y = y_of(10.0**exponent)
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=GRID)
        draw.text((LEFT - 8, y), f"{10.0**exponent:g}", fill=INK, font=font, anchor="rm")
    for step in _ticks(len(records)):
        draw.text((x_of(step), HEIGHT - BOTTOM + 6), f"{step}", fill=INK, font=font, anchor="ma")
    draw.text((WIDTH - RIGHT, HEIGHT - 4), "step", fill=INK, font=font, anchor="rd")
    for step, stage in _stages(records):
        draw.line([(x_of(step), TOP), (x_of(step), HEIGHT - BOTTOM)], fill=MARK)
        draw.text((x_of(step) + 5, TOP + 2), stage, fill=MARK, font=font)
    starts = [step for step, _ in _stages(records)]
    for start, stop in zip(starts, [*starts[1:], len(records)], strict=True):  # losses of two stages are not one line
        for name, values in reversed(drawn.items()):
            points = [(x_of(k), y_of(values[k])) for k in range(start, stop) if values[k] > 0]
            if len(points) > 1:
                draw.line(points, fill=LINES[name], width=2)
    place = float(LEFT)
    for name in drawn:
        draw.line([(place, TOP / 2), (place + 22, TOP / 2)], fill=LINES[name], width=3)
        draw.text((place + 28, TOP / 2), name, fill=INK, font=font, anchor="lm")
        place += 28 + font.getlength(name) + 24
    return image


def _ticks(steps: int) -> range:
    """Round numbers of steps, no more than eight."""
    wanted = max(steps / 8, 1)
    power = 10 ** math.floor(math.log10(wanted))
    return range(0, steps, next(int(power * factor) for factor in (1, 2, 5, 10) if power * factor >= wanted))


def _stages(records: Sequence[Record]) -> list[tuple[int, str]]:
    """The steps at which stages begin, with the stages' names."""
    return [(k, r.stage) for k, r in enumerate(records) if k == 0 or records[k - 1].stage != r.stage]


def comparison(loaded: LoadedGenerator, photo: Tensor, found: Inversion) -> Image.Image:
    """The photograph, what was found, the difference and, of 3-D models, the face from other sides and its depth.

    Where weights were tuned, the first row shows the face by the original generator and the second by the tuned one.

    Args:
        loaded: the generator that was inverted.
        photo: [3, R, R] in [-1, 1].
        found: the result of `invert`.
    """
    generators = [loaded] if found.tuned is None else [loaded, found.tuned]
    shown = [found.picture] if found.tuned_picture is None else [found.picture, found.tuned_picture]
    rows, labels = [], ["photo", "inversion", f"difference x {DIFFERENCE_GAIN}"]
    for generator, picture in zip(generators, shown, strict=True):
        own = picture[0].cpu().clamp(-1, 1)
        rows.append(torch.stack([photo, own, ((own - photo).abs() * DIFFERENCE_GAIN - 1).clamp(-1, 1)]))
        if found.camera is not None:
            rows[-1] = torch.cat([rows[-1], _sides(generator, found, photo.shape[-1])])
    if found.camera is not None:
        labels += [*(f"yaw {yaw:g}" for yaw in VIEW_YAWS), "depth"]
    return pictures.image_grid(
        torch.cat(rows),
        len(labels),
        row_labels=["latent", "tuned"] if len(rows) > 1 else None,
        column_labels=labels,
        enlarge=max(1, VISIBLE_SIDE // photo.shape[-1]),
    )


def _sides(loaded: LoadedGenerator, found: Inversion, resolution: int) -> Tensor:
    """[4, 3, R, R] the face from three sides, and the depth that the photograph's camera sees."""
    camera = found.camera
    assert camera is not None
    poses = loaded.poses
    yaw = torch.tensor([*(poses.yaw_mean + turn for turn in VIEW_YAWS), camera.yaw])
    pitch = torch.tensor([*(poses.front_pitch for _ in VIEW_YAWS), camera.pitch])
    cameras = Cameras.from_angles(pitch, yaw, loaded.fov_degrees)
    styles = chosen(found.styles, torch.zeros(len(yaw), dtype=torch.long, device=loaded.device))
    taken = take_pictures(loaded, styles, cameras, Look(resolution, ("image", "depth")))
    return torch.cat([taken[:-1, 0], taken[-1:, 1]])
