"""Adaptive augmentation: how often and how strongly, that gradients flow twice, and the controller."""

from __future__ import annotations

import math

import pytest
import torch
from augmentation.images import random_images, seeded
from torch import Tensor

from cips3d.augmentation.ada import (
    BGC,
    AdaptiveProbability,
    Draws,
    adaptive_augment,
    random_blits,
    random_colors,
    random_geometry,
)
from cips3d.augmentation.ada_transforms import (
    blit,
    brightness,
    contrast,
    hue,
    luma_flip,
    recolor,
    resample,
    rotation,
    saturation,
    scaling,
    translation,
)


def draws(p: float, batch: int = 4000, seed: int = 0) -> Draws:
    return Draws(batch, p, torch.float64, torch.device("cpu"), seeded(seed))


# The draws.


def test_strengths_and_frequencies_of_blits() -> None:
    p = 0.4
    flip, turns, right, down = random_blits(draws(p), 64)
    count = len(flip)

    def is_share(happens: Tensor, share: float) -> bool:
        return abs(happens.double().mean().item() - share) < 4 * math.sqrt(share * (1 - share) / count)

    assert is_share(flip, p / 2)
    assert is_share(turns == 0, 1 - 0.75 * p)
    for quarter in (1, 2, 3):
        assert is_share(turns == quarter, p / 4)
    assert (right.abs() <= 8).all()
    assert {-8, 8} <= set(right.tolist())
    # One draw decides about both directions, each of which is 0 in 1/16 of the shifts.
    assert is_share((right != 0) | (down != 0), p * (1 - 1 / 256))
    assert is_share((right != 0) & (down != 0), p * (15 / 16) ** 2)


def test_strengths_and_frequencies_of_geometry() -> None:
    p = 0.4
    source = random_geometry(draws(p), 32, 64)
    count = len(source)

    def share(happens: Tensor) -> float:
        return happens.double().mean().item()

    error = 4 * 0.5 / math.sqrt(count)
    linear, offset = source[:, :2, :2], source[:, :2, 2]
    scale = torch.linalg.det(linear).sqrt()  # neither rotation nor anisotropic scale changes areas
    scaled = (scale - 1).abs() > 1e-9
    assert abs(share(scaled) - p) < error
    assert scale[scaled].log().mean().abs() < 0.02
    assert scale[scaled].log().std().item() == pytest.approx(0.2 * math.log(2), rel=0.1)

    # Singular values tell the anisotropic scale whatever the rotations.
    singular = torch.linalg.svdvals(linear)
    stretch = singular[:, 0] / scale
    stretched = stretch - 1 > 1e-7
    assert abs(share(stretched) - p) < error
    assert stretch[stretched].log().square().mean().sqrt().item() == pytest.approx(0.2 * math.log(2), rel=0.1)

    turned = (linear[:, 0, 1].abs() > 1e-9) | (linear[:, 1, 0].abs() > 1e-9)
    assert abs(share(turned) - p) < error

    shifted = (offset != 0).any(1)
    assert abs(share(shifted) - p) < error
    only_shifted = shifted & ~scaled & ~stretched & ~turned
    for axis, side in ((0, 64), (1, 32)):
        assert offset[only_shifted, axis].std().item() == pytest.approx(side / 8, rel=0.2)


def test_strengths_and_frequencies_of_colors() -> None:
    p = 0.4
    matrices = random_colors(draws(p))
    error = 4 * 0.5 / math.sqrt(len(matrices))
    linear = matrices[:, :3, :3]
    gray = linear.sum(2)[:, 0]  # what becomes of (1, 1, 1): contrast, negative where the luma is flipped
    assert abs((gray < 0).double().mean().item() - p / 2) < error
    contrasted = (gray.abs() - 1).abs() > 1e-9
    assert abs(contrasted.double().mean().item() - p) < error
    assert gray[contrasted].abs().log().std().item() == pytest.approx(0.5 * math.log(2), rel=0.1)
    chroma = torch.linalg.vector_norm(linear[:, :, 0] - linear[:, :, 1], dim=1) / math.sqrt(2) / gray.abs()
    saturated = (chroma - 1).abs() > 1e-9
    assert abs(saturated.double().mean().item() - p) < error
    assert chroma[saturated].log().std().item() == pytest.approx(math.log(2), rel=0.1)
    turned = (linear[:, 0, 1] - linear[:, 1, 0]).abs() > 1e-9
    assert abs(turned.double().mean().item() - p) < error
    offset = matrices[:, 0, 3] / gray
    brightened = offset != 0
    assert abs(brightened.double().mean().item() - p) < error
    assert offset[brightened].std().item() == pytest.approx(0.2, rel=0.1)


def test_order_of_geometry() -> None:
    # As in the paper: scale, rotation, anisotropic scale, rotation, shift. Positions of the image come by the inverse.
    same = draws(1.0, batch=1)

    def drawn(value: Tensor) -> Tensor:
        same.unit()  # that it is applied, which is certain here
        return value

    scale = drawn(2 ** (0.2 * same.normal()))
    turn_before = drawn(same.angle())
    stretch = drawn(2 ** (0.2 * same.normal()))
    turn_after = drawn(same.angle())
    right, down = drawn(same.normal(2) / 8)
    forward = translation(64 * right, 32 * down) @ rotation(turn_after) @ scaling(stretch, 1 / stretch)
    forward = forward @ rotation(turn_before) @ scaling(scale, scale)
    torch.testing.assert_close(random_geometry(draws(1.0, batch=1), 32, 64), torch.linalg.inv(forward))


def test_order_of_colors() -> None:
    # As in the paper: brightness, contrast, luma flip, hue, saturation.
    same = draws(1.0, batch=1)

    def drawn(value: Tensor) -> Tensor:
        same.unit()  # that it is applied, which is certain here
        return value

    expected = brightness(drawn(0.2 * same.normal()))
    expected = contrast(drawn(2 ** (0.5 * same.normal()))) @ expected
    expected = luma_flip(drawn((2 * same.unit()).floor())) @ expected
    expected = hue(drawn(same.angle())) @ expected
    expected = saturation(drawn(2 ** same.normal())) @ expected
    torch.testing.assert_close(random_colors(draws(1.0, batch=1)), expected)


def test_certain_and_impossible_transforms() -> None:
    identity = torch.eye(3, dtype=torch.float64)
    assert torch.equal(random_geometry(draws(0.0), 32, 32), identity.expand(4000, 3, 3))
    assert torch.equal(random_colors(draws(0.0)), torch.eye(4, dtype=torch.float64).expand(4000, 4, 4))
    always = random_geometry(draws(1.0), 32, 32)
    assert ((always - identity).abs() > 1e-9)[:, :2].all()


# The pipeline.


@pytest.mark.parametrize("p", [0.0, torch.tensor(0.0)])
def test_p_0_is_the_identity(p: float | Tensor) -> None:
    images = random_images(4)
    assert torch.equal(adaptive_augment(images, p, generator=seeded()), images)


@pytest.mark.parametrize("groups", [("blit",), ("geometric",), ("color",), BGC])
def test_draws_come_from_the_generator_and_differ_between_images(groups: tuple[str, ...]) -> None:
    image = random_images(1).expand(8, -1, -1, -1)
    global_state = torch.get_rng_state()
    first, again, as_tensor, other = (
        adaptive_augment(image, p, groups=groups, generator=seeded(seed))
        for p, seed in ((1.0, 3), (1.0, 3), (torch.tensor(1.0), 3), (1.0, 4))
    )
    assert torch.equal(first, again)
    assert torch.equal(first, as_tensor)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert not torch.equal(first, other)
    assert len({tuple(x.flatten().tolist()) for x in first}) >= 7  # of 8; blits may coincide


def test_as_many_draws_whatever_p() -> None:
    states = []
    for p in (0.01, 1.0):
        generator = seeded()
        adaptive_augment(random_images(2), p, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_share_of_untouched_images() -> None:
    p, batch = 0.05, 1500
    images = random_images(1).expand(batch, -1, -1, -1)
    augmented = adaptive_augment(images, p, generator=seeded())
    untouched = (augmented == images).flatten(1).all(1).double().mean().item()
    # Eight transforms change every image that they befall, the flips of sides and of luma half of them, turns three
    # quarters; shifts up to 2 pixels are rounded to 0 in a quarter of each direction.
    expected = (1 - p) ** 8 * (1 - p / 2) ** 2 * (1 - p * 3 / 4) * (1 - p * 15 / 16)
    assert abs(untouched - expected) < 4 * math.sqrt(expected * (1 - expected) / batch)


def test_groups_are_applied_in_order() -> None:
    images = random_images(3, dtype=torch.float64)
    of_all = Draws(3, 1.0, torch.float64, torch.device("cpu"), seeded(2))
    expected = blit(images, *random_blits(of_all, 16))
    expected = resample(expected, random_geometry(of_all, 16, 16))
    expected = recolor(expected, random_colors(of_all))
    assert torch.equal(adaptive_augment(images, 1.0, generator=seeded(2)), expected)


def test_autocast_does_not_change_precision() -> None:
    images = random_images(2)
    expected = adaptive_augment(images, 1.0, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        augmented = adaptive_augment(images, 1.0, generator=seeded())
    assert torch.equal(augmented, expected)
    halves = adaptive_augment(images.bfloat16(), 1.0, generator=seeded())
    assert halves.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; contrast and saturation enlarge the rounding of the input.
    torch.testing.assert_close(halves.float(), expected, atol=0.1, rtol=0.05)


def test_arguments() -> None:
    with pytest.raises(ValueError, match=r"images must be of a floating-point dtype, got torch\.uint8"):
        adaptive_augment(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0.5)
    with pytest.raises(ValueError, match=r"images must have shape \[B, C, H, W\]"):
        adaptive_augment(torch.zeros(3, 8, 8), 0.5)
    with pytest.raises(ValueError, match="groups must be out of blit, geometric, color, got noise"):
        adaptive_augment(random_images(1), 0.5, groups=("noise",))  # type: ignore[arg-type]
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="p must be between 0 and 1"):
            adaptive_augment(random_images(1), p)


# Derivatives.


def test_gradients_and_their_gradients() -> None:
    images = random_images(1, 3, torch.float64).requires_grad_()

    def transform(x: Tensor) -> Tensor:
        return adaptive_augment(x, 1.0, generator=seeded(1))

    assert torch.autograd.gradcheck(transform, images)
    assert torch.autograd.gradgradcheck(lambda x: transform(x).square(), images)


def test_penalty_on_the_gradient_of_augmented_images() -> None:
    # D = ½ ‖T x‖² with T linear: ∇D = Tᵀ T x. What R1 of it is, and its gradient, T as a matrix tells.
    images = random_images(1, 4, torch.float64).requires_grad_()

    def transform(x: Tensor) -> Tensor:
        return adaptive_augment(x, 1.0, groups=("blit", "geometric"), generator=seeded(6))

    matrix = torch.autograd.functional.jacobian(transform, images.detach()).view(48, 48)
    (gradient,) = torch.autograd.grad(transform(images).square().sum() / 2, images, create_graph=True)
    torch.testing.assert_close(gradient.flatten(), matrix.T @ matrix @ images.flatten())
    (second,) = torch.autograd.grad(gradient.square().sum(), images)
    square = matrix.T @ matrix
    torch.testing.assert_close(second.flatten(), 2 * square @ square @ images.detach().flatten())


# The controller.


def test_controller_by_hand() -> None:
    ada = AdaptiveProbability()
    assert (ada.target, ada.interval, ada.kimg) == (0.6, 4, 500)
    # 4 steps of 1000 images are 4000 of 500 000: ±0.008.
    assert [ada.observe(sign, 1000) for sign in (1.0, 0.8, 0.6, 0.4)] == [0, 0, 0, pytest.approx(0.008)]  # r = 0.7
    assert [ada.observe(1.0, 1000) for _ in range(4)][-1] == pytest.approx(0.016)
    assert [ada.observe(0.5, 1000) for _ in range(4)] == pytest.approx([0.016] * 3 + [0.008])
    for _ in range(8):
        ada.observe(-1.0, 1000)
    assert ada.p == 0  # not below
    assert [ada.observe(torch.tensor(0.5), 64) for _ in range(3)] == [0, 0, 0]


def test_controller_weighs_steps_by_their_images() -> None:
    ada = AdaptiveProbability(interval=2, kimg=1)
    ada.observe(1.0, 30)
    assert ada.observe(-1.0, 10) == 0  # r = ½
    ada.observe(1.0, 90)
    assert ada.observe(-1.0, 10) == pytest.approx(0.1)  # r = 0.8; 100 of 1000 images


def test_controller_stays_within_probabilities() -> None:
    ada = AdaptiveProbability(interval=1, kimg=0.1)
    assert [ada.observe(1.0, 40) for _ in range(4)] == pytest.approx([0.4, 0.8, 1.0, 1.0])
    assert ada.observe(0.6, 40) == 1.0  # at the target
    assert ada.observe(math.nan, 40) == 1.0
    assert ada.observe(0.0, 40) == pytest.approx(0.6)


def test_controller_resumes_between_changes() -> None:
    signs = [1.0, 1.0, 0.2, 0.9, 0.4, 1.0, 1.0, 1.0]
    straight = AdaptiveProbability(kimg=1)
    expected = [straight.observe(torch.tensor(sign, dtype=torch.float64), 16) for sign in signs]
    broken = AdaptiveProbability(kimg=1)
    got = [broken.observe(sign, 16) for sign in signs[:6]]
    state = broken.state_dict()
    assert all(type(value) in (float, int) for value in state.values())
    resumed = AdaptiveProbability(kimg=1)
    resumed.load_state_dict(state)
    got += [resumed.observe(sign, 16) for sign in signs[6:]]
    assert got == expected
    assert expected[-1] == pytest.approx(2 * 64 / 1000)
