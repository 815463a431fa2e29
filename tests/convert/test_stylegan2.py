"""Published StyleGAN2 state dicts, read and written back; the published numbers come out."""

from __future__ import annotations

import re

import pytest
import torch
from ops.backends import Backend
from reference_records import record, relative_l2, requires_record, state, tensor
from torch import Tensor

from cips3d.convert.stylegan2 import (
    stylegan2_discriminator_from_reference,
    stylegan2_discriminator_to_reference,
    stylegan2_from_reference,
    stylegan2_to_reference,
)
from cips3d.errors import UserError
from cips3d.models.residual_discriminator import ImageDiscriminator, ResidualDiscriminator, ResidualDiscriminatorConfig
from cips3d.models.stylegan2 import StyleGAN2, StyleGAN2Config

RECORD = "stylegan2_r32"
SMALL = StyleGAN2Config(channels={4: 6, 8: 5, 16: 4, 32: 3}, z_dim=7, style_dim=8, mapping_layers=2)
CHANNELS = {4: 6, 8: 5, 16: 4}


def small_discriminator(minibatch_std_group: int = 4) -> ResidualDiscriminator:
    return ResidualDiscriminator(ImageDiscriminator(16, CHANNELS, minibatch_std_group, progressive=False))


@requires_record(RECORD)
def test_images_of_the_published_generator(backend: Backend) -> None:
    loaded = record(RECORD)
    generator = stylegan2_from_reference(state(loaded, "gen/")).to(backend.device)
    z, expected = tensor(loaded, "in/z").to(backend.device), tensor(loaded, "out/image")
    assert relative_l2(generator.mapping(z).w, tensor(loaded, "out/w")) < 1e-6  # float32 rounding
    image = generator(z, noise="const").image.cpu()
    assert (image - expected).abs().max() < 1e-5 * expected.abs().max()  # float32 through ten layers


@requires_record(RECORD)
def test_logits_and_r1_of_the_published_discriminator(backend: Backend) -> None:
    loaded = record(RECORD)
    discriminator = stylegan2_discriminator_from_reference(state(loaded, "disc/")).to(backend.device)
    image = tensor(loaded, "out/image").to(backend.device).requires_grad_()
    logits = discriminator(image)
    # Logits are sums of larger numbers of both signs: float32 leaves about 1e-5 of them.
    assert torch.allclose(logits.cpu(), tensor(loaded, "out/logits"), rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    assert relative_l2(gradient, tensor(loaded, "out/input_grad")) < 1e-5
    r1 = gradient.square().sum((1, 2, 3)).cpu()
    assert torch.allclose(r1, tensor(loaded, "out/r1"), rtol=1e-5, atol=0)


@requires_record(RECORD)
def test_written_states_are_the_published_ones() -> None:
    loaded = record(RECORD)
    for prefix, written in (
        ("gen/", stylegan2_to_reference(stylegan2_from_reference(state(loaded, "gen/")))),
        ("disc/", stylegan2_discriminator_to_reference(stylegan2_discriminator_from_reference(state(loaded, "disc/")))),
    ):
        original = state(loaded, prefix)
        assert written.keys() == original.keys()
        for key, value in original.items():
            assert torch.equal(written[key], value), key


@pytest.mark.parametrize("side", [4, 8, 32])
def test_round_trip_of_generators(side: int) -> None:
    channels = {r: c for r, c in SMALL.channels.items() if r <= side}
    config = StyleGAN2Config(channels=channels, z_dim=7, style_dim=8, mapping_layers=2, mapping_lr_multiplier=0.1)
    generator = StyleGAN2(config)
    written = stylegan2_to_reference(generator)
    again = stylegan2_from_reference(written, mapping_lr_multiplier=0.1)
    assert again.config == config
    ours = generator.state_dict()
    assert again.state_dict().keys() == ours.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, ours[name]), name
    z = torch.randn(2, 7)
    assert torch.equal(again(z, noise="const").image, generator(z, noise="const").image)


@pytest.mark.parametrize("group", [0, 4])
def test_round_trip_of_discriminators(group: int) -> None:
    discriminator = small_discriminator(group)
    again = stylegan2_discriminator_from_reference(stylegan2_discriminator_to_reference(discriminator))
    assert again.main.channels == CHANNELS and again.main.minibatch_std_group == group
    assert again.aux is None and not again.main.progressive
    image = torch.randn(4, 3, 16, 16)
    assert torch.equal(again(image), discriminator(image))


def test_smallest_discriminator() -> None:
    discriminator = ResidualDiscriminator(ImageDiscriminator(4, {4: 3}, progressive=False))
    again = stylegan2_discriminator_from_reference(stylegan2_discriminator_to_reference(discriminator))
    image = torch.randn(2, 3, 4, 4)
    assert torch.equal(again(image), discriminator(image))


def test_what_a_state_need_not_have() -> None:
    """Blur kernels are constants; without noise buffers, the model keeps random ones."""
    generator = StyleGAN2(SMALL)
    written = stylegan2_to_reference(generator)
    few = {key: value for key, value in written.items() if "kernel" not in key and not key.startswith("noises.")}
    assert len(written) - len(few) == 2 * 3 + 7
    again, z = stylegan2_from_reference(few), torch.randn(2, 7)
    assert torch.equal(again(z, noise="none").image, generator(z, noise="none").image)
    assert all(noise.std() > 0 for noise in again.noises.buffers())
    kernels = {key: value / 4 for key, value in written.items() if "kernel" in key}  # the filters without their gain
    again = stylegan2_from_reference({**written, **kernels})
    assert torch.equal(again(z, noise="none").image, generator(z, noise="none").image)
    discriminator = stylegan2_discriminator_to_reference(small_discriminator())
    stylegan2_discriminator_from_reference({k: v for k, v in discriminator.items() if "kernel" not in k})


def test_absurd_resolutions() -> None:
    """A few kilobytes ask for noise of any size."""
    few = {k: v for k, v in stylegan2_to_reference(StyleGAN2(SMALL)).items() if not k.startswith("noises.")}
    more = {f"convs.{k}.conv.weight": few["convs.0.conv.weight"] for k in range(22)}
    with pytest.raises(UserError, match="11 doublings of 4² are beyond 4096², which is absurd"):
        stylegan2_from_reference({**few, **more})


GENERATOR_FAULTS: list[tuple[dict[str, Tensor | None], str]] = [
    ({"convs.3.noise.weight": None}, "convs.3.noise.weight is missing"),
    ({"noises.noise_4": None}, "noises.noise_4 is missing"),
    ({"style.1.weight": None}, "style.1.weight is missing"),
    ({"convs.2.conv.weight": None}, "convs.2.conv.weight is missing"),
    ({"extra": torch.zeros(1)}, "extra is unknown"),
    ({"convs.1.conv.blur.kernel": torch.ones(4, 4)}, "convs.1.conv.blur.kernel is unknown"),
    ({"convs.0.conv.blur.kernel": torch.ones(4, 4)}, "convs.0.conv.blur.kernel is not"),
    ({"to_rgbs.1.upsample.kernel": torch.ones(3, 3)}, "to_rgbs.1.upsample.kernel is not"),
    ({"conv1.activate.bias": torch.zeros(5)}, "conv1.activate.bias has shape [5] where [6] is needed"),
    ({"conv1.conv.weight": torch.zeros(6, 6, 3, 3)}, "conv1.conv.weight has shape"),
    ({"convs.0.conv.weight": torch.zeros(5, 6, 3, 3)}, "convs.0.conv.weight has shape"),
    ({"to_rgb1.bias": torch.zeros(3)}, "to_rgb1.bias has shape [3] where [1, 3, 1, 1] is needed"),
    ({"input.input": torch.zeros(6)}, "input.input has shape [6] where 4 dimensions are needed"),
    ({"input.input": torch.zeros(1, 0, 4, 4)}, "input.input has shape [1, 0, 4, 4] where sizes above 0 are needed"),
    ({f"style.{10**20}.weight": torch.zeros(0)}, "style.3.weight is missing"),
    ({f"convs.{10**20}.conv.weight": torch.zeros(0)}, "convs.6.conv.weight is missing"),
]


@pytest.mark.parametrize(("change", "named"), GENERATOR_FAULTS)
def test_wrong_generator_states_are_refused(change: dict[str, Tensor | None], named: str) -> None:
    changed = {**stylegan2_to_reference(StyleGAN2(SMALL)), **change}
    with pytest.raises(UserError, match="not that of a StyleGAN2 generator: .*" + re.escape(named)):
        stylegan2_from_reference({key: value for key, value in changed.items() if value is not None})


DISCRIMINATOR_FAULTS: list[tuple[dict[str, Tensor | None], str]] = [
    ({"convs.0.0.weight": None}, "convs.0.0.weight is missing"),
    ({"convs.1.conv2.1.weight": None}, "convs.1.conv2.1.weight is missing"),
    ({"final_linear.1.bias": None}, "final_linear.1.bias is missing"),
    ({f"convs.{10**20}.conv2.1.weight": torch.zeros(0)}, "convs.3.conv2.1.weight is missing"),
    ({"convs.1.skip.1.bias": torch.zeros(5)}, "convs.1.skip.1.bias is unknown"),
    ({"convs.1.skip.0.kernel": torch.ones(4, 4)}, "convs.1.skip.0.kernel is not"),
    ({"final_conv.0.weight": torch.zeros(6, 9, 3, 3)}, "final_conv.0.weight has shape"),
]


@pytest.mark.parametrize(("change", "named"), DISCRIMINATOR_FAULTS)
def test_wrong_discriminator_states_are_refused(change: dict[str, Tensor | None], named: str) -> None:
    changed = {**stylegan2_discriminator_to_reference(small_discriminator()), **change}
    with pytest.raises(UserError, match="not that of a StyleGAN2 discriminator: .*" + re.escape(named)):
        stylegan2_discriminator_from_reference({key: value for key, value in changed.items() if value is not None})


def test_states_of_something_else_are_refused() -> None:
    generator, discriminator = StyleGAN2(SMALL), small_discriminator()
    with pytest.raises(UserError, match="not that of a StyleGAN2 generator"):
        stylegan2_from_reference(stylegan2_discriminator_to_reference(discriminator))
    with pytest.raises(UserError, match="not that of a StyleGAN2 discriminator"):
        stylegan2_discriminator_from_reference(stylegan2_to_reference(generator))
    for read in (stylegan2_from_reference, stylegan2_discriminator_from_reference):
        with pytest.raises(UserError, match="not that of a StyleGAN2"):
            read({})


def test_other_discriminators_cannot_be_written() -> None:
    progressive = ResidualDiscriminator.from_config(
        ResidualDiscriminatorConfig(main_channels={4: 2}, aux_channels=None)
    )
    with pytest.raises(UserError, match="a discriminator of StyleGAN2 has one part"):
        stylegan2_discriminator_to_reference(progressive)
