"""Losses by hand, and R1 of functions whose gradient is known."""

from __future__ import annotations

import math

import pytest
import torch

from cips3d.training.losses import logistic_discriminator_loss, nonsaturating_generator_loss, pose_loss, r1_penalty

LN_2 = math.log(2)


def test_generator_loss_by_hand() -> None:
    # softplus(-ln 3) = ln(1 + 1/3), softplus(0) = ln 2
    logits = torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64)
    expected = (math.log(4 / 3) + LN_2) / 2
    assert nonsaturating_generator_loss(logits).item() == pytest.approx(expected, rel=1e-14)


def test_discriminator_loss_by_hand() -> None:
    real = torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64)
    fake = torch.tensor([[math.log(3)]], dtype=torch.float64)
    expected = (math.log(4 / 3) + LN_2) / 2 + math.log(4)
    assert logistic_discriminator_loss(real, fake).item() == pytest.approx(expected, rel=1e-14)


def test_logits_far_out_stay_finite() -> None:
    far = torch.tensor([[-200.0], [200.0]])
    assert nonsaturating_generator_loss(far).item() == pytest.approx(100.0)
    assert logistic_discriminator_loss(far, far).item() == pytest.approx(200.0)


def test_pose_loss_by_hand() -> None:
    predicted = torch.tensor([[0.1, 0.0], [0.0, -0.2]], requires_grad=True)
    loss = pose_loss(predicted, torch.tensor([[0.3, 0.0], [0.0, 0.2]]))
    assert loss.item() == pytest.approx((0.2**2 + 0.4**2) / 4)
    loss.backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([[-0.1, 0.0], [0.0, -0.2]]))


def test_losses_pull_the_right_way() -> None:
    real = torch.zeros(4, 1, requires_grad=True)
    fake = torch.zeros(2, 1, requires_grad=True)
    logistic_discriminator_loss(real, fake).backward()
    torch.testing.assert_close(real.grad, torch.full((4, 1), -0.5 / 4))
    torch.testing.assert_close(fake.grad, torch.full((2, 1), 0.5 / 2))
    (pull,) = torch.autograd.grad(nonsaturating_generator_loss(fake), fake)
    torch.testing.assert_close(pull, torch.full((2, 1), -0.5 / 2))


def test_loss_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(3, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    arguments = real.requires_grad_(), fake.requires_grad_()
    assert torch.autograd.gradcheck(logistic_discriminator_loss, arguments)
    assert torch.autograd.gradcheck(nonsaturating_generator_loss, arguments[1:])


def test_r1_of_a_quadratic() -> None:
    # D(x) = w Σ x²: ∇D = 2 w x, so the penalty is 4 w² Σ x² an image, and its derivative in w is 8 w Σ x².
    images = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 3.0]]]], requires_grad=True)  # Σ x² = 5, 9
    weight = torch.tensor(0.5, requires_grad=True)
    penalty = r1_penalty((weight * images.square().sum((1, 2, 3)))[:, None], images)
    assert penalty.item() == pytest.approx(4 * 0.25 * (5 + 9) / 2)
    (slope,) = torch.autograd.grad(penalty, weight)
    assert slope.item() == pytest.approx(8 * 0.5 * (5 + 9) / 2)


def test_r1_gradient_of_a_small_network() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((12, 4), (4, 1))]

    def penalty(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        seen = images.clone().requires_grad_()
        return r1_penalty(torch.tanh(seen.flatten(1) @ first) @ second, seen)

    assert torch.autograd.gradcheck(penalty, [w.requires_grad_() for w in weights])


def test_r1_does_not_depend_on_the_batch_size() -> None:
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    once, four_times = image.clone().requires_grad_(), image.repeat(4, 1, 1, 1).requires_grad_()
    penalties = [r1_penalty(x.pow(3).sum((1, 2, 3)), x) for x in (once, four_times)]
    torch.testing.assert_close(penalties[0], penalties[1])


def test_r1_needs_images_that_require_gradients() -> None:
    images = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="images must require gradients"):
        r1_penalty(images.sum((1, 2, 3)), images)
