"""Modulated fully connected layers against the published order of operations, and chains of them in both forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.models.inr import INR
from cips3d.ops import ModulatedWeight, demodulation, kernels, modulate_weight, modulated_fc, modulated_layer

# Images, pixels, in, out.
SHAPES = [(2, 7, 4, 5), (1, 1, 1, 1), (3, 0, 4, 2), (2, 33, 32, 64), (2, 5, 33, 12)]


def sample_inputs(batch: int = 2, pixels: int = 7, width_in: int = 4, width_out: int = 5) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    return [draw(batch, pixels, width_in), draw(width_in, width_out), 1 + 0.3 * draw(batch, width_in)]


def published(x: Tensor, weight: Tensor, modulation: Tensor, demodulate: bool = True) -> Tensor:
    """Weights modulated and demodulated image by image, then applied."""
    folded = weight * modulation[:, :, None]
    if demodulate:
        folded = folded * ((folded**2).sum(1, keepdim=True) + 1e-8).rsqrt()
    return torch.stack([pixels @ matrix for pixels, matrix in zip(x, folded, strict=True)])


def on(backend: Backend, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies that require gradients."""
    return [t.detach().to(backend.device, dtype, copy=True).requires_grad_() for t in tensors]


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape: Any, demodulate: bool) -> None:
    inputs = sample_inputs(*shape)
    found = modulated_fc(*inputs, demodulate=demodulate)
    assert torch.allclose(found, published(*inputs, demodulate), atol=1e-11)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 2, 1), *SHAPES[2:]])  # a demodulated 1 x 1 weight has no gradient
def test_values_and_gradients_in_float32(backend: Backend, shape: Any, demodulate: bool) -> None:
    exact = on(backend, sample_inputs(*shape), torch.float64)
    inputs = on(backend, exact, torch.float32)
    skips = [torch.ones(*shape[:2], shape[3], dtype=t.dtype, device=t.device) for t in (inputs[0], exact[0])]
    found = modulated_fc(*inputs, demodulate=demodulate, negative_slope=0.2, skip=skips[0])
    expected = F.leaky_relu(published(*exact, demodulate), 0.2) + skips[1]
    # A dozen roundings of 6e-8, in sums of 64 terms of both signs.
    assert relative_l2(found, expected) < 2e-6
    gradients = torch.autograd.grad(found.square().sum(), inputs)
    for gradient, value in zip(gradients, torch.autograd.grad(expected.square().sum(), exact), strict=True):
        # Behind demodulation, gradients of weight and modulation are differences of sums, of two channels up to a
        # hundred times as large. No value lies within rounding of the kink.
        assert relative_l2(gradient, value) < (3e-5 if demodulate else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_in_16_bits(backend: Backend, dtype: torch.dtype) -> None:
    inputs = on(backend, sample_inputs(2, 33, 32, 64), dtype)
    found = modulated_fc(*inputs, negative_slope=0.2)
    expected = F.leaky_relu(published(*on(backend, inputs, torch.float64)), 0.2)
    assert found.dtype == dtype
    # Input or weight, product and output are rounded: three times half a unit in the last place at most.
    assert relative_l2(found, expected) < 1.5 * torch.finfo(dtype).eps


def test_activation_and_skip() -> None:
    inputs = sample_inputs()
    skip = torch.ones(2, 7, 5, dtype=torch.float64)
    found = modulated_fc(*inputs, negative_slope=0.2, skip=skip)
    assert torch.allclose(found, F.leaky_relu(published(*inputs), 0.2) + skip)
    assert (skip == 1).all()  # not written to


def test_demodulated_columns_have_unit_norm(backend: Backend) -> None:
    _, weight, modulation = (t.to(backend.device) for t in sample_inputs())
    norms = modulate_weight(weight, modulation).norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-7)
    scaled = weight * modulation[:, :, None] * demodulation(weight, modulation)[:, None]
    assert torch.allclose(scaled, modulate_weight(weight, modulation))
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        found = demodulation(weight.float(), modulation.float())
    assert relative_l2(found, demodulation(weight, modulation)) < 1e-6


def test_weight_can_be_kept(backend: Backend) -> None:
    """For parts of the pixels and for single images."""
    x, weight, modulation = (t.to(backend.device, torch.float32) for t in sample_inputs())
    expected = modulated_fc(x, weight, modulation, negative_slope=0.2)
    layer = ModulatedWeight.of(weight, modulation)
    for part in (slice(0, 3), slice(3, 7)):
        found = modulated_layer(layer.modulate(x[:, part]), layer).output
        assert relative_l2(found, expected[:, part]) < 1e-6
    for image in (slice(0, 1), slice(1, 2)):
        found = modulated_layer(layer[image].modulate(x[image]), layer[image]).output
        assert relative_l2(found, expected[image]) < 1e-6


@pytest.mark.parametrize("settings", [{}, {"demodulate": False}, {"negative_slope": 0.2}])
def test_gradients_to_any_order(settings: Any) -> None:
    inputs = [x.requires_grad_() for x in sample_inputs(2, 3, 3, 2)]

    def run(*arguments: Tensor) -> Tensor:
        return modulated_fc(*arguments, **settings)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_gradient_of_the_skip() -> None:
    x, weight, modulation = sample_inputs()
    skip = torch.zeros(2, 7, 5, dtype=torch.float64, requires_grad=True)
    modulated_fc(x, weight, modulation, negative_slope=0.2, skip=skip).sum().backward()
    assert skip.grad is not None and (skip.grad == 1).all()


@pytest.mark.parametrize(("index", "name"), list(enumerate(["x", "weight", "modulation"])))
def test_wrong_shapes_are_named(backend: Backend, index: int, name: str) -> None:
    inputs = [t.float() for t in sample_inputs()]
    inputs[index] = torch.zeros(3, 9, 9, 9)
    with pytest.raises(ValueError, match=name):
        modulated_fc(*inputs)
    x, weight, modulation = (t.float() for t in sample_inputs())
    with pytest.raises(ValueError, match="skip"):
        modulated_fc(x, weight, modulation, skip=x)
    with pytest.raises(ValueError, match="modulation"):
        ModulatedWeight.of(weight, modulation[:, :3])
    with pytest.raises(ValueError, match="x must have shape"):
        modulated_fc(x[:1], weight, modulation)
    with pytest.raises(ValueError, match=r"layer\.weight"):
        modulated_layer(x[..., :3], ModulatedWeight.of(weight, modulation))


# A whole INR: a chain of layers whose weights the CPU folds image by image and kernels share among the images.


def make_inr(skip_from: int = 1, rgb_from: int = 1, blocks: int = 4) -> INR:
    torch.manual_seed(0)
    sizes = {"features": 12, "width": 12, "blocks": blocks, "style_dim": 5}
    return INR(**sizes, skip_from=skip_from, rgb_from=rgb_from, rgb_init=1.0)


def render(inr: INR, backend: Backend, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Colours of 2 images of 40 pixels; the inputs, styles one a layer; all that the INR is trained with."""
    random = torch.Generator().manual_seed(1)
    features = torch.randn(2, 40, 12, generator=random).to(backend.device, dtype).requires_grad_()
    styles = torch.randn(2, 8, 5, generator=random).to(backend.device, dtype).requires_grad_()
    inr = inr.to(backend.device, dtype)
    folded = inr.fold(styles)
    assert all((layer.modulation is not None) == kernels.take(features) for layer in folded)
    return inr(features, folded), [features, styles], list(inr.parameters())


@pytest.mark.parametrize(("skip_from", "rgb_from"), [(1, 1), (0, 0), (4, 3), (2, 1)])
def test_inr_is_the_same_in_both_forms(kernel_backend: Backend, skip_from: int, rgb_from: int) -> None:
    def everything(dtype: torch.dtype) -> list[Tensor]:
        rgb, inputs, parameters = render(make_inr(skip_from, rgb_from), kernel_backend, dtype)
        return [rgb, *torch.autograd.grad(rgb.square().sum(), [*inputs, *parameters])]

    with kernels.disabled():
        folded = everything(torch.float32)
    found, exact = everything(torch.float32), everything(torch.float64)
    for k, (a, b, c) in enumerate(zip(found, folded, exact, strict=True)):
        # Eight layers; gradients of modulations are small differences of sums of both signs. No pre-activation lies so
        # close to zero that the forms see it on different sides of the kink: that would be an error of its own kind.
        assert relative_l2(a, b) < (1e-5 if k == 0 else 1e-4)
        assert relative_l2(a, c) < (1e-5 if k == 0 else 1e-4)


def test_second_derivative_of_styles(kernel_backend: Backend) -> None:
    """A penalty on ‖∂RGB/∂style‖², as path length regularisation takes it."""

    def penalty_gradients(dtype: torch.dtype) -> list[Tensor]:
        rgb, (_, styles), parameters = render(make_inr(), kernel_backend, dtype)
        noise = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(2)).to(rgb)
        (slope,) = torch.autograd.grad((rgb * noise).sum(), styles, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), [styles, *parameters], allow_unused=True))

    for a, b in zip(penalty_gradients(torch.float32), penalty_gradients(torch.float64), strict=True):
        assert (a is None) == (b is None)
        assert a is None or relative_l2(a, b) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inr_in_mixed_precision(backend: Backend, dtype: torch.dtype) -> None:
    inr = make_inr(skip_from=0)  # adds float32 features to a product of 16 bits
    exact, inputs, _ = render(inr, backend)
    expected = torch.autograd.grad(exact.square().sum(), inputs)
    inr.precision, inr.fast_dtype = "fast", dtype
    rounded, inputs, _ = render(inr, backend)
    assert rounded.dtype == torch.float32
    # Eight layers with three roundings each.
    assert relative_l2(rounded, exact) < 5 * torch.finfo(dtype).eps
    for gradient, value in zip(torch.autograd.grad(rounded.square().sum(), inputs), expected, strict=True):
        assert gradient.dtype == torch.float32
        # A share of about eps of the values ends up beyond the kink, where the slope is off by 0.8, layer after layer.
        assert relative_l2(gradient, value) < 2 * torch.finfo(dtype).eps ** 0.5


def test_inr_compiles(kernel_backend: Backend) -> None:
    inr = make_inr(blocks=2).to(kernel_backend.device)

    def colours(features: Tensor, style: Tensor) -> Tensor:
        return inr(features, inr.fold(style))

    features, style = (
        torch.randn(2, 10, 12, device=kernel_backend.device),
        torch.randn(2, 5, device=kernel_backend.device),
    )
    compiled = torch.compile(colours, fullgraph=True, backend="aot_eager")
    for function in (colours, compiled):
        inr.zero_grad()
        function(features, style).square().sum().backward()
        found = [p.grad.clone() for p in inr.parameters()]
        if function is colours:
            expected = found
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
