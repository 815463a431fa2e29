"""What each network minimises: adversarial losses of image and auxiliary image, and the regularisers that are due."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cips3d.augmentation.ada import adaptive_augment
from cips3d.augmentation.diff_augment import diff_augment
from cips3d.models.discriminator import DiscriminatorOutput, DiscriminatorOutputs
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.losses import (
    adversarial_loss,
    gradient_penalty,
    keep_best,
    latent_loss,
    pose_loss,
    r1_penalty,
    r2_penalty,
    top_k_share,
)
from cips3d.training.schedule import StepPlan
from cips3d.training.state import TrainingState, amp_dtype


@dataclass
class StepReport:
    """What a step reports: scalars, and whether its updates were made."""

    scalars: dict[str, Tensor] = field(default_factory=dict)
    """losses, logits and gradient norms by name"""
    finite: bool = True
    """False: a loss or gradient was not finite and the update was left out"""
    overflow: bool = False
    """True: only a float16 overflow, which a smaller loss scale mends"""

    def note(self, name: str, value: Tensor, now: StepPlan) -> None:
        """Write down a mean over images; of a batch in parts, that over all of them."""
        parts = now.stage.accumulation
        value = value.detach()
        self.scalars[name] = value if parts == 1 else self.scalars.get(name, 0.0) + value / parts

    def average(self, processes: Processes) -> None:
        """Replace every scalar by its mean over all processes, each of which has seen its share of the batch."""
        if processes.world_size > 1:
            means = processes.mean_(torch.stack([value.float() for value in self.scalars.values()]))
            self.scalars = dict(zip(self.scalars, means.unbind(), strict=True))


@dataclass(frozen=True)
class Images:
    """Generated images; `aux` is the NeRF's own picture where the auxiliary discriminator is on.

    Attributes:
        main: [B, 3, H, W] in [-1, 1].
        aux: [B, 3, H, W].
        pose: [B, 2] yaw and pitch of the cameras, radians from the front.
        z: [B, width] what they were generated from.
    """

    main: Tensor
    aux: Tensor | None
    pose: Tensor
    z: Tensor

    def detach(self) -> Images:
        return replace(self, main=self.main.detach(), aux=None if self.aux is None else self.aux.detach())

    def with_gradients(self) -> Images:
        """The same images as leaves whose gradient can be taken."""
        aux = None if self.aux is None else self.aux.detach().requires_grad_()
        return replace(self, main=self.main.detach().requires_grad_(), aux=aux)


def with_auxiliary(main: Tensor, aux: Tensor, now: StepPlan) -> Tensor:
    """The losses of both discriminators as one: with weight 1 their mean, as if all logits were one batch."""
    return 0.5 * (main + now.stage.aux_weight * aux)


class Objectives:
    """Losses of both networks at a moment of the training; scalars are noted in the step's report."""

    def __init__(self, state: TrainingState, config: TrainConfig) -> None:
        self.state = state
        self.config = config
        self.loss = adversarial_loss(config.loss)

    def discriminator(self, real: Tensor, fake: Images, now: StepPlan, report: StepReport) -> Tensor:
        """Adversarial loss of both discriminators, with R1 and R2 where `now` has them due, and gradient penalty.

        Args:
            real: [B, 3, H, W]; both discriminators see it.
            fake: as many generated images, without history.
        """
        config = self.config
        r1_due = now.r1_due and config.r1_gamma > 0
        real = real.detach().requires_grad_(r1_due)
        of_real = self.discriminate_real(real, now, r1_due)
        r2_due = now.r1_due and config.r2_gamma > 0
        fake = fake.with_gradients() if r2_due else fake
        of_fake = self.discriminate(fake, now, r2_due)
        loss = self.loss.discriminator(of_real.main.logits, of_fake.main.logits)
        report.note("d/loss", loss, now)
        report.note("d/real", of_real.main.logits.detach().mean(), now)
        report.note("d/fake", of_fake.main.logits.detach().mean(), now)
        report.note("d/real_sign", of_real.main.logits.detach().sign().mean(), now)
        if of_real.aux is not None and of_fake.aux is not None:
            aux_loss = self.loss.discriminator(of_real.aux.logits, of_fake.aux.logits)
            report.note("d/aux_loss", aux_loss, now)
            loss = with_auxiliary(loss, aux_loss, now)
        if now.r1_due:
            loss = loss + self.r1_and_r2(real, of_real, fake, of_fake, now, report)
        if config.gradient_penalty > 0:
            loss = loss + config.gradient_penalty * self.gradient_penalties(real, fake, now, report)
        return loss + self.pose_and_latent_losses("d", of_fake, fake, now, report)

    def penalties(self, real: Tensor, fake: Images | None, now: StepPlan, report: StepReport) -> Tensor:
        """R1 and R2 alone, for a step of their own; arguments as of `discriminator`, without R2 no `fake`."""
        of_real = of_fake = None
        if self.config.r1_gamma > 0:
            real = real.detach().requires_grad_()
            of_real = self.discriminate_real(real, now, exact=True)
        if fake is not None:
            fake = fake.with_gradients()
            of_fake = self.discriminate(fake, now, exact=True)
        return self.r1_and_r2(real, of_real, fake, of_fake, now, report)

    def r1_and_r2(
        self,
        real: Tensor,
        of_real: DiscriminatorOutputs | None,
        fake: Images | None,
        of_fake: DiscriminatorOutputs | None,
        now: StepPlan,
        report: StepReport,
    ) -> Tensor:
        """½·γ·k·‖∇D‖² with k, the steps between them, of verdicts on images that have gradients."""
        config, total = self.config, real.new_zeros(())
        if config.r1_gamma > 0 and of_real is not None:
            penalty = r1_penalty(of_real.main.logits, real)
            report.note("d/r1", penalty, now)
            if of_real.aux is not None:
                penalty = with_auxiliary(penalty, r1_penalty(of_real.aux.logits, real), now)
            total = total + 0.5 * config.r1_gamma * config.r1_every * penalty
        if config.r2_gamma > 0 and fake is not None and of_fake is not None:
            penalty = r2_penalty(of_fake.main.logits, fake.main)
            report.note("d/r2", penalty, now)
            if of_fake.aux is not None and fake.aux is not None:
                penalty = with_auxiliary(penalty, r2_penalty(of_fake.aux.logits, fake.aux), now)
            total = total + 0.5 * config.r2_gamma * config.r1_every * penalty
        return total

    def generator(self, fake: Images, real: Tensor, now: StepPlan, report: StepReport) -> Tensor:
        """Adversarial loss of the image and of the auxiliary image, from the best-judged share of them.

        Args:
            fake: generated images, with their history.
            real: [B, 3, H, W] to be compared with, for losses that do.
        """
        of_fake = self.discriminate(fake, now)
        of_real: DiscriminatorOutputs | None = None
        if self.loss.needs_real:
            with torch.no_grad():
                of_real = self.discriminate_real(real, now)
        loss = self.adversarial(of_fake.main, None if of_real is None else of_real.main, now)
        report.note("g/loss", loss, now)
        if of_fake.aux is not None:
            aux_loss = self.adversarial(of_fake.aux, None if of_real is None else of_real.aux, now)
            report.note("g/aux_loss", aux_loss, now)
            loss = with_auxiliary(loss, aux_loss, now)
        return loss + self.pose_and_latent_losses("g", of_fake, fake, now, report)

    def adversarial(self, of_fake: DiscriminatorOutput, of_real: DiscriminatorOutput | None, now: StepPlan) -> Tensor:
        """The generator's adversarial loss by the logits of one discriminator network."""
        return self.loss.generator(self.top_k_of(of_fake.logits, now), None if of_real is None else of_real.logits)

    def top_k_of(self, logits: Tensor, now: StepPlan) -> Tensor:
        """The logits that the generator learns from: all, or the best-judged share of them (top-k training)."""
        floor = self.config.top_k
        return logits if floor == 1 else keep_best(logits, top_k_share(now.step, floor=floor))

    def pose_and_latent_losses(
        self, network: str, outputs: DiscriminatorOutputs, fake: Images, now: StepPlan, report: StepReport
    ) -> Tensor | float:
        """Weighted pose and latent losses of the main discriminator on generated images; 0 where neither is used."""
        total: Tensor | float = 0.0
        if now.stage.pose_weight > 0 and outputs.main.pose is not None:
            pose = outputs.main.pose
            if now.stage.pose_augment:
                changed = diff_augment(fake.main, now.stage.pose_augment, generator=self.state.random)
                again = self.discriminator_outputs(changed, None, now).main.pose
                assert again is not None
                pose = again
            loss = pose_loss(pose, fake.pose)
            report.note(f"{network}/pose_loss", loss, now)
            total = total + now.stage.pose_weight * loss
        if self.config.latent_weight > 0 and outputs.main.latent is not None:
            loss = latent_loss(outputs.main.latent, fake.z)
            report.note(f"{network}/latent_loss", loss, now)
            total = total + self.config.latent_weight * loss
        return total

    def gradient_penalties(self, real: Tensor, fake: Images, now: StepPlan, report: StepReport) -> Tensor:
        """WGAN-GP's gradient penalty of both discriminators."""
        discriminator, random = self.state.discriminator, self.state.random
        real = real.detach()
        penalty = gradient_penalty(
            lambda x: discriminator.discriminate(x, None, now.fade).main.logits, real, fake.main, generator=random
        )
        report.note("d/gradient_penalty", penalty, now)
        if fake.aux is None:
            return penalty
        of_aux = gradient_penalty(
            lambda x: discriminator.discriminate_aux(x, now.fade).logits, real, fake.aux, generator=random
        )
        return with_auxiliary(penalty, of_aux, now)

    def discriminate_real(self, real: Tensor, now: StepPlan, exact: bool = False) -> DiscriminatorOutputs:
        """Both discriminators' outputs on augmented real images."""
        return self._of_augmented(real, real if now.stage.aux_weight > 0 else None, now, exact)

    def discriminate(self, images: Images, now: StepPlan, exact: bool = False) -> DiscriminatorOutputs:
        """Both discriminators' outputs on augmented images."""
        return self._of_augmented(images.main, images.aux, now, exact)

    def _of_augmented(self, main: Tensor, aux: Tensor | None, now: StepPlan, exact: bool) -> DiscriminatorOutputs:
        main = self.augment(main, now)
        return self.discriminator_outputs(main, None if aux is None else self.augment(aux, now), now, exact)

    def discriminator_outputs(
        self, main: Tensor, aux: Tensor | None, now: StepPlan, exact: bool = False
    ) -> DiscriminatorOutputs:
        """Logits, and what is read off the images. `exact` keeps float32, as penalties' second derivatives need."""
        dtype = None if exact else amp_dtype(self.config.amp.discriminator)
        with torch.autocast(main.device.type, dtype=dtype, enabled=dtype is not None):
            return self.state.discriminator.discriminate(main, aux, now.fade).float()

    def augment(self, images: Tensor, now: StepPlan) -> Tensor:
        """Images as the discriminators see them: with differentiable and adaptive augmentation."""
        random = self.state.random
        images = diff_augment(images, now.stage.diff_augment, generator=random)
        return adaptive_augment(images, self.state.ada.p, generator=random)
