"""DiffAugment: what each augmentation does, how often, and that gradients flow."""

from __future__ import annotations

import pytest
import torch
from augmentation.images import random_images, seeded

from cips3d.augmentation.diff_augment import color, cutout, diff_augment, shift, translation
from cips3d.errors import UserError

POLICY = ("color", "translation", "cutout")


@pytest.mark.parametrize("policy", [(), "", []])
def test_empty_policy_is_the_identity(policy: tuple[str, ...] | str) -> None:
    images = random_images(2)
    assert torch.equal(diff_augment(images, policy), images)


def test_policy_as_text_or_names() -> None:
    images = random_images(3)
    expected = diff_augment(images, POLICY, seeded())
    assert torch.equal(diff_augment(images, "color, translation,cutout", seeded()), expected)
    one_by_one = cutout(translation(color(images, generator := seeded()), generator), generator)
    assert torch.equal(one_by_one, expected)


def test_unknown_augmentation() -> None:
    with pytest.raises(UserError, match="'colour' is unknown; choose out of color, translation, cutout"):
        diff_augment(random_images(1), ("colour",))


def test_images_must_be_a_batch() -> None:
    with pytest.raises(ValueError, match=r"images must be of a floating-point dtype, got torch\.uint8"):
        diff_augment(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must have shape \[B, C, H, W\]"):
        diff_augment(torch.zeros(3, 8, 8))


@pytest.mark.parametrize("policy", POLICY)
def test_draws_come_from_the_generator_and_differ_between_images(policy: str) -> None:
    image = random_images(1, size=32).expand(8, -1, -1, -1)
    global_state = torch.get_rng_state()
    first, again = (diff_augment(image, policy, seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert not torch.equal(first, diff_augment(image, policy, seeded(4)))
    distinct = {tuple(x.flatten().tolist()) for x in first}
    assert len(distinct) >= 6  # of 8; two draws of a shift or a place may coincide


def test_color_of_gray_images_is_brightness() -> None:
    # Constant images have neither saturation nor contrast: only u - 1/2 remains, uniform in [-1/2, 1/2).
    batch = 4000
    change = color(torch.full((batch, 3, 2, 2), 0.3), seeded()) - 0.3
    assert (change.amax((1, 2, 3)) - change.amin((1, 2, 3))).max() < 1e-6
    change = change.mean((1, 2, 3))
    assert -0.5 <= change.min() < -0.49
    assert 0.49 < change.max() <= 0.5
    assert change.mean().abs() < 4 * (1 / 12) ** 0.5 / batch**0.5  # four standard errors
    assert (change.var() - 1 / 12).abs() < 0.005


def test_color_scales_saturation_and_contrast() -> None:
    # Row 0 is red 1, others 0; row 1 is all 0. Saturation s = 2u and contrast c = u + 1/2 can be read off:
    # within a pixel, channels differ by s·c; between the rows' means by c/3.
    batch = 4000
    images = torch.zeros(batch, 3, 2, 1)
    images[:, 0, 0] = 1
    y = color(images, seeded())[..., 0]  # [B, 3, 2]
    contrast = 3 * (y[:, :, 0].mean(1) - y[:, :, 1].mean(1))
    saturation = (y[:, 0, 0] - y[:, 1, 0]) / contrast
    for draw, low, high in ((contrast, 0.5, 1.5), (saturation, 0.0, 2.0)):
        assert low - 1e-5 <= draw.min() < low + 0.02
        assert high - 0.02 < draw.max() <= high + 1e-5
        assert (draw.mean() - 1).abs() < 4 * (high - low) / 12**0.5 / batch**0.5
    assert torch.corrcoef(torch.stack([contrast, saturation]))[0, 1].abs() < 0.1  # drawn apart


def test_color_keeps_the_mean_up_to_brightness() -> None:
    images = random_images(4, dtype=torch.float64)
    difference = color(images, seeded()).mean((1, 2, 3)) - images.mean((1, 2, 3))
    brightness = torch.rand(12, generator=seeded())[:4].double() - 0.5
    torch.testing.assert_close(difference, brightness, rtol=0, atol=1e-12)


def test_shift_by_hand() -> None:
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    down_left = shift(image, torch.tensor([1]), torch.tensor([-1]))
    assert down_left[0, 0].tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]
    gone = shift(image, torch.tensor([0]), torch.tensor([3]))
    assert torch.equal(gone, torch.zeros_like(image))


def test_translation_is_a_shift_by_the_drawn_pixels() -> None:
    images = random_images(6, size=16)
    moved = translation(images, seeded())
    generator = seeded()
    rows = torch.randint(-2, 3, (6,), generator=generator)  # 16 · 0.125 = 2
    columns = torch.randint(-2, 3, (6,), generator=generator)
    for k, (dy, dx) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        expected = torch.zeros_like(images[k])
        target = expected[:, max(dy, 0) : 16 + min(dy, 0), max(dx, 0) : 16 + min(dx, 0)]
        target.copy_(images[k, :, max(-dy, 0) : 16 + min(-dy, 0), max(-dx, 0) : 16 + min(-dx, 0)])
        assert torch.equal(moved[k], expected)


def test_translation_reaches_every_shift_equally() -> None:
    batch = 5000
    impulse = torch.zeros(1, 1, 16, 16)
    impulse[..., 8, 8] = 1
    hits = translation(impulse.expand(batch, -1, -1, -1), seeded()).sum((0, 1))
    assert hits.sum() == batch
    assert hits[6:11, 6:11].sum() == batch
    assert (hits[6:11, 6:11] / batch - 1 / 25).abs().max() < 5 * (1 / 25 / batch) ** 0.5  # five standard deviations


def test_shifts_are_shares_of_each_side() -> None:
    """An eighth of 12 rows, 1.5, is rounded to 2; of 32 columns it is 4."""
    impulse = torch.zeros(1, 1, 12, 32)
    impulse[..., 6, 16] = 1
    hits = translation(impulse.expand(2000, -1, -1, -1), seeded()).sum((0, 1))
    assert hits.sum(1).nonzero().flatten().tolist() == list(range(4, 9))
    assert hits.sum(0).nonzero().flatten().tolist() == list(range(12, 21))


@pytest.mark.parametrize(("size", "side"), [(32, 6), (64, 13), (10, 2)])
def test_cutout_area(size: int, side: int) -> None:
    kept = cutout(torch.ones(500, 3, size, size), seeded())
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(kept[:, 0], kept[:, 1])  # the same square in all channels
    hole = kept[:, 0] == 0
    heights, widths = hole.any(2).sum(1), hole.any(1).sum(1)
    assert torch.equal(hole.sum((1, 2)), heights * widths)  # a rectangle
    assert heights.max() == widths.max() == side
    assert (heights == side).float().mean() > 0.7  # the rest reaches over the edge
    assert heights.min() >= side // 2  # its centre never leaves the image
    assert hole.any(0).all()  # everywhere


@pytest.mark.parametrize("size", [10, 12, 15])
def test_cutout_reaches_over_both_edges_alike(size: int) -> None:
    """Squares of 2 and 3 pixels: at every place, and at those that mirror them."""
    kept = cutout(torch.ones(3000, 1, size, size), seeded())[:, 0]
    for across in (1, 2):
        holes = {tuple(hole.tolist()) for hole in (kept == 0).any(across)}
        assert holes == {hole[::-1] for hole in holes}
        assert len(holes) == (size if size == 15 else size + 1)


def test_gradients_flow() -> None:
    images = random_images(2, size=8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, POLICY, seeded()), images)
    assert torch.autograd.gradgradcheck(lambda x: diff_augment(x, POLICY, seeded()).square(), images[:1, :, :4, :4])


def test_dtype_stays() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        assert diff_augment(random_images(2, dtype=dtype), POLICY, seeded()).dtype == dtype
