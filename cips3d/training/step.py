"""One step of training: sample, render, discriminate, regularise, learn, average (CIPS-3D, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from cips3d.cameras import FRONT, Cameras
from cips3d.models.generator import styles_by_layer, styles_of
from cips3d.models.view import View, Window
from cips3d.training.config import TrainConfig
from cips3d.training.ema import update_ema
from cips3d.training.objectives import Images, Objectives, StepReport
from cips3d.training.schedule import StepPlan
from cips3d.training.state import TrainingState

SMALLEST_SCALE = 1.0  # a float16 loss scale that has fallen to this does not explain an overflow any more
PATH_LENGTH_SHARE = 2  # path lengths are measured on a batch smaller by this, as in StyleGAN2


@contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Inside, gradients flow through the network, but none are computed for its parameters."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def accumulate_gradients(losses: Iterable[Tensor], count: int, scaler: torch.amp.GradScaler) -> None:
    """Gradients of the mean of `count` losses, one after the other, so that each may forget what the last one kept."""
    for loss in losses:
        scaler.scale(loss / count).backward()


class TrainingStep:
    """The algorithm. Calling it with real images changes the networks of `state`."""

    def __init__(self, state: TrainingState, config: TrainConfig) -> None:
        self.state = state
        self.config = config
        self.objectives = Objectives(state, config)

    def __call__(self, real: Tensor, now: StepPlan) -> StepReport:
        """One step: of the discriminators, then of the generator, then of its average.

        1. Generate images, without gradients unless they are used again for the generator (`reuse_fakes`).
        2. The discriminators minimise their loss on real and generated images, with R1 and R2 where they are due.
        3. The generator minimises its own on (other) generated images, with path lengths where they are due.
        4. The averaged generator follows, and the strength of adaptive augmentation.

        A network whose loss or gradient is not finite stays as it is, and so does all behind it.

        Args:
            real: [B, 3, H, W] in [-1, 1], this process's share of the batch.
            now: what is due at this moment of the schedule.

        Returns:
            The losses and what else was noted.
        """
        report = StepReport()
        self.state.set_learning_rates(now.stage, now.rate)
        window = self.draw_window(now)
        if window is not None:
            top, left, height, width = window
            real = real[:, :, top : top + height, left : left + width]
        parts = real.chunk(now.stage.accumulation)
        fakes = self.generate(len(real), now, window) if self.config.reuse_fakes else None
        if self.update_discriminators(parts, fakes, now, window, report) and self.update_generator(
            parts, fakes, now, window, report
        ):
            self.average(now)
            self.adapt_augmentation(len(real), report)
        return report

    def update_discriminators(
        self, parts: Sequence[Tensor], fakes: Images | None, now: StepPlan, window: Window | None, report: StepReport
    ) -> bool:
        """Adam's step on the discriminators' loss; False: it was left out.

        Where Adam is corrected for lazy regularisers (`lazy_correction`), they take a step of their own, as in
        StyleGAN2.

        Args:
            parts: of the real images, whose gradients are added up.
            fakes: generated images, as many as parts have in all; None: each part gets others.
        """
        state, config, alone = self.state, self.config, self.config.lazy_correction

        def fakes_for(part: Tensor) -> Images:
            return self.generate_without_gradient(len(part), now, window) if fakes is None else fakes.detach()

        due = replace(now, r1_due=now.r1_due and not alone)
        state.optimizer_d.zero_grad(set_to_none=True)
        losses = (self.objectives.discriminator(part, fakes_for(part), due, report) for part in parts)
        accumulate_gradients(losses, len(parts), state.scaler_d)
        if not self.update(state.discriminator, state.optimizer_d, state.scaler_d, "d", report):
            return False
        if not (now.r1_due and alone):
            return True
        state.optimizer_d.zero_grad(set_to_none=True)
        penalties = (  # R1 looks at real images alone
            self.objectives.penalties(part, fakes_for(part) if config.r2_gamma > 0 else None, now, report)
            for part in parts
        )
        accumulate_gradients(penalties, len(parts), state.scaler_d)
        return self.update(state.discriminator, state.optimizer_d, state.scaler_d, "d/penalty", report)

    def update_generator(
        self, parts: Sequence[Tensor], fakes: Images | None, now: StepPlan, window: Window | None, report: StepReport
    ) -> bool:
        """Adam's step on the generator's loss, and one on path lengths; as `update_discriminators`."""
        state = self.state
        alone = now.path_length_due and self.config.lazy_correction
        state.optimizer_g.zero_grad(set_to_none=True)
        with without_gradients(state.discriminator):
            losses = (
                self.objectives.generator(
                    self.generate(len(part), now, window) if fakes is None else fakes, part, now, report
                )
                for part in parts
            )
            accumulate_gradients(losses, len(parts), state.scaler_g)
        if alone:
            if not self.update(state.generator, state.optimizer_g, state.scaler_g, "g", report):
                return False
            state.optimizer_g.zero_grad(set_to_none=True)
        mean_length = state.path_length.mean.clone()
        if now.path_length_due:
            lengths = (self.path_length_loss(len(part), now, window, report) for part in parts)
            accumulate_gradients(lengths, len(parts), state.scaler_g)
        name = "g/path_length" if alone else "g"
        if self.update(state.generator, state.optimizer_g, state.scaler_g, name, report):
            return True
        state.path_length.mean.copy_(mean_length)  # otherwise a NaN would stay in the running mean for good
        return False

    def draw_window(self, now: StepPlan) -> Window | None:
        """The part of all pictures that this step trains on, in stages with crops."""
        crop, side, random = now.stage.crop, now.stage.resolution, self.state.random
        if crop is None:
            return None
        corner = torch.randint(side - crop + 1, (2,), generator=random, device=random.device)
        top, left = corner.tolist()
        return top, left, crop, crop

    def generate(self, batch: int, now: StepPlan, window: Window | None) -> Images:
        """Render images of random z from random cameras."""
        z = self.sample_z(batch)
        return self.render(self.styles(z), z, now, window)

    def generate_without_gradient(self, batch: int, now: StepPlan, window: Window | None) -> Images:
        with torch.no_grad():
            return self.generate(batch, now, window)

    def sample_z(self, batch: int) -> tuple[Tensor, ...]:
        return self.state.generator.sample_z(batch, generator=self.state.random)

    def styles(self, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Styles of z; with style mixing, some batches' later layers follow a second z."""
        generator, random = self.state.generator, self.state.random
        styles = generator.mapping(*z)
        if self.config.style_mixing == 0:
            return styles
        draw = torch.rand((), generator=random, device=random.device)
        if draw >= self.config.style_mixing:
            return styles
        others = generator.mapping(*self.sample_z(len(z[0])))
        layer = torch.randint(1, generator.style_layers, (), generator=random, device=random.device)
        return generator.mixed(styles, others, int(layer))

    def render(self, styles: tuple[Tensor, ...], z: tuple[Tensor, ...], now: StepPlan, window: Window | None) -> Images:
        """Pictures of styles from random cameras."""
        config, random = self.config, self.state.random
        pitch, yaw = config.poses.sample(len(styles[0]), generator=random, device=random.device)
        view = View(
            now.stage.resolution,
            Cameras.from_angles(pitch, yaw, config.fov_degrees),
            config.volume,
            density_noise=now.density_noise,
            return_aux=now.stage.aux_weight > 0,
            grad_points=now.stage.grad_points,
            window=window,
            generator=random,
        )
        picture = self.state.generator.render(styles, view)
        return Images(picture.image, picture.aux_image, torch.stack([yaw, pitch], dim=1) - FRONT, torch.cat(z, dim=1))

    def path_length_loss(self, batch: int, now: StepPlan, window: Window | None, report: StepReport) -> Tensor:
        """Path length regularisation with respect to the last styles (w, appearance or phases), one style a layer."""
        generator, path_length = self.state.generator, self.state.path_length
        z = self.sample_z(max(1, batch // PATH_LENGTH_SHARE))
        styles = self.styles(z)
        last = styles[-1]
        if generator.style_layers > 0:
            last = styles_by_layer(last, generator.style_layers)
        images = self.render(styles_of(styles, (*styles[:-1], last)), z, now, window).main
        penalty = path_length(images, last, share=1 / now.stage.accumulation, generator=self.state.random)
        self.state.processes.mean_(path_length.mean)
        report.scalars["g/path_length"] = path_length.mean.clone()
        return self.config.path_length_weight * self.config.path_length_every * penalty

    def average(self, now: StepPlan) -> None:
        """Update the moving averages of the generator."""
        state, config = self.state, self.config
        averages = [(state.generator_ema, config.ema_decay)]
        if state.generator_slow_ema is not None:
            averages.append((state.generator_slow_ema, config.slow_ema_decay))
        for average, decay in averages:
            update_ema(
                average, state.generator, step=now.step, decay=decay, start=config.ema_start, warm_up=config.ema_warmup
            )

    def adapt_augmentation(self, batch: int, report: StepReport) -> None:
        """Move the augmentation's probability so that E[sign D(real)] stays at its target."""
        if self.config.ada_target == 0:
            return
        processes = self.state.processes
        sign = processes.mean_(report.scalars["d/real_sign"].clone())
        p = self.state.ada.observe(sign, batch * processes.world_size)
        report.scalars["schedule/ada_p"] = sign.new_full((), p)  # without a copy that a GPU would wait for

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
        largest = self.config.clip_gradient
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if largest is None else largest)
        report.scalars[f"{name}/gradient_norm"] = norm.detach()
        losses = torch.stack([v for key, v in report.scalars.items() if key.endswith("loss")])
        bad = torch.stack([(~torch.isfinite(losses)).any(), ~torch.isfinite(norm)]).float()
        bad_loss, bad_gradient = (processes.sum_(bad) > 0).tolist()  # one transfer
        if bad_loss or bad_gradient:
            report.finite = False
            report.overflow = not bad_loss and scaler.is_enabled() and scaler.get_scale() > SMALLEST_SCALE
        else:
            scaler.step(optimizer)
        scaler.update()
        return report.finite
