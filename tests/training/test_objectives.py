"""Every loss and regulariser in a training step: that it is there, that it pulls the right way, that it resumes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training.runs import real_images, run

from cips3d.models.discriminator import DiscriminatorOutputs
from cips3d.models.pigan import PiGANConfig
from cips3d.models.pigan_discriminator import PiGANDiscriminatorConfig, pigan_channel_table
from cips3d.training import losses
from cips3d.training.config import Amp, TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.losses import LOSSES
from cips3d.training.objectives import Images, Objectives, StepReport
from cips3d.training.schedule import plan_at
from cips3d.training.state import TrainingState, gradient_scalers
from cips3d.training.step import TrainingStep


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_separates_real_from_generated(small_config: TrainConfig, name: Any) -> None:
    """With a generator that stands still, real logits rise above fake ones."""
    config = replace(small_config, loss=name, r1_gamma=0.1)
    _, report = run(config, 40, lr_nerf=0.0, lr_inr=0.0, lr_mapping=0.0)
    assert report.scalars["d/real"] > report.scalars["d/fake"] + 0.2


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_lets_the_generator_catch_up(small_config: TrainConfig, name: Any) -> None:
    config = replace(small_config, loss=name)
    fixed = {"lr_discriminator": 0.0}
    _, first = run(config, **fixed)
    _, last = run(config, 60, **fixed)
    assert last.scalars["g/loss"] < first.scalars["g/loss"]


@pytest.mark.parametrize("name", LOSSES)
def test_both_networks_make_the_named_loss_small(small_config: TrainConfig, name: Any) -> None:
    stage = replace(small_config.stages[0], aux_weight=0.0)
    config = replace(small_config, loss=name, r1_gamma=0.0, stages=(stage,))
    fake = Images(real_images().flip(1), None, torch.zeros(4, 2), torch.zeros(4, 11))
    objectives, now = Objectives(TrainingState(config, Processes()), config), plan_at(config, 0)
    of_real, of_fake = (
        judged.main.logits
        for judged in (objectives.discriminate_real(real_images(), now), objectives.discriminate(fake, now))
    )
    of_discriminator = objectives.discriminator(real_images(), fake, now, StepReport())
    torch.testing.assert_close(of_discriminator, LOSSES[name].discriminator(of_real, of_fake))
    of_generator = objectives.generator(fake, real_images(), now, StepReport())
    torch.testing.assert_close(of_generator, LOSSES[name].generator(of_fake, of_real))


def penalties(config: TrainConfig, images: Images) -> tuple[Tensor, dict[str, Tensor]]:
    """The discriminators' objective and its scalars at step 0, where all that can be due is due."""
    report = StepReport()
    state = TrainingState(config, Processes())
    return Objectives(state, config).discriminator(real_images(), images, plan_at(config, 0), report), report.scalars


def test_penalties_are_added_with_their_weights(small_config: TrainConfig) -> None:
    config = replace(small_config, r1_gamma=0.0, stages=(replace(small_config.stages[0], aux_weight=0.0),))
    fake = Images(real_images().flip(1), None, torch.zeros(4, 2), torch.zeros(4, 11))
    plain, _ = penalties(config, fake)
    for field, name in (("r1_gamma", "d/r1"), ("r2_gamma", "d/r2")):
        loss, scalars = penalties(replace(config, **{field: 3.0}, r1_every=2), fake)
        assert scalars[name] > 0
        assert loss.item() == pytest.approx((plain + 0.5 * 3.0 * 2 * scalars[name]).item(), rel=1e-5)  # float32
    loss, scalars = penalties(replace(config, gradient_penalty=7.0), fake)
    assert loss.item() == pytest.approx((plain + 7.0 * scalars["d/gradient_penalty"]).item(), rel=1e-5)


def test_both_discriminators_count_as_one_batch(small_config: TrainConfig) -> None:
    """Losses and R1 are means over main and auxiliary logits together, as of the published code."""
    fake = Images(real_images().flip(1), real_images().flip(2), torch.zeros(4, 2), torch.zeros(4, 11))
    config = replace(small_config, r1_gamma=0.0)
    loss, scalars = penalties(config, fake)
    assert loss.item() == pytest.approx((0.5 * (scalars["d/loss"] + scalars["d/aux_loss"])).item(), rel=1e-6)
    state = TrainingState(config, Processes())
    real = real_images().requires_grad_()
    main, aux = state.discriminator.discriminate(real, real, 1.0)
    assert aux is not None
    (slope,) = torch.autograd.grad(main.logits.sum(), real, retain_graph=True)
    (aux_slope,) = torch.autograd.grad(aux.logits.sum(), real)
    squared = torch.cat([slope, aux_slope]).square().sum((1, 2, 3)).mean()
    with_r1, _ = penalties(replace(config, r1_gamma=3.0, r1_every=2), fake)
    assert (with_r1 - loss).item() == pytest.approx(0.5 * 3.0 * 2 * squared.item(), rel=1e-4)
    same = replace(fake, main=real_images(), aux=real_images())  # R2 of these is R1
    without, _ = penalties(config, same)
    with_r2, _ = penalties(replace(config, r2_gamma=3.0, r1_every=2), same)
    assert (with_r2 - without).item() == pytest.approx(0.5 * 3.0 * 2 * squared.item(), rel=1e-4)


def test_both_discriminators_are_penalised(small_config: TrainConfig) -> None:
    """R1, R2 and the gradient penalty of the auxiliary discriminator reach its weights."""
    config = replace(small_config, r2_gamma=1.0, gradient_penalty=1.0)
    fake = Images(real_images().flip(1), real_images().flip(2), torch.zeros(4, 2), torch.zeros(4, 11))
    with_aux, _ = penalties(config, fake)
    without, _ = penalties(config, replace(fake, aux=None))
    assert 2 * with_aux > without  # the mean of both


def test_each_gradient_penalty_runs_its_own_discriminator_alone(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = TrainingState(small_config, Processes())
    seen: list[str] = []
    for name in ("main", "aux"):
        part = getattr(state.discriminator, name)
        monkeypatch.setattr(
            part, "discriminate", lambda *of, run=part.discriminate, name=name: seen.append(name) or run(*of)
        )
    fake = Images(real_images().flip(1), real_images().flip(2), torch.zeros(4, 2), torch.zeros(4, 11))
    Objectives(state, small_config).gradient_penalties(real_images(), fake, plan_at(small_config, 0), StepReport())
    assert seen == ["main", "aux"]


def test_gradient_penalties_lie_between_real_and_generated_pictures_of_their_kind(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way from pictures to the same ones there is nothing else; blocks fade in as everywhere."""
    state = TrainingState(small_config, Processes())
    seen: dict[str, tuple[Tensor, float]] = {}
    for name in ("main", "aux"):
        part = getattr(state.discriminator, name)
        monkeypatch.setattr(
            part, "discriminate", lambda *of, run=part.discriminate, name=name: seen.update({name: of}) or run(*of)
        )
    now = replace(plan_at(small_config, 0), fade=0.25)
    real, other = real_images(), real_images().flip(1)
    for main, aux, same in ((real, other, "main"), (other, real, "aux")):
        fake = Images(main, aux, torch.zeros(4, 2), torch.zeros(4, 11))
        Objectives(state, small_config).gradient_penalties(real, fake, now, StepReport())
        for name, (images, fade) in seen.items():
            assert torch.allclose(images, real) == (name == same)
            assert fade == 0.25


def test_path_lengths_are_regularised(small_config: TrainConfig) -> None:
    config = replace(small_config, path_length_weight=2.0, path_length_every=2)
    state, report = run(config)
    assert report.scalars["g/path_length"] == state.path_length.mean > 0
    _, report = run(config, 2)  # not due at the second step
    assert "g/path_length" not in report.scalars


def test_path_lengths_of_half_a_batch_count_for_the_steps_between(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of lengths of 1 and a mean that has come 1% of the way to them: weight 3, every 5 steps."""
    seen: list[Tensor] = []
    monkeypatch.setattr(losses, "path_lengths", lambda images, *of: seen.append(of[0]) or images.new_ones(len(images)))
    config = replace(small_config, path_length_weight=3.0, path_length_every=5)
    step = TrainingStep(TrainingState(config, Processes()), config)
    loss = step.path_length_loss(4, plan_at(config, 0), None, StepReport())
    assert loss.item() == pytest.approx(3 * 5 * 0.99**2)
    assert seen[0].shape == (2, 4, 8)  # of each of the INR's layers


def test_style_mixing_shows_in_the_pictures(small_config: TrainConfig) -> None:
    config = replace(small_config, style_mixing=1.0)
    step = TrainingStep(TrainingState(config, Processes()), config)
    mixed = step.styles(step.sample_z(3))
    appearance = mixed[-1]
    assert appearance.dim() == 3  # a style for every layer
    assert not torch.equal(appearance[:, 0], appearance[:, -1])


def test_what_is_read_off_is_added_with_its_weight(small_config: TrainConfig) -> None:
    """Both networks make both errors small."""
    discriminator = PiGANDiscriminatorConfig(
        channels=pigan_channel_table(8, base=32, cap=8), latent_dim=5, predict_pose=True
    )
    config = replace(
        small_config,
        generator=PiGANConfig(z_dim=5, width=8, layers=2, mapping_width=8),
        discriminator=discriminator,
        r1_gamma=0.0,
        latent_weight=2.0,
        stages=(replace(small_config.stages[0], aux_weight=0.0, pose_weight=3.0),),
    )
    fake = Images(real_images().flip(1), None, torch.ones(4, 2), torch.ones(4, 5))
    objectives, now = Objectives(TrainingState(config, Processes()), config), plan_at(config, 0)
    for name, objective in (("d", objectives.discriminator), ("g", objectives.generator)):
        pair = (real_images(), fake) if name == "d" else (fake, real_images())
        report = StepReport()
        loss = objective(*pair, now, report)
        pose, latent = report.scalars[f"{name}/pose_loss"], report.scalars[f"{name}/latent_loss"]
        assert pose > 0.1 and latent > 0.1
        torch.testing.assert_close(loss, report.scalars[f"{name}/loss"] + 3 * pose + 2 * latent)


def test_z_is_read_off_the_images(small_config: TrainConfig) -> None:
    config = replace(
        small_config,
        generator=PiGANConfig(z_dim=5, width=8, layers=2, mapping_width=8),
        discriminator=PiGANDiscriminatorConfig(channels=pigan_channel_table(8, base=32, cap=8), latent_dim=5),
        latent_weight=2.0,
    )
    _, report = run(config, aux_weight=0.0)
    assert report.scalars["d/latent_loss"] > 0 and report.scalars["g/latent_loss"] > 0
    _, first = run(config, lr_nerf=0.0, lr_mapping=0.0, aux_weight=0.0)
    _, last = run(config, 80, lr_nerf=0.0, lr_mapping=0.0, aux_weight=0.0)
    assert last.scalars["d/latent_loss"] < first.scalars["d/latent_loss"]


def test_cameras_cannot_be_told_by_colour(small_config: TrainConfig) -> None:
    """Images whose brightness tells the camera: on augmented copies, the camera is much harder to read off."""
    config = replace(small_config, discriminator=replace(small_config.discriminator, predict_pose=True), r1_gamma=0.0)
    angles = torch.linspace(-1, 1, 16)
    images = Images(
        angles[:, None, None, None].expand(16, 3, 8, 8), None, angles[:, None].expand(16, 2), torch.zeros(16, 1)
    )
    found = []
    for kinds in ((), ("color",)):
        stage = replace(config.stages[0], aux_weight=0.0, pose_weight=15.0, pose_augment=kinds)
        now = plan_at(replace(config, stages=(stage,)), 1)
        state = TrainingState(config, Processes())
        objectives = Objectives(state, config)
        optimizer = torch.optim.Adam(state.discriminator.parameters(), lr=1e-2)
        errors = []
        for _ in range(80):
            report = StepReport()
            optimizer.zero_grad()
            objectives.discriminator(images.main, images, now, report).backward()
            optimizer.step()
            errors.append(report.scalars["d/pose_loss"].item())
        found.append(sum(errors[-10:]) / 10)
    assert 20 * found[0] < found[1], found  # radians squared


def test_the_generator_learns_from_cameras_read_off_augmented_pictures(small_config: TrainConfig) -> None:
    config = replace(small_config, discriminator=replace(small_config.discriminator, predict_pose=True))
    stage = replace(config.stages[0], aux_weight=0.0, pose_weight=15.0, pose_augment=("color",))
    now = plan_at(replace(config, stages=(stage,)), 1)
    objectives = Objectives(TrainingState(config, Processes()), config)
    fake = Images(real_images().requires_grad_(), None, torch.ones(4, 2), torch.zeros(4, 11))
    loss = objectives.pose_and_latent_losses("g", objectives.discriminate(fake, now), fake, now, StepReport())
    assert isinstance(loss, Tensor)
    (slope,) = torch.autograd.grad(loss, fake.main)
    assert slope.abs().flatten(1).amax(1).min() > 0


def test_top_k_learns_from_the_best(small_config: TrainConfig) -> None:
    config = replace(small_config, top_k=0.5)
    objectives = Objectives(TrainingState(config, Processes()), config)
    logits = torch.tensor([[0.0], [3.0], [1.0], [2.0]])
    late = replace(plan_at(config, 0), step=10**6)
    assert objectives.top_k_of(logits, late).flatten().tolist() == [3.0, 2.0]
    assert len(objectives.top_k_of(logits, plan_at(config, 0))) == 4


def test_augmentation_adapts(small_config: TrainConfig) -> None:
    """A target that every discriminator is above drives the probability up, by an interval's images."""
    config = replace(small_config, ada_target=-2.0, ada_kimg=0.1)
    state, report = run(config, 4)
    assert state.ada.p == pytest.approx(16 / 100) == report.scalars["schedule/ada_p"].item()


def test_augmentation_changes_what_is_seen(small_config: TrainConfig) -> None:
    config = replace(small_config, ada_target=0.6)
    state = TrainingState(config, Processes())
    objectives, now = Objectives(state, config), plan_at(config, 0)
    assert torch.equal(objectives.augment(real_images(), now), real_images())
    state.ada.p = 1.0
    assert not torch.allclose(objectives.augment(real_images(), now), real_images())
    state.ada.p = 0.0
    brighter = replace(now, stage=replace(now.stage, diff_augment=("color",)))
    assert not torch.allclose(objectives.augment(real_images(), brighter), real_images())


def test_the_sign_that_augmentation_follows_is_of_single_pictures(small_config: TrainConfig) -> None:
    """One of four real pictures is taken for real: three quarters of the signs are negative."""
    config = replace(small_config, r1_gamma=0.0)
    state, now, report = TrainingState(config, Processes()), plan_at(config, 0), StepReport()
    objectives = Objectives(state, config)
    fake = Images(real_images().flip(1), real_images().flip(2), torch.zeros(4, 2), torch.zeros(4, 11))
    logits = objectives.discriminate_real(real_images(), now).main.logits.detach()
    between = logits.flatten().topk(2).values.mean()
    outputs = objectives.discriminate_real

    def shifted(*of: Any) -> DiscriminatorOutputs:
        found = outputs(*of)
        return found._replace(main=found.main._replace(logits=found.main.logits - between))

    objectives.discriminate_real = shifted  # type: ignore[method-assign]
    objectives.discriminator(real_images(), fake, now, report)
    assert report.scalars["d/real_sign"] == -0.5


def test_both_discriminators_see_augmented_pictures(small_config: TrainConfig) -> None:
    state = TrainingState(small_config, Processes())
    objectives, now = Objectives(state, small_config), plan_at(small_config, 0)
    fake = Images(real_images(), real_images().flip(1), torch.zeros(4, 2), torch.zeros(4, 11))
    plain = objectives.discriminate(fake, now)
    brighter = replace(now, stage=replace(now.stage, diff_augment=("color",)))
    augmented = objectives.discriminate(fake, brighter)
    for before, after in zip(plain, augmented, strict=True):
        assert not torch.allclose(before.logits, after.logits)


def test_a_second_slower_average(small_config: TrainConfig) -> None:
    config = replace(small_config, ema_start=0, ema_decay=0.0, slow_ema_decay=0.999)
    state, _ = run(config, 6)
    assert state.generator_slow_ema is not None
    assert torch.equal(weights(state.generator_ema), weights(state.generator))
    assert not torch.equal(weights(state.generator_slow_ema), weights(state.generator))
    again = TrainingState(config, Processes())
    again.load_state_dict(state.state_dict())
    assert again.generator_slow_ema is not None
    assert torch.equal(weights(again.generator_slow_ema), weights(state.generator_slow_ema))


@pytest.mark.parametrize("name", ["nerf", "inr", "discriminator"])
def test_losses_are_scaled_where_float16_is_on_their_way(name: str) -> None:
    of_generator, of_discriminator = gradient_scalers(Amp(**{name: "fp16"}), torch.device("cpu"))  # type: ignore[arg-type]
    assert of_generator.is_enabled()  # its gradients come through the discriminator
    assert of_discriminator.is_enabled() == (name == "discriminator")


def test_all_of_it_resumes_exactly(small_config: TrainConfig) -> None:
    config = replace(
        small_config,
        loss="relativistic",
        r2_gamma=1.0,
        path_length_weight=2.0,
        path_length_every=2,
        style_mixing=0.9,
        ada_target=0.6,
        ada_kimg=0.1,
        slow_ema_decay=0.99,
    )

    def advance(state: TrainingState, first: int, last: int) -> None:
        step = TrainingStep(state, config)
        state.enter_stage(0, config.stages[0])
        for k in range(first, last):
            assert step(real_images(), plan_at(config, k)).finite

    whole = TrainingState(config, Processes())
    advance(whole, 0, 6)
    half = TrainingState(config, Processes())
    advance(half, 0, 3)
    resumed = TrainingState(config, Processes())
    resumed.load_state_dict(half.state_dict())
    advance(resumed, 3, 6)
    for name in ("generator", "discriminator", "generator_slow_ema", "path_length"):
        a, b = getattr(whole, name).state_dict(), getattr(resumed, name).state_dict()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    assert whole.ada.state_dict() == resumed.ada.state_dict()
