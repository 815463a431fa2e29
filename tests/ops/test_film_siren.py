"""FiLM-SIREN layers against the published order of operations in float64, with every backend."""

from __future__ import annotations

import math

import pytest
import torch
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import film_siren, film_siren_op
from cips3d.ops.film_siren import FoldedLayer, fold_film, sine_field, sine_layer
from cips3d.ops.library import OPS

# B, N, in, out: points of up to 4 and 8 channels, two tiles of columns; one step of the depth, odd widths, a block of
# several tiles, the widths of CIPS-3D, two tiles of columns, a matrix that does not fit into shared memory.
POINT_SHAPES = [(2, 65, 3, 128), (1, 40, 5, 3), (2, 30, 7, 9), (1, 21, 8, 132)]
WIDE_SHAPES = [
    (1, 1, 9, 1),
    (1, 70, 33, 65),
    (2, 400, 16, 72),
    (2, 130, 128, 128),
    (2, 300, 128, 64),
    (1, 100, 128, 140),
    (1, 40, 600, 80),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}


def sample_inputs(
    batch: int = 2, samples: int = 7, width_in: int = 3, width_out: int = 5, *, scale: float = 1.0
) -> list[Tensor]:
    """Float64, with pi-GAN's magnitudes: x in [-1, 1], W ~ U(±√(6/in)/25) times `scale`, gain about 30."""
    random = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=random, dtype=torch.float64) - 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    weight = scale * math.sqrt(6 / width_in) / 25 * uniform(width_out, width_in)
    bias = uniform(width_out) / math.sqrt(width_in)
    gain, shift = 30 + 5 * normal(batch, width_out), normal(batch, width_out)
    return [uniform(batch, samples, width_in), weight, bias, gain, shift]


def published(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    phase = torch.nn.functional.linear(x, weight, bias)
    return torch.sin(gain[:, None] * phase + shift[:, None])


def on(backend: Backend, inputs: list[Tensor], dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    """x of dtype and float32 parameters that require gradients, and the same numbers in float64."""
    given = [t.to(backend.device, dtype if k == 0 else torch.float32) for k, t in enumerate(inputs)]
    return [t.requires_grad_() for t in given], [t.detach().double().requires_grad_() for t in given]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.detach().double().flatten(), b.detach().double().flatten(), dim=0))


@pytest.mark.parametrize("shape", [(2, 7, 3, 5), (1, 1, 1, 1), (3, 4, 16, 8), (2, 0, 3, 5), (1, 70_000, 3, 4)])
def test_values_in_float64(shape: tuple[int, int, int, int]) -> None:
    inputs = sample_inputs(*shape)
    assert torch.allclose(film_siren(*inputs), published(*inputs), atol=1e-11)


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("shape", POINT_SHAPES + WIDE_SHAPES)
def test_float32(backend: Backend, shape: tuple[int, int, int, int], scale: int) -> None:
    given, exact = on(backend, sample_inputs(*shape, scale=scale))
    # Phases reach 20 and have rounding errors of a few 2^-24 of that, as in a float32 product.
    assert relative_l2(film_siren(*given), published(*exact)) < 1e-6 * (1 if backend.uses_kernels else 3)


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("shape", WIDE_SHAPES)
def test_fast(kernel_backend: Backend, shape: tuple[int, int, int, int], scale: int) -> None:
    given, exact = on(kernel_backend, sample_inputs(*shape, scale=scale))
    found, values = film_siren(*given, precision="fast"), published(*exact)
    # Rounding x and W to 11 bits is off by 0.41 · 2^-11 · √2 = 2.8e-4 of the part W x of the phase, root mean square:
    # with gain 30, √in · 30 · rms(x) · rms(W) = 30 · 0.58 · √2 / 25 = 1 rad.
    assert relative_l2(found, values) < 5e-4 * scale
    assert relative_l2(found, values) > 3e-6  # it is another product than the accurate one


@pytest.mark.parametrize("precision", ["highest", "fast"])
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("shape", POINT_SHAPES[:2] + WIDE_SHAPES[1:4])
def test_16_bit_tensors(backend: Backend, shape: tuple[int, int, int, int], dtype: torch.dtype, precision: str) -> None:
    given, exact = on(backend, sample_inputs(*shape), dtype)
    y = film_siren(*given, precision=precision)  # type: ignore[arg-type]
    assert y.dtype == dtype
    # The output is rounded once, 0.41 of half a unit in the last place; with "fast" 11 bits of the weight come to that.
    assert relative_l2(y, published(*exact)) < 0.3 * EPS[dtype] + (3e-4 if precision == "fast" else 0)


@pytest.mark.parametrize("x_factor", [1e-4, 3e3, 1e6])
def test_magnitudes_that_fp16_does_not_have(backend: Backend, x_factor: float) -> None:
    x, weight, *rest = sample_inputs(1, 40, 24, 66)
    x, weight = x * x_factor, weight / x_factor
    x[0, 3] *= 1e-3
    given, exact = on(backend, [x, weight, *rest])
    # 3e-5: x is then off by 2^-31 absolutely, 1e-4 · 2^-18
    assert relative_l2(film_siren(*given), published(*exact)) < (3e-5 if x_factor < 1 else 3e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_not_finite(backend: Backend, dtype: torch.dtype) -> None:
    """What is infinite or NaN stays in its row."""
    (x, *rest), exact = on(backend, sample_inputs(1, 40, 24, 66), dtype)
    x = x.detach()
    x[0, 3, 5], x[0, 20, 0] = math.inf, math.nan
    y = film_siren(x, *rest)
    bad = torch.zeros(40, dtype=torch.bool, device=y.device)
    bad[[3, 20]] = True
    assert y[0, bad].isnan().all()
    assert relative_l2(y[0, ~bad], published(*exact)[0, ~bad]) < max(0.3 * EPS[dtype], 1e-6)


@pytest.mark.parametrize("shape", POINT_SHAPES + WIDE_SHAPES)
def test_gradients(backend: Backend, shape: tuple[int, int, int, int]) -> None:
    given, exact = on(backend, sample_inputs(*shape))
    upstream = torch.randn(*shape[:2], shape[3], generator=torch.Generator().manual_seed(1)).to(backend.device)
    found = torch.autograd.grad(film_siren(*given), given, upstream)
    expected = torch.autograd.grad(published(*exact), exact, upstream.double())
    for gradient, value in zip(found, expected, strict=True):
        assert gradient.dtype == torch.float32 and gradient.shape == value.shape
        # Products of pairs of bf16 numbers, 0.29 · 2^-16 = 4.4e-6 root mean square; points: a few roundings.
        assert relative_l2(gradient, value) < (1e-6 if shape in POINT_SHAPES and backend.uses_kernels else 1e-5)
        assert cosine(gradient, value) > 1 - 1e-9


def test_long_sums_are_rounded_to_nearest(backend: Backend) -> None:
    """Left to tensor cores, which round toward zero, this one would lose 2e-5."""
    random = torch.Generator().manual_seed(3)
    x = torch.rand(1, 16_384, 32, generator=random) + 0.5
    weight = 0.05 * torch.randn(40, 32, generator=random)
    given, exact = on(backend, [x, weight, torch.zeros(40), torch.ones(1, 40), torch.zeros(1, 40)])
    found = torch.autograd.grad(film_siren(*given).sum(), given[1])[0]
    expected = torch.autograd.grad(published(*exact).sum(), exact[1])[0]
    assert relative_l2(found, expected) < 3e-6


@pytest.mark.parametrize("precision", ["highest", "fast"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", POINT_SHAPES[:2] + WIDE_SHAPES[1:4])
def test_gradients_of_16_bit_products(
    kernel_backend: Backend, shape: tuple[int, int, int, int], dtype: torch.dtype, precision: str
) -> None:
    given, exact = on(kernel_backend, sample_inputs(*shape), dtype)
    upstream = torch.randn(*shape[:2], shape[3], generator=torch.Generator().manual_seed(1))
    upstream = upstream.to(kernel_backend.device, dtype)
    found = torch.autograd.grad(film_siren(*given, precision=precision), given, upstream)  # type: ignore[arg-type]
    expected = torch.autograd.grad(published(*exact), exact, upstream.double())
    # Slope and product operands are rounded to bf16 (fp16 for such tensors), 0.41 · 2^-8 each, and so is the result.
    tolerance = 1.5 * 0.41 * max(EPS[dtype], 2**-7 if dtype == torch.float32 else 0)
    for gradient, value in zip(found, expected, strict=True):
        assert relative_l2(gradient, value) < tolerance
        assert cosine(gradient, value) > 1 - tolerance**2


@pytest.mark.parametrize("shape", [(2, 9, 8, 8), (3, 300, 64, 192)])
def test_sums_of_bfloat16_gradients_and_float16_activations(
    kernel_backend: Backend, shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients beyond float16's range stay what they are; more images than a launch takes are several launches."""
    images, rows, width_in, width_out = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, rows, width_in, generator=generator).to(kernel_backend.device, torch.float16)
    slope = (1e6 * torch.randn(images, rows, width_out, generator=generator)).to(x.device, torch.bfloat16)
    found = film_siren_op.sums_over_samples(slope, x)
    expected = slope.double().mT @ x.double(), slope.double().sum(1)
    for ours, exact in zip(found, expected, strict=True):
        assert relative_l2(ours, exact) < 0.41 * EPS[torch.bfloat16]  # x is rounded to bf16
    monkeypatch.setattr(film_siren_op, "IMAGES_MAX", 2)
    for one, several in zip(found, film_siren_op.sums_over_samples(slope, x), strict=True):
        assert relative_l2(several, one) < 1e-6


@pytest.mark.parametrize("wanted", [[0], [1], [3, 4], [2]])
@pytest.mark.parametrize("shape", [POINT_SHAPES[1], WIDE_SHAPES[1]])
def test_gradients_of_some(backend: Backend, shape: tuple[int, int, int, int], wanted: list[int]) -> None:
    given, exact = (list(tensors) for tensors in on(backend, sample_inputs(*shape)))
    given = [t if k in wanted else t.detach() for k, t in enumerate(given)]
    found = torch.autograd.grad(film_siren(*given).square().sum(), [given[k] for k in wanted])
    expected = torch.autograd.grad(published(*exact).square().sum(), [exact[k] for k in wanted])
    for gradient, value in zip(found, expected, strict=True):
        assert relative_l2(gradient, value) < 1e-5  # as above; sums of terms of both signs


@pytest.mark.parametrize("shape", [(2, 9, 3, 4), (2, 9, 12, 5)])
def test_second_derivatives(backend: Backend, shape: tuple[int, int, int, int]) -> None:
    def derivatives(inputs: list[Tensor], function: object) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)  # type: ignore[operator]
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    given, exact = on(backend, sample_inputs(*shape))
    for gradient, value in zip(derivatives(given, film_siren), derivatives(exact, published), strict=True):
        assert relative_l2(gradient, value) < 1e-5


def test_gradients_to_any_order_in_float64() -> None:
    random = torch.Generator().manual_seed(0)
    inputs = [x.requires_grad_() for x in sample_inputs(2, 4, 3, 4)]
    inputs[3] = (1 + 0.1 * torch.randn(2, 4, generator=random, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(film_siren, inputs)
    assert torch.autograd.gradgradcheck(film_siren, inputs)


def test_gradients_of_many_samples() -> None:
    """Work done in blocks adds up to the whole."""
    inputs = [x.requires_grad_() for x in sample_inputs(2, 70_000, 3, 4)]
    weight = torch.randn(2, 70_000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad((film_siren(*inputs) * weight).sum(), inputs)
    expected = torch.autograd.grad((published(*inputs) * weight).sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() / b.norm() < 1e-10


@pytest.mark.parametrize("shape", [POINT_SHAPES[0], WIDE_SHAPES[2], WIDE_SHAPES[4], WIDE_SHAPES[6]])
def test_every_schedule_gives_the_same(kernel_backend: Backend, shape: tuple[int, int, int, int]) -> None:
    given, _ = on(kernel_backend, sample_inputs(*shape))
    found = []
    for _ in kernel_backend.schedules():
        y = film_siren(*given)
        found.append((y, *torch.autograd.grad(y.square().sum(), given)))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("shape", [(2, 0, 3, 5), (0, 4, 16, 8), (2, 0, 16, 8), (2, 3, 16, 0)])
def test_empty(backend: Backend, shape: tuple[int, int, int, int]) -> None:
    given, _ = on(backend, sample_inputs(*shape))
    y = film_siren(*given)
    assert y.shape == (*shape[:2], shape[3])
    for gradient, value in zip(torch.autograd.grad(y.sum(), given), given, strict=True):
        assert torch.equal(gradient, torch.zeros_like(value))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 16])
def test_layout(backend: Backend, width: int, dtype: torch.dtype) -> None:
    """Transposed, strided and misaligned inputs give what contiguous ones give."""
    given, _ = on(backend, sample_inputs(2, 9, width, 8), dtype)
    x, *parameters = (t.detach() for t in given)
    shifted = torch.empty(x.numel() + 1, dtype=dtype, device=x.device)[1:].view(x.shape)  # starts off 16 bytes
    shifted.copy_(x)
    expected = film_siren(x, *parameters)
    strided = [torch.stack([t, t], dim=-1)[..., 1] for t in parameters]
    for same in (x.transpose(1, 2).contiguous().transpose(1, 2), torch.stack([x, x], dim=-1)[..., 1], shifted):
        # PyTorch's products add up in another order where a matrix is transposed or starts elsewhere.
        torch.testing.assert_close(film_siren(same, *strided), expected, rtol=0, atol=16 * EPS[dtype])
        if backend.uses_kernels:
            assert torch.equal(film_siren(same, *strided), expected)


def test_inputs_stay_as_they_are(backend: Backend) -> None:
    for shape in (POINT_SHAPES[1], WIDE_SHAPES[1]):
        given, _ = on(backend, sample_inputs(*shape))
        copies = [x.detach().clone() for x in given]
        film_siren(*given).sum().backward()
        assert all(torch.equal(x, y) for x, y in zip(given, copies, strict=True))


@pytest.mark.parametrize("shape", [(2, 9, 5, 6), (2, 140, 16, 70)])
def test_folded_layer(backend: Backend, shape: tuple[int, int, int, int]) -> None:
    """A weight for each image."""
    given, exact = on(backend, sample_inputs(*shape))
    upstream = torch.randn(*shape[:2], shape[3], generator=torch.Generator().manual_seed(1)).to(backend.device)

    def layer(x: Tensor, *film: Tensor) -> tuple[Tensor, list[Tensor]]:
        folded = FoldedLayer(*(t.detach().requires_grad_() for t in fold_film(*film)))
        return sine_layer(x, folded), [x, *folded]

    y, inputs = layer(*given)
    value, exact_inputs = layer(*exact)
    assert relative_l2(y, value) < 3e-6
    found = torch.autograd.grad(y, inputs, upstream)
    expected = torch.autograd.grad(value, exact_inputs, upstream.double())
    for gradient, of_value in zip(found, expected, strict=True):
        assert relative_l2(gradient, of_value) < 8e-6  # as in test_gradients


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_field(kernel_backend: Backend, dtype: torch.dtype | None) -> None:
    """Layer by layer on the kernels; under autocast points stay float32 and activations get 16 bits."""
    device, widths = kernel_backend.device, (3, 20, 24)
    points = sample_inputs(2, 50, 3, 20)[0].to(device)
    films = [sample_inputs(2, 50, i, o)[1:] for i, o in zip(widths, (20, 24, 12), strict=True)]
    exact = [FoldedLayer(*(t.to(device) for t in fold_film(*film))) for film in films]
    density = torch.linspace(-1, 1, 24, dtype=torch.float64, device=device), torch.ones(1, device=device).double()
    single = [FoldedLayer(*(t.float().requires_grad_() for t in layer)) for layer in exact]
    exact = [FoldedLayer(*(t.requires_grad_() for t in layer)) for layer in exact]
    with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        found = sine_field(points.float(), single[:-1], single[-1], *(t.float() for t in density))
    expected = sine_field(points, exact[:-1], exact[-1], *density)
    # The second layer's phases have the first one's rounding errors, times √20 · 30 · rms(W) = 1; so have the others'.
    tolerance = 8e-6 if dtype is None else 2 * EPS[dtype]
    assert found[1].dtype == (dtype or torch.float32)
    for value, reference in zip(found, expected, strict=True):
        assert relative_l2(value, reference) < tolerance
    given, inputs = [t for layer in single for t in layer], [t for layer in exact for t in layer]
    gradients = torch.autograd.grad(sum(t.float().square().sum() for t in found), given)
    reference_gradients = torch.autograd.grad(sum(t.square().sum() for t in expected), inputs)
    for gradient, reference in zip(gradients, reference_gradients, strict=True):
        assert relative_l2(gradient, reference) < 3 * tolerance


def test_registration(backend: Backend) -> None:
    (x, weight, bias, gain, shift), _ = on(backend, sample_inputs(2, 5, 9, 6))
    grad = torch.randn(2, 5, 6, device=x.device, requires_grad=True)
    shared = (weight, bias, gain, shift)
    folded = (*(t.detach().requires_grad_() for t in fold_film(*shared)), None, None)
    torch.library.opcheck(OPS["film_siren"].overload, (x, *shared, torch.float32, False))
    torch.library.opcheck(OPS["film_siren"].overload, (x.detach(), *folded, torch.float16, True))
    torch.library.opcheck(OPS["film_siren_backward"].overload, (grad, x, *shared, False, True, True))
    torch.library.opcheck(OPS["film_siren_backward"].overload, (grad, x, *folded, True, True, False))


@pytest.mark.parametrize("shape", [(2, 9, 3, 5), (2, 9, 12, 5)])
def test_compiles(backend: Backend, shape: tuple[int, int, int, int]) -> None:
    def loss(*inputs: Tensor) -> Tensor:
        return film_siren(*inputs).square().mean()

    given, _ = on(backend, sample_inputs(*shape))
    eager = torch.autograd.grad(loss(*given), given)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*given), given)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("index", "name"), list(enumerate(["x", "weight", "bias", "gain", "shift"])))
def test_wrong_shapes_are_named(backend: Backend, index: int, name: str) -> None:
    inputs = [t.float().to(backend.device) for t in sample_inputs()]
    inputs[index] = torch.zeros((*inputs[index].shape[:-1], 9), device=backend.device)
    with pytest.raises(ValueError, match=name if index != 0 else "x|weight"):
        film_siren(*inputs)


def test_wrong_arguments_are_named(kernel_backend: Backend) -> None:
    (x, weight, *rest), _ = on(kernel_backend, sample_inputs())
    with pytest.raises(ValueError, match='precision must be "highest", "high" or "fast"'):
        film_siren(x, weight, *rest, precision="medium")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight must go with x .*, got torch\.float32 on meta"):
        film_siren(x, weight.to("meta"), *rest)
    with pytest.raises(ValueError, match=r"bias must go with x .*, got torch\.float64 on"):
        film_siren(x, weight, rest[0].double(), *rest[1:])
    with pytest.raises(ValueError, match="x must have at least one channel"):
        film_siren(x[..., :0], weight[:, :0], *rest)
    with pytest.raises(ValueError, match=r"weight must have shape \[2, any, 3\]"):
        sine_layer(x, FoldedLayer(weight[None], rest[0][None]))


@pytest.mark.parametrize("width", [3, 9])
@pytest.mark.parametrize("own_weights", [False, True])
def test_more_images_than_a_launch_takes(
    kernel_backend: Backend, monkeypatch: pytest.MonkeyPatch, width: int, own_weights: bool
) -> None:
    """Such as one a ray, each with a modulation of its own."""
    inputs, _ = on(kernel_backend, sample_inputs(7, 2, width, 3))
    given = [x.detach().requires_grad_() for x in inputs]
    if own_weights:
        given[1:] = [t.detach().requires_grad_() for t in fold_film(*given[1:])]

    def outputs() -> Tensor:
        return sine_layer(given[0], FoldedLayer(*given[1:])) if own_weights else film_siren(*given)

    expected = outputs()
    gradients = torch.autograd.grad(expected.square().sum(), given)
    some = torch.autograd.grad(outputs().square().sum(), given[:1])
    monkeypatch.setattr(film_siren_op, "IMAGES_MAX", 3)
    torch.testing.assert_close(outputs(), expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(outputs().square().sum(), given), gradients)
    torch.testing.assert_close(torch.autograd.grad(outputs().square().sum(), given[:1]), some)


def test_a_launch_takes_no_more(kernel_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert film_siren_op.IMAGES_MAX == 65535
    monkeypatch.setattr(film_siren_op, "IMAGES_MAX", 65536)
    (x, *parameters), _ = on(kernel_backend, sample_inputs(1, 1, 9, 2))
    many = [t.detach().expand(65536, *t.shape) for t in parameters[:2]]
    with pytest.raises(RuntimeError, match="film_siren: more than 65535 images"):
        sine_layer(x.expand(65536, -1, -1), FoldedLayer(*many))


@pytest.mark.parametrize("shape", [POINT_SHAPES[0], WIDE_SHAPES[3]])
def test_phases_under_autocast(backend: Backend, shape: tuple[int, int, int, int]) -> None:
    """They stay as exact as the kernels have them; what comes of them has autocast's type."""
    given, exact = on(backend, sample_inputs(*shape))
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        y = film_siren(*given)
    assert y.dtype == torch.bfloat16
    assert relative_l2(y, published(*exact)) < 0.3 * EPS[torch.bfloat16]
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        assert film_siren(*exact).dtype == torch.float64  # which autocast leaves as it is


def test_parameters_of_16_bits(backend: Backend) -> None:
    x, *parameters = (t.to(backend.device).float() for t in sample_inputs(2, 9, 12, 5))
    parameters = [p.half() for p in parameters]
    expected = published(x.double(), *(p.double() for p in parameters))
    assert relative_l2(film_siren(x, *parameters), expected) < 3e-6
