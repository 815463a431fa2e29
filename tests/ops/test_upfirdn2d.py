"""upfirdn2d against its definition, its own gradient formula and the original's records."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_records import meta, record, relative_l2, requires_record, tensor
from torch import Tensor

from cips3d.ops.upfirdn2d import binomial_kernel, upfirdn2d

# (kernel, up, down, padding): what the networks use, and everything odd.
CASES = {
    "blur": ([4], 1, 1, (2, 2)),
    "blur and halve": ([4], 1, 2, 1),
    "double": ([4], 2, 1, (2, 1)),
    "separable, all different": ([3], (2, 3), (3, 2), (-1, 2, 3, -2)),
    "separable, crop inside an upsampled pixel": ([2], 3, 2, (-4, -1)),
    "two-dimensional": ([4, 4], 1, 1, (2, 1, 2, 1)),
    "two-dimensional, all different": ([3, 5], (2, 3), (3, 2), (-1, 2, 3, -2)),
    "one tap": ([1, 1], 2, 1, 0),
}


def sample_inputs(case: str, dtype: torch.dtype = torch.float64, size: tuple[int, int] = (6, 7)) -> tuple:
    kernel_shape, up, down, padding = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64).to(dtype)
    kernel = torch.randn(kernel_shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, kernel, up, down, padding


def by_definition(x: Tensor, kernel: Tensor, up: object, down: object, padding: object) -> Tensor:
    """Zeros inserted, padded or cropped, convolved and decimated, one output pixel after the other, in float64."""
    up_x, up_y = (up, up) if isinstance(up, int) else up
    down_x, down_y = (down, down) if isinstance(down, int) else down
    sides = (padding,) * 4 if isinstance(padding, int) else padding if len(padding) == 4 else (*padding, *padding)
    x0, x1, y0, y1 = sides
    taps = kernel.double().numpy()
    taps = np.outer(taps, taps) if taps.ndim == 1 else taps
    b, c, h, w = x.shape
    large = np.zeros((b, c, h * up_y, w * up_x))
    large[:, :, ::up_y, ::up_x] = x.double().numpy()
    large = np.pad(large, ((0, 0), (0, 0), (max(y0, 0), max(y1, 0)), (max(x0, 0), max(x1, 0))))
    large = large[:, :, max(-y0, 0) : large.shape[2] - max(-y1, 0), max(-x0, 0) : large.shape[3] - max(-x1, 0)]
    kh, kw = taps.shape
    rows, columns = (large.shape[2] - kh) // down_y + 1, (large.shape[3] - kw) // down_x + 1
    y = np.zeros((b, c, rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = large[:, :, i * down_y : i * down_y + kh, j * down_x : j * down_x + kw]
            y[:, :, i, j] = (window * taps[::-1, ::-1]).sum((2, 3))
    return torch.from_numpy(y)


@pytest.mark.parametrize("case", CASES)
def test_matches_definition(case: str) -> None:
    arguments = sample_inputs(case)
    torch.testing.assert_close(upfirdn2d(*arguments), by_definition(*arguments), rtol=1e-12, atol=1e-12)


# Half types round every product: a few units of their last place (2^-11, 2^-8) of sums of up to 15 terms.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("case", ["blur", "blur and halve", "two-dimensional"])
def test_dtypes(case: str, dtype: torch.dtype, tolerance: float) -> None:
    arguments = sample_inputs(case, dtype)
    y = upfirdn2d(*arguments)
    assert y.dtype == dtype
    assert relative_l2(y, by_definition(*arguments)) < tolerance


def test_kernel_takes_the_dtype_of_x() -> None:
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    taps = binomial_kernel()
    torch.testing.assert_close(upfirdn2d(x, taps, padding=2), upfirdn2d(x, taps.double(), padding=2))


@pytest.mark.parametrize("case", ["blur", "two-dimensional, all different"])
def test_layouts(case: str) -> None:
    x, *rest = sample_inputs(case)
    expected = upfirdn2d(x, *rest)
    torch.testing.assert_close(upfirdn2d(x.contiguous(memory_format=torch.channels_last), *rest), expected)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(upfirdn2d(turned, *rest), expected)


def test_separable_is_the_outer_product() -> None:
    x, taps, up, down, padding = sample_inputs("separable, all different")
    expected = upfirdn2d(x, torch.outer(taps, taps), up, down, padding)
    torch.testing.assert_close(upfirdn2d(x, taps, up, down, padding), expected)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str) -> None:
    x, *rest = sample_inputs(case, size=(4, 5))
    x = x[:1, :1].requires_grad_()
    assert torch.autograd.gradcheck(lambda image: upfirdn2d(image, *rest), x)
    # The operation is linear: its double backward is trivial, so a nonlinear function of it is checked.
    assert torch.autograd.gradgradcheck(lambda image: upfirdn2d(image, *rest).square(), x)


@pytest.mark.parametrize("case", ["blur", "blur and halve", "double", "separable, all different"])
def test_gradient_is_upfirdn2d(case: str) -> None:
    """Flipped kernel, up and down swapped, pads k - p0 - 1 and in·up - out·down + p0 - up + 1."""
    x, taps, up, down, padding = sample_inputs(case, size=(8, 9))
    x.requires_grad_()
    y = upfirdn2d(x, taps, up, down, padding)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    ups, downs = ((f, f) if isinstance(f, int) else f for f in (up, down))
    sides = (padding,) * 4 if isinstance(padding, int) else padding if len(padding) == 4 else (*padding, *padding)
    pads = []
    for axis, dim in ((0, 3), (1, 2)):
        pads.append(len(taps) - sides[2 * axis] - 1)
        pads.append(x.shape[dim] * ups[axis] - y.shape[dim] * downs[axis] + sides[2 * axis] - ups[axis] + 1)
    torch.testing.assert_close(upfirdn2d(upstream, taps.flip(0), downs, ups, tuple(pads)), gradient)


def test_binomial_kernel_preserves_constants() -> None:
    assert binomial_kernel().tolist() == [0.125, 0.375, 0.375, 0.125]
    assert binomial_kernel(gain=2.0).sum().item() == 2.0
    ones = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(upfirdn2d(ones, binomial_kernel(), down=2, padding=-1), torch.ones(1, 1, 2, 2))
    doubled = upfirdn2d(ones, binomial_kernel(gain=2.0), up=2, padding=(2, 1))
    assert doubled.shape == (1, 1, 16, 16)
    torch.testing.assert_close(doubled[:, :, 2:-2, 2:-2], torch.ones(1, 1, 12, 12))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.zeros(3, 8, 8)}, "x must have shape"),
        ({"x": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}, "x must be of a floating-point dtype"),
        ({"kernel": torch.zeros(4, dtype=torch.int64)}, "kernel must be of a floating-point dtype"),
        ({"kernel": torch.zeros(1, 1, 4)}, "kernel must have shape"),
        ({"kernel": torch.zeros(0)}, "kernel must have shape"),
        ({"kernel": torch.zeros(4, requires_grad=True)}, "kernel must be a constant"),
        ({"kernel": torch.zeros(4, device="meta")}, "kernel must be on the device of x"),
        ({"kernel": torch.zeros(9)}, "kernel has 9 taps along the columns of x"),
        ({"kernel": torch.zeros(4, 2), "padding": (0, 0, -3, -2)}, "kernel has 4 taps along the rows of x"),
        ({"up": 0}, "up must be"),
        ({"down": (1, 0)}, "down must be"),
        ({"down": (1, 1, 1)}, "down must be"),
        ({"padding": (1, 2, 3)}, "padding must be"),
        ({"padding": (-9, 12)}, "crops away all 8 columns"),
    ],
)
def test_wrong_arguments_are_named(change: dict, named: str) -> None:
    arguments = {"x": torch.zeros(1, 3, 8, 8), "kernel": torch.zeros(4)} | change
    with pytest.raises(ValueError, match=named):
        upfirdn2d(**arguments)


@requires_record("stylegan_ops")
@pytest.mark.parametrize("index", range(4))
def test_matches_original(index: int) -> None:
    loaded = record("stylegan_ops")
    settings = meta(loaded)["upfirdn"][index]
    x, kernel, upstream = (tensor(loaded, f"in/upfirdn{index}/{key}") for key in ("x", "kernel", "w"))
    x.requires_grad_()
    y = upfirdn2d(x, kernel, *(tuple(settings[key]) for key in ("up_xy", "down_xy", "pad_x0x1y0y1")))
    (gradient,) = torch.autograd.grad(y, x, upstream)
    # float32 sums of up to 16 products.
    assert relative_l2(y, tensor(loaded, f"out/upfirdn{index}/y")) < 1e-6
    assert relative_l2(gradient, tensor(loaded, f"out/upfirdn{index}/grad_x")) < 1e-6
