"""Differences of pictures."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from cips3d.errors import UserError
from cips3d.inversion.losses import (
    CONTRAST_FLOOR,
    blurred,
    multiscale_squares,
    normalized_pyramid,
    perceptual_distance,
    picture_loss,
    psnr,
    scales_of,
)


def pictures(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_scales() -> None:
    assert [scales_of(side) for side in (1, 8, 15, 16, 32, 64, 1024)] == [1, 1, 1, 2, 3, 4, 4]


def test_multiscale_squares() -> None:
    """A constant offset is the same at all scales; a chessboard is gone at the second."""
    x = pictures()
    torch.testing.assert_close(multiscale_squares(x + 0.25, x), torch.full((2,), 0.0625))
    board = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2) * 2.0 - 1
    torch.testing.assert_close(multiscale_squares(x + board, x), torch.full((2,), 1 / 3))


def test_blur_keeps_constants_and_ramps() -> None:
    ramp = torch.arange(12.0).expand(1, 2, 12, 12)
    torch.testing.assert_close(blurred(torch.full((1, 3, 9, 9), 0.7)), torch.full((1, 3, 9, 9), 0.7))
    torch.testing.assert_close(blurred(ramp)[..., 2:-2], ramp[..., 2:-2])
    impulse = torch.zeros(1, 1, 5, 5)
    impulse[..., 2, 2] = 256
    taps = torch.tensor([1.0, 4, 6, 4, 1])
    torch.testing.assert_close(blurred(impulse)[0, 0], taps[:, None] * taps)


def test_pyramid_of_one_scale() -> None:
    """Flat pictures of 8 pixels: y = x / (0.17 + x) of colours x in [0, 1]."""
    a, b = 0.6, 0.2
    flat = [torch.full((1, 3, 8, 8), 2 * x - 1) for x in (a, b)]
    expected = (a / (CONTRAST_FLOOR + a) - b / (CONTRAST_FLOOR + b)) ** 2
    assert float(normalized_pyramid(*flat)) == pytest.approx(expected, rel=1e-5)


def test_pyramid_sees_faint_texture() -> None:
    """The same error counts more on a flat ground than in strong texture; among pixels both are equal."""
    flat, error = torch.zeros(1, 3, 32, 32), 0.1 * pictures(1)
    rough = 0.9 * pictures(1).flip(3).sign()
    assert float(normalized_pyramid(flat + error, flat)) > 2 * float(normalized_pyramid(rough + error, rough))
    torch.testing.assert_close(multiscale_squares(flat + error, flat), multiscale_squares(rough + error, rough))


def test_pyramid_has_gradients_where_pictures_agree() -> None:
    x = pictures().requires_grad_()
    normalized_pyramid(x, x.detach()).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().max()) == 0
    (gradient,) = torch.autograd.grad(normalized_pyramid(x, x.detach() * 0.9).sum(), x)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) > 0


def test_loss_of_a_batch() -> None:
    batch, photo = pictures(3), pictures(1).flip(2)
    loss = picture_loss(batch, photo, normalized_pyramid, 0.5)
    torch.testing.assert_close(loss.total, multiscale_squares(batch, photo) + 0.5 * normalized_pyramid(batch, photo))
    assert float(picture_loss(batch, photo, None, 0.5).perceptual.abs().sum()) == 0


def test_psnr() -> None:
    x = torch.zeros(1, 3, 4, 4)
    assert psnr(x + 0.2, x) == pytest.approx(20)  # 0.1 of the range
    assert psnr(x, x) == math.inf
    assert psnr(x + 5, x + 1) == math.inf  # what a screen cannot show does not count


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_losses_do_not_hold_up_cuda() -> None:
    """A graph refuses whatever waits for the host."""
    photo, near = pictures(1).cuda(), pictures().cuda()
    expected = picture_loss(near, photo, normalized_pyramid, 0.1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = picture_loss(near, photo, normalized_pyramid, 0.1)
    graph.replay()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_lpips_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match="pip install lpips"):
        perceptual_distance("lpips", "cpu")
    assert perceptual_distance("none", "cpu") is None
    with pytest.raises(ValueError, match="perceptual must be one of pyramid, lpips, none"):
        perceptual_distance("other", "cpu")  # type: ignore[arg-type]


def test_lpips_of_small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enlarged to what its network can take."""
    seen = []

    def map_of(device: object) -> object:
        def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            seen.append(a.shape[-1])
            return (a - b).abs().mean(1, keepdim=True)

        return difference

    monkeypatch.setattr("cips3d.inversion.losses.lpips_map", map_of)
    distance = perceptual_distance("lpips", "cpu")
    assert distance is not None
    for side in (8, 64):
        x = pictures(2, side)
        torch.testing.assert_close(distance(x + 0.5, x), torch.full((2,), 0.5))
    assert seen == [32, 64]
