"""One step of training: what it learns, freezes, skips."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from host_waits import reads_of_single_values
from ops.backends import Backend
from torch import Tensor
from training.runs import real_images, run

from cips3d.cameras import FRONT, PoseDistribution
from cips3d.models.view import View
from cips3d.ops import kernels
from cips3d.training import losses
from cips3d.training.config import Amp, TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.objectives import Objectives, StepReport
from cips3d.training.schedule import plan_at
from cips3d.training.state import TrainingState
from cips3d.training.step import TrainingStep


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def test_generated_pictures_are_taken_as_configured(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pose that is known of each is its camera's."""
    stage = replace(small_config.stages[0], grad_points=9, density_noise=0.5)
    config = replace(
        small_config, stages=(stage,), fov_degrees=20.0, poses=PoseDistribution("uniform", yaw_std=0.8, pitch_std=0.01)
    )
    step = TrainingStep(TrainingState(config, Processes()), config)
    views: list[View[Any]] = []
    render = step.state.generator.render
    monkeypatch.setattr(step.state.generator, "render", lambda *of: views.append(of[1]) or render(*of))
    images = step.generate(64, plan_at(config, 1), None)
    (view,) = views
    assert (view.cameras.fov_degrees == 20).all()
    assert (view.volume, view.grad_points, view.return_aux) == (config.volume, 9, True)
    assert view.density_noise == 0.5 * 3 / 4  # after one of four steps
    yaw, pitch = images.pose.T
    assert 0.5 < yaw.abs().max() < 0.81 and pitch.abs().max() < 0.011
    torch.testing.assert_close(yaw + FRONT, view.cameras.yaw)


@pytest.mark.parametrize("reuse_fakes", [False, True])
def test_both_networks_learn(small_config: TrainConfig, reuse_fakes: bool) -> None:
    config = replace(small_config, reuse_fakes=reuse_fakes)
    before = TrainingState(config, Processes())
    after, report = run(config)
    assert report.finite
    for name in ("generator", "discriminator"):
        assert not torch.equal(weights(getattr(before, name)), weights(getattr(after, name))), name
    assert {"d/loss", "d/aux_loss", "d/r1", "g/loss", "g/aux_loss"} <= set(report.scalars)
    assert torch.equal(weights(after.generator_ema), weights(after.generator))  # before ema_start: a copy


@pytest.mark.parametrize(("reuse_fakes", "batches"), [(False, 2), (True, 1)])
def test_batches_that_are_generated_in_a_step(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, reuse_fakes: bool, batches: int
) -> None:
    made = []
    generate = TrainingStep.generate
    monkeypatch.setattr(TrainingStep, "generate", lambda *of: made.append(of) or generate(*of))
    run(replace(small_config, reuse_fakes=reuse_fakes))
    assert len(made) == batches


@pytest.mark.parametrize(("warm_up", "decay"), [(False, 0.75), (True, 2 / 11)])
def test_the_average_follows_as_configured(small_config: TrainConfig, warm_up: bool, decay: float) -> None:
    config = replace(small_config, ema_start=0, ema_decay=0.75, ema_warmup=warm_up)
    before = TrainingState(config, Processes())
    after, _ = run(config)
    expected = torch.lerp(weights(after.generator), weights(before.generator), decay)
    torch.testing.assert_close(weights(after.generator_ema), expected)


def overlapping(module: torch.nn.Module) -> list[str]:
    """Parameters whose gradient shares memory with another's, or with itself."""
    spans = []
    for name, parameter in module.named_parameters():
        grad = parameter.grad
        if grad is None or grad.numel() == 0:
            continue
        length = 1 + sum((n - 1) * step for n, step in zip(grad.shape, grad.stride(), strict=True))
        if length < grad.numel():
            return [name]
        spans.append((grad.data_ptr(), grad.data_ptr() + length * grad.element_size(), name))
    spans.sort()
    return [b[2] for a, b in pairwise(spans) if b[0] < a[1]]


@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_gradients_have_memory_of_their_own(
    small_config: TrainConfig, kernel_backend: Backend, amp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipping and loss scales multiply them in place: of two that share it, twice."""
    config = replace(small_config, device=str(kernel_backend.device), amp=Amp(inr=amp, discriminator=amp))
    seen = []
    update = TrainingStep.update
    monkeypatch.setattr(TrainingStep, "update", lambda *of: seen.append(overlapping(of[1])) or update(*of))
    for kernels_compute in (nullcontext, kernels.disabled):
        with kernels_compute():
            state = TrainingState(config, Processes(device=kernel_backend.device))
            TrainingStep(state, config)(real_images().to(kernel_backend.device), plan_at(config, 0))
    assert seen == [[]] * 4


def test_discriminator_separates_fixed_images(small_config: TrainConfig) -> None:
    """With a generator that stands still, real logits rise above fake ones: the losses have the right signs."""
    _, report = run(small_config, 40, lr_nerf=0.0, lr_inr=0.0, lr_mapping=0.0)
    assert report.scalars["d/real"] > report.scalars["d/fake"] + 0.5


def test_generator_fools_a_fixed_discriminator(small_config: TrainConfig) -> None:
    config = replace(small_config, stages=(replace(small_config.stages[0], lr_discriminator=0.0),))
    _, first = run(config)
    _, last = run(config, 60)
    assert last.scalars["g/loss"] < first.scalars["g/loss"]


def test_discriminator_learns_the_cameras(small_config: TrainConfig) -> None:
    """On images that do not change, the main discriminator's predictions come nearer to the cameras."""
    config = replace(small_config, discriminator=replace(small_config.discriminator, predict_pose=True))
    now = plan_at(replace(config, stages=(replace(config.stages[0], pose_weight=15.0),)), 1)  # no R1 at step 1
    state = TrainingState(config, Processes())
    step = TrainingStep(state, config)
    # Pictures that differ more than those of a generator that has learned nothing.
    fake = replace(step.generate_without_gradient(4, now, None), main=real_images().flip(1))
    optimizer = torch.optim.Adam(state.discriminator.parameters(), lr=1e-2)
    reports = []
    for _ in range(60):
        reports.append(StepReport())
        optimizer.zero_grad()
        step.objectives.discriminator(real_images(), fake, now, reports[-1]).backward()
        optimizer.step()
    assert reports[-1].scalars["d/pose_loss"] < 0.3 * reports[0].scalars["d/pose_loss"]
    predicted = step.objectives.discriminate(fake, now).main.pose
    assert predicted is not None
    assert predicted.shape == (4, 2)


def test_pose_loss_reaches_the_generator(small_config: TrainConfig) -> None:
    config = replace(small_config, discriminator=replace(small_config.discriminator, predict_pose=True))
    gradients = []
    for weight in (0.0, 15.0):
        now = plan_at(replace(config, stages=(replace(config.stages[0], pose_weight=weight),)), 0)
        state = TrainingState(config, Processes())
        step = TrainingStep(state, config)
        step.objectives.generator(step.generate(4, now, None), real_images(), now, StepReport()).backward()
        gradients.append(
            torch.cat([p.grad.reshape(-1) for p in state.generator.nerf.parameters() if p.grad is not None])
        )
    assert not torch.allclose(*gradients, rtol=1e-2)


def test_without_auxiliary_discriminator(small_config: TrainConfig) -> None:
    before = TrainingState(small_config, Processes())
    state, report = run(small_config, aux_weight=0.0)
    assert "d/aux_loss" not in report.scalars
    assert before.discriminator.aux is not None and state.discriminator.aux is not None
    assert torch.equal(weights(before.discriminator.aux), weights(state.discriminator.aux))


def test_frozen_nerf_comes_from_its_average(small_config: TrainConfig) -> None:
    config = replace(small_config, stages=(replace(small_config.stages[0], freeze_nerf=True, aux_weight=0.0),))
    state = TrainingState(config, Processes())
    with torch.no_grad():
        for parameter in state.generator_ema.parameters():
            parameter.add_(0.25)
    average = [weights(module) for module in state.generator_ema.frozen_part()]
    state.enter_stage(0, config.stages[0])
    step = TrainingStep(state, config)
    inr = weights(state.generator.inr)
    step(real_images(), plan_at(config, 0))
    for module, expected in zip(state.generator.frozen_part(), average, strict=True):
        assert torch.equal(weights(module), expected)
    assert not torch.equal(weights(state.generator.inr), inr)


@pytest.mark.parametrize(("r2_gamma", "times"), [(0.0, 2), (1.0, 3)])
def test_penalties_of_real_images_need_no_generated_ones(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, r2_gamma: float, times: int
) -> None:
    """Batches generated in a step whose R1 and R2 are a step of their own."""
    made = []
    generate = TrainingStep.generate
    monkeypatch.setattr(TrainingStep, "generate", lambda *of: made.append(of) or generate(*of))
    _, report = run(replace(small_config, lazy_correction=True, r2_gamma=r2_gamma))
    assert "d/penalty/gradient_norm" in report.scalars and len(made) == times


def test_a_step_asks_for_no_single_numbers(small_config: TrainConfig) -> None:
    """Whether an update is finite comes in one transfer."""
    state = TrainingState(small_config, Processes())
    step = TrainingStep(state, small_config)
    with reads_of_single_values() as reads:
        assert step(real_images(), plan_at(small_config, 0)).finite
    assert reads.count == 0


def test_a_step_draws_from_the_runs_own_numbers_alone(small_config: TrainConfig) -> None:
    """Libraries may draw from the global ones; what a seed trains does not depend on them."""
    config = replace(
        small_config,
        discriminator=replace(small_config.discriminator, predict_pose=True),
        r2_gamma=1.0,
        gradient_penalty=1.0,
        path_length_weight=2.0,
        style_mixing=1.0,
        ada_target=0.6,
    )
    every = ("color", "translation", "cutout")
    stage = replace(config.stages[0], pose_weight=1.0, pose_augment=every, diff_augment=every, grad_points=9)
    config = replace(config, stages=(stage,))
    state = TrainingState(config, Processes())
    state.ada.p = 0.5
    before = torch.get_rng_state()
    assert TrainingStep(state, config)(real_images(), plan_at(config, 0)).finite
    assert torch.equal(torch.get_rng_state(), before)


def test_mixed_precision_of_discriminators_leaves_penalties_exact(small_config: TrainConfig) -> None:
    config = replace(small_config, amp=Amp(discriminator="bf16"))
    state, now = TrainingState(config, Processes()), plan_at(config, 0)
    mixed, plain = Objectives(state, config), Objectives(state, small_config)
    exact = plain.discriminate_real(real_images(), now).main.logits
    assert not torch.equal(mixed.discriminate_real(real_images(), now).main.logits, exact)
    assert torch.equal(mixed.discriminate_real(real_images(), now, exact=True).main.logits, exact)


def test_partial_gradients_and_augmentation(small_config: TrainConfig) -> None:
    _, report = run(small_config, 2, grad_points=10, diff_augment=("color", "translation", "cutout"), fade_steps=4)
    assert report.finite


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_mixed_precision_of_every_network(small_config: TrainConfig, kind: Any) -> None:
    config = replace(small_config, amp=Amp(nerf=kind, inr=kind, discriminator=kind))
    state, report = run(config, 2)
    _, plain = run(small_config, 2)
    assert report.finite
    assert state.scaler_g.is_enabled() == (kind == "fp16")
    # 8 (bf16) or 11 (fp16) bits of mantissa, amplified by the sine's frequency of 30
    assert report.scalars["d/loss"].item() == pytest.approx(plain.scalars["d/loss"].item(), abs=0.05)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_non_finite_gradients_leave_the_weights_alone(small_config: TrainConfig, network: str) -> None:
    state = TrainingState(small_config, Processes())
    state.enter_stage(0, small_config.stages[0])
    *_, parameter = getattr(state, network).parameters()
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(getattr(state, network))
    report = TrainingStep(state, small_config)(real_images(), plan_at(small_config, 0))
    assert not report.finite and not report.overflow
    assert torch.equal(weights(getattr(state, network)), before)
    assert all(p.requires_grad for p in state.discriminator.parameters())


@pytest.mark.parametrize(("scale", "excused"), [(8.0, True), (2.0, True), (1.0, False)])
def test_an_overflow_halves_the_scale_of_losses(small_config: TrainConfig, scale: float, excused: bool) -> None:
    """Once it is as small as can be, something else is wrong."""
    config = replace(small_config, amp=Amp(discriminator="fp16"))
    state = TrainingState(config, Processes())
    state.scaler_d = torch.amp.GradScaler("cpu", init_scale=scale)
    *_, parameter = state.discriminator.parameters()
    parameter.register_hook(lambda gradient: gradient * math.inf)
    report = TrainingStep(state, config)(real_images(), plan_at(config, 0))
    assert not report.finite and report.overflow is excused
    assert state.scaler_d.get_scale() == scale / 2


def test_gradients_are_clipped(small_config: TrainConfig) -> None:
    state = TrainingState(small_config, Processes())
    state.enter_stage(0, small_config.stages[0])
    config = replace(small_config, clip_gradient=1e-3)
    TrainingStep(state, config)(real_images(), plan_at(config, 0))
    norm = torch.stack([p.grad.norm() for p in state.generator.parameters() if p.grad is not None]).norm()
    assert norm.item() <= 1e-3 * 1.001


@pytest.mark.parametrize("alone", [False, True])
def test_a_step_that_is_left_out_leaves_nothing_behind(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Neither a discriminator that cannot learn nor a mean length that is no number."""
    config = replace(small_config, path_length_weight=2.0, path_length_every=1, lazy_correction=alone)
    state = TrainingState(config, Processes())
    state.enter_stage(0, config.stages[0])
    step = TrainingStep(state, config)
    lengths = losses.path_lengths
    for k in range(4):
        with monkeypatch.context() as patch:
            if k == 1:
                patch.setattr(Objectives, "generator", lambda *_: state.generator.mean_styles()[0].sum() * math.nan)
                patch.setattr(state.generator, "mean_styles", lambda: [next(state.generator.parameters())])
            if k == 2:
                patch.setattr(losses, "path_lengths", lambda *arguments: lengths(*arguments) * math.inf)
            before = state.path_length.mean.clone()
            report = step(real_images(), plan_at(config, k))
        assert report.finite is (k in (0, 3))
        assert torch.equal(before, state.path_length.mean) is not report.finite
        assert all(p.requires_grad for p in state.discriminator.parameters())
        assert math.isfinite(state.path_length.mean)


def test_windows_lie_anywhere_in_the_pictures(small_config: TrainConfig) -> None:
    """And nowhere beside them."""
    config = replace(small_config, stages=(replace(small_config.stages[0], crop=6),))
    step, now = TrainingStep(TrainingState(config, Processes()), config), plan_at(config, 0)
    windows = [step.draw_window(now) for _ in range(200)]
    assert {window[:2] for window in windows if window} == {(top, left) for top in range(3) for left in range(3)}
    assert {window[2:] for window in windows if window} == {(6, 6)}


def test_real_pictures_are_cut_where_generated_ones_are(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def judged(real: Tensor, *_: object) -> Tensor:
        seen.append(real)
        raise InterruptedError

    step = TrainingStep(TrainingState(small_config, Processes()), small_config)
    monkeypatch.setattr(step, "draw_window", lambda _: (1, 2, 4, 5))
    monkeypatch.setattr(step, "generate_without_gradient", lambda *_: None)
    monkeypatch.setattr(step.objectives, "discriminator", judged)
    with pytest.raises(InterruptedError):
        step(real_images(), plan_at(small_config, 0))
    assert torch.equal(seen[0], real_images()[:, :, 1:5, 2:7])
