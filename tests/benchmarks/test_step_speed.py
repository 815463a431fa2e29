"""Training steps that are timed are steps, and their FLOPs are counted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from picture_cases import Pictures, multiply_adds
from step_speed import BFLOAT16, KINDS, Steps, config_256, counted_flops, mean_of_interval, works_of
from timing import Stopwatch, Timing

from cips3d.training.config import Amp, TrainConfig

CPU = torch.device("cpu")


def test_a_step_that_is_not_finite_is_not_timed(small_config: TrainConfig) -> None:
    steps = Steps(small_config, CPU)
    for regularised in (True, False):
        steps.run(regularised=regularised)
    with torch.no_grad():
        for parameter in steps.state.discriminator.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        steps.timed("a", Stopwatch(CPU), repeats=1)


def test_published_step_is_the_same_step() -> None:
    """The same losses and, with them, the same gradients' norms: the comparison of speeds is of one step."""
    config = config_256("highest", Amp(), on_gpu=False)
    config = replace(config, stages=(replace(config.stages[0], aux_weight=1.0),))
    reports = []
    for make in (Steps, Steps.published):
        torch.manual_seed(0)
        steps = make(config, CPU)
        steps.real = torch.rand(steps.real.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        reports.append({name: float(value) for name, value in steps.run(regularised=True).scalars.items()})
    ours, published = reports
    assert {"d/loss", "d/aux_loss", "d/r1", "g/loss", "g/aux_loss", "g/gradient_norm"} <= ours.keys()
    assert published == pytest.approx(ours, rel=1e-3)


def test_mean_of_an_interval() -> None:
    """One step with R1, fifteen without."""
    found = mean_of_interval(Timing(33.0, 5.0, 18.0), Timing(17.0, 4.0, 2.0), every=16)
    assert (found.ms, found.peak_mb, found.host_ms) == (18.0, 5.0, 3.0)
    assert mean_of_interval(Timing(1.0, 0.0), Timing(1.0, 0.0), every=16).host_ms is None


def test_configurations() -> None:
    """Gradients through every ray, R1 every 16 steps."""
    for precision, amp in KINDS.values():
        config = config_256(precision, amp, on_gpu=True)
        (stage,) = config.stages
        assert (stage.resolution, stage.batch_size, stage.grad_points, stage.freeze_nerf) == (256, 4, None, False)
        assert (config.r1_every, config.precision, config.amp) == (16, precision, amp)


def test_flops_are_counted() -> None:
    a, image, filters = torch.randn(6, 5, requires_grad=True), torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)

    def run() -> None:
        (a @ torch.ones(5, 7)).sum().backward()
        torch.nn.functional.conv2d(image, filters)

    assert counted_flops(run) == (2 * 2 * 6 * 5 * 7, 2 * 6 * 6 * 4 * 3 * 9)


@torch.no_grad()
def test_no_product_of_a_picture_is_missed() -> None:
    pictures = Pictures(CPU, 1, 8)
    products, convolutions = counted_flops(partial(pictures.ours, "highest"))
    assert convolutions == 0
    # Folding the styles into the weights takes a few products besides.
    assert products == pytest.approx(2 * multiply_adds(pictures.generator.config, 8, 12), rel=0.03)


def test_work_of_a_step(small_config: TrainConfig) -> None:
    """Float32 products are three of float16 numbers; R1's share is that of its steps."""
    often, seldom = (works_of(Steps(replace(small_config, r1_every=every), CPU)) for every in (2, 16))
    assert [(work.dtype, work.passes) for work in often] == [("float16", 3), ("tfloat32", 1)]
    assert often[1].flops > seldom[1].flops > 0
    high = works_of(Steps(replace(small_config, precision="high"), CPU))
    assert [(work.dtype, work.passes) for work in high] == [("tfloat32", 1)] * 2
    (rounded,) = works_of(Steps(replace(small_config, amp=BFLOAT16), CPU))
    assert (rounded.dtype, rounded.passes) == ("float16", 1)
    assert rounded.flops == pytest.approx(sum(work.flops for work in often), rel=0.01)
