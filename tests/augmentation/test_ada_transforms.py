"""The transforms of adaptive augmentation: what each does, and that gradients flow twice."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from augmentation.images import random_images, seeded
from torch import Tensor

from cips3d.augmentation.ada_transforms import (
    SYM6,
    _GridSample,
    blit,
    brightness,
    contrast,
    hue,
    luma_flip,
    mirrored,
    product,
    recolor,
    resample,
    rotation,
    saturation,
    scaling,
    translation,
)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Pixel blitting.


def blitted(images: Tensor, flip: bool = False, turns: int = 0, right: int = 0, down: int = 0) -> Tensor:
    batch = len(images)
    return blit(
        images,
        torch.full((batch,), flip),
        *(torch.full((batch,), value) for value in (turns, right, down)),
    )


@pytest.mark.parametrize("size", [1, 7, 8])
def test_flips_and_quarter_turns_are_exact(size: int) -> None:
    images = random_images(2, size)
    assert torch.equal(blitted(images), images)
    assert torch.equal(blitted(images, flip=True), images.flip(3))
    for turns in range(4):
        assert torch.equal(blitted(images, turns=turns), images.rot90(turns, (2, 3)))
        assert torch.equal(blitted(images, flip=True, turns=turns), images.flip(3).rot90(turns, (2, 3)))


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (-3, 1), (8, -8)])
def test_shifts_by_whole_pixels_bring_the_mirrored_image_in(right: int, down: int) -> None:
    images = random_images(2, 8)
    endless = torch.cat([images.flip(3), images, images.flip(3)], 3)
    endless = torch.cat([endless.flip(2), endless, endless.flip(2)], 2)
    expected = endless[:, :, 8 - down : 16 - down, 8 - right : 16 - right]
    assert torch.equal(blitted(images, right=right, down=down), expected)


def test_every_image_has_its_own_blit() -> None:
    images = random_images(3, 8)
    moved = blit(images, *(torch.tensor(v) for v in ([True, False, False], [0, 3, 0], [0, 0, 5], [1, 0, 0])))
    for i, settings in enumerate(({"flip": True, "down": 1}, {"turns": 3}, {"right": 5})):
        assert torch.equal(moved[i : i + 1], blitted(images[i : i + 1], **settings))


def test_blits_need_squares() -> None:
    with pytest.raises(ValueError, match="images must be square to be turned by quarters, got 8 x 6"):
        blitted(torch.zeros(1, 3, 8, 6))


def test_mirrored_positions() -> None:
    # Edges at -½ and 3½: what lies d outside is what lies d inside, and so on with period 8.
    outside = doubles(0, 3, -1, -4, -5, 4, 7, 8, -0.25, -0.75, 3.75, 8.25)
    inside = doubles(0, 3, 0, 3, 3, 3, 0, 0, -0.25, -0.25, 3.25, 0.25)
    assert torch.equal(mirrored(outside, 4), inside)


# Geometric transforms.


def test_sym6_is_an_orthonormal_wavelet_with_six_vanishing_moments() -> None:
    taps = doubles(*SYM6)
    assert taps.sum().item() == pytest.approx(math.sqrt(2), rel=1e-12)
    for shift in range(0, 12, 2):
        expected = 1.0 if shift == 0 else 0.0
        assert (taps[shift:] * taps[: 12 - shift]).sum().item() == pytest.approx(expected, abs=1e-11)
    k = torch.arange(12, dtype=torch.float64)
    signed = taps * (-1.0) ** k
    for moment in range(6):
        # Taps have 12 digits or so, and k^moment multiplies their errors.
        assert (signed * k**moment).sum().abs() < 1e-11 * 11**moment
    assert (signed * k**6).sum().abs() > 1


def wave(x: Tensor, y: Tensor) -> Tensor:
    """[1, 3, H, W] something smooth at positions in pixels."""
    return torch.stack([torch.sin(0.25 * x + c) * torch.cos(0.2 * y - c) for c in (0.0, 0.5, 1.0)])[None]


def positions(height: int, width: int) -> tuple[Tensor, Tensor]:
    """x and y [H, W] of pixels, from the middle."""
    y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (height, width))
    return x.expand(height, width), y[:, None].expand(height, width)


@pytest.mark.parametrize(
    "source",
    [
        rotation(doubles(0.2)),
        rotation(doubles(-2.5)),
        scaling(doubles(0.8), doubles(1.1)),
        translation(doubles(1.3), doubles(-2.6)),
        product(
            rotation(doubles(0.7)), product(scaling(doubles(1.2), doubles(0.9)), translation(doubles(3), doubles(2)))
        ),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (24, 33)])
def test_geometry_of_a_smooth_image(source: Tensor, size: tuple[int, int]) -> None:
    x, y = positions(*size)
    matrix = source[0]
    source_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    source_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    moved = resample(wave(x, y), source)
    # Away from where the mirrored image takes over: the filter reaches 5 fine samples, 3 pixels.
    limit_x, limit_y = (size[1] - 1) / 2 - 3, (size[0] - 1) / 2 - 3
    inside = torch.ones(size, dtype=torch.bool)
    for across, along in ((x, y), (source_x, source_y)):
        inside &= (across.abs() < limit_x) & (along.abs() < limit_y)
    assert inside.sum() > 200
    difference = (moved - wave(source_x, source_y)).abs()[0, :, inside]
    # Linear interpolation between samples h = ½ apart errs by up to h²/8·|f''|, with f'' = 0.25² along x, 0.2² along y.
    assert difference.max() < 0.5**2 / 8 * (0.25**2 + 0.2**2) * 1.1


def test_rotation_is_counter_clockwise_and_agrees_with_quarter_turns() -> None:
    x, y = positions(32, 32)
    images = wave(x, y)
    turned = resample(images, rotation(doubles(-math.pi / 2)))  # the result is turned by the inverse of the source map
    difference = (turned - images.rot90(1, (2, 3))).abs()[..., 3:-3, 3:-3]
    assert difference.max() < 4e-3  # linear interpolation, as above


def test_a_tiny_shift_gives_the_image_back() -> None:
    # Resampled with the filter and its mirror image, noise comes back: the filter's even shifts are orthonormal. Near
    # the edges samples of the mirrored image lie between the samples that there are.
    images = random_images(2, 16, torch.float64)
    shifted = resample(images, translation(doubles(1e-9, 1e-9), doubles(0, 0)))
    assert not torch.equal(shifted, images)
    difference = (shifted - images).abs()
    assert difference[..., 4:-4, 4:-4].max() < 1e-7
    assert difference.max() < 0.2


def test_the_identity_gives_the_image_back_exactly() -> None:
    images = random_images(3)
    source = rotation(torch.tensor([0.0, 0.3, 0.0]))
    moved = resample(images, source)
    assert torch.equal(moved[[0, 2]], images[[0, 2]])
    assert not torch.equal(moved[1], images[1])


def test_what_comes_in_is_mirrored_and_constants_stay() -> None:
    constant = torch.full((2, 3, 9, 9), 0.7)
    far = product(
        rotation(torch.tensor([0.5, 3.0])), translation(torch.tensor([100.5, -3.2]), torch.tensor([7.0, 55.1]))
    )
    torch.testing.assert_close(resample(constant, far), constant)
    # Shifted by its whole size, the image is mirrored; away from where mirror images meet.
    x, y = positions(24, 24)
    images = wave(x, y)
    shifted = resample(images, translation(doubles(24.0), doubles(0.0)))
    assert (shifted - images.flip(3)).abs()[..., 3:-3].max() < 4e-3


def test_shrinking_takes_out_what_would_alias() -> None:
    # Every other pixel ±1 is the highest frequency: at 3/4 of the size there is no room for it.
    images = torch.ones(1, 1, 32, 32, dtype=torch.float64)
    images[..., ::2] = -1
    smaller = resample(images, scaling(doubles(4 / 3), doubles(4 / 3)))
    enlarged = torch.eye(2, 3, dtype=torch.float64)[None] * 4 / 3
    grid = F.affine_grid(enlarged, [1, 1, 32, 32], align_corners=False)
    plain = F.grid_sample(images, grid, align_corners=False)
    centre = (..., slice(8, -8), slice(8, -8))
    assert smaller[centre].abs().mean() < 0.5 * plain[centre].abs().mean()


# Colour transforms.


def colored(matrix: Tensor, *rgb: float) -> list[float]:
    pixel = doubles(*rgb).view(1, 3, 1, 1)
    return recolor(pixel, matrix).flatten().tolist()


def test_colors_by_hand() -> None:
    rgb = (0.5, -0.25, 0.125)
    assert colored(brightness(doubles(0.25)), *rgb) == pytest.approx([0.75, 0.0, 0.375])
    assert colored(contrast(doubles(2)), *rgb) == pytest.approx([1.0, -0.5, 0.25])
    # The mean is 1/8; chroma is (3/8, -3/8, 0).
    assert colored(luma_flip(doubles(1)), *rgb) == pytest.approx([0.25, -0.5, -0.125])
    assert colored(luma_flip(doubles(0)), *rgb) == pytest.approx(rgb)
    assert colored(saturation(doubles(2)), *rgb) == pytest.approx([0.875, -0.625, 0.125])
    assert colored(saturation(doubles(0)), *rgb) == pytest.approx([0.125] * 3)
    # A third of the circle takes red to green, green to blue, blue to red; half of it turns the chroma round.
    assert colored(hue(doubles(2 * math.pi / 3)), *rgb) == pytest.approx([0.125, 0.5, -0.25])
    assert colored(hue(doubles(math.pi)), *rgb) == pytest.approx([-0.25, 0.5, 0.125])


def test_colors_are_applied_one_after_the_other() -> None:
    before, after = brightness(doubles(0.5)), contrast(doubles(3.0))
    assert colored(product(after, before), 0.0, 0.0, 0.0) == pytest.approx([1.5] * 3)


def test_every_image_has_its_own_colors() -> None:
    images = random_images(2, 4, torch.float64)
    matrices = torch.rand(2, 4, 4, generator=seeded(), dtype=torch.float64)
    expected = torch.einsum("bij,bjhw->bihw", matrices[:, :3, :3], images) + matrices[:, :3, 3, None, None]
    torch.testing.assert_close(recolor(images, matrices), expected)


def test_colors_need_three_channels() -> None:
    with pytest.raises(ValueError, match="images must have 3 channels for colour transforms, got 1"):
        recolor(torch.zeros(1, 1, 8, 8), torch.eye(4)[None])


# Derivatives.


@pytest.mark.parametrize(
    "transform",
    [
        lambda images: blitted(images, flip=True, turns=1, right=1),
        lambda images: resample(images, rotation(doubles(0.3, 0.0))),
        lambda images: recolor(images, hue(doubles(0.5, -2.0))),
    ],
)
def test_gradients_and_their_gradients(transform: Callable[[Tensor], Tensor]) -> None:
    images = random_images(2, 3, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(transform, images)
    assert torch.autograd.gradgradcheck(lambda x: transform(x).square(), images)


def test_grid_sample_and_its_adjoint() -> None:
    images = random_images(2, 5, torch.float64).requires_grad_()
    grid = torch.rand(2, 3, 4, 2, generator=seeded(), dtype=torch.float64) * 2.4 - 1.2
    assert torch.autograd.gradcheck(_GridSample.apply, (images, grid))
    assert torch.autograd.gradgradcheck(_GridSample.apply, (images, grid))
    plain = F.grid_sample(images, grid, align_corners=False)
    assert torch.equal(_GridSample.apply(images, grid), plain)
    weight = torch.randn(plain.shape, generator=seeded(), dtype=torch.float64)
    gradients = [
        torch.autograd.grad((y * weight).sum(), images, create_graph=True)[0]
        for y in (_GridSample.apply(images, grid), plain)
    ]
    assert torch.equal(*gradients)
    # The gradient's own graph must not pass through PyTorch's backward, which older releases cannot differentiate.
    squares = torch.autograd.grad(_GridSample.apply(images, grid).square().sum(), images, create_graph=True)[0]
    names = set()
    todo = [squares.grad_fn]
    while todo:
        node = todo.pop()
        names.add(type(node).__name__)
        todo += [parent for parent, _ in node.next_functions if parent is not None]
    assert "_GridSampleAdjointBackward" in names
    assert not any(name.startswith("GridSampler") for name in names)
