"""The pi-GAN generator's styles, their derivatives, and what it says of wrong inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models.small_pigan import BATCH, CONFIG, DRAWS, VARIANTS, VOLUME, inputs, make, render
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.models.generator import truncated
from cips3d.models.pigan import PiGAN, PiGANStyles
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings


@pytest.fixture
def generator() -> PiGAN:
    return make()


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
