"""What the emulated device functions compute, against numpy, PyTorch and their definitions."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import emulated_kernels
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

SCHEDULES = range(4)
Array = NDArray[Any]


class DeviceFunctions:
    """Calls what device_functions.cu exports: arrays go in as addresses."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.last_error.restype = ctypes.c_char_p

    def __call__(self, name: str, *arguments: Array | int) -> int:
        result: int = getattr(self._library, name)(
            *(ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in arguments)
        )
        assert (error := self._library.last_error().decode()) == "", error
        return result


@pytest.fixture(scope="module")
def device() -> DeviceFunctions:
    if emulated_kernels.compiler() is None:
        pytest.skip(emulated_kernels.NO_COMPILER)
    return DeviceFunctions(emulated_kernels.build(sources=[Path(__file__).with_name("device_functions.cu")]))


@pytest.fixture(params=SCHEDULES)
def scheduled(request: pytest.FixtureRequest, device: DeviceFunctions) -> DeviceFunctions:
    device("set_schedule", request.param)
    return device


def to_bits(values: Array, dtype: torch.dtype) -> NDArray[np.uint16]:
    bits: NDArray[np.uint16] = torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16)
    return bits


def to_values(bits: NDArray[np.uint16], dtype: torch.dtype) -> NDArray[np.float32]:
    values: NDArray[np.float32] = torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()
    return values


DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])


@DTYPES
def test_every_16_bit_number_to_fp32(device: DeviceFunctions, dtype: torch.dtype) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    values = np.empty(65536, np.float32)
    device("to_floats", int(dtype == torch.float16), bits, values, 65536)
    expected = to_values(bits, dtype)
    numbers = ~np.isnan(expected)
    assert np.isnan(values[~numbers]).all()
    assert np.array_equal(values[numbers].view(np.uint32), expected[numbers].view(np.uint32))


@DTYPES
def test_rounding_of_fp32(device: DeviceFunctions, dtype: torch.dtype) -> None:
    numbers = to_values(np.arange(65536, dtype=np.uint16), dtype)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    with np.errstate(over="ignore"):
        ties = ((numbers[1:].astype(np.float64) + numbers[:-1]) / 2).astype(np.float32)
        beside = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65519.99, 65520.0, 3.4e38, 1e-45, -1e-45], np.float32)
    values = np.concatenate([numbers, ties, *beside, random, special])
    bits = np.empty(values.size, np.uint16)
    device("from_floats", int(dtype == torch.float16), values, bits, values.size)
    expected = to_bits(values, dtype)
    numbers_in = ~np.isnan(values)
    assert np.array_equal(bits[numbers_in], expected[numbers_in])
    assert (bits[~numbers_in] == 0x7FFF).all()  # as the device's conversion does


@DTYPES
def test_16_bit_multiply_add_rounds_once(device: DeviceFunctions, dtype: torch.dtype) -> None:
    random = np.random.default_rng(1)
    # c is a power of two that the product just reaches the last bits of: ties of ties.
    a, b = (to_bits(random.uniform(1, 2, 20_000).astype(np.float32), dtype) for _ in range(2))
    c = to_bits(np.exp2(random.integers(-2, 13, 20_000)).astype(np.float32), dtype)
    d = np.empty_like(a)
    device("fma16", int(dtype == torch.float16), a, b, c, d, a.size)
    x, y, z = (to_values(bits, dtype).astype(np.float64) for bits in (a, b, c))
    exact = x * y + z  # in fp64: at most 37 bits
    result = to_values(d, dtype).astype(np.float64)
    for neighbour in (d + 1, d - 1):  # none is nearer, and none is as near and even
        other = to_values(neighbour.astype(np.uint16), dtype).astype(np.float64)
        distance, others = abs(result - exact), abs(other - exact)
        assert (distance <= others).all()
        assert (d[distance == others] % 2 == 0).all()


@DTYPES
def test_mma(scheduled: DeviceFunctions, dtype: torch.dtype) -> None:
    random = np.random.default_rng(2)
    a, b = (to_bits(random.normal(size=shape).astype(np.float32), dtype) for shape in ((16, 16), (8, 16)))
    c, d = random.normal(size=(16, 8)).astype(np.float32), np.empty((16, 8), np.float32)
    scheduled("mma", int(dtype == torch.float16), a, b, c, d)
    expected = to_values(a, dtype).astype(np.float64) @ to_values(b, dtype).astype(np.float64).T + c
    # 17 additions in fp32 of numbers up to about 10.
    np.testing.assert_allclose(d, expected, rtol=0, atol=17 * 10 * 2**-24)


@pytest.mark.parametrize("rows_first", [False, True])
def test_product_of_a_warpgroup(scheduled: DeviceFunctions, rows_first: bool) -> None:
    random = np.random.default_rng(6)
    shapes = (64, 16), (256, 16)
    a, b = (to_bits(random.normal(size=shape).astype(np.float32), torch.float16) for shape in shapes)
    c, d = random.normal(size=(64, 256)).astype(np.float32), np.empty((64, 256), np.float32)
    scheduled("warpgroup", int(rows_first), a, b, c, d)
    x, y = (to_values(bits, torch.float16).astype(np.float64) for bits in (a, b))
    np.testing.assert_allclose(d, x @ y.T + c, rtol=0, atol=17 * 10 * 2**-24)


@pytest.mark.parametrize("adds", [False, True])
def test_product_of_registers(scheduled: DeviceFunctions, adds: bool) -> None:
    random = np.random.default_rng(7)
    a, b = (to_bits(random.normal(size=(64, 16)).astype(np.float32), torch.float16) for _ in range(2))
    c, d = random.normal(size=(64, 64)).astype(np.float32), np.empty((64, 64), np.float32)
    scheduled("warpgroup_registers", int(adds), a, b, c, d)
    x, y = (to_values(bits, torch.float16).astype(np.float64) for bits in (a, b))
    np.testing.assert_allclose(d, x @ y.T + adds * c, rtol=0, atol=17 * 10 * 2**-24)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_cluster(scheduled: DeviceFunctions, blocks: int) -> None:
    clusters = 3
    values = np.random.default_rng(8).normal(size=(clusters, 128)).astype(np.float32)
    out, found = np.empty((clusters, blocks, 128), np.float32), np.empty((clusters, blocks, 3), np.int32)
    scheduled("cluster", blocks, clusters * blocks, values, out, found)
    assert np.array_equal(out, np.broadcast_to(values[:, None], out.shape))
    assert (found[..., 0] == np.arange(blocks)).all() and (found[..., 1] == blocks).all()
    assert (np.sort(found[..., 2]) == np.arange(blocks)).all()


def exponent(x: float) -> int:
    """Of the leading bit."""
    return math.frexp(x)[1] - 1


def sum_of_a_tensor_core(a: NDArray[np.float64], b: NDArray[np.float64], c: float) -> float:
    """c + Σ a b, in integers: terms are cut off 25 bits below the largest, and the sum where fp32 ends."""
    exponents = [exponent(x) + exponent(y) for x, y in zip(a, b, strict=True) if x and y]
    unit = max([*exponents, exponent(c)] if c else exponents) - 25
    terms = [*(Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True)), Fraction(c)]
    total = sum(math.trunc(term / Fraction(2) ** unit) for term in terms)
    beyond = max(total.bit_length() - 24, 0)
    return float(math.copysign(abs(total) >> beyond << beyond, total) * 2.0**unit)


@DTYPES
@pytest.mark.parametrize("spread", [0, 3, 12])  # of exponents, ±
def test_mma_cuts_off(device: DeviceFunctions, dtype: torch.dtype, spread: int) -> None:
    """As measured on Hopper (arXiv 2512.07004): what does not fit is cut off, not rounded."""
    random = np.random.default_rng(5)

    def numbers(*shape: int) -> NDArray[np.float32]:
        values = random.normal(size=shape) * np.exp2(random.integers(-spread, spread + 1, shape))
        return values.astype(np.float32)

    for _ in range(4):
        a, b, c = to_bits(numbers(16, 16), dtype), to_bits(numbers(8, 16), dtype), numbers(16, 8)
        c[0] = 0
        d = np.empty((16, 8), np.float32)
        device("mma", int(dtype == torch.float16), a, b, c, d)
        x, y = to_values(a, dtype).astype(np.float64), to_values(b, dtype).astype(np.float64)
        expected = [[sum_of_a_tensor_core(x[i], y[j], float(c[i, j])) for j in range(8)] for i in range(16)]
        np.testing.assert_array_equal(d, expected)


def test_mma_of_special_numbers(device: DeviceFunctions) -> None:
    for special in (np.inf, np.nan, 6e-8, 65504.0):
        a = np.zeros((16, 16), np.float32)
        a[3, 5] = special
        b = np.ones((8, 16), np.float32)
        c, d = np.zeros((16, 8), np.float32), np.empty((16, 8), np.float32)
        device("mma", 1, to_bits(a, torch.float16), to_bits(b, torch.float16), c, d)
        expected = np.zeros((16, 8), np.float32)
        expected[3] = to_values(to_bits(a, torch.float16), torch.float16)[3, 5]
        np.testing.assert_array_equal(d, expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("matrices", [2, 4])
def test_ldmatrix(scheduled: DeviceFunctions, matrices: int, transposed: bool) -> None:
    rows = np.random.default_rng(3).integers(0, 65536, (matrices, 8, 8)).astype(np.uint16)
    out = np.empty((32, matrices), np.uint32)
    scheduled("ldmatrix", matrices, int(transposed), rows, out)
    if transposed:
        rows = rows.transpose(0, 2, 1)
    # Lane 4 * i + j has elements 2j and 2j + 1 of row i, the first in the lower half.
    expected = np.ascontiguousarray(rows).view(np.uint32).reshape(matrices, 32).T
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("count", [0, 4, 12, 16])
def test_asynchronous_copies(scheduled: DeviceFunctions, count: int) -> None:
    values = np.random.default_rng(4).normal(size=(32, 4)).astype(np.float32)
    first, second = np.empty_like(values), np.empty_like(values)
    scheduled("copy", values, first, second, count)
    expected = values.copy()
    expected[:, count // 4 :] = 0
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, values)


@pytest.mark.parametrize("threads", [32, 96])
def test_warp_functions(scheduled: DeviceFunctions, threads: int) -> None:
    values = np.random.default_rng(5).integers(0, 1000, threads).astype(np.int32)
    out = np.empty((scheduled("warp_rows"), threads), np.int64)
    scheduled("warp_functions", values, out, threads)
    lane = np.arange(32)
    warps = values.reshape(-1, 32).astype(np.int64)
    odd = warps % 2 == 1

    def everywhere(a_warp: Array) -> Array:
        return np.repeat(a_warp[:, None], 32, axis=1)

    expected = [
        everywhere(warps[:, 5]),
        warps[:, lane // 8 * 8 + (lane + 1) % 8],
        warps[:, lane ^ 3],
        warps[:, np.where(lane % 16 >= 2, lane - 2, lane)],
        warps[:, np.where(lane + 7 < 32, lane + 7, lane)],
        warps[:, lane ^ 1],
        np.where(lane < 16, warps[:, lane ^ 1], warps[:, lane ^ 2]),
        everywhere((odd << lane).sum(1)),
        everywhere((warps == values[0]).any(1)),
        np.ones_like(warps),
        everywhere(warps.sum(1)),
        everywhere(warps.min(1)),
        everywhere((-warps).max(1)),
        everywhere(np.bitwise_xor.reduce(warps, axis=1)),
        np.full_like(warps, odd.sum()),
        np.full_like(warps, 2),
    ]
    for row, (result, wanted) in enumerate(zip(out, expected, strict=True)):
        np.testing.assert_array_equal(result, wanted.reshape(-1), err_msg=f"row {row}")


def test_atomics(scheduled: DeviceFunctions) -> None:
    values = np.random.default_rng(6).integers(1, 1000, 5 * 64).astype(np.int32)
    out, total = np.zeros(12, np.int32), np.zeros(1, np.float32)
    out[3], out[5] = 10_000, -1
    scheduled("atomics", values, out, total, 5, 64)
    bits = [np.bitwise_or.reduce(values), np.bitwise_and.reduce(values), np.bitwise_xor.reduce(values)]
    assert list(out[:9]) == [values.sum(), -values.sum(), values.max(), values.min(), *bits, 1, 1]
    assert out[9] in values
    assert out[10] == 1
    assert total[0] == values.size


def come(device: DeviceFunctions, grid: tuple[int, int, int], block: tuple[int, int, int]) -> Array:
    """The order in which the threads of a launch come; each must do so once, with indices of its own."""
    count = int(np.prod(grid) * np.prod(block))
    counts, order, following = np.zeros(count, np.int32), np.full(count, -1, np.int32), np.zeros(1, np.int32)
    device("indices", np.array(grid, np.uint32), np.array(block, np.uint32), counts, order, following)
    np.testing.assert_array_equal(counts, 1)
    return order


@pytest.mark.parametrize("block", [(1, 1, 1), (5, 3, 2), (32, 2, 4), (33, 1, 1), (1024, 1, 1)])
def test_every_thread_runs_once(scheduled: DeviceFunctions, block: tuple[int, int, int]) -> None:
    come(scheduled, (3, 2, 4), block)


def test_schedules(device: DeviceFunctions) -> None:
    orders = []
    for seed in (0, 1, 2, 1):
        device("set_schedule", seed)
        orders.append(come(device, (7, 1, 1), (100, 1, 1)))
    assert np.array_equal(orders[0], np.arange(700))
    assert not np.array_equal(orders[1], orders[0])
    assert not np.array_equal(orders[1], orders[2])
    assert np.array_equal(orders[1], orders[3])


FUNCTIONS: list[tuple[str, Callable[[Array], Array], tuple[float, float], float]] = [
    # The special function unit's error, and of an argument in revolutions: 2^-21 and 2^-24 of |x|.
    ("__sinf", np.sin, (-3, 3), 1e-6),
    ("__cosf", np.cos, (-3, 3), 1e-6),
    ("__sincosf", lambda x: np.sin(x) + 2 * np.cos(x), (-3, 3), 3e-6),
    ("__expf", lambda x: np.exp(x) / np.exp(3), (-3, 3), 1e-6),
    ("__logf", np.log, (0.1, 10), 1e-6),
    # Correctly rounded but for a few.
    ("sinpif", lambda x: np.sin(np.pi * x), (-2, 2), 2**-24),
    ("cospif", lambda x: np.cos(np.pi * x), (-2, 2), 2**-24),
    ("rsqrtf", lambda x: x**-0.5, (0.3, 10), 2**-24),
    ("__fdividef", lambda x: x / 3, (-3, 3), 2**-23),
    ("__saturatef", lambda x: np.clip(x, 0, 1), (-3, 3), 0),
    ("__fmul_rn", lambda x: (x * x).astype(np.float32).astype(np.float64) - 1, (1, 1.4), 0),
    ("fmaf", lambda x: (x * x - 1).astype(np.float32), (1, 1.4), 0),
    ("min", lambda x: np.minimum(x, 0.5), (0, 1), 0),
    ("max", lambda x: np.maximum(x, 0.5), (0, 1), 0),
    ("__stcs", lambda x: x, (-3, 3), 0),
]


@pytest.mark.parametrize("index", range(len(FUNCTIONS)), ids=[name for name, *_ in FUNCTIONS])
def test_arithmetic(device: DeviceFunctions, index: int) -> None:
    name, function, (low, high), tolerance = FUNCTIONS[index]
    x = np.random.default_rng(7).uniform(low, high, 1000).astype(np.float32)
    y = np.empty_like(x)
    device("arithmetic", index, x, y, x.size)
    expected = function(x.astype(np.float64))
    scale = np.exp(3) if name == "__expf" else 1
    np.testing.assert_allclose(y / scale, expected, rtol=0, atol=tolerance)


def test_fast_sine_loses_accuracy_as_the_argument_grows(device: DeviceFunctions) -> None:
    x = np.linspace(200, 300, 1001).astype(np.float32)
    y = np.empty_like(x)
    device("arithmetic", 0, x, y, x.size)
    error = abs(y - np.sin(x.astype(np.float64))).max()
    assert (
        1e-6 < error < 6e-5
    )  # half a unit in the last place of 300 / 2π, times 2π: 2^-19 * 2π / 2 and of 1 / 2π itself


def test_minimum_and_maximum_leave_nan_out(device: DeviceFunctions) -> None:
    x, y = np.full(1, np.nan, np.float32), np.empty(1, np.float32)
    for function in (12, 13):
        device("arithmetic", function, x, y, 1)
        assert y[0] == 0.5
