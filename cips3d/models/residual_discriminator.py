"""CIPS-3D's and StyleGAN2's: one network for all resolutions, alone or as a pair for image and auxiliary image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cips3d.errors import UserError
from cips3d.models.channels import RESOLUTION_MIN, channel_table, channels_at, check_channel_table, resolutions_up_to
from cips3d.models.discriminator import Discriminator, DiscriminatorOutput, DiscriminatorOutputs
from cips3d.models.equalized import SUM_SCALE, EqualizedConv2d, EqualizedLinear
from cips3d.ops import kernels
from cips3d.ops.bias_leaky_relu import bias_leaky_relu
from cips3d.ops.checks import check_input, check_tensor
from cips3d.ops.upfirdn2d import binomial_kernel, upfirdn2d

MINIBATCH_STD_EPS = 1e-8  # keeps the root's gradient finite where all images of a group agree


@dataclass(frozen=True)
class ResidualDiscriminatorConfig:
    """Widths of the discriminators. `channel_table` makes the tables."""

    kind: Literal["residual"] = field(default="residual", kw_only=True)
    main_channels: dict[int, int] = field(default_factory=channel_table)
    """channels of the main discriminator at each resolution, 4 to the largest: a power of two each"""
    aux_channels: dict[int, int] | None = field(default_factory=lambda: channel_table(cap=256))
    """channels of the auxiliary discriminator, which sees the NeRF's image; None: there is none"""
    main_minibatch_std_group: int = 0
    """images that the main discriminator compares with each other (4 in StyleGAN2); 0: none"""
    aux_minibatch_std_group: int = 0
    """the same for the auxiliary discriminator"""
    main_downsample_first: bool = False
    """blocks of the main discriminator halve the resolution in their first convolution, not in the second (cheaper)"""
    aux_downsample_first: bool = True
    """the same for the auxiliary discriminator"""
    predict_pose: bool = False
    """the main discriminator also predicts the camera that an image was rendered from, which the pose loss needs"""
    progressive: bool = True
    """images of every resolution can enter, as a schedule of growing resolutions needs; False: the largest alone, as in
    StyleGAN2"""

    latent_dim: ClassVar[int] = 0
    """z is not read off images"""

    @property
    def resolution_max(self) -> int:
        """Side of the largest images that it takes."""
        return max(self.main_channels)

    @property
    def aux_resolution_max(self) -> int:
        """The same of the auxiliary discriminator; 0 without one."""
        return max(self.aux_channels or {}, default=0)

    @property
    def has_aux(self) -> bool:
        """There is an auxiliary discriminator."""
        return self.aux_channels is not None

    def at(self, resolution: int) -> ResidualDiscriminatorConfig:
        """The same for images of another size; a progressive one takes all sizes up to its largest as it is."""
        if self.progressive and resolution <= self.resolution_max:
            return self
        aux = self.aux_channels
        return replace(
            self,
            main_channels=channels_at(self.main_channels, resolution),
            aux_channels=None if aux is None else channels_at(aux, resolution),
        )

    @property
    def minibatch_std_groups(self) -> tuple[int, ...]:
        """Sizes of the groups of images that are compared with each other."""
        groups = (self.main_minibatch_std_group, self.aux_minibatch_std_group if self.has_aux else 0)
        return tuple(group for group in groups if group)

    def __post_init__(self) -> None:
        for name, channels in (("main_channels", self.main_channels), ("aux_channels", self.aux_channels)):
            if channels is not None:
                check_channel_table(name, channels)
        groups = {"main": self.main_minibatch_std_group, "aux": self.aux_minibatch_std_group}
        for part, group in groups.items():
            if group < 0 or group == 1:
                raise UserError(
                    f"{part}_minibatch_std_group {group} compares nothing; give 0 (none) or 2 and more images"
                )


class ActivatedConv(nn.Module):
    """Equalised convolution, bias and leaky ReLU · √2; with `downsample`, of the blurred x at stride 2."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, downsample: bool = False) -> None:
        super().__init__()
        self.downsample = downsample
        stride, padding = (2, 0) if downsample else (1, kernel_size // 2)
        self.conv = EqualizedConv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if downsample:
            self.register_buffer("taps", binomial_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H, W], or [B, out, H/2, W/2]."""
        if self.downsample:
            # 2 a side: an output pixel of 3x3 taps behind 4 blur taps is centred on two input pixels.
            x = upfirdn2d(x, self.get_buffer("taps"), padding=2)
        x = self.conv(x)
        return bias_leaky_relu(x, self.bias)


class DownsamplingBlock(nn.Module):
    """Two activated 3x3 convolutions beside a blurred 1x1 shortcut, at half the resolution: (h + skip) / √2.

    Source: StyleGAN2 (arXiv 1912.04958), section 4.1; `downsample_first` as in CIPS-3D's auxiliary one.
    """

    def __init__(self, in_channels: int, out_channels: int, *, downsample_first: bool = False) -> None:
        super().__init__()
        self.conv1 = ActivatedConv(in_channels, in_channels, 3, downsample=downsample_first)
        self.conv2 = ActivatedConv(in_channels, out_channels, 3, downsample=not downsample_first)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1)
        self.register_buffer("taps", binomial_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H/2, W/2]."""
        h = self.conv2(self.conv1(x))
        # The published order, blur then 1x1 at stride 2, drops three of four blurred pixels: skip them.
        skip = self.skip(upfirdn2d(x, self.get_buffer("taps"), down=2, padding=1))
        return (h + skip) * SUM_SCALE


def append_minibatch_std(x: Tensor, group: int) -> Tensor:
    """Append one channel that tells how much the images of a group differ.

    s = mean over C, H, W of sqrt(var over the group + 1e-8), the same for all pixels of all images of the
    group. A group has G = min(B, group) images: those with equal position mod B/G.

    Args:
        x: [B, C, H, W], B a multiple of G.
        group: largest number of images in a group.

    Returns:
        [B, C + 1, H, W].

    Raises:
        ValueError: the batch cannot be split into groups.

    Source: ProGAN (arXiv 1710.10196), section 3, with StyleGAN2's groups.
    """
    batch, channels, height, width = x.shape
    if batch == 0:
        return x.new_empty(0, channels + 1, height, width)
    group = min(batch, group)
    if batch % group:
        raise ValueError(f"the batch of {batch} images cannot be split into groups of {group}")
    # In float32 at least: the floor is 0 in float16, and the root's gradient would not be finite.
    grouped = x.to(torch.promote_types(x.dtype, torch.float32))
    grouped = grouped.reshape(group, batch // group, channels * height * width)
    std = (grouped.var(0, unbiased=False) + MINIBATCH_STD_EPS).sqrt().mean(1)  # [B/G]
    channel = std.to(x.dtype).repeat(group)[:, None, None, None].expand(-1, 1, height, width)
    return torch.cat([x, channel], dim=1)


class ImageDiscriminator(nn.Module):
    """Residual discriminator of images of any resolution 4², 8², ... up to its largest.

    Every resolution has its own 1x1 layer from RGB; smaller images enter at later blocks. Behind the blocks:
    3x3 at 4², a fully connected layer as wide as 4² has channels, one logit. StyleGAN2's has one layer from RGB
    (`progressive` off) and minibatch statistics of 4 images.

    Args:
        resolution_max: the largest resolution, a power of two from 4 on.
        channels: of every resolution up to it.
        minibatch_std_group: images that the minibatch standard deviation compares, at 4²; 0: it is left out.
        downsample_first: blocks halve the resolution in their first convolution, not in the second (cheaper).
        predict_pose: two more outputs of the last layer are the camera's yaw and pitch, as in pi-GAN.
        progressive: False: images of the largest resolution alone can enter, without a fade.

    Source: CIPS-3D (arXiv 2110.09788), section 3.4, on StyleGAN2's residual discriminator (arXiv 1912.04958).
    """

    def __init__(
        self,
        resolution_max: int,
        channels: Mapping[int, int],
        minibatch_std_group: int = 0,
        downsample_first: bool = False,
        predict_pose: bool = False,
        progressive: bool = True,
    ) -> None:
        super().__init__()
        resolutions = resolutions_up_to(resolution_max)
        if not resolutions or resolutions[-1] != resolution_max:
            raise ValueError(f"resolution_max must be a power of two from 4 on, got {resolution_max}")
        missing = [r for r in resolutions if r not in channels]
        if missing:
            raise ValueError(f"channels must name every resolution up to {resolution_max}; {missing} missing")
        self.resolution_max = resolution_max
        self.channels = {r: channels[r] for r in resolutions}
        self.minibatch_std_group = minibatch_std_group
        self.downsample_first = downsample_first
        self.progressive = progressive
        entries = resolutions if progressive else resolutions[-1:]
        self.from_rgb = nn.ModuleDict({str(r): ActivatedConv(3, channels[r], 1) for r in entries})
        self.blocks = nn.ModuleDict(
            {
                str(r): DownsamplingBlock(channels[r], channels[r // 2], downsample_first=downsample_first)
                for r in resolutions[1:]
            }
        )
        width = channels[RESOLUTION_MIN]
        self.final = ActivatedConv(width + (minibatch_std_group > 0), width, 3)
        self.hidden = EqualizedLinear(width * RESOLUTION_MIN**2, width, activation=True)
        self.predict_pose = predict_pose
        self.output = EqualizedLinear(width, 3 if predict_pose else 1)

    def forward(self, image: Tensor, fade: float = 1.0) -> Tensor:
        """Logits [B, 1] of images; see `discriminate`."""
        return self.discriminate(image, fade).logits

    def discriminate(self, image: Tensor, fade: float = 1.0) -> DiscriminatorOutput:
        """Logits of images and, where it is predicted, their pose.

        Args:
            image: [B, 3, R, R] in [-1, 1], R a power of two between 4 and `resolution_max`, or `resolution_max` itself
                where the discriminator is not progressive.
            fade: α in [0, 1]; below 1, the first block's output is mixed with the half-size image's entry:
                α · block(fromRGB_R(image)) + (1 - α) · fromRGB_{R/2}(half image) (ProGAN's fade-in).

        Returns:
            `DiscriminatorOutput`.

        Raises:
            ValueError: `image` has another shape, or `fade` is outside of its range.
        """
        resolution = self._checked_resolution(image, fade)
        if kernels.take(image):
            # Pictures made of rays have channels last. Convolutions keep that order, and the kernels behind them would
            # have to reorder every channel instead of these three.
            image = image.contiguous()
        x = self.from_rgb[str(resolution)](image)
        while resolution > RESOLUTION_MIN:
            x = self.blocks[str(resolution)](x)
            resolution //= 2
            if fade < 1:
                # Halving by bilinear interpolation without aligned corners is the mean of 2x2 pixels.
                half = self.from_rgb[str(resolution)](F.avg_pool2d(image, 2))
                x = fade * x + (1 - fade) * half
                fade = 1.0
        if self.minibatch_std_group:
            x = append_minibatch_std(x, self.minibatch_std_group)
        output = self.output(self.hidden(self.final(x).flatten(1)))
        return DiscriminatorOutput(output[:, :1], output[:, 1:] if self.predict_pose else None)

    def _checked_resolution(self, image: Tensor, fade: float) -> int:
        check_tensor("image", image)
        resolution = image.shape[-1] if image.dim() == 4 else 0
        if image.shape[1:] != (3, resolution, resolution) or str(resolution) not in self.from_rgb:
            powers = f"R a power of two from {RESOLUTION_MIN} to {self.resolution_max}"
            allowed = powers if self.progressive else f"R = {self.resolution_max}"
            raise ValueError(f"image must have shape [B, 3, R, R] with {allowed}, got {list(image.shape)}")
        check_input("image", image, self.output.weight)
        if not 0 <= fade <= 1:
            raise ValueError(f"fade must be in [0, 1], got {fade}")
        if fade < 1 and str(resolution // 2) not in self.from_rgb:
            where = "at the smallest resolution" if self.progressive else "of a discriminator that is not progressive"
            raise ValueError(f"fade must be 1 {where}, got {fade}")
        return resolution


class ResidualDiscriminator(Discriminator):
    """The main discriminator and, where there is one, the auxiliary discriminator of the NeRF's image.

    `ResidualDiscriminator.from_config` makes both, with random weights.

    Source: CIPS-3D (arXiv 2110.09788), section 3.4: the auxiliary one removes the mirror symmetry.
    """

    def __init__(self, main: ImageDiscriminator, aux: ImageDiscriminator | None = None) -> None:
        super().__init__()
        if not isinstance(main, ImageDiscriminator):
            raise TypeError(
                f"main must be an ImageDiscriminator, got {type(main).__name__}; from_config takes a configuration"
            )
        self.main = main
        self.aux = aux

    @property
    def config(self) -> ResidualDiscriminatorConfig:
        """The configuration that gives such a discriminator."""
        main, aux = self.main, self.aux
        return ResidualDiscriminatorConfig(
            main_channels=main.channels,
            aux_channels=None if aux is None else aux.channels,
            main_minibatch_std_group=main.minibatch_std_group,
            aux_minibatch_std_group=0 if aux is None else aux.minibatch_std_group,
            main_downsample_first=main.downsample_first,
            aux_downsample_first=aux is None or aux.downsample_first,
            predict_pose=main.predict_pose,
            progressive=main.progressive,
        )

    @classmethod
    def from_config(cls, config: ResidualDiscriminatorConfig) -> ResidualDiscriminator:
        """Random weights."""

        def part(channels: dict[int, int], group: int, first: bool, predict_pose: bool = False) -> ImageDiscriminator:
            return ImageDiscriminator(max(channels), channels, group, first, predict_pose, config.progressive)

        group, first = config.main_minibatch_std_group, config.main_downsample_first
        main = part(config.main_channels, group, first, config.predict_pose)
        if config.aux_channels is None:
            return cls(main)
        return cls(main, part(config.aux_channels, config.aux_minibatch_std_group, config.aux_downsample_first))

    @overload
    def forward(self, image: Tensor, aux_image: None = None, fade: float = 1.0) -> Tensor: ...
    @overload
    def forward(self, image: Tensor, aux_image: Tensor, fade: float = 1.0) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, image: Tensor, aux_image: Tensor | None = None, fade: float = 1.0
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of images and of auxiliary images.

        Args:
            image: [B, 3, R, R] in [-1, 1]; see `ImageDiscriminator.forward`.
            aux_image: [B, 3, R', R'] for the auxiliary discriminator (a real image goes to both), or None.
            fade: of both.

        Returns:
            Main logits [B, 1]; with `aux_image`, (main logits, auxiliary logits).

        Raises:
            ValueError: there is an `aux_image` but no auxiliary discriminator, or an argument does not fit.
        """
        main, aux = self.discriminate(image, aux_image, fade)
        return main.logits if aux is None else (main.logits, aux.logits)

    def discriminate(self, image: Tensor, aux_image: Tensor | None = None, fade: float = 1.0) -> DiscriminatorOutputs:
        """Outputs of both parts; None of the auxiliary one without an `aux_image`. See `forward`."""
        main = self.main.discriminate(image, fade)
        return DiscriminatorOutputs(main, None if aux_image is None else self.discriminate_aux(aux_image, fade))

    def discriminate_aux(self, aux_image: Tensor, fade: float = 1.0) -> DiscriminatorOutput:
        return super().discriminate_aux(aux_image, fade) if self.aux is None else self.aux.discriminate(aux_image, fade)
