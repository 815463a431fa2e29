"""pi-GAN's discriminators against the published formulas: blocks, coordinates, entries, fade, outputs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.errors import UserError
from cips3d.models.discriminator import DiscriminatorOutput
from cips3d.models.pigan_discriminator import (
    PiGANDiscriminator,
    PiGANDiscriminatorConfig,
    append_coordinates,
    pigan_channel_table,
)

CHANNELS = {2: 6, 4: 6, 8: 5, 16: 4}
SMALL = PiGANDiscriminatorConfig(channels=CHANNELS, latent_dim=3)
KINDS = {
    "progressive": SMALL,
    "progressive, one output": replace(SMALL, predict_pose=False, latent_dim=0),
    "strided with coordinates": replace(SMALL, strided=True),
    "strided": replace(SMALL, strided=True, coord_conv=False, predict_pose=False, latent_dim=0),
    "pose alone": replace(SMALL, latent_dim=0),
}


def images(batch: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(kind: str = "progressive") -> PiGANDiscriminator:
    torch.manual_seed(0)
    return PiGANDiscriminator(KINDS[kind]).double()


def published_coordinates(x: Tensor) -> Tensor:
    """Row, then column: what was written is read off pixel by pixel."""
    batch, _, height, width = x.shape
    rows = [[2 * i / (height - 1) - 1] * width for i in range(height)]
    columns = [[2 * j / (width - 1) - 1 for j in range(width)]] * height
    both = torch.tensor([rows, columns], dtype=x.dtype)
    return torch.cat([x, both.expand(batch, -1, -1, -1)], dim=1)


def published(model: PiGANDiscriminator, image: Tensor, fade: float) -> Tensor:
    """All outputs [B, outputs] in plain PyTorch."""
    config = model.config

    def entry(resolution: int, x: Tensor) -> Tensor:
        conv = model.from_rgb[str(resolution)]
        return F.leaky_relu(F.conv2d(x, conv.weight, conv.bias), 0.2)

    def conv3(conv: Any, x: Tensor, stride: int) -> Tensor:
        x = published_coordinates(x) if config.coord_conv else x
        return F.leaky_relu(F.conv2d(x, conv.weight, conv.bias, stride=stride, padding=1), 0.2)

    def block(resolution: int, x: Tensor) -> Tensor:
        layer = model.blocks[str(resolution)]
        y = conv3(layer.conv2, conv3(layer.conv1, x, 1), 2 if config.strided else 1)
        if config.strided:
            x = F.conv2d(x, layer.shortcut.weight, layer.shortcut.bias, stride=2)
        else:
            y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
            if config.channels[resolution] != config.channels[resolution // 2]:
                x = F.conv2d(x, layer.shortcut.weight, layer.shortcut.bias)
        return (y + x) / math.sqrt(2)

    resolution = image.shape[-1]
    x = entry(resolution, image)
    for k in range(int(math.log2(resolution)) - 1):
        if k == 1 and fade < 1:
            x = fade * x + (1 - fade) * entry(resolution, F.interpolate(image, scale_factor=0.5, mode="nearest"))
        x = block(resolution, x)
        resolution //= 2
    return F.conv2d(x, model.output.weight, model.output.bias).flatten(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "fade"), [(16, 1.0), (16, 0.3), (8, 0.0), (4, 0.3), (2, 1.0)])
def test_outputs_are_the_published_ones(kind: str, size: int, fade: float) -> None:
    model, image = small(kind), images(3, size)
    outputs = published(model, image, fade)
    seen = model.predictions(image, fade)
    assert torch.equal(model(image, fade), seen.logits)
    torch.testing.assert_close(seen.logits, outputs[:, :1], rtol=1e-10, atol=1e-12)  # float64 rounding
    assert outputs.shape[1] == model.config.outputs
    if not model.config.predict_pose:
        assert seen.latent is None and seen.pose is None
        return
    torch.testing.assert_close(seen.pose, outputs[:, -2:], rtol=1e-10, atol=1e-12)
    if model.config.latent_dim:
        torch.testing.assert_close(seen.latent, outputs[:, 1:-2], rtol=1e-10, atol=1e-12)
    else:
        assert seen.latent is None


@pytest.mark.parametrize("kind", KINDS)
def test_layout_of_images(kind: str) -> None:
    """Channels last, as pictures of rays have them: the same gradients, to the last bit and every time."""
    model, image = small(kind).float(), images(4, 16).float()
    parameters = [p for name, p in model.named_parameters() if name.startswith(("blocks.16", "from_rgb.16"))]

    def run(image: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(image).sin().sum(), parameters)

    expected = run(image)
    for _ in range(20):
        found = run(image.clone(memory_format=torch.channels_last))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_r1_and_its_gradients(kind: str) -> None:
    """Σ |d logits / d image|² and its gradient, twice through the network, as autograd has them of the formulas."""
    model, image = small(kind), images(2, 16).requires_grad_()
    parameters = list(model.parameters())

    def run(logits: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
        penalty = gradient.square().sum()
        return penalty, list(torch.autograd.grad(penalty, parameters, allow_unused=True))

    found, gradients = run(model(image, 0.4))
    expected, references = run(published(model, image, 0.4)[:, :1])
    assert found.item() == pytest.approx(expected.item(), rel=1e-10) and found > 0
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    for (name, _), a, b in zip(model.named_parameters(), gradients, references, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            assert relative_l2(a, b) < 1e-9, name


def test_coordinates() -> None:
    x = images(2, 4)[..., :3]  # more rows than columns
    found = append_coordinates(x)
    torch.testing.assert_close(found, published_coordinates(x))
    assert found[0, 3, :, 0].tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert found[0, 4, 0].tolist() == [-1, 0, 1]


@pytest.mark.parametrize("size", [2, 4, 16])
def test_smaller_images_enter_at_later_blocks(size: int) -> None:
    model = small()
    model(images(2, size)).sum().backward()
    used = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and name[0] != "o"}
    entries = {name.split(".")[1] for name, p in model.from_rgb.named_parameters(prefix="x") if p.grad is not None}
    assert entries == {str(size)}
    assert used == {str(r) for r in CHANNELS if r <= size and (r > 2 or size == 2)}


@pytest.mark.parametrize("size", [8, 16])
def test_fade_goes_from_the_half_image_to_the_image(size: int) -> None:
    model, image = small(), images(2, size)
    half = model(image[..., ::2, ::2])
    torch.testing.assert_close(model(image, 0.0), half)
    assert not torch.allclose(model(image), half)
    calls: list[int] = []
    model.from_rgb[str(size // 2)].register_forward_hook(lambda *_: calls.append(1))
    model(image)
    assert not calls  # nothing is computed for the half image once the fade is over
    model(image, 0.5)
    assert calls == [1]


def test_judge_gives_yaw_and_pitch_from_the_front() -> None:
    model, image = small(), images(3, 16)
    raw = model.predictions(image, 0.5)
    judged, aux = model.discriminate(image, None, 0.5)
    assert isinstance(judged, DiscriminatorOutput) and aux is None
    assert raw.pose is not None and judged.pose is not None
    assert torch.equal(judged.logits, raw.logits)
    pitch, yaw = raw.pose.unbind(1)
    torch.testing.assert_close(judged.pose, torch.stack([yaw - math.pi / 2, pitch - math.pi / 2], dim=1))
    assert small("strided").discriminate(image).main.pose is None
    with pytest.raises(ValueError, match="aux_image is given"):
        model.discriminate(image, image)


def test_published_kinds() -> None:
    large = {512: 16, 256: 32, 128: 64, 64: 128, 32: 256, 16: 400, 8: 400, 4: 400, 2: 400}
    carla, celeba, cats = (
        PiGANDiscriminatorConfig.carla(),
        PiGANDiscriminatorConfig.celeba(),
        PiGANDiscriminatorConfig.cats(),
    )
    assert carla.channels == large and carla == PiGANDiscriminatorConfig()
    assert celeba.channels == cats.channels == {r: c for r, c in large.items() if r <= 256}
    assert [config.outputs for config in (carla, celeba, cats)] == [259, 259, 1]
    assert [config.strided for config in (carla, celeba, cats)] == [False, True, True]
    assert [config.coord_conv for config in (carla, celeba, cats)] == [True, True, False]
    assert (cats.resolution_max, cats.predict_pose, carla.predict_pose, cats.has_aux) == (256, False, True, False)
    for config in (carla, celeba, cats):
        with torch.device("meta"):
            model = PiGANDiscriminator(config)
        widened = 2 if config.coord_conv else 0
        assert model.blocks["32"].conv1.weight.shape == (400, 256 + widened, 3, 3)
        assert model.blocks["32"].conv2.weight.shape == (400, 400 + widened, 3, 3)
        assert (model.blocks["4"].shortcut is not None) == config.strided
        assert model.output.weight.shape == (config.outputs, 400, 2, 2)
    assert pigan_channel_table(8, base=16, cap=6) == {2: 6, 4: 4, 8: 2}


def test_initial_weights() -> None:
    """Deviations: of PyTorch's default 1/√(3·fan_in), of Kaiming's √(2/(1.04·fan_in))."""
    channels = {2: 64, 4: 64, 8: 32}
    for strided in (False, True):
        torch.manual_seed(0)
        model = PiGANDiscriminator(PiGANDiscriminatorConfig(channels=channels, strided=strided))
        block = model.blocks["8"]
        for conv, fan_in in ((block.conv1, 9 * 34), (block.conv2, 9 * 66)):
            expected = math.sqrt(2 / (1.04 * fan_in)) if strided else 1 / math.sqrt(3 * fan_in)
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.03)  # of 18 000 draws or more
            assert conv.bias.abs().max().item() <= 1 / math.sqrt(fan_in)
        for conv, fan_in in ((block.shortcut, 32), (model.output, 4 * 64)):
            assert conv.weight.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.05)
        assert 0.9 / math.sqrt(3) < model.from_rgb["2"].weight.abs().max().item() <= 1 / math.sqrt(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": {4: 8, 8: 8}}, "channels"),
        ({"channels": {2: 8}}, "channels"),
        ({"channels": {2: 8, 4: 0}}, "channels"),
        ({"latent_dim": -1}, "latent_dim must not be negative"),
        ({"predict_pose": False}, "latent_dim 256 goes with predict_pose"),
    ],
)
def test_wrong_configurations_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PiGANDiscriminatorConfig(**change)


@pytest.mark.parametrize(
    "shape", [(2, 3, 32, 32), (2, 3, 1, 1), (2, 3, 12, 12), (2, 3, 16, 8), (2, 1, 8, 8), (3, 8, 8)]
)
def test_wrong_images_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image must have shape .* from 2 to 16"):
        small()(torch.zeros(shape))


def test_other_dtypes_are_named() -> None:
    with pytest.raises(ValueError, match=r"image must be torch\.float64 on cpu like the weights, got torch\.float32"):
        small()(images(1, 16).float())


@pytest.mark.parametrize(("size", "fade"), [(16, -0.1), (16, 1.1), (2, 0.5)])
def test_wrong_fades_are_named(size: int, fade: float) -> None:
    with pytest.raises(ValueError, match="fade must be"):
        small()(images(1, size), fade)


@pytest.mark.parametrize("kind", ["progressive", "strided with coordinates"])
def test_kernels_give_the_same(kernel_backend: Backend, kind: str) -> None:
    """Outputs, R1 and its gradients in float32 against float64; no unit lies within rounding of its kink."""
    exact = small(kind)
    ours = copy.deepcopy(exact).to(kernel_backend.device, torch.float32)

    def run(model: PiGANDiscriminator, image: Tensor) -> list[Tensor]:
        image = image.requires_grad_()
        seen = model.predictions(image, 0.4)
        (gradient,) = torch.autograd.grad(seen.logits.sum(), image, create_graph=True)
        loss = gradient.square().sum() + seen.logits.sum() + seen.pose.sum()
        return [seen.logits, gradient, *torch.autograd.grad(loss, list(model.blocks.parameters()))]

    found = run(ours, images(2, 16).to(kernel_backend.device, torch.float32))
    for a, b in zip(found, run(exact, images(2, 16)), strict=True):
        assert relative_l2(a, b) < 1e-4
