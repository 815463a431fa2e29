"""A generator's precision: what it changes, and that all ways to compute agree within it."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.models.cips import CIPS, CIPSConfig
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.pigan import PiGAN
from cips3d.models.pigan_field import PiGANConfig
from cips3d.models.stylegan2 import StyleGAN2, StyleGAN2Config
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings
from cips3d.models.w_generator import WGenerator
from cips3d.ops import Precision, kernels

AnyModel = CIPS3D | PiGAN


def make(model: str) -> AnyModel:
    torch.manual_seed(0)
    if model == "pigan":
        return PiGAN(PiGANConfig(z_dim=4, width=32, layers=3, mapping_width=8, mapping_layers=2))
    return CIPS3D(
        CIPS3DConfig(
            z_shape_dim=4,
            shape_style_dim=8,
            shape_mapping_layers=2,
            nerf_width=32,
            nerf_color_width=16,
            features=8,
            z_appearance_dim=4,
            appearance_style_dim=8,
            appearance_mapping_layers=2,
            inr_width=32,
            inr_blocks=3,
            inr_skip_from=1,
            inr_rgb_from=1,
            density_scale=20.0,
            initial_radius=0.1,
            rgb_init=1.0,
        )
    )


def picture_and_gradients(model: AnyModel, device: torch.device) -> list[Tensor]:
    """A picture without random numbers, and the gradients of its squares."""
    z = [x.to(device) for x in model.cpu().sample_z(2, generator=torch.Generator().manual_seed(1))]
    angles = torch.tensor([math.pi / 2 - 0.1, math.pi / 2 + 0.2])
    cameras, volume = Cameras.from_angles(angles, angles).to(device), VolumeSettings(4, last_back=True)
    model.to(device)
    styles: Any = model.mapping(*z)
    seen = model.render(styles, View(5, cameras, volume, jitter=False, return_aux=model.has_aux_image))
    images = torch.stack([seen.image, *([] if seen.aux_image is None else [seen.aux_image])])
    return [images, *torch.autograd.grad(images.square().sum(), list(model.parameters()))]


def errors(found: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """Of the picture, and of all gradients together."""
    gradients, references = (torch.cat([g.detach().double().cpu().flatten() for g in x[1:]]) for x in (found, expected))
    return relative_l2(found[0], expected[0]), relative_l2(gradients, references)


# Float32's own rounding, amplified by sines of tens of radians: four times what was measured, and more in gradients,
# which differ wherever a leaky ReLU is on the other side of its kink.
HIGHEST = (6e-6, 5e-5)
# Sine layers round operands to 11 bits (2e-4 in pictures, 2e-3 in gradients, whose operands are bfloat16); the INR
# rounds to the 8 bits of bfloat16, three times a layer (4e-3, and 2e-2 through its kinks). Three times that.
FAST = {"cips3d": (1.5e-2, 6e-2), "pigan": (8e-4, 6e-3)}
# As with TF32, where a kernel has whole networks of this size: 11 bits of operands, 7e-4 in pictures; gradients differ
# by 1e-2, since a feature that has moved a little is on the other side of a kink. Three times that. pi-GAN's forward
# alone is rounded.
HIGH = {"cips3d": (2e-3, 3e-2), "pigan": (8e-4, 5e-4)}


@pytest.mark.parametrize("precision", ["highest", "high", "fast"])
@pytest.mark.parametrize("model", ["cips3d", "pigan"])
def test_all_ways_to_compute_agree(
    kernel_backend: Backend, model: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused, op by op on kernels, and plain PyTorch, against plain PyTorch with "highest"."""
    generator, device = make(model), kernel_backend.device
    with kernels.disabled():
        expected = picture_and_gradients(generator, device)
    generator.set_precision(precision)
    limits = {"highest": HIGHEST, "high": HIGH[model], "fast": FAST[model]}[precision]
    found = {"fused": picture_and_gradients(generator, device)}
    with kernels.disabled():
        found["plain"] = picture_and_gradients(generator, device)
    module = importlib.import_module("cips3d.ops.render_rays")  # cips3d.ops has a function of this name
    monkeypatch.setattr(module, "why_not_fused", lambda *_, **__: "asked for")
    monkeypatch.setattr(kernels, "warn_composed", lambda *_: None)
    found["op by op"] = picture_and_gradients(generator, device)
    for way, result in found.items():
        for error, limit in zip(errors(result, expected), limits, strict=True):
            assert error < limit, f"{way}: {error:.1e}"
    assert precision != "fast" or not torch.equal(found["fused"][0], expected[0])


@pytest.mark.parametrize("model", ["cips3d", "pigan"])
def test_precision_is_no_part_of_the_model(model: str) -> None:
    generator, other = make(model), make(model)
    generator.set_precision("fast")
    assert generator.state_dict().keys() == other.state_dict().keys()
    assert generator.config == other.config
    other.load_state_dict(generator.state_dict())


def test_parts_have_their_own() -> None:
    generator = make("cips3d")
    assert isinstance(generator, CIPS3D)
    generator.set_precision("high", inr="fast", fast_dtype=torch.float16)
    assert (generator.nerf.precision, generator.inr.precision, generator.inr.fast_dtype) == (
        "high",
        "fast",
        torch.float16,
    )
    generator.set_precision()
    assert (generator.nerf.precision, generator.inr.precision) == (None, None)


def test_densities_have_the_volume_s_precision(kernel_backend: Backend) -> None:
    points = 0.1 * torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)).to(kernel_backend.device)
    for model in ("cips3d", "pigan"):
        generator = make(model)
        z = [x.to(kernel_backend.device) for x in generator.sample_z(2, generator=torch.Generator().manual_seed(1))]
        generator.to(kernel_backend.device)
        styles: Any = generator.mapping(*z)
        exact = generator.density(styles, points)
        generator.set_precision("fast")
        assert 1e-6 < relative_l2(generator.density(styles, points), exact) < 3e-3  # 11 bits of operands


def test_models_in_full_precision_say_so() -> None:
    generator = CIPS(CIPSConfig(resolution=8))
    for precision in (None, "highest", "high"):
        generator.set_precision(precision)  # type: ignore[arg-type]  # of a tuple of words
    with pytest.raises(UserError, match='CIPS computes in full precision only; leave out "fast"'):
        generator.set_precision("fast")
    with pytest.raises(UserError, match="no INR"):
        make("pigan").set_precision(inr="fast")


@pytest.mark.parametrize("grad", [True, False])
def test_convolutions_of_generators_of_pictures(grad: bool) -> None:
    """cuDNN takes TF32 for them, unless it is told not to."""
    cameras = Cameras.from_angles(torch.ones(1), torch.ones(1))
    cips = CIPS(CIPSConfig(resolution=8, hidden=8, widths=(8, 8), z_dim=8, style_dim=8, mapping_layers=2))
    stylegan2 = StyleGAN2(StyleGAN2Config(channels={4: 8, 8: 8}, z_dim=8, style_dim=8, mapping_layers=2))
    for generator in (cips, stylegan2):
        assert isinstance(generator, WGenerator)
        allowed: list[bool] = []
        generator.network.register_forward_hook(lambda *_, into=allowed: into.append(torch.backends.cudnn.allow_tf32))
        for precision in (None, "high", "highest"):
            generator.set_precision(precision)  # type: ignore[arg-type]  # of a tuple of words
            with torch.set_grad_enabled(grad):
                generator.render(generator.mapping(*generator.sample_z(1)), View(8, cameras))
        assert allowed == [True, True, False]
        assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("model", ["cips3d", "pigan"])
def test_other_words_are_refused(model: str) -> None:
    with pytest.raises(ValueError, match="got 'medium'"):
        make(model).set_precision("medium")  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["cips3d", "pigan"])
def test_fast_is_of_16_bits(model: str) -> None:
    generator = make(model)
    for dtype in (torch.int8, torch.float32, torch.float64):
        with pytest.raises(ValueError, match=f"fast_dtype must be torch.float16 or torch.bfloat16, got {dtype}"):
            generator.set_precision("fast", fast_dtype=dtype)
    assert generator.nerf.precision is None  # what was refused has changed nothing


@pytest.mark.parametrize("model", ["cips3d", "pigan"])
def test_autocast(backend: Backend, model: str) -> None:
    """Rays and sines stay in float32 inside of it: what is lost are eight bits of everything else."""
    made = make(model)
    with torch.no_grad():
        expected = small_pictures(made, backend.device)
        with torch.autocast(backend.device.type, dtype=torch.bfloat16):
            found = small_pictures(made, backend.device)
    assert relative_l2(found, expected) < 5e-2


@pytest.mark.parametrize("model", ["cips3d", "pigan"])
def test_gradients_under_autocast(model: str) -> None:
    made = make(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        small_pictures(made, torch.device("cpu")).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())
    assert sum(p.grad is not None for p in made.parameters()) > 10


def small_pictures(model: AnyModel, device: torch.device) -> Tensor:
    z = [x.to(device) for x in model.cpu().sample_z(2, generator=torch.Generator().manual_seed(1))]
    angles = torch.tensor([math.pi / 2 - 0.1, math.pi / 2 + 0.2])
    view = View(5, Cameras.from_angles(angles, angles).to(device), VolumeSettings(4, last_back=True), jitter=False)
    styles: Any = model.to(device).mapping(*z)
    return model.render(styles, view).image


@pytest.mark.parametrize("model", ["cips3d", "pigan"])
def test_no_pictures(model: str) -> None:
    made, none = make(model), torch.zeros(0)
    styles: Any = made.mapping(*made.sample_z(0))
    assert made.render(styles, View(5, Cameras.from_angles(none, none), jitter=False)).image.shape == (0, 3, 5, 5)
