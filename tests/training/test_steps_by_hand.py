"""A few steps of training written once more, plainly, with an Adam of its own: the same weights come out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cips3d.cameras import Cameras
from cips3d.models.pigan import PiGANConfig
from cips3d.models.pigan_discriminator import PiGANDiscriminatorConfig
from cips3d.models.residual_discriminator import ResidualDiscriminatorConfig
from cips3d.models.stylegan2 import StyleGAN2Config
from cips3d.models.view import Picture, View
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.schedule import plan_at
from cips3d.training.state import TrainingState
from cips3d.training.step import TrainingStep

STEPS, BATCH, SIDE = 3, 4, 8


def cips3d(config: TrainConfig) -> TrainConfig:
    """Two discriminators that fade in, R1 every step, a clip that bites, an average that begins late."""
    stage = replace(config.stages[0], fade_steps=4, lr_nerf=5e-4)
    return replace(config, stages=(stage,), r1_gamma=10.0, r1_every=1, clip_gradient=0.1, ema_start=1, ema_decay=0.5)


def pigan(config: TrainConfig) -> TrainConfig:
    """The pose loss, the best of the batch, an average that warms up."""
    stage = replace(config.stages[0], aux_weight=0.0, pose_weight=15.0, fade_steps=4)
    return replace(
        config,
        stages=(stage,),
        generator=PiGANConfig(z_dim=8, width=16, layers=2, mapping_width=8, mapping_layers=2),
        discriminator=PiGANDiscriminatorConfig(channels={2: 8, 4: 8, 8: 8}, latent_dim=8),
        adam_betas=(0.0, 0.9),
        r1_gamma=0.2,
        top_k=0.6,
        ema_start=0,
        ema_warmup=True,
    )


def stylegan2(config: TrainConfig) -> TrainConfig:
    """Lazy R1 and path lengths with steps of their own, and style mixing."""
    return replace(
        config,
        stages=(replace(config.stages[0], aux_weight=0.0, density_noise=0.0),),
        generator=StyleGAN2Config(channels={4: 8, 8: 8}, z_dim=8, style_dim=8, mapping_layers=2),
        discriminator=ResidualDiscriminatorConfig(
            main_channels={4: 8, 8: 8}, aux_channels=None, main_minibatch_std_group=4, progressive=False
        ),
        adam_betas=(0.0, 0.99),
        lazy_correction=True,
        clip_gradient=None,
        r1_gamma=10.0,
        r1_every=2,
        path_length_weight=2.0,
        path_length_every=2,
        style_mixing=0.9,
    )


class Adam:
    """Of gradients whose norm is clipped."""

    def __init__(self, parameters: Sequence[Tensor], rates: Sequence[float], config: TrainConfig, lazy: float) -> None:
        self.rates = [rate * lazy for rate in rates]
        self.beta1, self.beta2 = (beta**lazy for beta in config.adam_betas)
        self.clip = math.inf if config.clip_gradient is None else config.clip_gradient
        self.state = {p: [torch.zeros_like(p), torch.zeros_like(p), 0] for p in parameters}

    def minimise(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, list(self.state), allow_unused=True)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))
        for (p, state), g, rate in zip(self.state.items(), gradients, self.rates, strict=True):
            if g is None:
                continue
            g = g * min(1.0, self.clip / norm)
            mean, square, t = state[0].lerp(g, 1 - self.beta1), state[1].lerp(g * g, 1 - self.beta2), state[2] + 1
            state[:] = [mean, square, t]
            step = mean / (1 - self.beta1**t) / ((square / (1 - self.beta2**t)).sqrt() + 1e-8)
            p.data.sub_(rate * step)


class ByHand:
    """The algorithm, with the networks and the random numbers of a state."""

    def __init__(self, state: TrainingState, config: TrainConfig) -> None:
        self.config, self.stage, self.random = config, config.stages[0], state.random
        self.generator, self.discriminator = state.generator, state.discriminator
        self.average = copy.deepcopy(state.generator)
        self.mean_length = torch.zeros(())
        self.has_aux = self.stage.aux_weight > 0
        rate_of = {}
        groups = state.generator.parameter_groups()
        for modules, rate in (
            (groups.nerf, self.stage.lr_nerf),
            (groups.mapping, self.stage.lr_mapping),
            (groups.inr, self.stage.lr_inr),
        ):
            rate_of.update({p: rate for module in modules for p in module.parameters()})
        of_d = list(state.discriminator.parameters())

        def lazy(every: int, weight: float) -> float:
            return every / (every + 1) if config.lazy_correction and weight > 0 else 1.0

        lazy_g, lazy_d = lazy(config.path_length_every, config.path_length_weight), lazy(config.r1_every, 1.0)
        self.adam_g = Adam(list(rate_of), list(rate_of.values()), config, lazy_g)
        self.adam_d = Adam(of_d, [self.stage.lr_discriminator] * len(of_d), config, lazy_d)

    def styles(self, count: int) -> Any:
        def mapped() -> Any:
            z_dims = self.generator.z_dims
            return self.generator.mapping(*(torch.randn(count, width, generator=self.random) for width in z_dims))

        styles = mapped()
        if self.config.style_mixing > 0 and torch.rand((), generator=self.random) < self.config.style_mixing:
            others = mapped()
            layer = int(torch.randint(1, self.generator.style_layers, (), generator=self.random))
            styles = self.generator.mixed(styles, others, layer)
        return styles

    def picture(self, styles: Any, step: int) -> tuple[Picture, Tensor]:
        """And yaw and pitch from the front."""
        turn, tilt = (s * torch.randn(len(styles[0]), generator=self.random) for s in (0.3, 0.155))
        view = View(
            SIDE,
            Cameras.from_angles(math.pi / 2 + tilt, math.pi / 2 + turn),
            self.config.volume,
            density_noise=self.stage.density_noise * max(0.0, 1 - step / self.config.density_noise_steps),
            return_aux=self.has_aux,
            generator=self.random,
        )
        return self.generator.render(styles, view), torch.stack([turn, tilt], dim=1)

    def __call__(self, real: Tensor, step: int) -> None:
        config = self.config
        fade = min(1.0, step / self.stage.fade_steps) if self.stage.fade_steps else 1.0

        def judged(main: Tensor, aux: Tensor | None, pose: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
            """Logits of each discriminator, and the weighted pose loss."""
            outputs = self.discriminator.discriminate(main, aux, fade)
            logits = [outputs.main.logits, *([outputs.aux.logits] if outputs.aux is not None else [])]
            pose_loss = torch.zeros(())
            if pose is not None and outputs.main.pose is not None:
                pose_loss = self.stage.pose_weight * (outputs.main.pose - pose).square().mean()
            return logits, pose_loss

        with torch.no_grad():
            fake, pose = self.picture(self.styles(BATCH), step)
        seen = [real.clone().requires_grad_() for _ in range(1 + self.has_aux)]
        of_real, _ = judged(seen[0], seen[1] if self.has_aux else None)
        of_fake, pose_loss = judged(fake.image, fake.aux_image, pose)
        loss = F.softplus(-torch.cat(of_real)).mean() + F.softplus(torch.cat(of_fake)).mean() + pose_loss

        def r1(of_real: list[Tensor]) -> Tensor:
            slopes = torch.autograd.grad(torch.cat(of_real).sum(), seen, create_graph=True)
            squares = torch.cat([slope.square().sum((1, 2, 3)) for slope in slopes])
            return 0.5 * config.r1_gamma * config.r1_every * squares.mean()

        due = step % config.r1_every == 0
        self.adam_d.minimise(loss + r1(of_real) if due and not config.lazy_correction else loss)
        if due and config.lazy_correction:
            self.adam_d.minimise(r1(judged(seen[0], None)[0]))

        fake, pose = self.picture(self.styles(BATCH), step)
        of_fake, pose_loss = judged(fake.image, fake.aux_image, pose)
        kept = math.ceil(BATCH * max(0.99 ** (step / 2000), config.top_k))
        self.adam_g.minimise(
            F.softplus(-torch.cat([x.flatten().topk(kept).values for x in of_fake])).mean() + pose_loss
        )
        if config.path_length_weight > 0 and step % config.path_length_every == 0:
            self.adam_g.minimise(self.path_length(step))

        t = step - config.ema_start + 1
        decay = min(config.ema_decay, (1 + t) / (10 + t)) if config.ema_warmup else config.ema_decay
        for average, value in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            average.data.lerp_(value.data, 1 - decay if t > 0 else 1.0)

    def path_length(self, step: int) -> Tensor:
        styles = self.styles(BATCH // 2)
        w = styles.w if styles.w.dim() == 3 else styles.w[:, None].expand(-1, self.generator.style_layers, -1)
        image = self.picture(type(styles)(w), step)[0].image
        noise = torch.randn(image.shape, generator=self.random) / SIDE
        (slope,) = torch.autograd.grad((image * noise).sum(), w, create_graph=True)
        lengths = slope.square().sum(2).mean(1).sqrt()
        mean = self.mean_length + 0.01 * (lengths.mean() - self.mean_length)
        self.mean_length = mean.detach()
        return self.config.path_length_weight * self.config.path_length_every * (lengths - mean).square().mean()


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


@pytest.mark.parametrize("case", [cips3d, pigan, stylegan2])
def test_the_same_weights_come_out(small_config: TrainConfig, case: Callable[[TrainConfig], TrainConfig]) -> None:
    config = case(small_config)
    state, by_hand = TrainingState(config, Processes()), ByHand(TrainingState(config, Processes()), config)
    start = {"g": weights(state.generator), "d": weights(state.discriminator), "average": weights(state.generator_ema)}
    state.enter_stage(0, config.stages[0])
    step, source = TrainingStep(state, config), torch.Generator().manual_seed(3)
    for k in range(STEPS):
        real = torch.rand(BATCH, 3, SIDE, SIDE, generator=source) * 2 - 1
        assert step(real, plan_at(config, k)).finite
        by_hand(real, k)
    assert state.path_length.mean.item() == pytest.approx(by_hand.mean_length.item(), rel=1e-4)
    for name, found, expected in (
        ("g", state.generator, by_hand.generator),
        ("d", state.discriminator, by_hand.discriminator),
        ("average", state.generator_ema, by_hand.average),
    ):
        way = weights(expected) - start[name]
        # float32: StyleGAN2's mapping has weights around 100, whose average moves by little more than rounding.
        assert (weights(found) - weights(expected)).norm() < 3e-3 * way.norm(), name
