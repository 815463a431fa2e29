"""modulated_epilogue against its formula in float64: every output, combination of parts and derivative."""

from __future__ import annotations

import math
from itertools import product as combinations

import pytest
import torch
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import ModulatedEpilogue, modulated_epilogue
from cips3d.ops.library import OPS
from cips3d.ops.modulated_epilogue import epilogue_backward_kernel, epilogue_kernel

# Vectors and single channels; rows of fewer lanes than a warp, of one warp, of several strips; several blocks an image
# forward, several parts of it backward.
SHAPES = [(2, 7, 5), (1, 1, 1), (3, 9, 33), (2, 300, 32), (2, 70, 512), (2, 37, 1032), (1, 40, 1030)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OPTIONAL = ("demodulation", "skip", "next_modulation", "rgb_weight", "rgb")
# Every choice of what to leave out; colours so far need a weight.
COMBINATIONS = [set(OPTIONAL) - set(given) for given in combinations(*[(name, "") for name in OPTIONAL])]
COMBINATIONS = [without for without in COMBINATIONS if "rgb" in without or "rgb_weight" not in without]
OUTPUTS = ModulatedEpilogue._fields
# float32: a few roundings of 6e-8 an element; sums of 512 terms of both signs.
FLOAT32_ERROR = 1e-6

Inputs = dict[str, Tensor]


def sample_inputs(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64, without: object = ()) -> Inputs:
    """Everything but what `without` names; factors of channels and colours are at least float32."""
    generator = torch.Generator().manual_seed(0)
    batch, pixels, channels = shape
    wide = torch.promote_types(dtype, torch.float32)

    def draw(*size: int, to: torch.dtype) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(to)

    inputs = {
        "product": draw(batch, pixels, channels, to=dtype),
        "demodulation": 0.5 + draw(batch, channels, to=wide).abs(),
        "skip": draw(batch, pixels, channels, to=dtype),
        "next_modulation": 1 + 0.5 * draw(batch, channels, to=wide),
        "rgb_weight": draw(3, channels, to=wide),
        "rgb": draw(batch, pixels, 3, to=wide),
    }
    return {name: tensor for name, tensor in inputs.items() if name not in without}  # type: ignore[operator]


def formula(inputs: Inputs, slope: float = 0.2) -> dict[str, Tensor]:
    """All outputs that the inputs allow, channel factors spread over the pixels."""
    h = inputs["product"] * inputs["demodulation"][:, None] if "demodulation" in inputs else inputs["product"]
    y = torch.where(h > 0, h, slope * h)
    y = y + inputs["skip"] if "skip" in inputs else y
    made = {"output": y}
    if "next_modulation" in inputs:
        made["modulated"] = y * inputs["next_modulation"][:, None]
    if "rgb_weight" in inputs:
        made["rgb"] = y @ inputs["rgb_weight"].t() + inputs.get("rgb", 0.0)
    return made


def on(backend: Backend, inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """Copies that require gradients."""
    return {name: t.to(backend.device, dtype, copy=True).requires_grad_() for name, t in inputs.items()}


def present(made: ModulatedEpilogue) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in made._asdict().items() if tensor is not None}


def gradients(made: dict[str, Tensor], inputs: Inputs) -> dict[str, Tensor | None]:
    """Of Σ_outputs ⟨output, fixed normal numbers⟩, the numbers rounded to bfloat16 so that every dtype has the same."""
    upstream = []
    for name in made:
        generator = torch.Generator().manual_seed(OUTPUTS.index(name))
        normal = torch.randn(made[name].shape, generator=generator).bfloat16()
        upstream.append(normal.to(made[name].device, made[name].dtype))
    found = torch.autograd.grad(list(made.values()), list(inputs.values()), upstream, allow_unused=True)
    return dict(zip(inputs, found, strict=True))


def assert_close(found: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    """One rounding of the result, half a unit in the last place at most, beside the arithmetic in float32."""
    assert relative_l2(found, expected) < factor * FLOAT32_ERROR + 0.5 * torch.finfo(found.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_formula(backend: Backend, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    inputs = on(backend, sample_inputs(shape, dtype))
    found = present(modulated_epilogue(**inputs, negative_slope=0.3))
    expected = formula(on(backend, inputs, torch.float64), 0.3)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == (torch.float32 if name == "rgb" else dtype)
        assert_close(tensor, expected[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(backend: Backend, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    inputs = on(backend, sample_inputs(shape, dtype))
    exact = on(backend, inputs, torch.float64)
    found, expected = gradients(present(modulated_epilogue(**inputs)), inputs), gradients(formula(exact), exact)
    for name, gradient in found.items():
        assert gradient.dtype == inputs[name].dtype
        assert_close(gradient, expected[name])
        assert torch.cosine_similarity(gradient.double().flatten(), expected[name].flatten(), dim=0) > 1 - 1e-5


@pytest.mark.parametrize("return_output", [True, False])
@pytest.mark.parametrize("without", COMBINATIONS, ids=lambda without: "-".join(sorted(without)) or "nothing")
def test_every_combination_of_parts(backend: Backend, without: set[str], return_output: bool) -> None:
    for channels in (4, 3):
        inputs = on(backend, sample_inputs((2, 6, channels), torch.float32, without))
        exact = on(backend, inputs, torch.float64)
        found, expected = present(modulated_epilogue(**inputs, return_output=return_output)), formula(exact)
        if not return_output:
            del expected["output"]
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert_close(tensor, expected[name])
        if found:
            wanted = gradients(expected, exact)
            for name, gradient in gradients(found, inputs).items():
                assert_close(gradient, wanted[name])


@pytest.mark.parametrize("used", [c for c in combinations(*[(n, "") for n in OUTPUTS]) if any(c)])
def test_outputs_that_nothing_depends_on(backend: Backend, used: tuple[str, ...]) -> None:
    """Their gradients count as zero; what only they depend on has none."""
    inputs = on(backend, sample_inputs((2, 6, 8), torch.float32))
    exact = on(backend, inputs, torch.float64)
    made, wanted = present(modulated_epilogue(**inputs)), formula(exact)
    found = gradients({n: made[n] for n in OUTPUTS if n in used}, inputs)
    expected = gradients({n: wanted[n] for n in OUTPUTS if n in used}, exact)
    for name, gradient in found.items():
        assert (gradient is None) == (expected[name] is None)
        if gradient is not None:
            assert_close(gradient, expected[name])


@pytest.mark.parametrize("constant", ["product", *OPTIONAL])
def test_inputs_without_gradient(backend: Backend, constant: str) -> None:
    inputs, exact = (on(backend, sample_inputs((2, 6, 8), d)) for d in (torch.float32, torch.float64))
    every = gradients(formula(exact), exact)
    inputs[constant].requires_grad_(False)
    wanted = {name: tensor for name, tensor in inputs.items() if name != constant}
    for name, gradient in gradients(present(modulated_epilogue(**inputs)), wanted).items():
        assert_close(gradient, every[name])


def test_gradients_of_any_order() -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in sample_inputs((2, 3, 2)).items()}
    assert (inputs["product"] * inputs["demodulation"][:, None]).abs().min() > 1e-4  # away from the kink

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(present(modulated_epilogue(**dict(zip(inputs, tensors, strict=True)))).values())

    assert torch.autograd.gradcheck(run, tuple(inputs.values()))
    assert torch.autograd.gradgradcheck(run, tuple(inputs.values()))


@pytest.mark.parametrize("shape", [(2, 9, 5), (2, 17, 64)])
def test_second_and_third_derivative(backend: Backend, shape: tuple[int, int, int]) -> None:
    """Through Σ ‖gradients‖², as a penalty on the gradient of styles takes them, and one order more."""

    def derivatives(made: dict[str, Tensor], inputs: Inputs) -> list[Tensor]:
        loss = sum((x**2).sum() for x in made.values())
        first = torch.autograd.grad(loss, list(inputs.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(inputs.values()), create_graph=True)
        third = torch.autograd.grad(sum(g.square().sum() for g in second), list(inputs.values()))
        return [*first, *second, *third]

    inputs = on(backend, sample_inputs(shape, torch.float32))
    exact = on(backend, inputs, torch.float64)
    found = derivatives(present(modulated_epilogue(**inputs)), inputs)
    for gradient, expected in zip(found, derivatives(formula(exact), exact), strict=True):
        # A few dozen roundings, and sums of both signs.
        assert_close(gradient, expected, factor=5)


def test_zero_counts_as_negative(backend: Backend) -> None:
    product = torch.tensor([[[0.0, 1.0, -1.0]]], device=backend.device, requires_grad=True)
    made = modulated_epilogue(product, negative_slope=0.25)
    (gradient,) = torch.autograd.grad(made.output.sum(), product)
    assert gradient.flatten().tolist() == [0.25, 1.0, 0.25]
    others = (None, None, None, torch.ones_like(product), None, None, [True, *[False] * 4])
    registered = OPS["modulated_epilogue_backward"](product.detach(), None, 0.25, *others)[0]
    assert torch.equal(registered, gradient)
    linear = modulated_epilogue(product, negative_slope=None)
    assert torch.equal(linear.output, product) and linear.output is not product


@pytest.mark.parametrize("with_gradient", [True, False])
def test_arguments_stay_as_they_are(backend: Backend, with_gradient: bool) -> None:
    inputs = on(backend, sample_inputs((2, 6, 8), torch.float32))
    before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    with torch.set_grad_enabled(with_gradient):
        modulated_epilogue(**inputs)
        modulated_epilogue(inputs["product"], skip=inputs["skip"])
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("name", ["skip", "next_modulation", "rgb_weight"])
def test_functions_of_one_argument_alone(name: str) -> None:
    """Which `torch.func` differentiates in plain PyTorch; the others are captured, and stay as they are."""
    inputs = {key: tensor.float() for key, tensor in sample_inputs((2, 6, 8), torch.float32).items()}
    product, before = inputs["product"], inputs["product"].clone()

    def total(value: Tensor) -> Tensor:
        made = modulated_epilogue(product, **{name: value})
        return sum(tensor.square().sum() for tensor in made if tensor is not None)

    expected = torch.autograd.functional.jacobian(total, inputs[name])
    torch.testing.assert_close(torch.func.grad(total)(inputs[name]), expected)
    direction = torch.ones_like(inputs[name])
    torch.testing.assert_close(torch.func.jvp(total, (inputs[name],), (direction,))[1], expected.sum())
    assert torch.equal(product, before)


def test_colours_are_sums_in_float32_under_autocast(backend: Backend) -> None:
    inputs = on(backend, sample_inputs((2, 6, 64), torch.bfloat16))
    plain = modulated_epilogue(**inputs)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        same = modulated_epilogue(**inputs)
    assert same.rgb.dtype == torch.float32
    assert torch.equal(same.rgb, plain.rgb)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(backend: Backend, shape: tuple[int, int, int]) -> None:
    inputs = on(backend, sample_inputs(shape, torch.float32))
    made = modulated_epilogue(**inputs)
    assert made.output.shape == made.modulated.shape == shape
    assert torch.equal(made.rgb, inputs["rgb"])
    for name, gradient in gradients(present(made), inputs).items():
        assert gradient.shape == inputs[name].shape
        assert name == "rgb" or not gradient.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout(backend: Backend, dtype: torch.dtype) -> None:
    """Transposed, strided and misaligned inputs give what contiguous ones give; so do upstream gradients."""
    inputs = on(backend, sample_inputs((2, 8, 8), dtype))

    def run(given: Inputs) -> list[Tensor]:
        made = modulated_epilogue(**given)
        # Gradients that are expanded, transposed and strided.
        loss = made.output.sum() + made.modulated.transpose(0, 1).mul(3).sum() + made.rgb[..., 0].square().sum()
        return [*made, *torch.autograd.grad(loss, list(given.values()))]

    expected = run(inputs)

    def misaligned(t: Tensor) -> Tensor:
        shifted = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape)
        return shifted.copy_(t)

    changes = {
        "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        "strided": lambda t: torch.stack([t, t], dim=-1)[..., 1],
        "misaligned": misaligned,
    }
    for change in changes.values():
        found = run({name: change(tensor.detach()).requires_grad_() for name, tensor in inputs.items()})
        for a, b in zip(found, expected, strict=True):
            # Single channels in place of vectors: sums in another order.
            assert_close(a, b.double())


def test_only_product_and_skip_are_kept(kernel_backend: Backend) -> None:
    """Of the large tensors: activations of a training step fill the memory."""
    inputs = on(kernel_backend, sample_inputs((2, 60, 32), torch.bfloat16))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        modulated_epilogue(**inputs)
    large = [tensor.data_ptr() for tensor in kept if tensor.numel() >= inputs["rgb"].numel()]
    assert sorted(large) == sorted(inputs[name].data_ptr() for name in ("product", "skip"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [None, math.inf, math.nan])
def test_largest_magnitudes_are_left_in_passing(
    kernel_backend: Backend, shape: tuple[int, int, int], value: float | None
) -> None:
    """Of what products take next, forward and backward: that of NaN is larger than all others."""
    inputs = {name: t.to(kernel_backend.device) for name, t in sample_inputs(shape, torch.float32).items()}
    if value is not None:
        inputs["skip"][-1, -1, -1] = inputs["rgb"][0, 0, 0] = value
    largest = torch.zeros(2, device=kernel_backend.device)
    given = [inputs[name] for name in ("product", "demodulation", "skip", "next_modulation", "rgb_weight")]
    given.insert(2, 0.2)
    _, modulated, _ = epilogue_kernel(*given, None, True, largest=largest[0])
    grads = (inputs["skip"], None, inputs["rgb"])
    of_product, *_ = epilogue_backward_kernel(*given, *grads, [True, False, True, False, True], largest=largest[1])
    expected = torch.stack([modulated.abs().amax(), of_product.abs().amax()])
    torch.testing.assert_close(largest, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 70, 512), (1, 40, 1030), (2, 300, 5)])
def test_every_schedule_gives_the_same(kernel_backend: Backend, shape: tuple[int, int, int]) -> None:
    inputs = on(kernel_backend, sample_inputs(shape, torch.float16))
    found = []
    for _ in kernel_backend.schedules():
        made = present(modulated_epilogue(**inputs))
        found.append([*made.values(), *gradients(made, inputs).values()])
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("without", [(), ("skip", "rgb_weight", "rgb"), ("demodulation", "next_modulation", "rgb")])
def test_registration(backend: Backend, without: tuple[str, ...]) -> None:
    inputs = on(backend, sample_inputs((2, 5, 8), torch.float32, without))
    product, demodulation, skip, modulation, weight, rgb = (inputs.get(n) for n in ("product", *OPTIONAL))
    arguments = (product, demodulation, 0.2, skip, modulation, weight, rgb, not without)
    torch.library.opcheck(OPS["modulated_epilogue"].overload, arguments)
    constants = [None if t is None else t.detach() for t in (product, demodulation, skip, modulation, weight, rgb)]
    product, demodulation, skip, modulation, weight, rgb = constants
    upstream = (product, None if modulation is None else product, rgb)
    wanted = [True, demodulation is not None, skip is not None, modulation is not None, rgb is not None]
    arguments = (product, demodulation, 0.2, skip, modulation, weight, *upstream, wanted)
    torch.library.opcheck(OPS["modulated_epilogue_backward"].overload, arguments)


def test_compiles(backend: Backend) -> None:
    def loss(*tensors: Tensor) -> Tensor:
        made = modulated_epilogue(**dict(zip(inputs, tensors, strict=True)))
        return made.modulated.square().mean() + made.rgb.square().mean()

    inputs = on(backend, sample_inputs((2, 5, 8), torch.float32))
    tensors = list(inputs.values())
    eager = torch.autograd.grad(loss(*tensors), tensors)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*tensors), tensors)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"product": torch.zeros(3, 4)}, "product must have shape"),
        ({"product": torch.zeros(2, 3, 4, dtype=torch.int32)}, "product must be of a floating-point dtype"),
        ({"demodulation": torch.zeros(2, 3)}, r"demodulation must have shape \[2, 4\]"),
        ({"skip": torch.zeros(2, 3, 5)}, r"skip must have shape \[2, 3, 4\]"),
        ({"skip": torch.zeros(2, 3, 4, dtype=torch.float16)}, "skip must be torch.float32"),
        ({"next_modulation": torch.zeros(4)}, r"next_modulation must have shape \[2, 4\]"),
        ({"next_modulation": torch.zeros(2, 4, device="meta")}, "next_modulation must be torch.float32 on cpu"),
        ({"rgb_weight": torch.zeros(4, 3)}, r"rgb_weight must have shape \[3, 4\]"),
        ({"rgb_weight": torch.zeros(3, 4, dtype=torch.bfloat16)}, "rgb_weight must be torch.float32"),
        ({"rgb": torch.zeros(3, 2, 3), "rgb_weight": torch.zeros(3, 4)}, r"rgb must have shape \[2, 3, 3\]"),
        ({"rgb": torch.zeros(2, 3, 3)}, "rgb_weight must be given"),
        ({"negative_slope": -0.1}, "negative_slope must not be negative"),
    ],
)
def test_wrong_arguments_are_named(change: dict, named: str) -> None:
    arguments = {"product": torch.zeros(2, 3, 4)} | change
    with pytest.raises(ValueError, match=named):
        modulated_epilogue(**arguments)
