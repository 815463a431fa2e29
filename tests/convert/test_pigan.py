"""pi-GAN's published state dicts, read and written back; the published numbers come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.backends import Backend
from reference_records import meta, recipe_state, record, relative_l2, requires_record, state, tensor
from torch import Tensor, nn

from cips3d.cameras import Cameras
from cips3d.convert.pigan import pigan_from_reference, pigan_reference_names, pigan_to_reference
from cips3d.convert.pigan_discriminator import (
    pigan_discriminator_from_reference,
    pigan_discriminator_reference_names,
    pigan_discriminator_to_reference,
)
from cips3d.errors import UserError
from cips3d.models.pigan import PiGAN, PiGANConfig
from cips3d.models.pigan_discriminator import PiGANDiscriminator, PiGANDiscriminatorConfig, append_coordinates
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings
from cips3d.models.volume_generator import Rendering
from cips3d.ops.march import RayDraws

GENERATOR = "pigan_generator_r16"
PROGRESSIVE, STRIDED = "recipe_pigan_discriminator_r32", "recipe_pigan_ccs_discriminator_r64"

SMALL = PiGANConfig(z_dim=5, width=6, layers=3, mapping_width=7, mapping_layers=3)
GENERATORS = {
    "box warp": SMALL,
    "as they are": replace(SMALL, box_warp=False),
    "grid": replace(SMALL, grid_resolution=4, grid_width=2),
}
SMALL_D = PiGANDiscriminatorConfig(channels={2: 5, 4: 5, 8: 4}, latent_dim=3)
DISCRIMINATORS = {
    "progressive": SMALL_D,
    "progressive, one output": replace(SMALL_D, predict_pose=False, latent_dim=0),
    "strided with coordinates": replace(SMALL_D, strided=True),
    "strided": replace(SMALL_D, strided=True, coord_conv=False, predict_pose=False, latent_dim=0),
    "pose alone": replace(SMALL_D, latent_dim=0),
}


def render_record(name: str, device: torch.device | str) -> tuple[PiGAN, Rendering]:
    loaded = record(name)
    settings = meta(loaded)
    resolution = settings["img_size"]
    generator = pigan_from_reference(state(loaded), box_warp=settings["cls"] != "TALLSIREN").to(device)
    pitch, yaw = tensor(loaded, "in/pitch")[:, 0], tensor(loaded, "in/yaw")[:, 0]
    volume = VolumeSettings(
        samples=settings["num_steps"],
        t_near=settings["ray_start"],
        t_far=settings["ray_end"],
        density_activation=settings["clamp_mode"],
        white_back=settings["white_back"],
        last_back=settings["last_back"],
    )
    draws = RayDraws(
        tensor(loaded, "in/u_stratified")[..., 0].to(device),
        tensor(loaded, "in/u_importance").view(len(yaw), resolution**2, -1).to(device),
    )
    cameras = Cameras.from_angles(pitch, yaw, fov_degrees=settings["fov"]).to(device)
    rendering = generator(tensor(loaded, "in/z").to(device), view=View(resolution, cameras, volume), draws=draws)
    (rendering.image * tensor(loaded, "in/loss_weight").to(device)).sum().backward()
    return generator, rendering


@requires_record(GENERATOR)
@pytest.mark.parametrize("backend", ["reference", "cuda"], indirect=True)  # emulated, it takes 8 s
def test_images_and_gradients_of_the_published_generator(backend: Backend) -> None:
    loaded = record(GENERATOR)
    generator, rendering = render_record(GENERATOR, backend.device)
    expected = tensor(loaded, "out/image")
    # float32 rounding alone: an independent float64 implementation is 7e-5 from the record.
    assert (rendering.image.cpu() - expected).abs().max() < 2e-4 * expected.abs().max()
    parameters = dict(generator.named_parameters())
    gradients = state(loaded, "grad/")
    names = pigan_reference_names(generator.config)
    assert set(names) == set(parameters) and set(names.values()) == set(gradients)
    for ours, original in names.items():
        gradient = parameters[ours].grad
        assert gradient is not None, ours
        assert relative_l2(gradient, gradients[original]) < 2e-4, original  # the same rounding: 5e-5 in float64


def input_gradient(logits: Tensor, image: Tensor) -> Tensor:
    return torch.autograd.grad(logits.sum(), image)[0]


def nudge_past_the_kink(model: PiGANDiscriminator, image: Tensor) -> None:
    """Move the unit behind the 16² block's convolutions that is nearest to its leaky ReLU's kink to the other side."""
    conv = model.blocks["16"].conv2
    inputs: list[Tensor] = []
    hook = conv.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    model(image)
    hook.remove()
    phase = F.conv2d(append_coordinates(inputs[0]), conv.weight, conv.bias, stride=2, padding=1)
    channel = int(phase.abs().amin((0, 2, 3)).argmin())
    nearest = phase[:, channel].flatten()[phase[:, channel].abs().argmin()]
    assert nearest.abs() < 1e-6  # of units of size 0.3: either side is right in float32
    with torch.no_grad():
        conv.bias[channel] -= 2 * nearest


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(PROGRESSIVE, marks=requires_record(PROGRESSIVE)),
        pytest.param(STRIDED, marks=requires_record(STRIDED)),
    ],
)
def test_published_discriminators(name: str) -> None:
    loaded = record(name)
    fade = meta(loaded)["fade"]
    model = pigan_discriminator_from_reference(recipe_state(loaded))
    if name == STRIDED:
        assert model.config == PiGANDiscriminatorConfig.celeba()
    else:
        assert model.config == replace(PiGANDiscriminatorConfig.carla(), predict_pose=False, latent_dim=0)
    image = tensor(loaded, "in/image").requires_grad_()
    seen = model.predictions(image, fade)
    for value, key in ((seen.logits, "out/logits"), (seen.latent, "out/latent"), (seen.pose, "out/position")):
        assert (value is None) == (key not in loaded)
        if value is not None:
            assert relative_l2(value, tensor(loaded, key)) < 1e-5  # float32 sums in another order
    penalty = input_gradient(seen.logits, image).square().sum((1, 2, 3))
    assert ((penalty / tensor(loaded, "out/r1") - 1).abs() < 1e-4).all()
    # In float32 the processor decides on which side of its kink a value near it is.
    model, image = model.double(), image.detach().double().requires_grad_()
    if name == STRIDED:  # one unit of the second image is 4e-7 from its kink, and the record is on the other side
        nudge_past_the_kink(model, image)
    gradient = input_gradient(model(image, fade), image)
    for found, expected in zip(gradient, tensor(loaded, "out/input_grad"), strict=True):
        assert relative_l2(found, expected) < 3e-5


@pytest.mark.parametrize("variant", GENERATORS)
def test_round_trip_of_generators(variant: str) -> None:
    config = GENERATORS[variant]
    generator = PiGAN(config)
    written = pigan_to_reference(generator)
    again = pigan_from_reference(written, box_warp=config.box_warp)
    assert again.config == config
    for name, value in generator.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert ("siren.spatial_embeddings" in written) == (variant == "grid")
    if variant != "as they are":
        assert pigan_from_reference(written).config == config  # what is taken where nothing is said


class PublishedSiren(nn.Module):
    """Modules in the places and the order in which the original has them."""

    def __init__(self, config: PiGANConfig) -> None:
        super().__init__()

        def sine(width_in: int) -> nn.Module:
            return nn.ModuleDict({"layer": nn.Linear(width_in, config.width)})

        width_in = 3
        siren = nn.Module()
        if config.grid_resolution is not None:
            width_in += config.grid_width
            siren.spatial_embeddings = nn.Parameter(torch.randn(1, config.grid_width, *[config.grid_resolution] * 3))
        siren.network = nn.ModuleList([sine(width_in), *(sine(config.width) for _ in range(config.layers - 1))])
        siren.final_layer = nn.Linear(config.width, 1)
        siren.color_layer_sine = sine(config.width + 3)
        siren.color_layer_linear = nn.Sequential(nn.Linear(config.width, 3), nn.Sigmoid())
        siren.mapping_network = nn.Module()
        widths = [config.z_dim, *[config.mapping_width] * (config.mapping_layers - 1)]
        hidden = [m for i, o in zip(widths, widths[1:], strict=False) for m in (nn.Linear(i, o), nn.LeakyReLU(0.2))]
        last = nn.Linear(widths[-1], 2 * (config.layers + 1) * config.width)
        siren.mapping_network.network = nn.Sequential(*hidden, last)
        self.siren = siren


@pytest.mark.parametrize("variant", GENERATORS)
def test_written_generators_are_the_published_ones(variant: str) -> None:
    """Names, shapes, and the order of the parameters, in which the published averages lie."""
    original = PublishedSiren(GENERATORS[variant])
    written = pigan_to_reference(PiGAN(GENERATORS[variant]))
    original.load_state_dict(written)
    assert list(written) == [name for name, _ in original.named_parameters()]


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_round_trip_of_discriminators(kind: str) -> None:
    model = PiGANDiscriminator(DISCRIMINATORS[kind])
    written = pigan_discriminator_to_reference(model)
    again = pigan_discriminator_from_reference(written)
    assert again.config == DISCRIMINATORS[kind]
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    # The strided originals with one output carry a layer that they never apply.
    assert ("pose_layer.weight" in written) == (kind == "strided")
    without = {key: value for key, value in written.items() if not key.startswith("pose_layer")}
    assert pigan_discriminator_from_reference(without).config == DISCRIMINATORS[kind]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(PROGRESSIVE, marks=requires_record(PROGRESSIVE)),
        pytest.param(STRIDED, marks=requires_record(STRIDED)),
    ],
)
def test_written_discriminators_are_the_published_ones(name: str) -> None:
    original = recipe_state(record(name))
    model = pigan_discriminator_from_reference(original)
    written = pigan_discriminator_to_reference(model)
    assert {key: value.shape for key, value in written.items()} == {key: v.shape for key, v in original.items()}
    assert list(pigan_discriminator_reference_names(model.config).values()) == list(original)


def test_strided_is_told_where_widths_do_not() -> None:
    for strided in (False, True):
        config = replace(SMALL_D, channels={2: 5, 4: 6, 8: 4}, strided=strided)
        written = pigan_discriminator_to_reference(PiGANDiscriminator(config))
        with pytest.raises(UserError, match=r"strided=\.\.\.\) True or False"):
            pigan_discriminator_from_reference(written)
        assert pigan_discriminator_from_reference(written, strided=strided).config == config
    written = pigan_discriminator_to_reference(PiGANDiscriminator(SMALL_D))
    with pytest.raises(UserError, match="strided=True contradicts the state dict, whose blocks are pooled"):
        pigan_discriminator_from_reference(written, strided=True)


Change = Callable[[dict[str, Tensor]], Any]


def without(key: str) -> Change:
    return lambda written: written.pop(key)


def with_value(key: str, *shape: int) -> Change:
    return lambda written: written.update({key: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("siren.final_layer.bias"), "siren.final_layer.bias is missing"),
        (without("siren.network.0.layer.weight"), "siren.network.0.layer.weight is missing"),
        (without("siren.network.1.layer.weight"), "missing"),
        (with_value("extra.weight", 1), "extra.weight is unknown"),
        (with_value("siren.final_layer.bias", 2), "siren.final_layer.bias has shape"),
        (with_value("siren.network.0.layer.weight", 6), "2 dimensions are needed"),
        (with_value("siren.spatial_embeddings", 2, 4, 4), "5 dimensions are needed"),
        (with_value("siren.spatial_embeddings", 1, 2, 4, 5, 4), "siren.spatial_embeddings has shape"),
        (lambda written: written.clear(), "not that of a pi-GAN generator"),
    ],
)
def test_wrong_generators_are_refused(change: Change, words: str) -> None:
    written = pigan_to_reference(PiGAN(GENERATORS["grid"]))
    change(written)
    with pytest.raises(UserError, match=words) as refusal:
        pigan_from_reference(written)
    assert "\n" not in str(refusal.value)


def test_a_grid_is_always_warped() -> None:
    written = pigan_to_reference(PiGAN(GENERATORS["grid"]))
    assert pigan_from_reference(written, box_warp=True).config.box_warp
    with pytest.raises(UserError, match=r"box_warp=False \(--no-box-warp\) does not go with siren\.spatial_embeddings"):
        pigan_from_reference(written, box_warp=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("final_layer.bias"), "final_layer.bias is missing"),
        (without("fromRGB.1.model.0.weight"), "missing"),
        (without("layers.0.proj.weight"), "layers.0.proj.weight is missing"),
        (with_value("extra.weight", 1), "extra.weight is unknown"),
        (with_value("final_layer.weight", 2, 5, 2, 2), "has 2 outputs"),
        (with_value("final_layer.weight", 6, 5), "4 dimensions are needed"),
        (with_value("layers.1.network.0.conv.weight", 5, 5, 3, 3), "has shape"),
        (with_value("layers.1.proj.weight", 5, 5, 1, 1), "layers.1.proj.bias is missing"),
        (lambda written: written.clear(), "not that of a pi-GAN discriminator"),
    ],
)
def test_wrong_discriminators_are_refused(change: Change, words: str) -> None:
    written = pigan_discriminator_to_reference(PiGANDiscriminator(SMALL_D))
    change(written)
    with pytest.raises(UserError, match=words) as refusal:
        pigan_discriminator_from_reference(written)
    assert "\n" not in str(refusal.value)
