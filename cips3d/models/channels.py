"""Tables of channels by resolution: the widths of generators and discriminators that halve or double pictures."""

from __future__ import annotations

from collections.abc import Mapping

from cips3d.errors import UserError

RESOLUTION_MIN = 4  # where such networks begin or end


def channel_table(resolution_max: int = 1024, base: int = 32768, cap: int = 512) -> dict[int, int]:
    """Channels of every resolution from 4 to `resolution_max`: min(cap, base / resolution).

    The defaults are those of StyleGAN2 and of the published main discriminator: 512 up to 64², then 256, 128, 64, 32 at
    128² to 1024²; with `cap=256` the auxiliary discriminator's: 256 up to 128², then 128, 64, 32.

    Raises:
        UserError: the resolution is not a power of two from 4 on, or no channel would be left at it.
    """
    if resolution_max < RESOLUTION_MIN or resolution_max & (resolution_max - 1):
        raise UserError(
            f"resolution {resolution_max} is not a power of two from {RESOLUTION_MIN} on; give 32, 64 or the like"
        )
    if base < resolution_max or cap < 1:
        raise UserError(
            f"base {base} and cap {cap} leave no channel at resolution {resolution_max}; "
            f"give a base of {resolution_max} or more and a cap of 1 or more"
        )
    return {r: min(cap, base // r) for r in resolutions_up_to(resolution_max)}


def resolutions_up_to(resolution_max: int) -> list[int]:
    """4, 8, 16, ... as far as they do not exceed `resolution_max`."""
    return [1 << k for k in range(2, resolution_max.bit_length()) if 1 << k <= resolution_max]


def check_channel_table(name: str, channels: Mapping[int, int]) -> None:
    """Raise `UserError`, naming the table, unless it has channels for every resolution from 4 to its largest."""
    resolutions = resolutions_up_to(max(channels, default=0))
    if not resolutions or sorted(channels) != resolutions or min(channels.values()) < 1:
        raise UserError(
            f"{name} {dict(channels)} is no table of channels; give at least 1 for every power of two "
            "from 4 to the largest resolution, such as 4: 64, 8: 64, 16: 32"
        )


def channels_at(channels: Mapping[int, int], resolution: int) -> dict[int, int]:
    """The table cut at `resolution`, or continued up to it, halving with every doubling.

    Raises:
        UserError: the resolution is not a power of two from 4 on.
    """
    largest = max(channels)
    return {
        r: channels[r] if r <= largest else max(1, channels[largest] * largest // r)
        for r in channel_table(resolution, base=resolution)
    }
