"""Whole pictures, timed by every way to compute them; milliseconds an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from figures import Result, against_compiled, relative_l2, result_of
from memory import fitting
from picture_cases import Pictures, multiply_adds
from timing import Ceilings, Stopwatch, Work
from torch import Tensor

from cips3d.models.view import View
from cips3d.ops import Precision

OURS: dict[str, Precision] = {"": "fast", "_high": "high", "_accurate": "highest"}
"""our lines' ends, and their precision"""


def pictures_256(device: torch.device) -> Pictures:
    """16 pictures of 256², full widths, 12 + 12 samples."""
    return Pictures(device, *((16, 256) if device.type == "cuda" else (1, 8)))


def work_of(pictures: Pictures, precision: Precision) -> Work:
    """Products of 16-bit numbers, three of them for one that is as accurate as float32's."""
    samples = pictures.settings.samples
    flops = 2.0 * len(pictures.cameras) * multiply_adds(pictures.generator.config, pictures.side, samples)
    return Work(flops=flops, dtype="float16", passes=3 if precision == "highest" else 1)


@torch.no_grad()
def picture_lines(
    pictures: Pictures, stopwatch: Stopwatch, ceilings: Ceilings, name: str, *, others: bool = True
) -> Iterator[tuple[str, Result]]:
    """Ours from styles and cameras on, against the published formulation in eager float32.

    Args:
        pictures: which.
        stopwatch, ceilings: of the device.
        name: what the lines' names begin with.
        others: with lines of plain PyTorch and of the published formulation under bfloat16 autocast.
    """
    images = len(pictures.cameras)
    published = fitting(f"{name}_published", stopwatch, pictures.published)
    expected = None if published is None else pictures.published()
    for way, precision in OURS.items():
        ours = stopwatch(partial(pictures.ours, precision))
        yield (
            f"{name}{way}",
            result_of(
                ours,
                eager=published,
                work=work_of(pictures, precision),
                ceilings=ceilings,
                images=images,
                difference=None if expected is None else relative_l2([pictures.ours(precision)], [expected]),
            ),
        )
    ways: dict[str, Callable[[], Tensor]] = {}
    if others:
        ways = {
            "_plain": pictures.plain,
            "_published_bf16": partial(pictures.published, dtype=torch.bfloat16),
        }
    if published is not None:
        work = work_of(pictures, "fast")
        yield f"{name}_published", result_of(published, work=work, images=images)
    for way, run in ways.items():
        timing = fitting(f"{name}{way}", stopwatch, run)
        if timing is not None:
            yield f"{name}{way}", result_of(timing, work=work_of(pictures, "fast"), images=images)


@torch.no_grad()
def compiled_picture_lines(
    pictures: Pictures, stopwatch: Stopwatch, ceilings: Ceilings, name: str, way: Literal["best", "published"]
) -> Iterator[tuple[str, Result]]:
    """The same pictures by torch.compile in bfloat16; beside the best formulation, ours once more."""
    images, work = len(pictures.cameras), work_of(pictures, "fast")
    render = pictures.best if way == "best" else pictures.published
    compiled = stopwatch(partial(render, compiled=True, dtype=torch.bfloat16))
    yield f"{name}_{way}_bf16_compiled", result_of(compiled, work=work, ceilings=ceilings, images=images)
    for end, precision in OURS.items() if way == "best" else ():
        ours = stopwatch(partial(pictures.ours, precision))
        line = result_of(ours, work=work_of(pictures, precision), ceilings=ceilings, images=images)
        yield f"{name}{end}", against_compiled(line, ours, compiled, images)


@torch.no_grad()
def render_64(stopwatch: Stopwatch) -> Iterator[tuple[str, Result]]:
    """One picture of 64², as small as launches are felt: launch by launch, and replayed from a CUDA graph."""
    pictures = Pictures(stopwatch.device, 1, 64 if stopwatch.device.type == "cuda" else 8)
    generator, view = pictures.generator, View(pictures.side, pictures.cameras, pictures.settings, jitter=False)
    generator.set_precision("fast")
    launched = stopwatch(partial(generator.render, pictures.styles, view), hide_launches=False)
    replayed = stopwatch(partial(generator.compiled_render(view), pictures.styles), hide_launches=False)
    yield "render_64", result_of(launched)
    yield "render_64_replayed", result_of(replayed, eager=launched)
