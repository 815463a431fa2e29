"""One step of training: sample, render, discriminate, regularise, learn, average (CIPS-3D, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cips3d.cameras import FRONT, Cameras
from cips3d.training.config import TrainConfig
from cips3d.training.diff_augment import diff_augment
from cips3d.training.ema import update_ema
from cips3d.training.losses import (
    logistic_discriminator_loss,
    nonsaturating_generator_loss,
    pose_loss,
    r1_penalty,
)
from cips3d.training.schedule import Moment
from cips3d.training.state import TrainingState, amp_dtype

SMALLEST_SCALE = 1.0  # a float16 loss scale that has fallen to this does not explain an overflow any more


@dataclass
class StepReport:
    """What happened in a step."""

    scalars: dict[str, Tensor] = field(default_factory=dict)
    """losses, logits and gradient norms by name"""
    finite: bool = True
    """False: a loss or gradient was not finite and the update was left out"""
    overflow: bool = False
    """True: only a float16 overflow, which a smaller loss scale mends"""


@dataclass(frozen=True)
class Images:
    """Generated images; `aux` is the NeRF's own picture where the auxiliary discriminator is on."""

    main: Tensor  # [B, 3, H, W] in [-1, 1]
    aux: Tensor | None  # [B, 3, H, W]
    pose: Tensor  # [B, 2] yaw and pitch of the cameras, radians from the front

    def detach(self) -> Images:
        return Images(self.main.detach(), None if self.aux is None else self.aux.detach(), self.pose)


class TrainingStep:
    """The algorithm. Calling it with real images changes the networks of `state`."""

    def __init__(self, state: TrainingState, config: TrainConfig) -> None:
        self.state = state
        self.config = config

    def __call__(self, real: Tensor, now: Moment) -> StepReport:
        """real: [B, 3, H, W] in [-1, 1], this process's share of the batch."""
        state, config = self.state, self.config
        report = StepReport()
        state.set_learning_rates(now.stage, now.rate)
        parts = real.chunk(now.stage.accumulation)

        fakes = self.generate(len(real), now) if config.reuse_fakes else None

        state.optimizer_d.zero_grad(set_to_none=True)
        for part in parts:
            seen = self.generate_without_gradient(len(part), now) if fakes is None else fakes.detach()
            loss = self.discriminator_loss(part, seen, now, report) / len(parts)
            state.scaler_d.scale(loss).backward()
        if not self.update(state.discriminator, state.optimizer_d, state.scaler_d, "d", report):
            return report

        state.discriminator.requires_grad_(False)
        state.optimizer_g.zero_grad(set_to_none=True)
        for part in parts:
            made = self.generate(len(part), now) if fakes is None else fakes
            loss = self.generator_loss(made, now, report) / len(parts)
            state.scaler_g.scale(loss).backward()
        state.discriminator.requires_grad_(True)
        if not self.update(state.generator, state.optimizer_g, state.scaler_g, "g", report):
            return report

        update_ema(
            state.generator_ema,
            state.generator,
            step=now.step,
            decay=config.ema_decay,
            start=config.ema_start,
        )
        return report

    def generate(self, batch: int, now: Moment) -> Images:
        """Render images of random z from random cameras."""
        config, random = self.config, self.state.random
        generator = self.state.generator
        z_shape, z_appearance = generator.sample_z(batch, generator=random)
        pitch, yaw = config.poses.sample(batch, generator=random, device=random.device)
        rendering = generator.synthesis(
            generator.mapping(z_shape, z_appearance),
            Cameras.from_angles(pitch, yaw, config.fov_degrees),
            config.volume,
            resolution=now.stage.resolution,
            density_noise=now.density_noise,
            return_aux=now.stage.aux_weight > 0,
            grad_points=now.stage.grad_points,
            generator=random,
        )
        return Images(rendering.image, rendering.aux_image, torch.stack([yaw, pitch], dim=1) - FRONT)

    def generate_without_gradient(self, batch: int, now: Moment) -> Images:
        with torch.no_grad():
            return self.generate(batch, now)

    def discriminator_loss(self, real: Tensor, fake: Images, now: Moment, report: StepReport) -> Tensor:
        """Logistic loss of both discriminators and, when due, R1 on the real images, which both of them see."""
        weight = now.stage.aux_weight
        real = real.detach().requires_grad_(now.r1_now)
        real_main, real_aux, _ = self.discriminate(real, real if weight > 0 else None, now, exact=now.r1_now)
        fake_main, fake_aux, pose = self.discriminate(fake.main, fake.aux, now)
        loss = logistic_discriminator_loss(real_main, fake_main)
        report.scalars["d/loss"] = loss.detach()
        report.scalars["d/real"] = real_main.detach().mean()
        report.scalars["d/fake"] = fake_main.detach().mean()
        if real_aux is not None and fake_aux is not None:
            aux_loss = logistic_discriminator_loss(real_aux, fake_aux)
            report.scalars["d/aux_loss"] = aux_loss.detach()
            loss = loss + weight * aux_loss
        if now.r1_now:
            penalty = r1_penalty(real_main, real)
            report.scalars["d/r1"] = penalty.detach()
            if real_aux is not None:
                penalty = penalty + r1_penalty(real_aux, real)
            loss = loss + 0.5 * self.config.r1_gamma * self.config.r1_every * penalty
        return loss + self.weighted_pose_loss("d", pose, fake, now, report)

    def generator_loss(self, fake: Images, now: Moment, report: StepReport) -> Tensor:
        """Non-saturating loss of the image and of the auxiliary image."""
        fake_main, fake_aux, pose = self.discriminate(fake.main, fake.aux, now)
        loss = nonsaturating_generator_loss(fake_main)
        report.scalars["g/loss"] = loss.detach()
        if fake_aux is not None:
            aux_loss = nonsaturating_generator_loss(fake_aux)
            report.scalars["g/aux_loss"] = aux_loss.detach()
            loss = loss + now.stage.aux_weight * aux_loss
        return loss + self.weighted_pose_loss("g", pose, fake, now, report)

    def weighted_pose_loss(
        self, network: str, predicted: Tensor | None, fake: Images, now: Moment, report: StepReport
    ) -> Tensor | float:
        """How well the main discriminator reads the cameras off generated images, weighted; 0 in stages without."""
        if now.stage.pose_weight == 0 or predicted is None:
            return 0.0
        loss = pose_loss(predicted, fake.pose)
        report.scalars[f"{network}/pose_loss"] = loss.detach()
        return now.stage.pose_weight * loss

    def discriminate(
        self, image: Tensor, aux_image: Tensor | None, now: Moment, *, exact: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logits of both discriminators, and the poses that the main one predicts.

        `exact` keeps float32, which R1's second derivative needs.
        """
        random = self.state.random
        image = diff_augment(image, now.stage.diff_augment, generator=random)
        dtype = None if exact else amp_dtype(self.config.amp.discriminator)
        with torch.autocast(image.device.type, dtype=dtype, enabled=dtype is not None):
            if aux_image is not None:
                aux_image = diff_augment(aux_image, now.stage.diff_augment, generator=random)
            main, aux = self.state.discriminator.judge(image, aux_image, now.fade)
        pose = None if main.pose is None else main.pose.float()
        return main.logits.float(), None if aux is None else aux.logits.float(), pose

    def update(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        name: str,
        report: StepReport,
    ) -> bool:
        """Average gradients over processes, clip, and step; leaves the step out unless all is finite."""
        processes = self.state.processes
        parameters = [p for p in network.parameters() if p.grad is not None]
        processes.average_gradients(parameters)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_gradient)
        report.scalars[f"{name}/gradient_norm"] = norm.detach()
        losses = torch.stack([v for key, v in report.scalars.items() if key.endswith("loss")])
        bad = torch.stack([(~torch.isfinite(losses)).any(), ~torch.isfinite(norm)]).float()
        bad_loss, bad_gradient = (bool(b > 0) for b in processes.sum_(bad))
        if bad_loss or bad_gradient:
            report.finite = False
            report.overflow = not bad_loss and scaler.is_enabled() and scaler.get_scale() > SMALLEST_SCALE
        else:
            scaler.step(optimizer)
        scaler.update()
        return report.finite
