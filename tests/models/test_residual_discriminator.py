"""Discriminators with residual blocks: shapes, fade-in, minibatch statistics, and gradients of R1."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from models.small_residual_discriminator import CHANNELS, images, small
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.errors import UserError
from cips3d.models.channels import channels_at
from cips3d.models.equalized import EqualizedConv2d, EqualizedLinear
from cips3d.models.residual_discriminator import (
    DownsamplingBlock,
    ImageDiscriminator,
    ResidualDiscriminator,
    ResidualDiscriminatorConfig,
    append_minibatch_std,
    channel_table,
)
from cips3d.ops.upfirdn2d import binomial_kernel, upfirdn2d
from cips3d.training.losses import r1_penalty


def test_published_channel_tables() -> None:
    main = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    aux = {4: 256, 8: 256, 16: 256, 32: 256, 64: 256, 128: 256, 256: 128, 512: 64, 1024: 32}
    config = ResidualDiscriminatorConfig()
    assert config.main_channels == main
    assert config.aux_channels == aux
    assert (config.main_minibatch_std_group, config.aux_minibatch_std_group) == (0, 0)
    assert channel_table(32, base=512, cap=64) == {4: 64, 8: 64, 16: 32, 32: 16}
    assert channel_table(32, base=512, cap=32) == {4: 32, 8: 32, 16: 32, 32: 16}
    assert channels_at({4: 4, 8: 3}, 4) == {4: 4}
    assert channels_at({4: 4, 8: 3}, 64) == {4: 4, 8: 3, 16: 1, 32: 1, 64: 1}  # there is at least one


def test_published_size() -> None:
    with torch.device("meta"):
        discriminator = ResidualDiscriminator.from_config(ResidualDiscriminatorConfig())
    aux = discriminator.aux
    assert aux is not None
    assert discriminator.main.hidden.weight.shape == (512, 8192)
    assert aux.hidden.weight.shape == (256, 4096)
    assert aux.downsample_first
    assert not discriminator.main.downsample_first


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: channel_table(48), "resolution 48 is not a power of two"),
        (lambda: channel_table(64, base=32), "base 32 and cap 512 leave no channel"),
        (lambda: ResidualDiscriminatorConfig(main_channels={4: 8, 16: 8}), "main_channels"),
        (lambda: ResidualDiscriminatorConfig(main_channels={}), "main_channels"),
        (lambda: ResidualDiscriminatorConfig(aux_channels={4: 8, 8: 0}), "aux_channels"),
        (lambda: ResidualDiscriminatorConfig(main_minibatch_std_group=1), "main_minibatch_std_group 1"),
    ],
)
def test_wrong_configurations_are_named(make: object, named: str) -> None:
    with pytest.raises(UserError, match=named):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("downsample_first", [False, True])
@pytest.mark.parametrize("group", [0, 4])
@pytest.mark.parametrize("size", [4, 8, 32])
def test_every_resolution_gives_logits(size: int, group: int, downsample_first: bool) -> None:
    discriminator = small(group, downsample_first)
    x = images(8, size)
    logits = discriminator(x)
    assert logits.shape == (8, 1)
    assert logits.std() > 0
    # Only layers of this resolution and below are used.
    logits.sum().backward()
    unused = {name for name, p in discriminator.named_parameters() if p.grad is None}
    for name in unused:
        block = name.split(".")[1]
        assert name.startswith(("from_rgb.", "blocks.")) and (
            int(block) > size or (int(block) < size and name.startswith("from_rgb."))
        )


@pytest.mark.parametrize(
    "shape", [(2, 3, 64, 64), (2, 3, 2, 2), (2, 3, 24, 24), (2, 3, 32, 16), (2, 1, 32, 32), (3, 32, 32)]
)
def test_wrong_images_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image must have shape .* from 4 to 32"):
        small()(torch.zeros(shape))


def test_pictures_with_their_channels_last_are_turned_round_before_they_have_many(kernel_backend: Backend) -> None:
    network = ImageDiscriminator(32, CHANNELS).to(kernel_backend.device)
    found: list[bool] = []
    network.from_rgb["16"].conv.register_forward_hook(lambda *of: found.append(of[2].is_contiguous()))
    image = images(2, 16).to(kernel_backend.device)
    torch.testing.assert_close(network(image.contiguous(memory_format=torch.channels_last)), network(image))
    assert found == [True, True]


def test_wrong_dimensions_are_named() -> None:
    with pytest.raises(ValueError, match="resolution_max must be a power of two"):
        ImageDiscriminator(24, CHANNELS)
    with pytest.raises(ValueError, match=r"channels must name every resolution up to 64; \[64\] missing"):
        ImageDiscriminator(64, CHANNELS)


def test_fade_is_the_published_mixture() -> None:
    discriminator = small()
    x = images(2, 32)
    half = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
    block = discriminator.blocks["32"](discriminator.from_rgb["32"](x))
    mixture = 0.3 * block + 0.7 * discriminator.from_rgb["16"](half)
    rest = discriminator.blocks["8"](discriminator.blocks["16"](mixture))
    expected = discriminator.output(discriminator.hidden(discriminator.final(rest).flatten(1)))
    torch.testing.assert_close(discriminator(x, fade=0.3), expected)


def test_fade_goes_from_the_half_image_to_the_image() -> None:
    discriminator = small()
    x = images(2, 32)
    torch.testing.assert_close(discriminator(x, fade=0.0), discriminator(F.avg_pool2d(x, 2)))
    assert not torch.allclose(discriminator(x, fade=0.0), discriminator(x, fade=1.0))
    calls = []
    discriminator.from_rgb["16"].register_forward_hook(lambda *_: calls.append(1))
    discriminator(x, fade=1.0)
    assert not calls  # nothing is computed for the half image once the fade is over
    discriminator(x, fade=0.5)
    assert len(calls) == 1


@pytest.mark.parametrize(("size", "fade"), [(32, -0.1), (32, 1.1), (4, 0.5)])
def test_wrong_fades_are_named(size: int, fade: float) -> None:
    with pytest.raises(ValueError, match="fade must be"):
        small()(images(1, size), fade=fade)


@pytest.mark.parametrize("downsample_first", [False, True])
def test_shortcut_is_blur_then_strided_convolution(downsample_first: bool) -> None:
    torch.manual_seed(0)
    block = DownsamplingBlock(4, 6, downsample_first=downsample_first).double()
    x = images(2, 8).double().repeat(1, 2, 1, 1)[:, :4]
    blurred = upfirdn2d(x, binomial_kernel(), padding=1)
    skip = F.conv2d(blurred, block.skip.weight / 4**0.5, stride=2)
    expected = (block.conv2(block.conv1(x)) + skip) / 2**0.5
    torch.testing.assert_close(block(x), expected)
    assert expected.shape == (2, 6, 4, 4)


def test_minibatch_std_by_hand() -> None:
    # Groups of 2 out of 4 images: 0 with 2 and 1 with 3. Values 1 and 5 -> deviation 2; 3 and 3 -> sqrt(1e-8).
    x = torch.tensor([1.0, 3.0, 5.0, 3.0], dtype=torch.float64).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    y = append_minibatch_std(x.contiguous(), group=2)
    assert y.shape == (4, 3, 3, 3)
    assert torch.equal(y[:, :2], x)
    expected = torch.tensor([2.0, 1e-4, 2.0, 1e-4], dtype=torch.float64).view(4, 1, 1, 1).expand(4, 1, 3, 3)
    torch.testing.assert_close(y[:, 2:], expected)


def test_minibatch_std_groups_are_no_larger_than_the_batch() -> None:
    x = images(3, 4)
    torch.testing.assert_close(append_minibatch_std(x, group=4), append_minibatch_std(x, group=3))
    with pytest.raises(ValueError, match="batch of 6 images cannot be split into groups of 4"):
        append_minibatch_std(images(6, 4), group=4)


def test_minibatch_std_of_equal_images_in_float16_has_finite_gradients() -> None:
    x = torch.ones(4, 2, 4, 4, dtype=torch.float16, requires_grad=True)
    y = append_minibatch_std(x, group=4)
    assert y.dtype == torch.float16
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_equalized_layers_keep_the_variance() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    for multiplier in (1.0, 0.01):
        layer = EqualizedLinear(256, 512, lr_multiplier=multiplier, bias_init=1.0)
        y = layer(x) - 1
        # 256·512 weights: the variance of y is 1 within a few per cent.
        assert y.var().item() == pytest.approx(1, abs=0.05)
        assert layer.weight.std().item() == pytest.approx(1 / multiplier, rel=0.02)
    conv = EqualizedConv2d(32, 64, 3, padding=1)
    y = conv(torch.randn(8, 32, 16, 16))[:, :, 1:-1, 1:-1]
    assert y.var().item() == pytest.approx(1, abs=0.1)


def test_activated_linear_is_linear_bias_and_leaky_relu() -> None:
    torch.manual_seed(0)
    layer = EqualizedLinear(5, 4, lr_multiplier=0.5, bias_init=0.3, activation=True)
    x = torch.randn(3, 5)
    z = x @ layer.weight.t() * (0.5 / 5**0.5) + 0.3
    torch.testing.assert_close(layer(x), F.leaky_relu(z, 0.2) * 2**0.5)


@pytest.mark.parametrize(("group", "downsample_first"), [(0, False), (2, True)])
def test_r1_gradient_is_right(group: int, downsample_first: bool) -> None:
    """The derivative of R1 along a random direction of all weights, against a central difference in float64."""
    discriminator = small(group, downsample_first).double()
    x = images(4, 16).double().requires_grad_()
    parameters = list(discriminator.parameters())
    gradients = torch.autograd.grad(r1_penalty(discriminator(x, fade=0.6), x), parameters, allow_unused=True)
    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None)

    def penalty_at(step: float) -> Tensor:
        moved = copy.deepcopy(discriminator)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), direction, strict=True):
                p.add_(d, alpha=step)
        return r1_penalty(moved(x, fade=0.6), x).detach()

    step = 1e-7  # small, so that hardly any leaky ReLU changes its side; truncation is far below rounding
    difference = (penalty_at(step) - penalty_at(-step)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=0)


def test_a_configuration_is_no_network() -> None:
    with pytest.raises(
        TypeError, match=r"main must be an ImageDiscriminator, got ResidualDiscriminatorConfig; from_config"
    ):
        ResidualDiscriminator(ResidualDiscriminatorConfig())  # type: ignore[arg-type]


def test_pair() -> None:
    torch.manual_seed(0)
    config = ResidualDiscriminatorConfig(main_channels=CHANNELS, aux_channels={4: 4, 8: 4, 16: 4})
    discriminator = ResidualDiscriminator.from_config(config)
    assert discriminator.aux is not None
    assert discriminator.config == config == ResidualDiscriminatorConfig(CHANNELS, {4: 4, 8: 4, 16: 4})
    with pytest.raises(ValueError, match=r"image must be of a floating-point dtype, got torch\.uint8"):
        discriminator(images(2, 32).to(torch.uint8))
    image, aux_image = images(2, 32), images(2, 16, seed=1)
    assert discriminator(image, fade=0.4).shape == (2, 1)
    logits, aux_logits = discriminator(image, aux_image, fade=0.6)
    torch.testing.assert_close(logits, discriminator.main(image, 0.6))
    torch.testing.assert_close(aux_logits, discriminator.aux(aux_image, 0.6))


def test_the_configuration_of_one_without_an_auxiliary_part() -> None:
    config = ResidualDiscriminatorConfig(main_channels=CHANNELS, aux_channels=None)
    assert ResidualDiscriminator.from_config(config).config == config


def test_a_progressive_one_takes_its_largest_images_as_it_is() -> None:
    """Though its auxiliary part sees smaller ones."""
    config = ResidualDiscriminatorConfig(main_channels={4: 8, 8: 8}, aux_channels={4: 4})
    assert [config.at(resolution) for resolution in (4, 8)] == [config] * 2
    assert config.at(16) == ResidualDiscriminatorConfig({4: 8, 8: 8, 16: 4}, {4: 4, 8: 2, 16: 1})


def test_poses_are_predicted_beside_the_logits() -> None:
    channels = channel_table(16, base=64, cap=8)
    discriminator = ResidualDiscriminator.from_config(
        ResidualDiscriminatorConfig(channels, channels, predict_pose=True)
    )
    images = torch.rand(3, 3, 16, 16)
    main, aux = discriminator.discriminate(images, images)
    assert aux is not None
    assert main.pose is not None
    assert main.logits.shape == aux.logits.shape == (3, 1)
    assert main.pose.shape == (3, 2)
    assert aux.pose is None  # the NeRF's own image shows the same pose: one opinion is enough
    assert torch.equal(discriminator(images), main.logits)
    plain = ResidualDiscriminator.from_config(ResidualDiscriminatorConfig(channels, channels))
    assert plain.discriminate(images).main.pose is None


def test_aux_image_needs_an_aux_part() -> None:
    discriminator = ResidualDiscriminator.from_config(
        ResidualDiscriminatorConfig(main_channels=CHANNELS, aux_channels=None)
    )
    assert discriminator.aux is None
    with pytest.raises(ValueError, match="aux_image is given"):
        discriminator(images(1, 8), images(1, 8))


def test_mixed_precision_stays_close() -> None:
    discriminator = small()
    x = images(4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = discriminator(x)
    # bfloat16 has 8 bits; errors of ten layers add up.
    assert relative_l2(logits, discriminator(x)) < 0.1
