"""The words for precision mean the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from ops.backends import Backend
from torch import Tensor

from cips3d.ops import kernels
from cips3d.ops.film_siren import FoldedLayer, film_siren, sine_field
from cips3d.ops.march import RayDraws
from cips3d.ops.precision import Precision, is_fast, product_precision, takes_float16
from cips3d.ops.render_rays import render_rays
from cips3d.ops.siren_field import SirenField


@pytest.fixture(params=["highest", "high", "medium"])
def pytorch_setting(request: pytest.FixtureRequest) -> Iterator[str]:
    """PyTorch's setting for float32 products, inside the test."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def siren(device: torch.device, precision: Any) -> Tensor:
    x, weight, bias, gain, shift = normal(1, 20, 16), normal(16, 16), normal(16), normal(1, 16), normal(1, 16)
    given = [t.to(device) for t in (x, weight, bias, gain, shift)]
    return film_siren(*given, precision=precision)


def rays(device: torch.device, precision: Any, width: int = 16) -> Tensor:
    layers = [FoldedLayer(normal(1, width, i).to(device), normal(1, width).to(device)) for i in (3, width, width)]
    field = SirenField(*layers, normal(width).to(device), normal(1).to(device))
    origins, directions = normal(1, 5, 3).to(device), normal(1, 5, 3).to(device)
    draws = RayDraws(torch.rand(1, 5, 4, generator=torch.Generator().manual_seed(0)).to(device), None, None, None)
    return render_rays(origins, directions, field, draws, 0.9, 1.1, last_back=True, precision=precision).colors


def wide_rays(device: torch.device, precision: Any) -> Tensor:
    return rays(device, precision, 144)


def field(device: torch.device, precision: Any) -> Tensor:
    layers = [FoldedLayer(normal(1, 16, i).to(device), normal(1, 16).to(device)) for i in (3, 16, 16)]
    points, weight, bias = normal(1, 30, 3).to(device), normal(16).to(device), normal(1).to(device)
    return sine_field(points, layers[:2], layers[2], weight, bias, precision=precision)[1]


OPS_WITH_PRECISION = pytest.mark.parametrize("op", [siren, rays, wide_rays, field])


@OPS_WITH_PRECISION
def test_high_is_as_accurate_as_tf32(backend: Backend, op: Any) -> None:
    """Float16's operands are, so whole fields have them; the gradients of single layers would be bfloat16's."""
    highest, high, fast = (op(backend.device, precision) for precision in ("highest", "high", "fast"))
    assert torch.equal(high, fast if op in (rays, wide_rays) else highest)
    # Plain PyTorch has no faster products for sine layers; kernels have.
    assert torch.equal(fast, highest) != backend.uses_kernels


@OPS_WITH_PRECISION
def test_none_is_pytorchs_setting(backend: Backend, op: Any, pytorch_setting: str) -> None:
    meant: Precision = "fast" if pytorch_setting == "medium" else "high" if pytorch_setting == "high" else "highest"
    assert torch.equal(op(backend.device, None), op(backend.device, meant))


def test_compiled_code_follows_the_setting(kernel_backend: Backend, pytorch_setting: str) -> None:
    given = [t.to(kernel_backend.device) for t in (normal(1, 9, 16), normal(16, 16), normal(16), *[normal(1, 16)] * 2)]
    expected = film_siren(*given)  # before: compiling leaves PyTorch 2.4 with "high" where "medium" was set
    torch.compiler.reset()  # what has been compiled with another setting stays
    compiled = torch.compile(film_siren, backend="aot_eager", fullgraph=True)(*given)
    assert torch.equal(compiled, expected)
    torch.compiler.reset()


@OPS_WITH_PRECISION
def test_other_words_are_refused(backend: Backend, op: Any) -> None:
    with pytest.raises(ValueError, match='precision must be "highest", "high" or "fast", got \'medium\''):
        op(backend.device, "medium")


def test_words_are_set_in_pytorch() -> None:
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "high", "fast"):
        with product_precision(precision):  # type: ignore[arg-type]
            assert is_fast(None) == (precision == "fast")
            assert takes_float16(None) == (precision != "highest")
        assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ValueError, match="precision must be"), product_precision("medium"):  # type: ignore[arg-type]
        pass


def test_settings_by_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch has no single answer where its backends were set one by one, and says so with an exception."""

    def mixed() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    assert not is_fast(None)
    assert not takes_float16(None)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch has one setting for all")
@pytest.mark.parametrize("for_all", ["highest", "high", "medium"])
@pytest.mark.parametrize("by_backend", [None, ("none", "none"), ("tf32", "ieee"), ("ieee", "tf32"), ("tf32", "bf16")])
def test_settings_by_backend_come_back(for_all: str, by_backend: tuple[str, str] | None) -> None:
    """And so does the one for all of them, which PyTorch tells where theirs are ones that it makes."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]

    def set_each(settings: Sequence[str]) -> None:
        for backend, setting in zip(backends, settings, strict=True):
            backend.fp32_precision = setting

    before, each_before = torch.get_float32_matmul_precision(), [backend.fp32_precision for backend in backends]
    try:
        torch.set_float32_matmul_precision(for_all)
        made = [backend.fp32_precision for backend in backends]
        if by_backend is not None:
            set_each(by_backend)
        each = [backend.fp32_precision for backend in backends]
        with product_precision("fast"):
            assert is_fast(None)
        assert [backend.fp32_precision for backend in backends] == each
        set_each(made)
        assert torch.get_float32_matmul_precision() == for_all
    finally:
        torch.set_float32_matmul_precision(before)
        set_each(each_before)


@pytest.mark.parametrize("allowed", [True, False])
def test_convolutions_follow(allowed: bool) -> None:
    """By itself, cuDNN takes TF32 for them, whatever PyTorch's setting for products is."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        for precision in ("highest", "high", "fast"):
            with product_precision(precision):  # type: ignore[arg-type]
                assert torch.backends.cudnn.allow_tf32 == (precision != "highest")
                if hasattr(torch.backends.cudnn, "conv"):
                    assert torch.backends.cudnn.conv.fp32_precision == ("ieee" if precision == "highest" else "tf32")
            assert torch.backends.cudnn.allow_tf32 == allowed
        with product_precision(None):
            assert torch.backends.cudnn.allow_tf32 == allowed
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="PyTorch has one setting for all operators")
@pytest.mark.parametrize("each", [("ieee", "none"), ("ieee", "tf32"), ("tf32", "ieee")])
def test_settings_by_operator_come_back(each: tuple[str, str]) -> None:
    operators: list[Any] = [torch.backends.cudnn.conv, torch.backends.cudnn.rnn]  # type: ignore[attr-defined]
    before = torch.backends.cudnn.allow_tf32
    try:
        for operator, setting in zip(operators, each, strict=True):
            operator.fp32_precision = setting
        with product_precision("highest"):
            assert [operator.fp32_precision for operator in operators] == ["ieee", "ieee"]
        assert tuple(operator.fp32_precision for operator in operators) == each
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_contexts_that_are_left_in_another_order(kernel_backend: Backend) -> None:
    """As by two threads."""
    x = torch.zeros(1, device=kernel_backend.device)
    first, second = kernels.disabled(), kernels.disabled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not kernels.take(x)
    second.__exit__(None, None, None)
    assert kernels.take(x)
