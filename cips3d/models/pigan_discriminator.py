"""pi-GAN's discriminators: progressive or strided, with or without coordinates; some also predict the camera."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cips3d.cameras import FRONT
from cips3d.errors import UserError
from cips3d.models.channels import channel_table
from cips3d.models.discriminator import Discriminator, DiscriminatorOutput, DiscriminatorOutputs
from cips3d.models.equalized import SUM_SCALE
from cips3d.models.mapping import LEAKY_SLOPE
from cips3d.ops.bias_leaky_relu import bias_leaky_relu
from cips3d.ops.checks import check_input, check_tensor

RESOLUTION_MIN = 2  # the residual blocks end here


def pigan_channel_table(resolution_max: int = 512, base: int = 8192, cap: int = 400) -> dict[int, int]:
    """Channels of every resolution from 2 to `resolution_max`: min(cap, base / resolution).

    The defaults are the published progressive discriminator's, 16, 32, 64, 128, 256 from 512² to 32² and 400 below;
    with 256 as the largest resolution the strided ones'.

    Raises:
        UserError: the resolution is not a power of two from 4 on, or no channel would be left at it.
    """
    return {RESOLUTION_MIN: min(cap, base // RESOLUTION_MIN), **channel_table(resolution_max, base, cap)}


@dataclass(frozen=True)
class PiGANDiscriminatorConfig:
    """Widths and kind of a discriminator; the defaults are those of CARLA."""

    kind: Literal["pigan"] = field(default="pigan", kw_only=True)
    channels: dict[int, int] = field(default_factory=pigan_channel_table)
    """channels at each resolution, 2 to the largest: a power of two each"""
    strided: bool = False
    """blocks halve the resolution by the stride of their second convolution; otherwise by average pooling"""
    coord_conv: bool = True
    """3x3 convolutions also see where they are"""
    predict_pose: bool = True
    """it also predicts the camera that an image was rendered from, which the pose loss needs"""
    latent_dim: int = 256
    """width of z, where it is predicted together with the pose; 0: it is not"""

    progressive: ClassVar[bool] = True
    """images of every resolution can enter, and new blocks fade in"""
    aux_resolution_max: ClassVar[int] = 0
    """there is no auxiliary discriminator"""

    def __post_init__(self) -> None:
        resolutions = [RESOLUTION_MIN << k for k in range(len(self.channels))]
        if len(resolutions) < 2 or sorted(self.channels) != resolutions or min(self.channels.values()) < 1:
            raise UserError(
                f"channels {self.channels} is no table of channels; give at least 1 for every power of two "
                "from 2 to the largest resolution, such as 2: 64, 4: 64, 8: 32"
            )
        if self.latent_dim < 0:
            raise UserError(f"latent_dim must not be negative, got {self.latent_dim}")
        if self.latent_dim > 0 and not self.predict_pose:
            raise UserError(
                f"latent_dim {self.latent_dim} goes with predict_pose: both are predicted or neither; "
                "give latent_dim 0, or predict_pose True"
            )

    @classmethod
    def carla(cls) -> PiGANDiscriminatorConfig:
        """The published ProgressiveEncoderDiscriminator, for images up to 512²."""
        return cls()

    @classmethod
    def celeba(cls) -> PiGANDiscriminatorConfig:
        """The published CCSEncoderDiscriminator, for images up to 256²."""
        return cls(channels=pigan_channel_table(256), strided=True)

    @classmethod
    def cats(cls) -> PiGANDiscriminatorConfig:
        """The published StridedDiscriminator, for images up to 256²."""
        return cls(channels=pigan_channel_table(256), strided=True, coord_conv=False, predict_pose=False, latent_dim=0)

    @property
    def resolution_max(self) -> int:
        """Side of the largest images that it takes."""
        return max(self.channels)

    def at(self, resolution: int) -> PiGANDiscriminatorConfig:
        """The same for images of another size: it takes all sizes up to its largest as it is."""
        return self

    @property
    def has_aux(self) -> bool:
        """There is an auxiliary discriminator."""
        return False

    @property
    def minibatch_std_groups(self) -> tuple[int, ...]:
        """Sizes of the groups of images that are compared with each other."""
        return ()

    @property
    def outputs(self) -> int:
        """Channels of the last layer: the logit, z, pitch and yaw."""
        return 1 + self.latent_dim + (2 if self.predict_pose else 0)


class PiGANOutputs(NamedTuple):
    """What the last layer gives for images, in the published order and angles.

    Attributes:
        logits: [B, 1] large where an image looks real.
        latent: [B, latent_dim] z of the image; None where it is not predicted.
        pose: [B, 2] pitch and yaw of the camera in radians, π/2 is the front; None likewise.
    """

    logits: Tensor
    latent: Tensor | None
    pose: Tensor | None


def append_coordinates(x: Tensor) -> Tensor:
    """Append two channels that tell where a pixel is: its row, then its column, from -1 to 1 with both ends.

    Args:
        x: [B, C, H, W].

    Returns:
        [B, C + 2, H, W].

    Source: CoordConv (arXiv 1807.03247), section 3.
    """
    batch, _, height, width = x.shape
    row, column = (torch.linspace(-1, 1, size, dtype=x.dtype, device=x.device) for size in (height, width))
    return torch.cat(
        [
            x,
            row[:, None].expand(batch, 1, height, width),
            column.expand(batch, 1, height, width),
        ],
        dim=1,
    )


class ActivatedConv2d(nn.Conv2d):
    """Convolution, bias and leaky ReLU 0.2; with `coordinates`, of x with `append_coordinates`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, coordinates: bool = False
    ) -> None:
        channels = in_channels + 2 * coordinates
        super().__init__(channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)
        self.coordinates = coordinates

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H / stride, W / stride]."""
        assert self.bias is not None
        if self.coordinates:
            x = append_coordinates(x)
        x = F.conv2d(x, self.weight, None, self.stride, self.padding)
        return bias_leaky_relu(x, self.bias, negative_slope=LEAKY_SLOPE, gain=1.0)


class ResidualBlock(nn.Module):
    """Two activated 3x3 convolutions beside a shortcut, at half the resolution: (h + shortcut) / √2.

    Strided, the second convolution has stride 2, and the shortcut is a 1x1 convolution of stride 2. Otherwise both
    ways are pooled, and the shortcut is a 1x1 convolution where widths differ, else nothing.

    Source: pi-GAN (arXiv 2012.00926), supplement on its discriminator.
    """

    def __init__(self, in_channels: int, out_channels: int, *, strided: bool, coordinates: bool) -> None:
        super().__init__()
        stride = 2 if strided else 1
        self.strided = strided
        self.conv1 = ActivatedConv2d(in_channels, out_channels, 3, coordinates=coordinates)
        self.conv2 = ActivatedConv2d(out_channels, out_channels, 3, stride=stride, coordinates=coordinates)
        has_shortcut = strided or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride) if has_shortcut else None
        if strided:  # the pooled blocks keep PyTorch's initialisation, as published
            for conv in (self.conv1, self.conv2):
                nn.init.kaiming_normal_(conv.weight, a=LEAKY_SLOPE, mode="fan_in", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H/2, W/2]."""
        h = self.conv2(self.conv1(x))
        if not self.strided:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return (h + x) * SUM_SCALE


class PiGANDiscriminator(Discriminator):
    """Residual discriminator of images of any resolution 2², 4², ... up to its largest.

    Every resolution has its own 1x1 layer from RGB; smaller images enter at later blocks. A 2x2 convolution at 2²
    gives the logit and, where they are predicted, z and the camera.

    Source: pi-GAN (arXiv 2012.00926), section 3.3 and the discriminators of its published code.
    """

    def __init__(self, config: PiGANDiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PiGANDiscriminatorConfig()
        channels, resolutions = config.channels, sorted(config.channels)
        self.from_rgb = nn.ModuleDict({str(r): ActivatedConv2d(3, channels[r], 1) for r in resolutions})
        self.blocks = nn.ModuleDict(
            {
                str(r): ResidualBlock(
                    channels[r], channels[r // 2], strided=config.strided, coordinates=config.coord_conv
                )
                for r in resolutions[1:]
            }
        )
        self.output = nn.Conv2d(channels[RESOLUTION_MIN], config.outputs, RESOLUTION_MIN)

    def forward(self, image: Tensor, fade: float = 1.0) -> Tensor:
        """Logits [B, 1] of images; arguments as in `predictions`."""
        return self.predictions(image, fade).logits

    def predictions(self, image: Tensor, fade: float = 1.0) -> PiGANOutputs:
        """Logits, z and camera of images, as the network gives them.

        Args:
            image: [B, 3, R, R] in [-1, 1], R a power of two between 2 and the largest.
            fade: α in [0, 1]; below 1, what enters the second block is mixed with the half-size image's entry:
                α · block(fromRGB_R(image)) + (1 - α) · fromRGB_{R/2}(image at every other pixel). Pictures of 4² have
                no second block: nothing fades. For pictures of 2² it must be 1.

        Returns:
            `PiGANOutputs`.

        Raises:
            ValueError: `image` has another shape, or `fade` is outside of its range, or not 1 at 2².
        """
        resolution = self._checked_resolution(image, fade)
        # oneDNN's gradient of a strided 1x1 convolution of fewer than 8 channels, the shortcut, writes out of bounds
        # where channels come last, as in pictures that rays give (uxlfoundation/oneDNN issue 6035).
        image = image.contiguous()
        x = self.from_rgb[str(resolution)](image)
        while resolution > RESOLUTION_MIN:
            x = self.blocks[str(resolution)](x)
            resolution //= 2
            if fade < 1 and resolution > RESOLUTION_MIN:
                half = self.from_rgb[str(resolution)](image[..., ::2, ::2])
                x = fade * x + (1 - fade) * half
                fade = 1.0
        output = self.output(x).flatten(1)
        if not self.config.predict_pose:
            return PiGANOutputs(output, None, None)
        logits, latent, pose = output.split((1, self.config.latent_dim, 2), dim=1)
        return PiGANOutputs(logits, latent if self.config.latent_dim > 0 else None, pose)

    def discriminate(self, image: Tensor, aux_image: Tensor | None = None, fade: float = 1.0) -> DiscriminatorOutputs:
        """Logits of images and, where they are predicted, their z and pose: yaw and pitch, radians from the front.

        There is no auxiliary part.

        Raises:
            ValueError: there is an `aux_image`, or an argument of `predictions` does not fit.
        """
        logits, latent, pose = self.predictions(image, fade)
        main = DiscriminatorOutput(logits, None if pose is None else pose.flip(1) - FRONT, latent)
        return DiscriminatorOutputs(main, None if aux_image is None else self.discriminate_aux(aux_image, fade))

    def _checked_resolution(self, image: Tensor, fade: float) -> int:
        check_tensor("image", image)
        resolution = image.shape[-1] if image.dim() == 4 else 0
        if image.shape[1:] != (3, resolution, resolution) or resolution not in self.config.channels:
            raise ValueError(
                "image must have shape [B, 3, R, R] with R a power of two "
                f"from {RESOLUTION_MIN} to {self.config.resolution_max}, got {list(image.shape)}"
            )
        check_input("image", image, self.output.weight)
        if not 0 <= fade <= 1:
            raise ValueError(f"fade must be in [0, 1], got {fade}")
        if fade < 1 and resolution == RESOLUTION_MIN:
            raise ValueError(f"fade must be 1 at the smallest resolution, got {fade}")
        return resolution
