"""The pi-GAN generator: against the published formulas, and that how it is computed does not show."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.models.generator import View, truncated
from cips3d.models.pigan import PiGAN, PiGANConfig, PiGANStyles, rays_at_once
from cips3d.models.volume import VolumeSettings
from cips3d.models.volume_generator import Rendering
from cips3d.ops import kernels
from cips3d.ops.march import RayDraws

CONFIG = PiGANConfig(z_dim=5, width=12, layers=3, mapping_width=7, mapping_layers=3)

VARIANTS = {
    "box warp": CONFIG,
    "as they are": replace(CONFIG, box_warp=False),
    "grid": replace(CONFIG, grid_resolution=5, grid_width=4, grid_init_std=0.5),
}

BATCH = 2


def make(config: PiGANConfig = CONFIG) -> PiGAN:
    """Partly opaque, in float64."""
    torch.manual_seed(0)
    generator = PiGAN(config).double()
    with torch.no_grad():
        generator.nerf.density.weight.mul_(200.0)
    return generator


@pytest.fixture
def generator() -> PiGAN:
    return make()


def inputs() -> tuple[Tensor, Cameras]:
    random = torch.Generator().manual_seed(1)
    z = torch.randn(BATCH, CONFIG.z_dim, generator=random, dtype=torch.float64)
    pitch, yaw = math.pi / 2 + 0.2 * torch.randn(2, BATCH, generator=random, dtype=torch.float64)
    return z, Cameras.from_angles(pitch, yaw)


def draws(rays: int, samples: int = 4) -> RayDraws:
    random = torch.Generator().manual_seed(2)
    return RayDraws(*torch.rand(2, BATCH, rays, samples, generator=random, dtype=torch.float64))


VOLUME = VolumeSettings(samples=4)
DRAWS = draws(25)


def render(
    model: PiGAN,
    resolution: Any = 5,
    volume: VolumeSettings = VOLUME,
    *,
    draws: RayDraws | None = DRAWS,
    chunk_rays: int | None = None,
    **view: Any,
) -> Rendering:
    z, cameras = inputs()
    seen: Rendering = model(z, view=View(resolution, cameras, volume, **view), draws=draws, chunk_rays=chunk_rays)
    return seen


def published_field(model: PiGAN, points: Tensor, directions: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Density [B, N] and colour [B, N, 3], with the frequencies and phases of a layer next to each other."""
    config, nerf = model.config, model.nerf
    x = z
    for k, linear in enumerate(model.style_mapping.linears):
        x = linear(x)
        if k + 1 < config.mapping_layers:
            x = F.leaky_relu(x, 0.2)
    frequencies, phases = x[:, : x.shape[1] // 2] * 15 + 30, x[:, x.shape[1] // 2 :]

    def film(layer: Any, x: Tensor, k: int) -> Tensor:
        part = slice(k * config.width, (k + 1) * config.width)
        return torch.sin(frequencies[:, None, part] * F.linear(x, layer.weight, layer.bias) + phases[:, None, part])

    x = points * (2 / 0.24) if config.box_warp else points
    if nerf.grid is not None:
        grid = nerf.grid.embeddings.expand(len(x), -1, -1, -1, -1)
        found = F.grid_sample(grid, x[:, None, None], mode="bilinear", padding_mode="zeros", align_corners=True)
        x = torch.cat([found[:, :, 0, 0].transpose(1, 2), x], dim=-1)
    for k, layer in enumerate(nerf.layers):
        x = film(layer, x, k)
    color = film(nerf.color, torch.cat([directions, x], dim=-1), config.layers)
    return nerf.density(x)[..., 0], torch.sigmoid(nerf.output(color))


def published_image(
    model: PiGAN,
    seen: Rendering,
    resolution: int,
    volume: VolumeSettings = VOLUME,
    *,
    lock_view: bool = False,
    noise: Tensor | float = 0.0,
) -> Tensor:
    """The picture of given sample depths and noise of raw densities, by the formulas."""
    z, cameras = inputs()
    rays = cameras.rays(resolution)
    depths = seen.sample_depths
    points = rays.origins[:, :, None] + depths[..., None] * rays.directions[:, :, None]
    directions = rays.directions[:, :, None].expand_as(points).flatten(1, 2)
    if lock_view:
        directions = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).expand_as(directions)
    density, color = published_field(model, points.flatten(1, 2), directions, z)
    activation = getattr(F, volume.density_activation)
    delta = F.pad(depths.diff(dim=-1), (0, 1), value=1e10)
    alpha = 1 - torch.exp(-delta * activation(density.view_as(depths) + noise))
    light = torch.cumprod(F.pad(1 - alpha + 1e-10, (1, 0), value=1.0), dim=-1)[..., :-1]
    weights = alpha * light
    total = weights.sum(-1, keepdim=True)
    if volume.last_back:
        weights = torch.cat([weights[..., :-1], weights[..., -1:] + 1 - total], dim=-1)
    pixels = (weights[..., None] * color.view(*depths.shape, 3)).sum(2)
    if volume.white_back:
        pixels = pixels + 1 - total
    return (2 * pixels - 1).transpose(1, 2).reshape(BATCH, 3, resolution, resolution)


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


def test_styles_are_frequencies_and_phases_layer_by_layer(generator: PiGAN) -> None:
    z, cameras = inputs()
    styles = generator.mapping(z)
    assert generator.style_layers == CONFIG.layers + 1
    assert styles.frequencies.shape == styles.phases.shape == (BATCH, 4, 12)
    x = z
    for linear in generator.style_mapping.linears[:-1]:
        x = F.leaky_relu(linear(x), 0.2)
    x = generator.style_mapping.linears[-1](x)
    assert torch.equal(torch.cat([s.flatten(1) for s in styles], dim=1), x)
    view = View(3, cameras, VOLUME, jitter=False)
    mean = PiGANStyles(*(s.mean(0, keepdim=True) for s in styles))
    centred = truncated(styles, mean, 0.0)
    a, b = (generator.synthesis(s, view).image for s in (styles, centred))
    assert not torch.allclose(a, b)
    assert all(torch.allclose(s[0], s[1]) for s in centred)


def test_mixing(generator: PiGAN) -> None:
    first, second = generator.mapping(inputs()[0]), generator.mapping(-inputs()[0])
    mixed = generator.mixed(first, second, 1)
    for a, b, c in zip(first, second, mixed, strict=True):
        assert torch.equal(c[:, :1], a[:, :1]) and torch.equal(c[:, 1:], b[:, 1:])
    assert all(torch.equal(a, b) for a, b in zip(generator.mixed(first, second, 4), first, strict=True))
    for layer in (-1, 5):
        with pytest.raises(ValueError, match=f"layer must be 0 to 4, got {layer}"):
            generator.mixed(first, second, layer)


def test_mean_styles_are_fixed(generator: PiGAN) -> None:
    generator.float()
    first, again = generator.mean_styles(100), generator.mean_styles(100)
    assert isinstance(first, PiGANStyles) and first.phases.shape == (1, 4, 12)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        generator.mean_styles(0)
    assert torch.equal(first.frequencies, again.frequencies) and torch.equal(first.phases, again.phases)


def test_as_one_of_the_family(generator: PiGAN) -> None:
    z, cameras = inputs()
    settings = VolumeSettings(samples=4, white_back=True)
    assert generator.z_dims == (5,) and generator.sample_z(3)[0].shape == (3, 5)
    styles = generator.mapping(z)
    view = View((3, 4), cameras, settings, jitter=False)
    picture, direct = generator.render(styles, view), generator.synthesis(styles, view)
    assert torch.equal(picture.image, direct.image) and picture.aux_image is None
    assert picture.depth is not None and torch.equal(picture.depth, direct.filled_depth(1.12))
    for change in ({"window": (0, 0, 2, 2)}, {"return_aux": True}):
        with pytest.raises(ValueError, match=next(iter(change))):
            generator.render(styles, View(4, cameras, settings, **change))  # type: ignore[arg-type]
    groups = generator.parameter_groups()
    grouped = [p for part in groups for module in part for p in module.parameters()]
    assert {id(p) for p in grouped} == {id(p) for p in generator.parameters()} and groups.inr == ()


def test_gradients_reach_styles_and_camera(generator: PiGAN) -> None:
    z, _ = inputs()
    styles = PiGANStyles(*(s.detach().requires_grad_() for s in generator.mapping(z)))
    yaw = torch.full((BATCH,), 1.5, dtype=torch.float64, requires_grad=True)
    cameras = Cameras.from_angles(torch.full((BATCH,), 1.6, dtype=torch.float64), yaw)
    image = generator.synthesis(styles, View(3, cameras, VOLUME, jitter=False)).image
    for gradient in torch.autograd.grad(image.square().sum(), [*styles, yaw]):
        assert torch.isfinite(gradient).all() and (gradient != 0).any()


def test_second_derivatives_of_styles() -> None:
    """What path length regularisation needs: d/dθ of |d image / d styles|², with a grid too."""
    model = make(VARIANTS["grid"])
    z, cameras = inputs()
    offsets = torch.linspace(-1, 1, 48, dtype=torch.float64).view(4, 12)

    def penalty() -> Tensor:
        styles = model.mapping(z)
        seen = model.synthesis(styles, View(2, cameras, VolumeSettings(samples=3), jitter=False))
        gradients = torch.autograd.grad(seen.image.sum(), styles, create_graph=True)
        return sum((g.square().sum() for g in gradients), torch.zeros(()))

    bias = model.nerf.layers[1].bias
    grid = model.nerf.grid
    assert grid is not None
    for parameter, step in ((bias, offsets[0]), (grid.embeddings, torch.ones_like(grid.embeddings))):
        (gradient,) = torch.autograd.grad(penalty(), parameter)
        values = []
        for sign in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(sign * step)
            values.append(penalty().item())
            with torch.no_grad():
                parameter.sub_(sign * step)
        slope = (values[0] - values[1]) / 2e-6
        assert (gradient * step).sum().item() == pytest.approx(slope, rel=1e-4)  # central differences


def test_wrong_inputs_are_named(generator: PiGAN) -> None:
    z, cameras = inputs()
    with pytest.raises(ValueError, match=r"z must have shape \[any, 5\]"):
        generator(z[:, :4], view=View(4, cameras))
    with pytest.raises(ValueError, match="cameras must be as many as styles, got 1 and 2"):
        generator(z, view=View(4, cameras[:1]))
    with pytest.raises(ValueError, match=r"^cameras must be torch\.float64 on cpu like the weights"):
        generator(z, view=View(4, cameras.to(dtype=torch.float32)))
    with pytest.raises(TypeError, match="cameras must be Cameras, got Tensor"):
        generator(z, view=View(4, cameras.position))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"points must have shape \[2, any, 3\], got \[1, 7, 3\]"):
        generator.density(generator.mapping(z), torch.zeros(1, 7, 3).double())
    styles = generator.mapping(z)
    with pytest.raises(ValueError, match=r"phases must have shape \[2, 4, 12\]"):
        generator.synthesis(styles._replace(phases=styles.phases[:, 1:]), View(4, cameras))
    for name in ("chunk_rays", "grad_points"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            render(generator, **{name: 0})
    for name in ("stratified", "importance"):
        with pytest.raises(ValueError, match=rf"draws\.{name} must have shape"):
            render(generator, draws=DRAWS._replace(**{name: torch.zeros(BATCH, 25, 5)}))


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
