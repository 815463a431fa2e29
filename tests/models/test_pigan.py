"""The pi-GAN generator: against the published formulas, and that how it is computed does not show."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from models.pigan_formula import published_field, published_image
from models.small_pigan import BATCH, DRAWS, VARIANTS, VOLUME, draws, inputs, make, render
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.models.pigan import PiGAN, rays_at_once
from cips3d.models.view import View
from cips3d.models.volume_generator import Rendering
from cips3d.ops import kernels
from cips3d.ops.march import RayDraws


@pytest.fixture
def generator() -> PiGAN:
    return make()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("options", "lock_view"),
    [
        ({}, False),
        ({"white_back": True}, False),
        ({"last_back": True, "density_activation": "softplus"}, False),
        ({"last_back": True, "white_back": True}, False),
        ({}, True),
    ],
    ids=str,
)
def test_pictures_and_gradients_are_the_published_ones(variant: str, options: dict[str, Any], lock_view: bool) -> None:
    """In float64, where both agree to rounding; gradients of every parameter."""
    model = make(VARIANTS[variant])
    volume = replace(VOLUME, **options)
    seen = render(model, volume=volume, lock_view=lock_view)
    expected = published_image(model, seen, 5, volume, lock_view=lock_view)
    assert 0.02 < seen.weights.detach().sum(-1).mean() <= 1 + 1e-9  # something is seen
    torch.testing.assert_close(seen.image, expected, rtol=0, atol=1e-9)
    weight = torch.randn(seen.image.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parameters = list(model.parameters())
    found = torch.autograd.grad((seen.image * weight).sum(), parameters)
    wanted = torch.autograd.grad((expected * weight).sum(), parameters)
    for (name, _), a, b in zip(model.named_parameters(), found, wanted, strict=True):
        assert b.norm() > 0, name
        assert relative_l2(a, b) < 1e-8, name


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_given_noise_is_added_to_raw_densities(generator: PiGAN, activation: str) -> None:
    coarse, merged = (3 * torch.randn(BATCH, 25, count, dtype=torch.float64) for count in (4, 8))
    volume = replace(VOLUME, density_activation=activation)
    noisy = DRAWS._replace(merged_noise=merged)
    seen = render(generator, volume=volume, draws=noisy)
    expected = published_image(generator, seen, 5, volume, noise=merged)
    torch.testing.assert_close(seen.image, expected, rtol=0, atol=1e-9)
    silent = render(generator, volume=volume)
    assert torch.equal(seen.sample_depths, silent.sample_depths) and not torch.allclose(seen.image, silent.image)
    # Fine samples go by the noisy coarse densities.
    moved = render(generator, volume=volume, draws=noisy._replace(coarse_noise=coarse))
    assert not torch.allclose(moved.sample_depths, seen.sample_depths)
    expected = published_image(generator, moved, 5, volume, noise=merged)
    torch.testing.assert_close(moved.image, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("resolution", [1, 4, (3, 7)])
@pytest.mark.parametrize("fine_samples", [4, 0])
def test_shapes_at_any_resolution(generator: PiGAN, resolution: Any, fine_samples: int) -> None:
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    given = draws(height * width)
    if fine_samples == 0:
        given = RayDraws(given.stratified)
    out = render(generator, resolution, replace(VOLUME, fine_samples=fine_samples), draws=given)
    assert out.image.shape == (BATCH, 3, height, width)
    assert out.depth.shape == (BATCH, 1, height, width)
    assert out.weights.shape == out.sample_depths.shape == (BATCH, height * width, 4 + fine_samples)
    assert out.image.abs().max() <= 1
    depth = out.filled_depth(1.12)
    assert depth.min() > 0.8 and depth.max() < 1.16  # jitter reaches half a bin beyond [0.88, 1.12]


@pytest.mark.parametrize("chunk_rays", [1, 7, 25, 1000])
@pytest.mark.parametrize("variant", ["box warp", "grid"])
def test_chunks_do_not_show(variant: str, chunk_rays: int) -> None:
    model = make(VARIANTS[variant])
    whole = render(model)  # with gradients nothing is chunked
    with torch.no_grad():
        chunked = render(model, chunk_rays=chunk_rays)
    for name, a, b in zip(Rendering._fields, whole, chunked, strict=True):
        if a is None or b is None:
            assert a is b and name in ("aux_image", "features")  # which pi-GAN has not
            continue
        assert torch.allclose(a, b, rtol=0, atol=1e-10), name  # float64 rounding


def test_partial_gradients(generator: PiGAN) -> None:
    """The picture is the whole one; the gradient is that of the chosen rays alone."""
    weight = torch.randn(BATCH, 3, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = render(generator)
    partial = render(generator, grad_points=10, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(whole.image, partial.image, rtol=0, atol=1e-10)
    parameters = list(generator.parameters())
    found = torch.autograd.grad((partial.image * weight).sum(), parameters)
    chosen = torch.randperm(25, generator=torch.Generator().manual_seed(4))[:10]
    mask = torch.zeros(25, dtype=torch.float64).index_fill(0, chosen, 1.0).view(5, 5)
    expected = torch.autograd.grad((whole.image * weight * mask).sum(), parameters)
    for a, b in zip(found, expected, strict=True):
        assert relative_l2(a, b) < 1e-9


def test_random_numbers(generator: PiGAN) -> None:
    @torch.no_grad()
    def image(**view: Any) -> Tensor:
        return render(generator, draws=None, **view).image

    assert torch.equal(image(jitter=False), image(jitter=False))
    seeded = [image(generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6)]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])
    noisy = image(jitter=False, density_noise=100.0, generator=torch.Generator().manual_seed(5))
    assert not torch.allclose(noisy, image(jitter=False))


def test_view_and_lock(generator: PiGAN) -> None:
    """Directions change the colour, not the shape."""
    free, locked = render(generator), render(generator, lock_view=True)
    assert torch.allclose(free.weights, locked.weights, atol=1e-12)  # float64, in another order
    assert torch.allclose(free.depth, locked.depth, atol=1e-12)
    assert not torch.allclose(free.image, locked.image)


def test_density(generator: PiGAN) -> None:
    z, _ = inputs()
    points = torch.rand(BATCH, 9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.2 - 0.1
    expected, _ = published_field(generator, points, torch.zeros_like(points), z)
    torch.testing.assert_close(generator.density(generator.mapping(z), points), expected, rtol=1e-10, atol=1e-10)
    for wrong in (points[:1], points[..., :2]):
        with pytest.raises(ValueError, match="points must have shape"):
            generator.density(generator.mapping(z), wrong)


def test_chunks_suit_the_device() -> None:
    cpu = torch.device("cpu")
    assert rays_at_once(cpu, 12) < rays_at_once(torch.device("cuda", 1), 12)
    assert rays_at_once(cpu, 24) < rays_at_once(cpu, 12)
    assert rays_at_once(cpu, 10**6) == 1


@pytest.mark.parametrize("lock_view", [False, True])
@pytest.mark.parametrize("variant", ["box warp", "grid"])
def test_kernels_give_the_same(kernel_backend: Backend, variant: str, lock_view: bool) -> None:
    """Pictures, depth and every gradient, in float32 against plain PyTorch in float64."""
    exact = make(VARIANTS[variant])
    with torch.no_grad():
        exact.nerf.density.weight.mul_(0.1)
        exact.nerf.density.bias.fill_(20.0)  # few densities of 0: where bins are empty, rounding moves fine samples
    ours = copy.deepcopy(exact).to(kernel_backend.device, torch.float32)

    def run(model: PiGAN, device: torch.device, dtype: torch.dtype) -> tuple[Rendering, list[Tensor]]:
        z, cameras = inputs()
        cameras = Cameras(*(x.to(device, dtype) for x in (cameras.rotation, cameras.position, cameras.fov_degrees)))
        view = View(5, cameras, replace(VOLUME, last_back=True), lock_view=lock_view)
        uniform = RayDraws(*(u.to(device, dtype) for u in DRAWS if u is not None))
        seen: Rendering = model(z.to(device, dtype), view=view, draws=uniform)
        loss = seen.image.square().mean() + seen.depth.mean()
        return seen, list(torch.autograd.grad(loss, list(model.parameters())))

    found, gradients = run(ours, kernel_backend.device, torch.float32)
    expected, references = run(exact, torch.device("cpu"), torch.float64)
    for a, b in zip(found[:4], expected[:4], strict=True):
        assert a is not None and b is not None and relative_l2(a, b) < 1e-5
    for (name, _), a, b in zip(ours.named_parameters(), gradients, references, strict=True):
        assert relative_l2(a, b) < 1e-3, name  # float32 phases of up to 30 a layer, multiplied from layer to layer


def test_locked_views_are_rendered_by_the_fused_kernel(
    kernel_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Op by op, every sample's activations would go through memory."""
    launched: list[str] = []
    launch = kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda name, *of: launched.append(name) or launch(name, *of))
    generator = make().to(kernel_backend.device, torch.float32).requires_grad_(False)
    z = generator.sample_z(1, generator=torch.Generator().manual_seed(0))
    camera = Cameras.from_angles(torch.ones(1), torch.ones(1)).to(kernel_backend.device)
    generator(*z, view=View(5, camera, VOLUME, lock_view=True))
    assert launched == ["render_deep_rays"]
