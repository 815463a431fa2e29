"""A training step like the published 256² stage's: batch 4, R1 every 16 steps.

The NeRF learns too, through every ray, and the discriminator has all of its newest block: the most that a step can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any
from unittest import mock

import published_formulation
import torch
from figures import Result, result_of
from memory import fitting
from timing import Ceilings, Stopwatch, Timing, Work
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cips3d.models.cips3d import CIPS3D
from cips3d.ops import Precision, kernels
from cips3d.ops.precision import product_precision
from cips3d.training.config import Amp, TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.objectives import StepReport
from cips3d.training.presets import preset
from cips3d.training.resolving import resolved
from cips3d.training.schedule import plan_at
from cips3d.training.state import TrainingState
from cips3d.training.step import TrainingStep

BLURS = import_module("cips3d.ops.upfirdn2d")  # the module; the package has the function of that name

BFLOAT16 = Amp(nerf="bf16", inr="bf16", discriminator="bf16")
KINDS: dict[str, tuple[Precision | None, Amp]] = {
    "train_step_256": (None, Amp()),  # as PyTorch is set by itself: float32, but TF32 for convolutions
    "train_step_256_high": ("high", Amp()),
    "train_step_256_bf16": (None, BFLOAT16),
}


def config_256(precision: Precision | None, amp: Amp, *, on_gpu: bool) -> TrainConfig:
    """Elsewhere than on a GPU, pictures of 8²."""
    config = resolved(replace(preset("ffhq"), batch_size=4, precision=precision, amp=amp))
    stage = replace(config.stages[-1], freeze_nerf=False, grad_points=None, fade_steps=0)
    if not on_gpu:
        stage = replace(stage, resolution=8)
    return replace(config, stages=(stage,), r1_every=16)


class Steps:
    """Steps of a configuration's first stage on a device, with R1 and without, on random images."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.state = TrainingState(config, Processes(device=device))
        now = plan_at(config, 0)
        self.state.enter_stage(now.stage_index, now.stage)
        self.step = TrainingStep(self.state, config)
        size = (now.stage.batch_size, 3, now.stage.resolution, now.stage.resolution)
        self.real = torch.rand(size, device=device) * 2 - 1

    @classmethod
    def published(cls, config: TrainConfig, device: torch.device) -> Steps:
        """Steps whose generator renders in the published formulation; for runs without kernels."""
        steps = cls(config, device)
        generator = steps.state.generator
        assert isinstance(generator, CIPS3D)
        generator.render = partial(published_formulation.picture, generator)  # type: ignore[method-assign]
        return steps

    def run(self, *, regularised: bool) -> StepReport:
        """One step.

        Raises:
            RuntimeError: a loss or gradient was not finite, so the step was left out and its time is none.
        """
        now = plan_at(self.config, 0 if regularised else 1)
        assert now.r1_due is regularised
        with product_precision(self.config.precision):
            report = self.step(self.real, now)
        if not report.finite:
            raise RuntimeError("a loss or gradient of a training step was not finite")
        return report

    def timed(self, name: str, stopwatch: Stopwatch, repeats: int, warm_up: int = 2) -> Timing | None:
        """The mean of an R1 interval; None where it needs more memory than there is."""

        def of(regularised: bool) -> Timing | None:
            run = partial(self.run, regularised=regularised)
            return fitting(name, partial(stopwatch, repeats=repeats, warm_up=warm_up), run)

        with_r1 = of(True)
        without = None if with_r1 is None else of(False)
        if with_r1 is None or without is None:
            return None
        return mean_of_interval(with_r1, without, self.config.r1_every)


def mean_of_interval(regularised: Timing, ordinary: Timing, every: int) -> Timing:
    """Of one step with R1 and `every` - 1 without."""

    def mean(a: float, b: float) -> float:
        return (a + (every - 1) * b) / every

    host = None
    if regularised.host_ms is not None and ordinary.host_ms is not None:
        host = mean(regularised.host_ms, ordinary.host_ms)
    return Timing(mean(regularised.ms, ordinary.ms), max(regularised.peak_mb, ordinary.peak_mb), host)


class FlopCounter(TorchDispatchMode):
    """FLOPs of what is computed inside, by PyTorch's own formulas.

    `FlopCounterMode` itself follows modules too, which second derivatives of a discriminator's input do not bear.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = self.convolutions = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            flops = formula(*args, **(kwargs or {}), out_val=out)
            if "convolution" in str(func):
                self.convolutions += flops
            else:
                self.products += flops
        return out


def counted_flops(run: Callable[[], object]) -> tuple[float, float]:
    """FLOPs of the matrix products and of the convolutions that a function computes, in plain PyTorch.

    Blurs count as the convolutions they are, not as the products with banded matrices that suit a CPU.
    """
    with FlopCounter() as counter, kernels.disabled(), mock.patch.object(BLURS, "BAND_SIZE", 0):
        run()
    return counter.products, counter.convolutions


def works_of(steps: Steps) -> list[Work]:
    """A mean step's products and convolutions, as accurate as its configuration wants them.

    With float32 networks, a product is three of float16 numbers, or with "high" one of TF32's, and convolutions are
    what cuDNN computes by default.
    """
    every = steps.config.r1_every
    with_r1, without = (counted_flops(partial(steps.run, regularised=regularised)) for regularised in (True, False))
    products, convolutions = ((a + (every - 1) * b) / every for a, b in zip(with_r1, without, strict=True))
    if steps.config.amp == BFLOAT16:
        return [Work(flops=products + convolutions, dtype="float16")]
    dtype = "tfloat32" if torch.backends.cudnn.allow_tf32 else "float32"
    exact = Work(flops=products, dtype="float16", passes=3)
    of_products = Work(flops=products, dtype="tfloat32") if steps.config.precision == "high" else exact
    return [of_products, Work(flops=convolutions, dtype=dtype)]


def train_step_256(stopwatch: Stopwatch, ceilings: Ceilings) -> Iterator[tuple[str, Result]]:
    """In float32, with TF32 and under bfloat16 autocast, with kernels and with every op in plain PyTorch.

    `..._of_published` are ours once more, against the step in float32 with the published formulation of the generator.
    """
    on_gpu = stopwatch.device.type == "cuda"
    once = {} if on_gpu else {"repeats": 1, "warm_up": 0}  # elsewhere it only has to be seen to run
    with kernels.disabled():
        steps = Steps.published(config_256(*KINDS["train_step_256"], on_gpu=on_gpu), stopwatch.device)
        published = steps.timed("train_step_256_published", stopwatch, **({"repeats": 3} | once))
    if published is not None:
        yield "train_step_256_published", result_of(published)
    for name, (precision, amp) in KINDS.items():
        steps = Steps(config_256(precision, amp, on_gpu=on_gpu), stopwatch.device)
        ours = steps.timed(name, stopwatch, **({"repeats": 5} | once))
        with kernels.disabled():
            plain = steps.timed(f"{name}_plain", stopwatch, **({"repeats": 3} | once))
        if ours is None:
            continue
        line = result_of(ours, eager=plain)
        if plain is not None:
            works = works_of(steps)
            flops = sum(work.flops for work in works)
            line = replace(
                line,
                fraction_of_limit=ceilings.floor_ms(*works) / ours.ms,
                flops_per_second=flops / (ours.ms / 1e3),
            )
            yield name, line
            yield f"{name}_plain", replace(result_of(plain), flops_per_second=flops / (plain.ms / 1e3))
        else:
            yield name, line
        if published is not None:
            yield f"{name}_of_published", result_of(ours, eager=published)
