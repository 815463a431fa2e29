"""The generator: what it gives, and that how it is computed does not show."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig, CIPS3DStyles
from cips3d.models.generator import truncated
from cips3d.models.ray_parts import default_chunk_rays
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings
from cips3d.models.volume_generator import Rendering
from cips3d.ops.march import RayDraws

CONFIG = CIPS3DConfig(
    z_shape_dim=6,
    shape_style_dim=8,
    shape_mapping_layers=2,
    nerf_width=16,
    nerf_color_width=8,
    features=5,
    z_appearance_dim=7,
    appearance_style_dim=9,
    appearance_mapping_layers=2,
    inr_width=12,
    inr_blocks=3,
    inr_skip_from=1,
    inr_rgb_from=1,
    density_scale=200.0,
)
BATCH = 2


@pytest.fixture
def generator() -> CIPS3D:
    torch.manual_seed(0)
    return CIPS3D(CONFIG).double()


def inputs() -> tuple[torch.Tensor, torch.Tensor, Cameras]:
    random = torch.Generator().manual_seed(1)
    z_shape = torch.randn(BATCH, CONFIG.z_shape_dim, generator=random, dtype=torch.float64)
    z_appearance = torch.randn(BATCH, CONFIG.z_appearance_dim, generator=random, dtype=torch.float64)
    pitch, yaw = math.pi / 2 + 0.2 * torch.randn(2, BATCH, generator=random, dtype=torch.float64)
    return z_shape, z_appearance, Cameras.from_angles(pitch, yaw)


def draws(rays: int, samples: int = 4) -> RayDraws:
    random = torch.Generator().manual_seed(2)
    return RayDraws(*torch.rand(2, BATCH, rays, samples, generator=random, dtype=torch.float64))


VOLUME = VolumeSettings(samples=4)
COARSE = VolumeSettings(samples=4, fine_samples=0)
DRAWS = draws(36)
COARSE_DRAWS = RayDraws(DRAWS.stratified)


def render(
    model: CIPS3D,
    resolution: Any = 6,
    volume: VolumeSettings = VOLUME,
    *,
    draws: RayDraws | None = DRAWS,
    chunk_rays: int | None = None,
    **view: Any,
) -> Rendering:
    *z, cameras = inputs()
    seen: Rendering = model(
        *z, view=View(resolution, cameras, volume, return_aux=True, **view), draws=draws, chunk_rays=chunk_rays
    )
    return seen


@pytest.mark.parametrize("resolution", [1, 5, 6, (3, 7)])
def test_shapes_at_any_resolution(generator: CIPS3D, resolution: Any) -> None:
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    out = render(generator, resolution, draws=draws(height * width))
    assert out.image.shape == (BATCH, 3, height, width)
    assert out.aux_image is not None and out.aux_image.shape == out.image.shape
    assert out.depth.shape == (BATCH, 1, height, width)
    assert out.features is not None and out.features.shape == (BATCH, CONFIG.features, height, width)
    assert out.weights.shape == out.sample_depths.shape == (BATCH, height * width, 8)
    assert out.image.abs().max() <= 1 and out.aux_image.abs().max() <= 1
    assert (out.sample_depths.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("chunk_rays", [1, 7, 35, 36, 1000])
@pytest.mark.parametrize(("volume", "draws"), [(VOLUME, DRAWS), (COARSE, COARSE_DRAWS)], ids=["fine", "coarse"])
def test_chunks_do_not_show(generator: CIPS3D, chunk_rays: int, volume: VolumeSettings, draws: RayDraws) -> None:
    whole = render(generator, volume=volume, draws=draws)  # with gradients nothing is chunked
    with torch.no_grad():
        chunked = render(generator, volume=volume, draws=draws, chunk_rays=chunk_rays)
    for name, a, b in zip(Rendering._fields, whole, chunked, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11), name  # float64 rounding


def test_partial_gradients(generator: CIPS3D) -> None:
    """The picture is the whole one; the gradient is that of the chosen rays alone."""
    weight = torch.randn(BATCH, 3, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = render(generator)
    partial = render(generator, grad_points=10, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(whole.image, partial.image, rtol=0, atol=1e-11)
    (partial.image * weight).sum().backward()
    found = [p.grad.clone() for p in generator.parameters() if p.grad is not None]
    generator.zero_grad()
    chosen = torch.randperm(36, generator=torch.Generator().manual_seed(4))[:10]
    mask = torch.zeros(36, dtype=torch.float64).index_fill(0, chosen, 1.0).view(6, 6)
    (render(generator).image * weight * mask).sum().backward()
    expected = [p.grad for p in generator.parameters() if p.grad is not None]
    for a, b in zip(found, expected, strict=False):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_random_numbers(generator: CIPS3D) -> None:
    @torch.no_grad()
    def image(**view: Any) -> Tensor:
        return render(generator, draws=None, **view).image

    assert torch.equal(image(jitter=False), image(jitter=False))
    seeded = [image(generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6)]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])
    noisy = image(jitter=False, density_noise=100.0, generator=torch.Generator().manual_seed(5))
    assert not torch.allclose(noisy, image(jitter=False))


def test_backgrounds(generator: CIPS3D) -> None:
    plain = render(generator)
    left_over = 1 - plain.weights.sum(-1)
    assert left_over.max() > 0.01  # some rays are not opaque, or nothing is tested
    white = render(generator, volume=replace(VOLUME, white_back=True))
    assert white.features is not None and plain.features is not None
    added = (white.features - plain.features).flatten(2)
    assert torch.allclose(added, left_over[:, None].expand_as(added), atol=1e-12)
    back = render(generator, volume=replace(VOLUME, last_back=True))
    assert torch.allclose(back.weights.sum(-1), torch.ones_like(left_over))
    assert torch.allclose(back.weights[..., :-1], plain.weights[..., :-1])
    # As published, each takes what is left.
    both = render(generator, volume=replace(VOLUME, last_back=True, white_back=True))
    assert both.features is not None and back.features is not None
    assert torch.allclose((both.features - back.features).flatten(2), added, atol=1e-12)


def test_filled_depth_lies_in_the_volume(generator: CIPS3D) -> None:
    out = render(generator)
    depth = out.filled_depth(1.12)
    assert depth.min() > 0.8 and depth.max() < 1.16  # jitter reaches half a bin beyond [0.88, 1.12]


def test_styles(generator: CIPS3D) -> None:
    z_shape, z_appearance, _ = inputs()
    styles = generator.mapping(z_shape, z_appearance)
    assert styles.shape.shape == (BATCH, 8) and styles.appearance.shape == (BATCH, 9)
    mean = CIPS3DStyles(styles.shape.mean(0, keepdim=True), styles.appearance.mean(0, keepdim=True))
    for psi, expected in ((1.0, styles), (0.0, mean)):
        nearer = truncated(styles, mean, psi)
        assert torch.allclose(nearer.shape, expected.shape.expand_as(styles.shape))
        assert torch.allclose(nearer.appearance, expected.appearance.expand_as(styles.appearance))
    half = truncated(styles, mean, 0.5)
    assert torch.allclose(half.shape, (styles.shape + mean.shape) / 2)


def test_mean_styles_are_fixed(generator: CIPS3D) -> None:
    generator.float()
    first, again = generator.mean_styles(100), generator.mean_styles(100)
    assert first.shape.shape == (1, 8)
    assert torch.equal(first.shape, again.shape) and torch.equal(first.appearance, again.appearance)


def test_a_style_for_every_layer(generator: CIPS3D) -> None:
    z_shape, z_appearance, cameras = inputs()
    styles = generator.mapping(z_shape, z_appearance)
    repeated = CIPS3DStyles(styles.shape[:, None].expand(-1, 3, -1), styles.appearance[:, None].expand(-1, 6, -1))
    view = View(4, cameras, VOLUME, jitter=False)
    a, b = (generator.synthesis(s, view).image for s in (styles, repeated))
    assert torch.allclose(a, b, atol=1e-12)
    other = repeated.appearance.clone()
    other[:, 3:] = other[:, 3:].flip(0)  # mixing: the later layers take the other image's style
    mixed = generator.synthesis(CIPS3DStyles(repeated.shape, other), view).image
    assert not torch.allclose(a, mixed)


def test_gradients_reach_every_parameter(generator: CIPS3D) -> None:
    out = render(generator)
    assert out.aux_image is not None
    (out.image.square().sum() + out.aux_image.square().sum()).backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_gradients_reach_the_camera(generator: CIPS3D) -> None:
    z_shape, z_appearance, _ = inputs()
    yaw = torch.full((BATCH,), 1.5, dtype=torch.float64, requires_grad=True)
    cameras = Cameras.from_angles(torch.full((BATCH,), 1.6, dtype=torch.float64), yaw)
    generator(z_shape, z_appearance, view=View(4, cameras, VOLUME, jitter=False)).image.sum().backward()
    assert yaw.grad is not None and (yaw.grad != 0).all()


def test_z_is_drawn_from_the_generator(generator: CIPS3D) -> None:
    first = generator.sample_z(3, generator=torch.Generator().manual_seed(0))
    again = generator.sample_z(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert first[0].shape == (3, 6) and first[1].shape == (3, 7)
    assert first[0].dtype == torch.float64  # as the weights


def test_given_noise_is_what_would_be_drawn(generator: CIPS3D) -> None:
    source = torch.Generator().manual_seed(4)
    drawn = render(generator, draws=None, density_noise=5.0, generator=source)
    source.manual_seed(4)
    uniform = [torch.rand(BATCH, 36, 4, generator=source).double() for _ in range(2)]
    noise = [5 * torch.randn(BATCH, 36, count, generator=source).double() for count in (4, 8)]
    given = render(generator, draws=RayDraws(*uniform, *noise))
    assert torch.equal(given.image, drawn.image) and torch.equal(given.weights, drawn.weights)
    assert not torch.allclose(given.weights, render(generator, draws=RayDraws(*uniform)).weights)
    coarse = render(generator, volume=COARSE, draws=RayDraws(uniform[0], coarse_noise=noise[0]))
    assert not torch.allclose(coarse.weights, render(generator, volume=COARSE, draws=RayDraws(uniform[0])).weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stratified": torch.zeros(1, 2, 3)}, r"draws\.stratified must have shape \[2, 36, 4\], got \[1, 2, 3\]"),
        ({"importance": torch.zeros(BATCH, 36, 5)}, r"draws\.importance must have shape \[2, 36, 4\]"),
        ({"importance": None}, r"draws\.importance must have shape \[2, 36, 4\], got none"),
        ({"coarse_noise": torch.zeros(BATCH, 36, 8)}, r"draws\.coarse_noise must have shape \[2, 36, 4\]"),
        ({"merged_noise": torch.zeros(BATCH, 36, 4)}, r"draws\.merged_noise must have shape \[2, 36, 8\]"),
    ],
)
def test_wrong_draws_are_named(generator: CIPS3D, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        render(generator, draws=DRAWS._replace(**change))


def test_draws_without_use_are_named(generator: CIPS3D) -> None:
    for name, draw in (("importance", DRAWS.importance), ("merged_noise", DRAWS.stratified)):
        words = rf"draws\.{name} is for importance samples, and fine_samples is 0: leave it out"
        with pytest.raises(ValueError, match=words):
            render(generator, volume=COARSE, draws=COARSE_DRAWS._replace(**{name: draw}))


def test_wrong_inputs_are_named(generator: CIPS3D) -> None:
    z_shape, z_appearance, cameras = inputs()
    with pytest.raises(ValueError, match="z must have shape"):
        generator(z_appearance, z_appearance, view=View(4, cameras))
    with pytest.raises(ValueError, match="cameras"):
        generator(z_shape, z_appearance, view=View(4, cameras[:1]))
    with pytest.raises(ValueError, match=r"^cameras must be torch\.float64 on cpu like the weights"):
        generator(z_shape, z_appearance, view=View(4, cameras.to(dtype=torch.float32)))
    with pytest.raises(TypeError, match="cameras must be Cameras, got Tensor"):
        generator(z_shape, z_appearance, view=View(4, cameras.position))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"points must have shape \[2, any, 3\], got \[1, 7, 3\]"):
        generator.density(generator.mapping(z_shape, z_appearance), torch.zeros(1, 7, 3).double())
    with pytest.raises(ValueError, match=r"as many as styles\.appearance, got 2 and 4"), torch.no_grad():
        generator(z_shape, z_appearance.repeat(2, 1), view=View(40, cameras))  # in several chunks
    for name in ("chunk_rays", "grad_points"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            render(generator, **{name: 0})
    with pytest.raises(TypeError, match="view must be a View, got int"):
        generator(z_shape, z_appearance, view=4)
    with pytest.raises(TypeError, match="draws must be RayDraws, got tuple"):
        generator(z_shape, z_appearance, view=View(4, cameras), draws=tuple(DRAWS))
    with pytest.raises(ValueError, match=r"^z must be torch\.float64 on cpu like the weights, got torch\.float32"):
        generator.mapping(z_shape.float(), z_appearance)
    with pytest.raises(ValueError, match=r"^points must be torch\.float64 on cpu like the weights"):
        generator.density(generator.mapping(z_shape, z_appearance), torch.zeros(2, 7, 3))
    with pytest.raises(ValueError, match="density_noise must not be negative, got -1"):
        View(4, cameras, density_noise=-1)
    with pytest.raises(ValueError, match="density_noise must be finite, got nan"):
        View(4, cameras, density_noise=float("nan"))


@pytest.mark.parametrize("name", CIPS3DStyles._fields)
def test_wrong_styles_are_named(name: str, generator: CIPS3D) -> None:
    z_shape, z_appearance, cameras = inputs()
    styles = generator.mapping(z_shape, z_appearance)
    style: torch.Tensor = getattr(styles, name)
    layers = 3 if name == "shape" else generator.style_layers
    for wrong, words in (
        (style[:, 1:], r"must have shape \[any, "),
        (style[:, None].expand(-1, layers - 1, -1), rf"must have shape \[any, {layers}, "),
        (style[0], rf"must have shape \[any, {layers}, "),
        (style.float(), r"must be torch\.float64 on cpu like the weights, got torch\.float32"),
        (style.long(), "must be of a floating-point dtype"),
    ):
        with pytest.raises(ValueError, match=rf"^styles\.{name} {words}"):
            generator.render(styles._replace(**{name: wrong}), View(4, cameras))
    other = generator.mapping(z_shape[:1], z_appearance[:1])
    with pytest.raises(ValueError, match="both styles must be of as many images, got 2 and 1"):
        generator.mixed(styles, other, 1)


def test_chunks_suit_the_device(generator: CIPS3D) -> None:
    assert default_chunk_rays(torch.device("cpu")) < default_chunk_rays(torch.device("cuda", 1))


def test_a_picture_of_several_default_chunks(generator: CIPS3D) -> None:
    """Full pictures with and without gradients, in float32: rounding of colours in [-1, 1]."""
    single = copy.deepcopy(generator).float()
    z_shape, z_appearance = single.sample_z(1, generator=torch.Generator().manual_seed(0))
    cameras = Cameras.from_angles(torch.tensor([1.5]), torch.tensor([1.7]))
    side = math.isqrt(default_chunk_rays(torch.device("cpu"))) + 2
    view = View(side, cameras, VolumeSettings(samples=3), jitter=False)
    whole = single(z_shape, z_appearance, view=view)
    with torch.no_grad():
        chunked = single(z_shape, z_appearance, view=view)
    assert (whole.image - chunked.image).abs().max() < 1e-5


def test_kernels_give_the_same(kernel_backend: Backend) -> None:
    """Pictures, depth and every gradient, in float32 against plain PyTorch in float64."""
    torch.manual_seed(0)
    # Few density samples of 0: where bins are empty, rounding alone moves fine samples visibly.
    exact = CIPS3D(replace(CONFIG, density_scale=20.0, initial_radius=0.1)).double()
    ours = copy.deepcopy(exact).to(kernel_backend.device, torch.float32)

    def run(model: CIPS3D, device: torch.device, dtype: torch.dtype) -> tuple[Rendering, list[Tensor]]:
        z_shape, z_appearance, cameras = inputs()
        cameras = Cameras(*(x.to(device, dtype) for x in (cameras.rotation, cameras.position, cameras.fov_degrees)))
        view = View(6, cameras, replace(VOLUME, last_back=True), return_aux=True)
        uniform = RayDraws(*(u.to(device, dtype) for u in DRAWS if u is not None))
        seen: Rendering = model(z_shape.to(device, dtype), z_appearance.to(device, dtype), view=view, draws=uniform)
        assert seen.aux_image is not None
        loss = seen.image.square().mean() + seen.aux_image.square().mean() + seen.depth.mean()
        return seen, list(torch.autograd.grad(loss, list(model.parameters())))

    found, gradients = run(ours, kernel_backend.device, torch.float32)
    expected, references = run(exact, torch.device("cpu"), torch.float64)
    for a, b in zip(found, expected, strict=True):
        assert relative_l2(a, b) < 1e-5
    for (name, _), a, b in zip(ours.named_parameters(), gradients, references, strict=True):
        # float32 through two networks; leaky ReLUs on the other side of their kink.
        assert relative_l2(a, b) < 1e-3, name


def test_networks_are_those_of_the_configuration() -> None:
    ball = {"initial_radius": 0.07, "initial_density": 30.0}
    config = replace(CONFIG, point_scale=5.0, rgb_init=0.5, aux_init=0.25, inr_skip_from=2, **ball)
    generator = CIPS3D(config)
    nerf, inr = generator.nerf, generator.inr
    assert (nerf.point_scale, nerf.density_scale) == (5.0, 200.0)
    assert (nerf.initial_radius, nerf.initial_density) == (0.07, 30.0)
    assert (inr.skip_from, inr.rgb_from, len(inr.to_rgb)) == (2, 1, 2)
    for linears, share in ((inr.to_rgb, 0.5), ([generator.aux_to_rgb], 0.25)):
        for linear in linears:
            bound = math.sqrt(6 / linear.in_features) * share
            assert 0.7 * bound < linear.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial_density": 30.0}, "initial_density 30 has no ball to be in; give initial_radius too, or None"),
        ({"initial_radius": 0.1, "initial_density": -1.0}, "initial_density -1 makes no sense; give 0 or more"),
        ({"initial_radius": -0.1}, "initial_radius -0.1 makes no sense; give 0 or more"),
    ],
)
def test_balls_that_cannot_be(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        replace(CONFIG, **settings)


def test_the_frozen_part_is_all_that_gives_the_volume(generator: CIPS3D) -> None:
    frozen = {id(weight) for module in generator.frozen_part() for weight in module.parameters()}
    left = {name.split(".")[0] for name, weight in generator.named_parameters() if id(weight) not in frozen}
    assert left == {"inr", "appearance_mapping"}
