"""Everything that a run is made of at one moment: networks, averages, optimizers, counters, random states."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from cips3d.augmentation.ada import AdaptiveProbability
from cips3d.checkpoints.networks import Networks
from cips3d.errors import UserError
from cips3d.models.family import AnyGenerator, make_discriminator, make_generator
from cips3d.ops.precision import Precision
from cips3d.training.config import Amp, AmpKind, Stage, TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.losses import PathLength
from cips3d.training.measuring import Best

ADAM_EPS = 1e-8
REASON_LENGTH = 200  # of torch's words in a message: a shape that differs; not the names of a hundred weights
RANK_STRIDE = 1_000_003  # seeds of different processes and of different runs must not meet


def amp_dtype(kind: AmpKind) -> torch.dtype | None:
    """The dtype of `torch.autocast`, None for none."""
    return {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[kind]


def amp_precision(kind: AmpKind) -> Precision | None:
    """The precision of a generator's part; None leaves it to PyTorch's setting."""
    return None if kind == "none" else "fast"


class TrainingState:
    """Networks, optimizers and counters of a run, and their one `state_dict` that a checkpoint holds."""

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        device = processes.device
        self.config = config
        torch.manual_seed(config.seed)  # the same first weights in every process
        self.generator = make_generator(config.generator).to(device)
        self.discriminator = make_discriminator(config.discriminator).to(device)
        self.generator_ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.generator_slow_ema = copy.deepcopy(self.generator_ema) if config.slow_ema_decay > 0 else None
        if config.precision is not None or (config.amp.nerf, config.amp.inr) != ("none", "none"):
            self.generator.set_precision(
                config.precision,
                nerf=amp_precision(config.amp.nerf),
                inr=amp_precision(config.amp.inr),
                fast_dtype=amp_dtype(config.amp.inr) or torch.bfloat16,
            )
        self.path_length = PathLength().to(device)
        self.ada = AdaptiveProbability(config.ada_target, kimg=config.ada_kimg)

        self.optimizer_g = torch.optim.Adam(
            [
                {"params": [p for module in modules for p in module.parameters()]}
                for modules in trained_parts(self.generator).values()
            ],
            lr=0.0,
            eps=ADAM_EPS,
            fused=True,
        )
        self.optimizer_d = torch.optim.Adam(self.discriminator.parameters(), lr=0.0, eps=ADAM_EPS, fused=True)
        self.set_betas()
        self.scaler_g, self.scaler_d = gradient_scalers(config.amp, device)
        self.random = torch.Generator(device)
        self.random.manual_seed(config.seed + RANK_STRIDE * (processes.rank + 1))

        self.step = 0
        self.stage_index = -1  # of the stage that has been entered; -1: none yet
        self.contents: tuple[int, str] | None = None  # of the data, see `contents_of`
        self.position = 0  # images handed out by the data so far, over all processes
        self.reported = -1  # the position at which pictures and metrics that were due had last been made; -1: never
        self.skipped = 0  # steps left out because a loss or gradient was not finite
        self.best: Best | None = None
        self.processes = processes

    def enter_stage(self, index: int, stage: Stage) -> None:
        """Freeze what a stage freezes; called once when a stage begins."""
        if stage.freeze_nerf and self.stage_index != index:
            for module, average in zip(self.generator.frozen_part(), self.generator_ema.frozen_part(), strict=True):
                module.load_state_dict(average.state_dict())
        for module in self.generator.frozen_part():
            module.requires_grad_(not stage.freeze_nerf)
        self.stage_index = index

    def set_betas(self) -> None:
        """Give the optimizers the configuration's betas; a loaded optimizer state brings those of its own run."""
        for optimizer, interval in (
            (self.optimizer_g, self.config.generator_interval),
            (self.optimizer_d, self.config.discriminator_interval),
        ):
            for group in optimizer.param_groups:
                group["betas"] = lazy_betas(self.config.adam_betas, interval)

    def set_learning_rates(self, stage: Stage, rate: float) -> None:
        rates = {"nerf": stage.lr_nerf, "mapping": stage.lr_mapping, "inr": stage.lr_inr}
        for group, part in zip(self.optimizer_g.param_groups, trained_parts(self.generator), strict=True):
            group["lr"] = rates[part] * rate * lazy_share(self.config.generator_interval)
        for group in self.optimizer_d.param_groups:
            group["lr"] = stage.lr_discriminator * rate * lazy_share(self.config.discriminator_interval)

    def state_dict(self) -> dict[str, Any]:
        """The whole state in tensors and plain values. Every process must call it, since each has random states."""
        return {
            "step": self.step,
            "stage_index": self.stage_index,
            "position": self.position,
            "reported": self.reported,
            "contents": self.contents,
            "skipped": self.skipped,
            "best": None if self.best is None else asdict(self.best),
            "generator": self.generator.state_dict(),
            "generator_ema": self.generator_ema.state_dict(),
            "generator_slow_ema": None if self.generator_slow_ema is None else self.generator_slow_ema.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "path_length": self.path_length.state_dict(),
            "ada": self.ada.state_dict(),
            "scaler_g": self.scaler_g.state_dict(),
            "scaler_d": self.scaler_d.state_dict(),
            "random": self.processes.gather(self.random_states()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; raises `UserError` where it belongs to other networks, or to another version."""
        try:
            self._load(state)
        except KeyError as error:
            raise UserError(
                f"the checkpoint was written by a version of cips3d with other contents ({error} is not there); train "
                "again"
            ) from None
        except (TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"the checkpoint was written by another version of cips3d, or changed since ({error}); train again"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        self.load_weights(state)
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        self.set_betas()
        self.path_length.load_state_dict(state["path_length"])
        ada = state["ada"]
        if self.config.ada_target > 0:  # else it was switched off, and augments nothing from here on
            self.ada.load_state_dict(ada)
        for scaler, of_run in ((self.scaler_g, state["scaler_g"]), (self.scaler_d, state["scaler_d"])):
            if of_run:  # nothing where the run has not used float16 so far
                scaler.load_state_dict(of_run)
        self.step, self.stage_index, self.position = (int(state[name]) for name in ("step", "stage_index", "position"))
        self.reported = state.get("reported", self.position if self.step > 0 else -1)
        self.contents = state.get("contents")
        self.skipped = state["skipped"]
        best = state["best"]
        self.best = None if best is None else Best(**best)
        if self.processes.rank < len(state["random"]):
            self.restore_random_states(state["random"][self.processes.rank])
        else:  # more processes than before: the additional ones draw numbers that none has drawn
            self.random.manual_seed(self.random.initial_seed() + self.step + 1)

    def load_weights(self, state: dict[str, Any]) -> None:
        """The networks of a checkpoint of this run."""
        with _networks_that_fit():
            self.generator.load_state_dict(state["generator"])
            self.generator_ema.load_state_dict(state["generator_ema"])
            self.discriminator.load_state_dict(state["discriminator"])
            if self.generator_slow_ema is not None:  # where the run has had none so far, it begins at the other one
                self.generator_slow_ema.load_state_dict(state["generator_slow_ema"] or state["generator_ema"])

    def start_from(self, networks: Networks) -> None:
        """Begin with the averaged generator and the discriminator of another run or system (fine-tuning).

        Raises:
            UserError: there is no discriminator, or the networks are others.
        """
        if networks.discriminator is None:
            raise UserError(
                f"{networks.file} holds no discriminator to train on with; convert it with --discriminator FILE"
            )
        averages = [self.generator_ema] + ([] if self.generator_slow_ema is None else [self.generator_slow_ema])
        with _networks_that_fit():
            for generator in (self.generator, *averages):
                generator.load_state_dict(networks.averaged)
            self.discriminator.load_state_dict(networks.discriminator)

    def random_states(self) -> dict[str, Tensor]:
        states = {"draws": self.random.get_state(), "torch": torch.get_rng_state()}
        if self.processes.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.processes.device)
        return states

    def restore_random_states(self, states: dict[str, Tensor]) -> None:
        torch.set_rng_state(states["torch"])
        if ("cuda" in states) == (self.processes.device.type == "cuda"):
            self.random.set_state(states["draws"])
            if "cuda" in states:
                torch.cuda.set_rng_state(states["cuda"], self.processes.device)
        else:  # a checkpoint of another kind of device: its random numbers cannot be continued here
            self.random.manual_seed(self.random.initial_seed() + self.step + 1)


@contextmanager
def _networks_that_fit() -> Iterator[None]:
    """Inside, weights that do not fit the networks raise a `UserError` that says so."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        reason = textwrap.shorten(reason, REASON_LENGTH, placeholder=" ...")
        raise UserError(
            f"the checkpoint's networks differ from the configuration ({reason}); leave out flags that change them"
        ) from None


def trained_parts(generator: AnyGenerator) -> dict[str, tuple[nn.Module, ...]]:
    """The generator's networks by the learning rate that they follow."""
    return {part: modules for part, modules in generator.parameter_groups()._asdict().items() if modules}


def lazy_betas(betas: tuple[float, float], interval: int | None) -> tuple[float, float]:
    """β^c with c = interval / (interval + 1): Adam's averages where a regulariser is added every `interval` steps.

    Source: StyleGAN2 (arXiv 1912.04958), appendix B.
    """
    share = lazy_share(interval)
    return betas[0] ** share, betas[1] ** share


def lazy_share(interval: int | None) -> float:
    """c = interval / (interval + 1); 1 where no correction is asked for."""
    return 1.0 if interval is None else interval / (interval + 1)


def gradient_scalers(amp: Amp, device: torch.device) -> tuple[torch.amp.GradScaler, torch.amp.GradScaler]:
    """Loss scalers of generator and discriminator, active where float16 is used.

    The generator's gradients come through the discriminator, whose float16 would flush small ones to zero.
    """
    return (
        torch.amp.GradScaler(device.type, enabled="fp16" in (amp.nerf, amp.inr, amp.discriminator)),
        torch.amp.GradScaler(device.type, enabled=amp.discriminator == "fp16"),
    )
