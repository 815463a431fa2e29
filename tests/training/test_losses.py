"""Losses and regularisers by hand, and derivatives by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from cips3d.errors import UserError
from cips3d.training.losses import (
    LOSSES,
    LossName,
    PathLength,
    adversarial_loss,
    gradient_penalty,
    keep_best,
    latent_loss,
    logistic_discriminator_loss,
    most_real,
    nonsaturating_generator_loss,
    path_lengths,
    pose_loss,
    r1_penalty,
    r2_penalty,
    top_k_share,
)

LN_2 = math.log(2)
REAL = [[0.5], [2.0]]
FAKE = [[-3.0], [0.25]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


# Adversarial losses.


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


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        # (½ + 0)/2 + (0 + 5/4)/2;  -(-3 + ¼)/2
        ("hinge", 0.875, 1.375),
        # -11/8 - 5/4
        ("wasserstein", -2.625, 1.375),
        # ½·(¼ + 1)/2 + ½·(9 + 1/16)/2;  ½·(16 + 9/16)/2
        ("least-squares", 2.578125, 4.140625),
    ],
)
def test_polynomial_losses_by_hand(name: str, discriminator: float, generator: float) -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    loss = adversarial_loss(name)
    assert loss.discriminator(real, fake).item() == discriminator  # sums of powers of two: exact
    assert loss.generator(fake, None).item() == generator


def test_relativistic_loss_by_hand() -> None:
    # D(x) - D(G(z)) = ln 3 and 0. Compared with the mean of the others instead, it would be ½ ln 3 twice.
    real = torch.tensor([[math.log(3)], [math.log(3)]], dtype=torch.float64)
    fake = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64)
    loss = adversarial_loss("relativistic")
    assert loss.needs_real
    assert loss.discriminator(real, fake).item() == pytest.approx((math.log(4 / 3) + LN_2) / 2, rel=1e-14)
    assert loss.generator(fake, real).item() == pytest.approx((math.log(4) + LN_2) / 2, rel=1e-14)


def test_relativistic_loss_needs_pairs() -> None:
    loss = adversarial_loss("relativistic")
    with pytest.raises(ValueError, match="real_logits must be given"):
        loss.generator(torch.zeros(2, 1), None)
    for function in (loss.discriminator, loss.generator):
        with pytest.raises(ValueError, match=r"the same shape, got \[.*\] and \[.*\]"):
            function(torch.zeros(2, 1), torch.zeros(3, 1))


def test_names() -> None:
    assert tuple(LOSSES) == get_args(LossName)
    assert all(loss.name == name for name, loss in LOSSES.items())
    assert [name for name, loss in LOSSES.items() if loss.needs_real] == ["relativistic"]
    with pytest.raises(UserError, match="--loss vanilla is unknown; choose out of logistic, hinge"):
        adversarial_loss("vanilla")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(3,), (3, 1), (2, 1, 2, 3)])
def test_losses_of_any_shape(name: str, shape: tuple[int, ...]) -> None:
    loss = adversarial_loss(name)
    real, fake = normal(*shape), normal(*shape, seed=1)
    for function in (loss.discriminator, lambda real, fake: loss.generator(fake, real)):
        value = function(real, fake)
        assert value.shape == ()
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, function(real.flatten()[:, None], fake.flatten()[:, None]))
        assert torch.autograd.gradcheck(function, (real.clone().requires_grad_(), fake.clone().requires_grad_()))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_pull_the_right_way(name: str) -> None:
    loss = adversarial_loss(name)
    real, fake = (torch.full((4, 1), 0.3, requires_grad=True) for _ in range(2))
    towards_real, towards_fake = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    assert (towards_real < 0).all()
    assert (towards_fake > 0).all()
    (pull,) = torch.autograd.grad(loss.generator(fake, real), fake)
    assert (pull < 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_logits_far_out_stay_finite(name: str) -> None:
    loss = adversarial_loss(name)
    far = torch.tensor([[-200.0], [200.0]], requires_grad=True)
    for value in (loss.discriminator(far, far.flip(0)), loss.generator(far, far.flip(0))):
        (gradient,) = torch.autograd.grad(value, far)
        assert value.isfinite()
        assert gradient.isfinite().all()


# Top-k.


def test_top_k_share() -> None:
    assert top_k_share(0) == 1
    assert top_k_share(1000) == pytest.approx(math.sqrt(0.99))
    assert top_k_share(4000) == pytest.approx(0.9801)
    assert top_k_share(102_000) == 0.6  # 0.99⁵¹ = 0.599
    assert top_k_share(102_000, floor=0.5) == pytest.approx(0.99**51)
    assert top_k_share(10**6, floor=1.0) == 1


@pytest.mark.parametrize(("share", "kept"), [(1.0, 5), (0.61, 4), (0.6, 3), (0.5, 3), (0.2, 1), (1e-3, 1)])
def test_the_best_are_kept(share: float, kept: int) -> None:
    logits = torch.tensor([[1.0], [5.0], [3.0], [-2.0], [4.0]])
    best = keep_best(logits, share)
    assert best.flatten().tolist() == [5, 4, 3, 1, -2][:kept]
    assert most_real(logits, share).tolist() == [1, 4, 2, 0, 3][:kept]


def test_kept_count_is_not_rounded_up_by_floating_point() -> None:
    assert 0.07 * 100 > 7
    assert len(keep_best(torch.zeros(100, 1), 0.07)) == 7


def test_images_with_several_logits_count_by_their_mean() -> None:
    logits = torch.tensor([[9.0, -9.0], [1.0, 1.0], [2.0, -1.0]])[:, None, :, None]  # means 0, 1, ½
    torch.testing.assert_close(keep_best(logits, 0.5), logits[[1, 2]])


def test_only_the_kept_learn() -> None:
    logits = torch.tensor([[0.0], [2.0], [1.0], [-1.0]], requires_grad=True)
    nonsaturating_generator_loss(keep_best(logits, 0.5)).backward()
    assert (logits.grad != 0).flatten().tolist() == [False, True, True, False]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_share_must_make_sense(share: float) -> None:
    with pytest.raises(ValueError, match="share must be above 0 and at most 1"):
        keep_best(torch.zeros(4, 1), share)


# What the discriminator reads off images.


def test_pose_loss_by_hand() -> None:
    predicted = torch.tensor([[0.1, 0.0], [0.0, -0.2]], requires_grad=True)
    loss = pose_loss(predicted, torch.tensor([[0.3, 0.0], [0.0, 0.2]]))
    assert loss.item() == pytest.approx((0.2**2 + 0.4**2) / 4)
    loss.backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([[-0.1, 0.0], [0.0, -0.2]]))


def test_latent_loss_by_hand() -> None:
    predicted = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, 0.0]])
    z = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert latent_loss(predicted, z).item() == pytest.approx((1 + 4 + 4) / 6)


# R1 and R2.


@pytest.mark.parametrize("penalty_of", [r1_penalty, r2_penalty])
@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1, 1)])
def test_r1_of_a_quadratic(penalty_of: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
    # D(x) = w Σ x²: ∇D = 2 w x, so the penalty is 4 w² Σ x² an image, and its derivative in w is 8 w Σ x².
    images = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 3.0]]]], requires_grad=True)  # Σ x² = 5, 9
    weight = torch.tensor(0.5, requires_grad=True)
    penalty = penalty_of((weight * images.square().sum((1, 2, 3))).view(shape), images)
    assert penalty.item() == pytest.approx(4 * 0.25 * (5 + 9) / 2)
    (slope,) = torch.autograd.grad(penalty, weight)
    assert slope.item() == pytest.approx(8 * 0.5 * (5 + 9) / 2)


def test_r1_gradient_of_a_small_network() -> None:
    images = normal(2, 3, 2, 2)
    weights = [normal(*shape, seed=1) for shape in ((12, 4), (4, 1))]

    def penalty(first: Tensor, second: Tensor) -> Tensor:
        seen = images.clone().requires_grad_()
        return r1_penalty(torch.tanh(seen.flatten(1) @ first) @ second, seen)

    assert torch.autograd.gradcheck(penalty, [w.requires_grad_() for w in weights])


def test_r1_does_not_depend_on_the_batch_size() -> None:
    image = normal(1, 3, 4, 4)
    once, four_times = image.clone().requires_grad_(), image.repeat(4, 1, 1, 1).requires_grad_()
    penalties = [r1_penalty(x.pow(3).sum((1, 2, 3)), x) for x in (once, four_times)]
    torch.testing.assert_close(penalties[0], penalties[1])


def test_r1_needs_images_that_require_gradients() -> None:
    images = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="images must require gradients"):
        r1_penalty(images.sum((1, 2, 3)), images)


# WGAN-GP.


def test_gradient_penalty_of_a_linear_discriminator() -> None:
    # ‖∇D‖ = ‖w‖ = 5 everywhere: (5 - 1)² = 16, and its derivative in w is 2·4·w/5.
    weight = torch.tensor([[3.0], [4.0]], requires_grad=True)
    real, fake = torch.ones(3, 2), torch.zeros(3, 2)
    penalty = gradient_penalty(lambda x: x @ weight, real, fake)
    assert penalty.item() == pytest.approx(16)
    (slope,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(slope, torch.tensor([[4.8], [6.4]]))
    assert gradient_penalty(lambda x: x @ weight, real, fake, target=0.0).item() == pytest.approx(25)


def test_gradient_penalty_lies_between_real_and_fake() -> None:
    real, fake = normal(64, 3, 2, 2).requires_grad_(), normal(64, 3, 2, 2, seed=1).requires_grad_()
    seen = []

    def discriminator(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return images.square().sum((1, 2, 3)) / 2  # ∇D = x̂

    penalty = gradient_penalty(discriminator, real, fake, generator=seeded(5))
    penalty.backward()
    assert real.grad is None and fake.grad is None  # it is the discriminator's alone
    torch.testing.assert_close(penalty, (seen[0].flatten(1).norm(dim=1) - 1).square().mean())
    share = (seen[0] - fake) / (real - fake)  # u, one an image
    torch.testing.assert_close(share, share[:, :1, :1, :1].expand_as(share))
    u = share[:, 0, 0, 0]
    assert 0 <= u.min() < 0.15  # of 64 uniform draws, the least is above 0.15 with probability 3e-5
    assert 0.85 < u.max() <= 1
    assert torch.equal(penalty, gradient_penalty(discriminator, real, fake, generator=seeded(5)))
    assert not torch.equal(penalty, gradient_penalty(discriminator, real, fake, generator=seeded(6)))


def test_gradient_penalty_derivative() -> None:
    real, fake = normal(2, 6), normal(2, 6, seed=1)
    weights = [normal(*shape, seed=2).requires_grad_() for shape in ((6, 4), (4, 1))]

    def penalty(first: Tensor, second: Tensor) -> Tensor:
        return gradient_penalty(lambda x: torch.tanh(x @ first) @ second, real, fake, generator=seeded())

    assert torch.autograd.gradcheck(penalty, weights)


def test_gradient_penalty_needs_pairs() -> None:
    with pytest.raises(ValueError, match="real and fake must have the same shape"):
        gradient_penalty(lambda x: x, torch.zeros(2, 3), torch.zeros(1, 3))


# Path length regularisation.


def test_path_lengths_by_hand() -> None:
    # One style of width 1, two pixels (3 w, 4 w), y = (1, 1)/√2: |3 + 4|/√2. The second image moves half as fast.
    slopes = torch.tensor([[3.0, 4.0], [1.5, 2.0]])
    styles = torch.tensor([[0.3], [-2.0]], requires_grad=True)
    images = (styles * slopes).view(2, 1, 1, 2)
    lengths = path_lengths(images, styles, torch.ones(2, 1, 1, 2))
    torch.testing.assert_close(lengths, torch.tensor([7.0, 3.5]) / math.sqrt(2))


def test_path_lengths_of_styles_by_layer() -> None:
    # Three layers of width 2, one pixel with slopes (1, 2), (0, 3), (5, 1): √((5 + 9 + 26)/3).
    slopes = torch.tensor([[1.0, 2.0], [0.0, 3.0], [5.0, 1.0]])
    styles = torch.zeros(1, 3, 2, requires_grad=True)
    images = (styles * slopes).sum((1, 2)).view(1, 1, 1, 1)
    lengths = path_lengths(images, styles, -torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(lengths, torch.tensor([math.sqrt(40 / 3)]))


def test_path_length_penalty_and_running_mean_by_hand() -> None:
    path_length = PathLength(decay=0.1)
    styles = torch.ones(2, 1, requires_grad=True)
    slope = torch.tensor([2.0, 4.0], requires_grad=True)  # the lengths
    images = (styles[:, 0] * slope).view(2, 1, 1, 1)
    noise = torch.ones_like(images)
    # a = 0.1·3;  (1.7² + 3.7²)/2
    penalty = path_length(images, styles, noise)
    assert penalty.item() == pytest.approx((1.7**2 + 3.7**2) / 2)
    assert path_length.mean.item() == pytest.approx(0.3)
    # a = 0.3 + 0.1·2.7 = 0.57, itself part of the derivative: Σ (l - a)(δ - 0.1/2).
    (gradient,) = torch.autograd.grad(path_length(images, styles, noise), slope)
    assert path_length.mean.item() == pytest.approx(0.57)
    total = (2 - 0.57) + (4 - 0.57)
    torch.testing.assert_close(gradient, torch.tensor([2 - 0.57 - 0.05 * total, 4 - 0.57 - 0.05 * total]))


def test_running_mean_is_part_of_the_state() -> None:
    path_length, other = PathLength(), PathLength()
    assert path_length.decay == 0.01
    styles = torch.ones(1, 1, requires_grad=True)
    path_length(styles.view(1, 1, 1, 1) * 5, styles, torch.ones(1, 1, 1, 1))
    other.load_state_dict(path_length.state_dict())
    assert other.mean.item() == pytest.approx(0.05)
    assert not other.mean.requires_grad


def test_path_length_noise_comes_from_the_generator() -> None:
    styles = normal(2, 4).requires_grad_()
    images = (styles @ normal(4, 12, seed=1)).view(2, 3, 2, 2)
    first, again, other = (PathLength()(images, styles, generator=seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    noise = torch.randn(images.shape, generator=seeded(3)).double()
    assert torch.equal(first, PathLength()(images, styles, noise))


def test_expected_squared_path_length_is_the_jacobians() -> None:
    # E ‖Jᵀ y‖² = ‖J‖²_F / (H·W) for images linear in the style.
    jacobian = normal(4, 12, seed=1)
    styles = normal(4000, 4).requires_grad_()
    images = (styles @ jacobian).view(-1, 3, 2, 2)
    squares = path_lengths(images, styles, normal(4000, 3, 2, 2, seed=2)).square()
    standard_error = float(squares.std()) / math.sqrt(4000)
    assert abs(float(squares.mean() - jacobian.square().sum() / 4)) < 4 * standard_error


@pytest.mark.parametrize("layers", [None, 3])
def test_path_length_derivative(layers: int | None) -> None:
    styles = normal(2, 3) if layers is None else normal(2, layers, 3)
    width = styles[0].numel()
    noise = normal(2, 1, 2, 2, seed=1)
    weights = [normal(*shape, seed=2).requires_grad_() for shape in ((width, 5), (5, 4))]

    def penalty(first: Tensor, second: Tensor) -> Tensor:
        w = styles.clone().requires_grad_()
        images = (torch.tanh(w.flatten(1) @ first) @ second).view(2, 1, 2, 2)
        return PathLength()(images, w, noise)

    assert torch.autograd.gradcheck(penalty, weights)


def test_images_that_do_not_move_have_finite_gradients() -> None:
    slope = torch.zeros(1, requires_grad=True)
    styles = torch.ones(2, 1, requires_grad=True)
    images = (styles * slope).view(2, 1, 1, 1)
    (gradient,) = torch.autograd.grad(PathLength()(images, styles, torch.ones_like(images)), slope)
    assert gradient.isfinite().all()


def test_path_length_needs_styles_that_require_gradients() -> None:
    with pytest.raises(ValueError, match="styles must require gradients"):
        PathLength()(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4))
