"""The CIPS generator: pixels against the formula in float64, parts against wholes, and wrong arguments."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from models.cips_formula import picture, pixel
from models.small_cips import CAMERAS, EXACT, RESIDUAL, SIDE, SKIP, check_gradients, generator_of, sample_z
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.errors import UserError
from cips3d.models.cips import CIPS, CIPSConfig, square_coordinates, window_coordinates
from cips3d.models.generator import truncated
from cips3d.models.style_mapping import WStyles
from cips3d.models.view import View


@pytest.fixture(params=[SKIP, RESIDUAL], ids=["skip", "residual"])
def generator(request: pytest.FixtureRequest) -> CIPS:
    """In evaluation mode."""
    return generator_of(request.param)


def test_pixels_are_the_formula(generator: CIPS) -> None:
    """Any places, within the square and outside of it; every gradient."""
    coords = 1.3 * torch.randn(2, 2, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w = generator.mapping(sample_z()).w.detach()
    found = generator.synthesis(WStyles(w), coords=coords, noise="none").image
    expected = picture(generator, w, coords)
    assert relative_l2(found, expected) < EXACT
    check_gradients(generator, found, expected)


@pytest.mark.parametrize("config", [SKIP, RESIDUAL], ids=["skip", "residual"])
def test_the_full_square_of_training_takes_the_embedding_as_it_is_stored(config: CIPSConfig) -> None:
    model = generator_of(config, train=True)
    w = model.mapping(sample_z(1)).w.detach()
    square = square_coordinates(SIDE, dtype=torch.float64)
    expected = picture(model, w, square, stored=True)
    found = model.synthesis(WStyles(w), coords=square, noise="none").image
    assert relative_l2(found, expected) < EXACT
    check_gradients(model, found, expected)
    assert torch.equal(found, model.synthesis(WStyles(w), noise="none").image)  # the default: its own resolution
    assert torch.equal(found, model.synthesis(WStyles(w), resolution=SIDE, noise="none").image)
    rounded = model.synthesis(WStyles(w), coords=square.float(), noise="none").image
    assert relative_l2(rounded, expected) < 1e-6  # float32 coordinates

    # Everything else samples it: evaluation, other places in as many pixels, parts, other resolutions.
    sampled = picture(model, w, square)
    assert relative_l2(model.eval().synthesis(WStyles(w), coords=square, noise="none").image, sampled) < EXACT
    model.train()
    assert not torch.allclose(sampled, expected)
    moved = square * 0.98
    found = model.synthesis(WStyles(w), coords=moved, noise="none").image
    assert relative_l2(found, picture(model, w, moved)) < EXACT
    part = model.synthesis(WStyles(w), resolution=SIDE, window=(0, 0, 2, 2), noise="none").image
    assert relative_l2(part, sampled[:, :, :2, :2]) < EXACT


@pytest.mark.parametrize("chunk_pixels", [1, 7, SIDE**2, 2 * SIDE**2, 1000])
@pytest.mark.parametrize("train", [False, True])
def test_chunks_do_not_show(generator: CIPS, train: bool, chunk_pixels: int) -> None:
    """With random noise, and three images of one grid or of three."""
    generator.train(train)
    z = sample_z(3)
    grids = {"one": square_coordinates(SIDE, dtype=torch.float64)}
    grids["three"] = torch.cat([grids["one"] * scale for scale in (1.0, 0.5, 1.5)])
    for coords in grids.values():
        sources = [torch.Generator().manual_seed(3) for _ in range(2)]
        whole = generator(z, coords=coords, generator=sources[0]).image  # with gradients nothing is chunked
        with torch.no_grad():
            chunked = generator(z, coords=coords, generator=sources[1], chunk_pixels=chunk_pixels).image
        assert relative_l2(chunked, whole) < EXACT


def test_memory_is_bounded_by_the_chunk(generator: CIPS) -> None:
    sizes: list[int] = []
    generator.network.register_forward_pre_hook(lambda _m, inputs: sizes.append(inputs[0][0, 0].numel()))
    with torch.no_grad():
        generator(sample_z(), resolution=64, noise="none", chunk_pixels=1000)
    assert max(sizes) == 1000 and sum(sizes) == 2 * 64**2


def test_tiles_are_parts_of_the_picture(generator: CIPS) -> None:
    styles = generator.mapping(sample_z())

    def view(resolution: tuple[int, int], window: tuple[int, int, int, int] | None) -> Tensor:
        return generator.render(styles, View(resolution, CAMERAS, window=window, jitter=False)).image

    whole = view((9, 11), None)
    assert whole.shape == (2, 3, 9, 11)
    for top, left, height, width in ((0, 0, 9, 11), (0, 0, 4, 5), (4, 5, 5, 6), (8, 0, 1, 11), (3, 10, 2, 1)):
        tile = view((9, 11), (top, left, height, width))
        expected = whole[:, :, top : top + height, left : left + width]
        assert relative_l2(tile, expected) < EXACT
        coords = window_coordinates((9, 11), (top, left, height, width), dtype=torch.float64)
        assert relative_l2(generator.synthesis(styles, coords=coords, noise="none").image, expected) < EXACT


def test_other_resolutions_show_the_same_picture(generator: CIPS) -> None:
    """Every second pixel of 2 n - 1 is one of n."""
    z = sample_z()
    fine = generator(z, resolution=2 * SIDE - 1, noise="none").image
    assert relative_l2(fine[:, :, ::2, ::2], generator(z, resolution=SIDE, noise="none").image) < EXACT


def test_crops_of_training_each_have_their_place(generator: CIPS) -> None:
    """Images of a batch with a window each: the gradient reaches only the embedding around it."""
    generator.train()
    windows = [(0, 0, 2, 2), (4, 4, 2, 2)]
    coords = torch.cat([window_coordinates(SIDE, window, dtype=torch.float64) for window in windows])
    image = generator(sample_z(), coords=coords).image
    assert image.shape == (2, 3, 2, 2)
    for part, corner in zip(image, ((slice(0, 3), slice(0, 3)), (slice(-3, None), slice(-3, None))), strict=True):
        (gradient,) = torch.autograd.grad(part.sum(), generator.network.embedding, retain_graph=True)
        touched = gradient[0].abs().sum(0)
        assert touched[corner].sum() > 0 and touched.sum() == pytest.approx(touched[corner].sum().item())


# Noise and styles.


def test_noise(generator: CIPS) -> None:
    w = generator.mapping(sample_z(1)).w.detach()
    coords = square_coordinates((2, 3), dtype=torch.float64)
    found = generator.synthesis(WStyles(w), coords=coords, generator=torch.Generator().manual_seed(3)).image
    source = torch.Generator().manual_seed(3)
    maps = [torch.randn(1, 1, 2, 3, generator=source, dtype=torch.float64) for _ in range(generator.network.layers)]
    for i in range(2):
        for j in range(3):
            expected = pixel(generator, w[0], coords[0, :, i, j], [n[0, 0, i, j] for n in maps])
            assert relative_l2(found[0, :, i, j], expected) < EXACT
    assert torch.equal(found, generator.synthesis(WStyles(w), coords=coords, noise=maps).image)
    silent = generator.synthesis(WStyles(w), coords=coords, noise="none").image
    assert not torch.allclose(found, silent)
    assert not torch.equal(found, generator.synthesis(WStyles(w), coords=coords).image)
    with pytest.raises(ValueError, match="noise must be one of random, none, got 'const'"):
        generator.synthesis(WStyles(w), coords=coords, noise="const")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="noise must have a map for each of 7 layers, got 6"):
        generator.synthesis(WStyles(w), coords=coords, noise=maps[1:])
    with pytest.raises(ValueError, match=r"noise\[0\] must have shape \[1, 1, 4, 3\], or 1 for all images"):
        generator.synthesis(WStyles(w), coords=square_coordinates((4, 3)), noise=maps)


def test_given_noise_in_chunks(generator: CIPS) -> None:
    z, source = sample_z(), torch.Generator().manual_seed(3)
    maps = [torch.randn(1 + k % 2, 1, 3, 4, generator=source) for k in range(generator.network.layers)]
    whole = generator(z, resolution=(3, 4), noise=maps).image  # with gradients nothing is chunked
    with torch.no_grad():
        chunked = generator(z, resolution=(3, 4), noise=maps, chunk_pixels=5).image
    assert relative_l2(chunked, whole) < EXACT


def test_render_is_random_with_jitter_alone(generator: CIPS) -> None:
    styles = generator.mapping(sample_z())

    def seen(seed: int, jitter: bool) -> Tensor:
        view = View(4, CAMERAS, jitter=jitter, generator=torch.Generator().manual_seed(seed))
        return generator.render(styles, view).image

    assert torch.equal(seen(1, True), seen(1, True)) and not torch.allclose(seen(1, True), seen(2, True))
    assert torch.equal(seen(1, False), seen(2, False))
    assert generator.render(styles, View(4, CAMERAS)).depth is None


def test_styles(generator: CIPS) -> None:
    a, b = generator.mapping(sample_z()), generator.mapping(sample_z(seed=2))
    layers = generator.style_layers
    assert layers == 1 + 2 * 3 + 1

    def image(styles: WStyles) -> Tensor:
        return generator.synthesis(styles, resolution=3, noise="none").image

    assert torch.equal(image(WStyles(a.w[:, None].expand(-1, layers, -1))), image(a))
    mixed = [image(generator.mixed(a, b, k)) for k in range(layers + 1)]
    assert torch.equal(mixed[0], image(b)) and torch.equal(mixed[-1], image(a))
    for one, next_one in zip(mixed, mixed[1:], strict=False):
        assert not torch.allclose(one, next_one)  # every layer counts
    mean = WStyles(a.w[:1])
    typical = image(truncated(a, mean, 0.0))
    assert torch.allclose(typical[0], typical[1])


def test_path_lengths_have_gradients(generator: CIPS) -> None:
    w = generator.mapping(sample_z(1)).w.detach().requires_grad_()
    coords = square_coordinates((1, 2), dtype=torch.float64) * 0.5
    assert torch.autograd.gradgradcheck(
        lambda style: generator.synthesis(WStyles(style), coords=coords, noise="none").image, (w,), atol=1e-6
    )
    image = generator.synthesis(WStyles(w), noise="random").image
    (slope,) = torch.autograd.grad(image.square().sum(), w, create_graph=True)
    slope.square().sum().backward()
    for name, parameter in generator.network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_parameter_groups_have_all_parameters(generator: CIPS) -> None:
    groups = generator.parameter_groups()
    grouped = [p for group in groups for module in group for p in module.parameters()]
    assert {id(p) for p in grouped} == {id(p) for p in generator.parameters()}
    assert len(grouped) == len(list(generator.parameters()))
    assert groups.nerf == () and generator.frozen_part() == ()


# Sizes and beginnings.


@pytest.mark.parametrize(
    ("config", "widths", "shortcuts"),
    [
        (CIPSConfig(), (512, 512, 512, 512, 512, 256, 128), 0),
        (CIPSConfig(resolution=1024), (512, 512, 512, 512, 512, 256, 128, 64, 32), 0),
        (CIPSConfig(resolution=32), (512, 512, 512, 512), 0),
        (CIPSConfig(variant="residual"), (512, 512, 512, 512, 512, 256, 128), 2),
        (CIPSConfig(variant="residual", resolution=1024), (512, 512, 512, 512, 512, 256, 128, 128, 64), 3),
    ],
)
def test_published_sizes(config: CIPSConfig, widths: tuple[int, ...], shortcuts: int) -> None:
    with torch.device("meta"):
        network = CIPS(config).network
    assert config.block_widths == widths
    assert network.first.conv.weight.shape == (512, 1024, 1, 1)
    assert network.embedding.shape == (1, 512, config.resolution, config.resolution)
    assert [block.conv2.conv.weight.shape[0] for block in network.blocks] == list(widths)
    assert [block.conv1.conv.weight.shape[1] for block in network.blocks] == [512, *widths[:-1]]
    assert sum("shortcut" in name for name, _ in network.named_parameters()) == shortcuts
    colours = sum(name.endswith("to_rgb.bias") for name, _ in network.named_parameters())
    assert colours == (len(widths) if config.variant == "skip" else 1)


@pytest.mark.parametrize("coordinates", [2, 3])
def test_initial_weights(coordinates: Any) -> None:
    torch.manual_seed(0)
    model = CIPS(CIPSConfig(resolution=8, hidden=256, widths=(8,), style_dim=4, coordinates=coordinates))
    fourier = model.network.fourier.weight
    bound = math.sqrt(9 / coordinates)
    # The largest of 512 uniform draws is within 2% of the bound but for one in 30 000.
    assert 0.98 * bound < fourier.abs().max().item() <= bound
    assert abs(fourier.mean().item()) < 4 * bound / math.sqrt(3 * fourier.numel())
    assert model.network.embedding.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * 256 * 64))
    strengths = [p for name, p in model.named_parameters() if name.endswith("noise_strength")]
    assert len(strengths) == 3 and not torch.stack(strengths).any()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"resolution": 2}, "resolution 2 has no published widths"),
        ({"resolution": 2048}, "resolution 2048 has no published widths"),
        ({"resolution": 0, "widths": (8,)}, "resolution 0"),
        ({"widths": ()}, "widths"),
        ({"widths": (8, 0)}, "widths"),
        ({"hidden": 0}, "hidden 0"),
        ({"variant": "Residual"}, "variant 'Residual' is unknown; choose one of skip, residual"),
        ({"variant": "Residual", "widths": (8,)}, "variant 'Residual' is unknown"),
        ({"coordinates": 5}, "coordinates 5 is unknown; choose one of 2, 3"),
        ({"z_dim": 0}, "z_dim 0"),
        ({"mapping_layers": 0}, "mapping_layers 0"),
    ],
)
def test_wrong_configurations_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        CIPSConfig(**fields)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"coords": torch.zeros(2, 3, 4, 4)}, r"coords must have shape \[2, 2, H, W\], got \[2, 3, 4, 4\]"),
        ({"coords": torch.zeros(3, 2, 4, 4)}, "coords must have shape"),
        ({"coords": torch.zeros(2, 4, 4)}, "coords must have shape"),
        ({"coords": torch.zeros(2, 2, 0, 4)}, "coords must have shape"),
        ({"coords": torch.zeros(2, 2, 4, 4), "resolution": 4}, "coords must be given alone"),
        ({"coords": torch.zeros(2, 2, 4, 4), "window": (0, 0, 1, 1)}, "coords must be given alone"),
        ({"resolution": 0}, "resolution must be at least 1, got 0"),
        ({"resolution": (4, 0)}, "resolution must be at least 1"),
        ({"resolution": 4, "window": (0, 0, 5, 5)}, "window"),
        ({"chunk_pixels": 0}, "chunk_pixels must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(generator: CIPS, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        generator(sample_z(), **arguments)


def test_other_wrong_inputs_are_named(generator: CIPS) -> None:
    with pytest.raises(ValueError, match=r"z must have shape \[any, 6\]"):
        generator(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"w must have shape \[B, 8\] or \[B, 8, 8\]"):
        generator.synthesis(WStyles(torch.zeros(2, 7)))
    with pytest.raises(ValueError, match="grad_points"):
        generator.render(generator.mapping(sample_z()), View(4, CAMERAS, grad_points=3))


def test_kernels_give_the_same(kernel_backend: Backend) -> None:
    """float32 with kernels against float64 without, gradients included."""
    exact = generator_of(RESIDUAL)
    ours = copy.deepcopy(exact).to(kernel_backend.device, torch.float32)

    def run(model: CIPS, device: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
        image = model(sample_z().to(device, dtype), resolution=5, noise="none").image
        parameters = [p for name, p in model.named_parameters() if not name.endswith("noise_strength")]
        return [image, *torch.autograd.grad(image.square().sum(), parameters)]

    found = run(ours, kernel_backend.device, torch.float32)
    for a, b in zip(found, run(exact, "cpu", torch.float64), strict=True):
        assert relative_l2(a, b) < 1e-4  # float32 through ten layers
