"""State dicts of StyleGAN2 in PyTorch (rosinality/stylegan2-pytorch), read into our modules and written."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cips3d.convert.blur import blur_kernel, without_blur_kernels
from cips3d.convert.state import (
    load_renamed,
    parameter_names,
    published_group,
    renamed,
    require_published,
    shape_of,
)
from cips3d.convert.styled_layers import (
    count_layers,
    mapping_names,
    styled_conv_names,
    to_rgb_names,
    unwrapped,
    wrapped,
)
from cips3d.errors import UserError
from cips3d.models.channels import RESOLUTION_MIN
from cips3d.models.residual_discriminator import ImageDiscriminator, ResidualDiscriminator
from cips3d.models.stylegan2 import StyleGAN2, StyleGAN2Config

GENERATOR, DISCRIMINATOR = "a StyleGAN2 generator", "a StyleGAN2 discriminator"
MAX_RESOLUTION = 4096  # noise that a file need not hold is drawn at this size
UPSAMPLING_GAIN = 2.0  # of the blurs in the generator, on each axis


def stylegan2_reference_names(config: StyleGAN2Config) -> dict[str, str]:
    """Names of our parameters -> names in the published state dict."""
    names = mapping_names(config.mapping_layers)
    names["network.constant"] = "input.input"
    names |= styled_conv_names("network.layers.0", "conv1") | to_rgb_names("network.to_rgb.0", "to_rgb1")
    doublings = len(config.channels) - 1
    for k in range(2 * doublings):
        names |= styled_conv_names(f"network.layers.{k + 1}", f"convs.{k}")
    for k in range(doublings):
        names |= to_rgb_names(f"network.to_rgb.{k + 1}", f"to_rgbs.{k}")
    return names | {f"noises.noise_{k}": f"noises.noise_{k}" for k in range(2 * doublings + 1)}


def stylegan2_config_from_reference(
    state: Mapping[str, Tensor], *, mapping_lr_multiplier: float = 0.01
) -> StyleGAN2Config:
    """Dimensions of a published generator, read off the shapes of its state dict."""
    style_dim, z_dim = shape_of(state, "style.1.weight", 2, GENERATOR)
    channels = {RESOLUTION_MIN: shape_of(state, "input.input", 4, GENERATOR)[1]}
    doublings = count_layers(state, "convs.{}.conv.weight", GENERATOR) // 2
    if RESOLUTION_MIN << doublings > MAX_RESOLUTION:
        raise UserError(f"{doublings} doublings of {RESOLUTION_MIN}² are beyond {MAX_RESOLUTION}², which is absurd")
    for k in range(doublings):
        channels[RESOLUTION_MIN << (k + 1)] = shape_of(state, f"convs.{2 * k}.conv.weight", 5, GENERATOR)[1]
    return StyleGAN2Config(
        channels=channels,
        z_dim=z_dim,
        style_dim=style_dim,
        mapping_layers=count_layers(state, "style.{}.weight", GENERATOR, first=1),
        mapping_lr_multiplier=mapping_lr_multiplier,
    )


def stylegan2_from_reference(state: Mapping[str, Tensor], *, mapping_lr_multiplier: float = 0.01) -> StyleGAN2:
    """A `StyleGAN2` with the weights of a published state dict; dimensions are read off the shapes.

    The constant blur kernels may be missing. So may the noise buffers, all together: the model then keeps random ones,
    as the published one does.

    Args:
        state: names and tensors as the original's `state_dict()` gives them.
        mapping_lr_multiplier: of the training (`lr_mlp`), which no shape tells; 0.01 as published.

    Raises:
        UserError: keys are missing, unknown, or of a shape that does not fit.
    """
    config = stylegan2_config_from_reference(state, mapping_lr_multiplier=mapping_lr_multiplier)
    names = stylegan2_reference_names(config)
    if not any(key.startswith("noises.") for key in state):
        names = {ours: original for ours, original in names.items() if not ours.startswith("noises.")}
    weights = without_blur_kernels(state, _generator_blurs(config), GENERATOR, gain=UPSAMPLING_GAIN)
    generator = StyleGAN2(config)
    load_renamed(generator, unwrapped(weights, GENERATOR), names, GENERATOR)
    return generator


def stylegan2_to_reference(generator: StyleGAN2) -> dict[str, Tensor]:
    """The published state dict, blur kernels included: the inverse of `stylegan2_from_reference`."""
    state = wrapped(renamed(generator, stylegan2_reference_names(generator.config)))
    return state | {key: blur_kernel(UPSAMPLING_GAIN) for key in _generator_blurs(generator.config)}


def _generator_blurs(config: StyleGAN2Config) -> list[str]:
    doublings = range(len(config.channels) - 1)
    return [f"convs.{2 * k}.conv.blur.kernel" for k in doublings] + [f"to_rgbs.{k}.upsample.kernel" for k in doublings]


def stylegan2_discriminator_reference_names(resolutions: list[int]) -> dict[str, str]:
    """Names of our parameters -> names in the published state dict, for a discriminator of these resolutions."""
    names: dict[str, str] = {}

    def activated(ours: str, original: str, first: int = 0) -> None:
        names[f"{ours}.conv.weight"] = f"{original}.{first}.weight"
        names[f"{ours}.bias"] = f"{original}.{first + 1}.bias"

    activated(f"main.from_rgb.{resolutions[-1]}", "convs.0")
    for k, resolution in enumerate(reversed(resolutions[1:]), start=1):
        block, original = f"main.blocks.{resolution}", f"convs.{k}"
        activated(f"{block}.conv1", f"{original}.conv1")
        activated(f"{block}.conv2", f"{original}.conv2", first=1)  # behind the blur
        names[f"{block}.skip.weight"] = f"{original}.skip.1.weight"
    activated("main.final", "final_conv")
    return names | parameter_names("main.hidden", "final_linear.0") | parameter_names("main.output", "final_linear.1")


def stylegan2_discriminator_from_reference(state: Mapping[str, Tensor]) -> ResidualDiscriminator:
    """A `ResidualDiscriminator` with the weights of a published state dict; dimensions are read off the shapes.

    It takes images of the largest resolution alone. The constant blur kernels may be missing.

    Raises:
        UserError: keys are missing, unknown, or of a shape that does not fit.
    """
    blocks = count_layers(state, "convs.{}.conv2.1.weight", DISCRIMINATOR, first=1)
    resolutions = [RESOLUTION_MIN << k for k in range(blocks + 1)]
    channels = {resolutions[-1]: shape_of(state, "convs.0.0.weight", 4, DISCRIMINATOR)[0]}
    for k in range(1, len(resolutions)):
        channels[resolutions[-1 - k]] = shape_of(state, f"convs.{k}.conv2.1.weight", 4, DISCRIMINATOR)[0]
    final_in = shape_of(state, "final_conv.0.weight", 4, DISCRIMINATOR)[1]
    group = published_group(final_in == channels[RESOLUTION_MIN] + 1)
    discriminator = ResidualDiscriminator(ImageDiscriminator(resolutions[-1], channels, group, progressive=False))
    weights = without_blur_kernels(state, _discriminator_blurs(len(resolutions) - 1), DISCRIMINATOR)
    load_renamed(discriminator, weights, stylegan2_discriminator_reference_names(resolutions), DISCRIMINATOR)
    return discriminator


def stylegan2_discriminator_to_reference(discriminator: ResidualDiscriminator) -> dict[str, Tensor]:
    """The published state dict, blur kernels included: the inverse of `stylegan2_discriminator_from_reference`.

    Raises:
        UserError: the published system has no such discriminator.
    """
    part = discriminator.main
    if discriminator.aux is not None or part.progressive or part.downsample_first or part.predict_pose:
        raise UserError(
            "a discriminator of StyleGAN2 has one part, one layer from RGB, downsamples in the second convolution of "
            "its blocks and predicts no pose; this one differs"
        )
    group = part.minibatch_std_group
    require_published(DISCRIMINATOR, {"main.minibatch_std_group": (group, published_group(group > 0))})
    resolutions = sorted(part.channels)
    state = renamed(discriminator, stylegan2_discriminator_reference_names(resolutions))
    return state | {key: blur_kernel() for key in _discriminator_blurs(len(resolutions) - 1)}


def _discriminator_blurs(blocks: int) -> list[str]:
    return [f"convs.{k}.{path}.0.kernel" for k in range(1, blocks + 1) for path in ("conv2", "skip")]
