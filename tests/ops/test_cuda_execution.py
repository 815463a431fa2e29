"""How the kernels run on a GPU: streams, devices, CUDA graphs, torch.compile, tensors of more than 2³¹ elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from ops.backends import Backend, open_backend
from torch import Tensor

from cips3d.ops import (
    FoldedLayer,
    ModulatedWeight,
    RayDraws,
    RenderedRays,
    SirenField,
    accumulate,
    composite,
    film_siren,
    importance_depths,
    modulated_epilogue,
    modulated_inr,
    render_rays,
    split_matmul,
    stratified_points,
)
from cips3d.ops.bias_leaky_relu import bias_leaky_relu
from cips3d.ops.upfirdn2d import binomial_kernel, upfirdn2d

Op = Callable[..., object]


@pytest.fixture
def cuda(request: pytest.FixtureRequest) -> Iterator[Backend]:
    yield from open_backend("cuda", request.node.nodeid, few_multiprocessors=False)


def draws(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def rendered(origins: Tensor, directions: Tensor, stratified: Tensor, importance: Tensor, *of: Tensor) -> RenderedRays:
    layers = [FoldedLayer(*of[i : i + 2]) for i in (0, 2, 4)]
    field = SirenField(*layers, *of[6:])
    return render_rays(origins, directions, field, RayDraws(stratified, importance), 0.88, 1.12)


def field(width: int, color: int) -> list[Tensor]:
    """Layers of two images, and a density."""
    layers = [draws(2, *shape) - 0.5 for shape in ((width, 3), (width,), (width, width), (width,), (color, width))]
    return [*layers, draws(2, color), 20 * draws(width) - 8, draws(1)]


def colored(features: Tensor, *of: Tensor) -> Tensor:
    layers = [ModulatedWeight.of(weight, modulation) for weight, modulation in zip(of[:2], of[2:4], strict=True)]
    return modulated_inr(features, layers, [of[4]], skip_from=1)


TAPS = binomial_kernel()
RAYS = [draws(2, 9, 3) - 0.5, draws(2, 9, 3), draws(2, 9, 12), draws(2, 9, 12)]
DEPTHS = torch.linspace(0.88, 1.12, 12).expand(2, 40, 12)
OPS: dict[str, tuple[Op, list[Tensor]]] = {
    "bias_leaky_relu": (bias_leaky_relu, [draws(2, 8, 32, 32) - 0.5, draws(8)]),
    "upfirdn2d": (lambda x, taps: upfirdn2d(x, taps, down=2, padding=1), [draws(2, 8, 32, 32), TAPS]),
    "stratified_points": (
        lambda o, d, u: stratified_points(o, d, u, 0.88, 1.12),
        [draws(2, 40, 3), draws(2, 40, 3), draws(2, 40, 12)],
    ),
    "importance_depths": (importance_depths, [DEPTHS, draws(2, 40, 12), draws(2, 40, 12)]),
    "accumulate": (accumulate, [draws(2, 40, 12), draws(2, 40, 12, 32)]),
    "composite": (composite, [50 * draws(2, 40, 12), draws(2, 40, 12, 32), DEPTHS]),
    "film_siren": (
        film_siren,
        [draws(2, 100, 32), draws(48, 32) - 0.5, draws(48), 30 + draws(2, 48), draws(2, 48)],
    ),
    "split_matmul": (split_matmul, [draws(2, 100, 48) - 0.5, draws(48, 72) - 0.5]),
    "modulated_epilogue": (
        lambda product, scale, skip: modulated_epilogue(product, scale, negative_slope=0.2, skip=skip),
        [draws(2, 100, 48), draws(2, 48), draws(2, 100, 48)],
    ),
    # These take more shared memory than every kernel may.
    "render_rays": (rendered, [*RAYS, *field(128, 64)]),
    "render_rays, wide": (rendered, [*RAYS, *field(144, 80)]),
    "modulated_inr": (
        colored,
        [
            draws(2, 300, 32) - 0.5,
            draws(32, 256) - 0.5,
            draws(256, 256) - 0.5,
            draws(2, 32),
            draws(2, 256),
            draws(3, 256),
        ],
    ),
}


def outputs(result: object) -> list[Tensor]:
    everything = [result] if isinstance(result, Tensor) else list(result)  # type: ignore[call-overload]
    return [t for t in everything if isinstance(t, Tensor)]


def on(device: torch.device, inputs: list[Tensor]) -> list[Tensor]:
    return [t.to(device).contiguous() for t in inputs]


@pytest.mark.parametrize("name", OPS)
def test_current_stream_is_used(cuda: Backend, name: str) -> None:
    """Work that a side stream has not finished yet must be seen: inputs arrive late, on that stream alone."""
    op, cpu_inputs = OPS[name]
    inputs = on(cuda.device, cpu_inputs)
    expected = outputs(op(*inputs))
    late = [torch.zeros_like(t) for t in inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for target, source in zip(late, inputs, strict=True):
            target.copy_(source)
        found = outputs(op(*late))
    stream.synchronize()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", OPS)
def test_graphs_capture_forward_and_backward(cuda: Backend, name: str) -> None:
    op, cpu_inputs = OPS[name]
    inputs = on(cuda.device, cpu_inputs)
    for t in inputs:
        if name not in ("importance_depths", "upfirdn2d") and t.is_floating_point():
            t.requires_grad_()
    if name == "upfirdn2d":
        inputs[0].requires_grad_()

    def step() -> list[Tensor]:
        found = outputs(op(*inputs))
        wanted = [t for t in inputs if t.requires_grad]
        differentiable = [t for t in found if t.requires_grad]
        if not wanted:
            return found
        loss = torch.stack([t.square().sum() for t in differentiable]).sum()
        return [*found, *(g for g in torch.autograd.grad(loss, wanted, allow_unused=True) if g is not None)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():  # other data at the same addresses
        for t in inputs:
            if t.requires_grad:
                t.mul_(0.9)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, step(), strict=True):
        torch.testing.assert_close(a, b)  # products by cuBLAS are not bound to be the same to the last bit


@pytest.mark.parametrize("name", OPS)
def test_second_device(cuda: Backend, name: str) -> None:
    """A tensor's own device computes, whichever is current, and the current one stays current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("no second CUDA device")
    op, cpu_inputs = OPS[name]
    expected = outputs(op(*on(torch.device("cuda", 0), cpu_inputs)))
    with torch.cuda.device(0):
        found = outputs(op(*on(torch.device("cuda", 1), cpu_inputs)))
        assert torch.cuda.current_device() == 0
    for a, b in zip(found, expected, strict=True):
        assert a.device.index == 1
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.parametrize("name", OPS)
def test_inductor_compiles(cuda: Backend, name: str) -> None:
    torch.compiler.reset()  # all of them compile the same lambda, and only eight versions of a function may be
    op, cpu_inputs = OPS[name]
    inputs = on(cuda.device, cpu_inputs)
    found = outputs(torch.compile(lambda *given: op(*given), fullgraph=True)(*inputs))
    for a, b in zip(found, outputs(op(*inputs)), strict=True):
        torch.testing.assert_close(a, b)


def test_more_than_int32_elements(cuda: Backend) -> None:
    planes = 2**31 // (1024 * 1024) + 1
    free, _ = torch.cuda.mem_get_info()
    if free < 4 * 2 * planes * 2**20:
        pytest.skip("no CUDA device with 17 GB free")
    x = torch.zeros(1, planes, 1024, 1024, dtype=torch.float16, device=cuda.device)
    x[0, -1] = torch.randn(1024, 1024, device=cuda.device).half()
    bias = torch.zeros(planes, dtype=torch.float16, device=cuda.device)
    last = x[:, -1:].clone()
    assert torch.equal(bias_leaky_relu(x, bias)[:, -1:], bias_leaky_relu(last, bias[-1:]))
    taps = TAPS.to(cuda.device)
    assert torch.equal(upfirdn2d(x, taps, padding=(2, 1))[:, -1:], upfirdn2d(last, taps, padding=(2, 1)))


def test_more_images_than_blocks_along_y(cuda: Backend) -> None:
    """Of one ray each: the kernels that have an image a block."""
    images = 2**16
    free, _ = torch.cuda.mem_get_info()
    if free < 12 << 30:
        pytest.skip("no CUDA device with 12 GB free")

    def step(images: int) -> tuple[Tensor, ...]:
        given = [t[:1, :1].expand(images, -1, -1) for t in RAYS]
        layers = [t[:1].expand(images, *t.shape[1:]) for t in field(16, 16)[:6]]
        tensors = [t.requires_grad_() for t in on(cuda.device, [*given[:2], *layers])]
        rest = on(cuda.device, [*given[2:], *field(16, 16)[6:]])
        seen = rendered(*tensors[:2], *rest[:2], *tensors[2:], *rest[2:])
        return seen.colors, *torch.autograd.grad(seen.colors.square().sum(), tensors)

    for few, many in zip(step(1), step(images), strict=True):
        torch.testing.assert_close(many, few.expand_as(many))
