"""The StyleGAN2 generator: sizes, noise, styles, derivatives, and the arguments that it refuses."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.models.channels import channel_table
from cips3d.models.generator import truncated
from cips3d.models.residual_discriminator import ResidualDiscriminator, ResidualDiscriminatorConfig
from cips3d.models.style_mapping import StyleMapping, WStyles
from cips3d.models.stylegan2 import StyleGAN2, StyleGAN2Config
from cips3d.models.view import View

CONFIG = StyleGAN2Config(channels={4: 6, 8: 5, 16: 4}, z_dim=7, style_dim=8, mapping_layers=2)
CAMERAS = Cameras.from_angles(torch.ones(2), torch.ones(2))
PUBLISHED = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}


@pytest.fixture
def generator() -> StyleGAN2:
    torch.manual_seed(0)
    model = StyleGAN2(CONFIG).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.3)
    return model


def sample_z(batch: int = 2, width: int = 7, seed: int = 1) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_defaults_are_the_published_sizes() -> None:
    """30 370 060 parameters: what the original prints of its generator for 1024²; 29 012 513 of its discriminator."""
    with torch.device("meta"):
        published = StyleGAN2()
        config = ResidualDiscriminatorConfig(aux_channels=None, main_minibatch_std_group=4, progressive=False)
        discriminator = ResidualDiscriminator.from_config(config)
    assert published.config.channels == PUBLISHED and published.resolution == 1024
    assert sum(p.numel() for p in published.parameters()) == 30_370_060
    assert published.style_layers == 18  # 17 convolutions and the last ToRGB
    assert [b.shape[-1] for b in published.noises.buffers()] == [4, *(s for s in list(PUBLISHED)[1:] for _ in "12")]
    assert sum(p.numel() for p in discriminator.parameters()) == 29_012_513


def test_multiplier_1_is_the_published_one() -> None:
    assert channel_table(512, base=16384) == {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32}


@pytest.mark.parametrize("side", [4, 8, 64])
def test_any_power_of_two(side: int) -> None:
    model = StyleGAN2(StyleGAN2Config(channels=channel_table(side, 256, 8), z_dim=4, style_dim=4, mapping_layers=1))
    assert model(torch.randn(3, 4)).image.shape == (3, 3, side, side)
    assert model.style_layers == 2 * (side.bit_length() - 1) - 2


def test_noise(generator: StyleGAN2) -> None:
    z = sample_z()

    def image(noise: Any, seed: int | None = None) -> Tensor:
        source = None if seed is None else torch.Generator().manual_seed(seed)
        return generator(z, noise=noise, generator=source).image

    fixed, silent = image("const"), image("none")
    assert torch.equal(fixed, image("const")) and torch.equal(silent, image("none"))
    assert torch.equal(image("random", 1), image("random", 1))
    assert torch.equal(image(list(generator.noises.buffers())), fixed)
    source = torch.Generator().manual_seed(1)
    maps = [torch.randn(len(z), 1, s, s, generator=source, dtype=z.dtype) for s in generator.network.sides]
    assert torch.equal(image(maps), image("random", 1))
    different = [fixed, silent, image("random", 1), image("random", 2), image("random")]
    for k, a in enumerate(different):
        for b in different[:k]:
            assert not torch.allclose(a, b)
    with torch.no_grad():
        for buffer in generator.noises.buffers():
            buffer.zero_()
    assert torch.equal(image("const"), silent)
    with pytest.raises(ValueError, match="noise must be one of const, random, none, got 'fixed'"):
        image("fixed")


def test_noise_has_no_effect_at_the_start() -> None:
    model, z = StyleGAN2(CONFIG), sample_z().float()
    assert torch.equal(model(z, noise="random").image, model(z, noise="none").image)


def test_a_style_for_every_layer(generator: StyleGAN2) -> None:
    styles = generator.mapping(sample_z())
    repeated = WStyles(styles.w[:, None].expand(-1, generator.style_layers, -1))
    one, many = (generator.synthesis(s, noise="none").image for s in (styles, repeated))
    assert torch.equal(one, many)
    assert torch.equal(one, generator(sample_z(), noise="none").image)


def test_mixing(generator: StyleGAN2) -> None:
    a, b = generator.mapping(sample_z()), generator.mapping(sample_z(seed=2))
    layers = generator.style_layers

    def image(styles: WStyles) -> Tensor:
        return generator.synthesis(styles, noise="none").image

    assert torch.equal(image(generator.mixed(a, b, 0)), image(b))
    assert torch.equal(image(generator.mixed(a, b, layers)), image(a))
    mixed = [image(generator.mixed(a, b, k)) for k in range(layers + 1)]
    for one, next_one in zip(mixed, mixed[1:], strict=False):
        assert not torch.allclose(one, next_one)  # every layer counts
    # The last style is that of the last colours alone.
    seen: list[Tensor] = []
    generator.network.to_rgb[-1].register_forward_hook(lambda _m, inputs, _y: seen.append(inputs[1]))
    image(generator.mixed(a, b, layers - 1))
    assert torch.equal(seen[0], b.w)


def test_styles_of_colours_are_those_of_the_next_convolution(generator: StyleGAN2) -> None:
    w = sample_z(1, 8)[:, None] + torch.arange(generator.style_layers)[:, None]
    used: dict[str, float] = {}
    for name, module in [*generator.network.layers.named_children(), *generator.network.to_rgb.named_children()]:
        kind = "layer" if hasattr(module, "noise_strength") else "rgb"

        def note(_m: object, inputs: tuple[Tensor, ...], key: str = f"{kind} {name}") -> None:
            used[key] = (inputs[1] - w[:, 0]).mean().item()

        module.register_forward_pre_hook(note)
    generator.synthesis(WStyles(w), noise="none")
    expected = {
        "layer 0": 0,
        "rgb 0": 1,
        "layer 1": 1,
        "layer 2": 2,
        "rgb 1": 3,
        "layer 3": 3,
        "layer 4": 4,
        "rgb 2": 5,
    }
    assert used == pytest.approx(expected)


def test_truncation(generator: StyleGAN2) -> None:
    mean = generator.float().mean_styles(200)
    assert mean.w.shape == (1, 8)
    styles = generator.mapping(sample_z().float())
    images = [generator.synthesis(truncated(styles, mean, psi), noise="none").image for psi in (0.0, 1.0)]
    torch.testing.assert_close(images[0][0], images[0][1], rtol=1e-5, atol=1e-5)
    assert torch.equal(images[1], generator.synthesis(styles, noise="none").image)


def test_render(generator: StyleGAN2) -> None:
    styles = generator.mapping(sample_z())
    for resolution in (16, (16, 16)):
        picture = generator.render(styles, View(resolution, CAMERAS, jitter=False))
        assert torch.equal(picture.image, generator.synthesis(styles, noise="const").image)
        assert picture.aux_image is None and picture.depth is None

    def jittered(seed: int) -> Tensor:
        source = torch.Generator().manual_seed(seed)
        return generator.render(styles, View(16, CAMERAS, generator=source)).image

    assert torch.equal(jittered(1), jittered(1)) and not torch.allclose(jittered(1), jittered(2))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"resolution": 32}, "resolution must be 16, the only one of this model, got 32"),
        ({"resolution": (16, 8)}, "resolution must be 16"),
        ({"window": (0, 0, 4, 4)}, "window"),
        ({"grad_points": 4}, "grad_points"),
    ],
)
def test_views_it_cannot_take_are_named(generator: StyleGAN2, change: dict[str, Any], named: str) -> None:
    view = View(**{"resolution": 16, "cameras": CAMERAS, **change})
    with pytest.raises(ValueError, match=named):
        generator.render(generator.mapping(sample_z()), view)


@pytest.mark.parametrize("shape", [(2, 7), (8,), (2, 5, 8), (2, 7, 8), (2, 6, 7), (2, 6, 8, 1)])
def test_wrong_styles_are_named(generator: StyleGAN2, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"w must have shape \[B, 8\] or \[B, 6, 8\]"):
        generator.synthesis(WStyles(torch.zeros(shape, dtype=torch.float64)))


def test_wrong_z_is_named(generator: StyleGAN2) -> None:
    with pytest.raises(ValueError, match=r"z must have shape \[any, 7\], got \[2, 8\]"):
        generator(sample_z(width=8))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"channels": {4: 8, 16: 8}}, "channels"),
        ({"channels": {4: 8, 8: 0}}, "channels"),
        ({"channels": {}}, "channels"),
        ({"z_dim": 0}, "z_dim 0"),
        ({"style_dim": 0}, "style_dim 0"),
        ({"mapping_layers": 0}, "mapping_layers 0"),
        ({"mapping_lr_multiplier": 0.0}, "mapping_lr_multiplier 0.0"),
    ],
)
def test_wrong_configurations_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        StyleGAN2Config(**fields)


def test_parameter_groups_have_all_parameters(generator: StyleGAN2) -> None:
    groups = generator.parameter_groups()
    grouped = [p for group in groups for module in group for p in module.parameters()]
    assert {id(p) for p in grouped} == {id(p) for p in generator.parameters()}
    assert len(grouped) == len(list(generator.parameters()))
    assert groups.nerf == () and generator.frozen_part() == ()


def test_gradients_reach_every_parameter(generator: StyleGAN2) -> None:
    generator(sample_z()).image.square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_path_lengths_have_gradients(generator: StyleGAN2) -> None:
    """∂/∂θ ‖∂(y·image)/∂w‖² against differences in θ, through every layer of the synthesis."""
    weight = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    w = generator.mapping(sample_z()).w.detach()
    # All but the biases of colours, which change no slope.
    parameters = [p for name, p in generator.network.named_parameters() if "to_rgb" not in name or "conv" in name]

    def length() -> Tensor:
        styles = w.clone().requires_grad_()
        image = generator.synthesis(WStyles(styles), noise="const").image
        (slope,) = torch.autograd.grad((image * weight).sum(), styles, create_graph=True)
        return slope.square().sum()

    gradients = torch.autograd.grad(length(), parameters)
    direction = [
        torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) for p in parameters
    ]
    expected = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))

    def moved(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
        value = length().item()
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p -= step * d
        return value

    step = 1e-7  # so small that hardly a leaky ReLU changes its side
    difference = (moved(step) - moved(-step)) / (2 * step)
    assert difference == pytest.approx(float(expected), rel=1e-5)


def test_the_mapping_network() -> None:
    torch.manual_seed(0)
    mapping = StyleMapping(6, 5, 3, lr_multiplier=0.01).double()
    with torch.no_grad():
        for linear in mapping.linears:
            linear.bias.normal_(0, 100)
    z = sample_z(4, 6)
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for linear in mapping.linears:
        x = x @ (linear.weight * 0.01 / x.shape[1] ** 0.5).T + linear.bias * 0.01
        x = 2**0.5 * torch.where(x > 0, x, 0.2 * x)
    assert relative_l2(mapping(z), x) < 1e-12  # float64 rounding


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = StyleGAN2(StyleGAN2Config(channels=channel_table(8, 512, 64), z_dim=64, style_dim=64, mapping_layers=2))
    for linear in model.style_mapping.linears:
        assert linear.weight.std().item() == pytest.approx(100, rel=0.1)  # 4096 draws: 5 standard errors are 6%
        assert not linear.bias.any()
    assert model.network.constant.std().item() == pytest.approx(1, rel=0.15)
    assert torch.stack([b.square().mean() for b in model.noises.buffers()]).mean().item() == pytest.approx(1, rel=0.4)


def test_a_discriminator_that_is_not_progressive() -> None:
    """One layer from RGB; what the progressive one of the same weights says; other sizes and fades are refused."""
    torch.manual_seed(0)
    config = ResidualDiscriminatorConfig(
        main_channels={4: 6, 8: 5, 16: 4}, aux_channels=None, main_minibatch_std_group=4
    )
    progressive = ResidualDiscriminator.from_config(config)
    discriminator = ResidualDiscriminator.from_config(replace(config, progressive=False))
    assert list(discriminator.main.from_rgb) == ["16"]
    weights = {k: v for k, v in progressive.state_dict().items() if k in discriminator.state_dict()}
    discriminator.load_state_dict(weights)
    image = torch.randn(8, 3, 16, 16)
    assert torch.equal(discriminator(image), progressive(image))
    with pytest.raises(ValueError, match=r"image must have shape \[B, 3, R, R\] with R = 16, got \[8, 3, 8, 8\]"):
        discriminator(image[:, :, :8, :8])
    with pytest.raises(ValueError, match="fade must be 1 of a discriminator that is not progressive"):
        discriminator(image, fade=0.5)


def test_kernels_give_the_same(kernel_backend: Backend) -> None:
    """float32 with kernels against float64 without, gradients included."""
    torch.manual_seed(0)
    exact = StyleGAN2(CONFIG).double()
    ours = copy.deepcopy(exact).to(kernel_backend.device, torch.float32)

    def run(model: StyleGAN2, device: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
        image = model(sample_z().to(device, dtype), noise="const").image
        return [image, *torch.autograd.grad(image.square().sum(), list(model.parameters()))]

    found = run(ours, kernel_backend.device, torch.float32)
    for a, b in zip(found, run(exact, "cpu", torch.float64), strict=True):
        assert relative_l2(a, b) < 1e-4  # float32 through ten layers
