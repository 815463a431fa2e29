"""What launchers refuse of sizes that their kernels cannot count, and of calls that Python never makes."""

from __future__ import annotations

import pytest
from ops.backends import Backend

from cips3d.ops import kernels

FLOAT32, FLOAT16 = 0, 1  # DType in csrc/numeric.h
LARGE = 1 << 30

# Launcher, how many tensors it takes (none is looked at), and what is around them. Sizes that are just too large.
REFUSED: list[tuple[str, tuple[int, ...], int, tuple[float, ...], str]] = [
    ("accumulate", (FLOAT32,), 3, (1, 1 << 20, 1 << 11), r"more than 2\^31 values on one ray"),
    ("accumulate", (FLOAT32,), 3, (1, 1 << 31, 0), r"more than 2\^31 values on one ray"),
    ("accumulate_backward", (FLOAT32,), 5, (1, 1 << 20, 1 << 11), r"more than 2\^31 values on one ray"),
    ("accumulate", (7,), 3, (1, 2, 3), "dtype code 7 is not known"),
    ("composite", (FLOAT32,), 12, (1, 1, 1 << 20, 1 << 11, 0, 0, 0), r"more than 2\^31 values on one ray"),
    ("composite_backward", (FLOAT32,), 18, (1, 40, 40, 1, 0, 0, 0), "a workspace is missing"),
    ("importance", (), 6, (1, 2400, 801), "must not exceed 12000"),
    ("stratified_points", (), 5, (1, 1, LARGE, 0, 0.5, 1.5), r"more than 2\^30 samples on one ray"),
    ("ray_points_backward", (), 6, (1, LARGE), r"more than 2\^30 samples on one ray"),
    ("modulated_epilogue", (FLOAT32,), 10, (1, 1, (1 << 20) + 1, 0.2), r"more than 2\^20 channels"),
    ("modulated_epilogue_backward", (FLOAT32,), 15, (1, 1, (1 << 20) + 1, 1, 0.2), r"more than 2\^20 channels"),
    ("modulated_inr", (), 9, (1, LARGE + 1, 8, 8, 2, 1, 0, 0.2, 0), r"more than 2\^30 pixels"),
    ("render_rays", (), 20, (1, LARGE + 1, 12, 12, 8, 8, 0.0, 0.0, 0.8, 1.2, 0, 0, 0), r"more than 2\^30 rays"),
    ("split_matmul", (), 4, (LARGE + 1, 8, 8), r"more than 2\^30 samples of an image"),
    ("film_siren", (FLOAT32, 0), 7, (65536, 1, 9, 2, 0), "more than 65535 images"),
    ("film_siren_slope", (FLOAT32, 0), 8, (65536, 1, 9, 2, 0), "more than 65535 images"),
    ("film_siren_input_gradient", (FLOAT32, 0), 5, (65536, 1, 9, 2, 0), "more than 65535 images"),
    ("film_siren_points", (FLOAT32,), 6, (65536, 1, 3, 8, 1), "more than 65535 images"),
    ("film_siren_points_backward", (FLOAT32,), 9, (1, 1, 3, 8, 65536, 1), "too many blocks for one launch"),
    ("upfirdn2d_four_taps", (FLOAT32,), 3, (1, LARGE + 1, 1, 8, 8, 1, 1, 1, 1, 0), r"more than 2\^30 samples"),
    ("upfirdn2d_four_taps", (FLOAT32,), 3, (1, 8, 8, 8, 8, 1, 1, -LARGE - 1, 1, 0), r"more than 2\^30 samples"),
    ("upfirdn2d_four_taps", (FLOAT16,), 3, (1, 3, 3, 2, 2, 1, 1, 1, 1, 0), "an even number of 16-bit elements"),
    ("upfirdn2d_four_taps", (FLOAT32,), 3, (1, 8, 8, 8, 8, 2, 2, 1, 1, 0), "four taps go with up 1 or 2 and down 1"),
    ("upfirdn2d_four_taps", (FLOAT32,), 3, (LARGE, 9, 9, 9, 9, 1, 1, 1, 1, 0), "too many elements for one launch"),
    (
        *("upfirdn2d_filter", (FLOAT32, FLOAT32), 3),
        *((1 << 28, 16, 16, 3, 1, 1, 1, 16, 16, 3, 1, 1, 1, 0), "too many columns for one launch"),
    ),
    (
        *("upfirdn2d_filter", (FLOAT16, 2), 3),
        *((1, 8, 8, 3, 1, 1, 1, 8, 8, 3, 1, 1, 1, 0), "no filter reads one 16-bit dtype and writes the other"),
    ),
]


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: f"{refused[0]}, {refused[-1]}")
def test_what_cannot_be_counted(
    kernel_backend: Backend, refused: tuple[str, tuple[int, ...], int, tuple[float, ...], str]
) -> None:
    name, before, tensors, sizes, message = refused
    launcher = getattr(kernels.module_for(kernel_backend.device), name)
    with pytest.raises(ValueError, match=message):
        launcher(kernel_backend.device.index or 0, 0, *before, *[0] * tensors, *sizes)


def test_arguments_of_another_number_or_type(kernel_backend: Backend) -> None:
    launcher = kernels.module_for(kernel_backend.device).accumulate
    device = kernel_backend.device.index or 0
    with pytest.raises(TypeError, match="accumulate takes 9 arguments, got 3"):
        launcher(device, 0, FLOAT32)
    with pytest.raises(RuntimeError, match="cast"):
        launcher(device, 0, FLOAT32, *[0] * 3, 1, 2, "3")
