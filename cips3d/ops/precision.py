"""How exactly products are computed, in the terms of PyTorch's setting for products of float32 matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, get_args

import torch

from cips3d.ops.compiling import constant_while_compiling

Precision = Literal["highest", "high", "fast"]
"""Of products of float32 numbers, a promise of at least so much accuracy.

- "highest": as accurate as float32. Kernels split every operand into two of 16 bits and add three products, and so
  does `split_matmul` in place of PyTorch's products of modulated layers, where it pays.
- "high": as accurate as TF32, which keeps 11 bits of every operand. So does float16, which the kernels of whole
  networks round to (`modulated_inr` and `render_rays`); gradients of `modulated_inr` are products of float32 numbers,
  as PyTorch's setting has them, and those of `render_rays` through deep fields are as for "highest". All others compute
  as for "highest".
- "fast": operands rounded to 16 bits, sums in float32. Kernels of sine layers round to float16, since sines amplify
  what bfloat16 loses; gradients, whose range is wide, to bfloat16, but for those of `render_rays` through such fields.

None, wherever a precision is asked for, is what `torch.set_float32_matmul_precision` is set to: "highest" and "high"
are those above, "medium" is "fast". Plain PyTorch computes sine layers in float32 whatever is asked for, and as that
setting says. Convolutions are cuDNN's, which by itself takes TF32 for them: `product_precision` sets both.
"""


PRECISIONS: tuple[str, ...] = get_args(Precision)


def is_fast(precision: Precision | None) -> bool:
    """Whether products of 16-bit numbers of any kind are good enough.

    Raises:
        ValueError: the precision is unknown.
    """
    return _meant(precision) == "fast"


def takes_float16(precision: Precision | None) -> bool:
    """Whether products of float16 numbers are good enough, as those of TF32 numbers are.

    Raises:
        ValueError: the precision is unknown.
    """
    return _meant(precision) != "highest"


def _meant(precision: Precision | None) -> Precision:
    if precision is None:
        return _set_in_pytorch()
    if precision not in PRECISIONS:
        raise ValueError(f'precision must be "highest", "high" or "fast", got {precision!r}')
    return precision


@constant_while_compiling
def _set_in_pytorch() -> Precision:
    """PyTorch's own setting; torch.compile asks when it compiles."""
    try:
        setting = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through torch.backends.*.fp32_precision, one by one
        return "highest"
    return next(precision for precision, name in IN_PYTORCH.items() if name == setting)


IN_PYTORCH: dict[Precision, str] = {"highest": "highest", "high": "high", "fast": "medium"}


@contextmanager
def product_precision(precision: Precision | None) -> Iterator[None]:
    """Inside, PyTorch's products and convolutions and all ops have this precision; None changes nothing.

    It sets `torch.set_float32_matmul_precision`, and lets cuDNN's convolutions have TF32 unless it is "highest".

    Raises:
        ValueError: the precision is unknown.
    """
    if precision is None:
        yield
        return
    _meant(precision)  # raises where it is unknown
    restore = _settings_of_pytorch(), _settings_of_cudnn()
    torch.set_float32_matmul_precision(IN_PYTORCH[precision])
    _let_cudnn_have_tf32(precision != "highest")
    try:
        yield
    finally:
        for each in restore:
            each()


def _settings_of_pytorch() -> Callable[[], None]:
    """A function that restores PyTorch's settings as they are now: the one for all backends, and each backend's."""
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):  # PyTorch before 2.9
        return partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    each = [backend.fp32_precision for backend in backends]
    for_all = _setting_for_all(backends)

    def restore() -> None:
        torch.set_float32_matmul_precision(for_all)  # which sets the backends too
        _set(backends, each)

    restore()
    return restore


def _settings_of_cudnn() -> Callable[[], None]:
    """A function that restores cuDNN's settings as they are now: the one for all operators, and each operator's."""
    operators, for_all = _operators_of_cudnn(), None
    each = [operator.fp32_precision for operator in operators]
    with suppress(RuntimeError):  # there is none where theirs differ
        for_all = torch.backends.cudnn.allow_tf32

    def restore() -> None:
        if for_all is not None:
            torch.backends.cudnn.allow_tf32 = for_all
        _set(operators, each)

    return restore


def _let_cudnn_have_tf32(is_allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = is_allowed
    operators = _operators_of_cudnn()
    _set(operators, ["tf32" if is_allowed else "ieee"] * len(operators))


def _operators_of_cudnn() -> list[Any]:
    """Those that have settings of their own: none before PyTorch 2.9."""
    cudnn: Any = torch.backends.cudnn
    return [cudnn.conv, cudnn.rnn] if hasattr(cudnn, "conv") else []


def _setting_for_all(backends: list[Any]) -> str:
    """PyTorch's setting for all backends, which it does not tell where theirs are none that the setting makes; they
    are changed then."""
    for made in (None, ("ieee", "ieee"), ("tf32", "tf32"), ("tf32", "bf16")):
        if made is not None:
            _set(backends, made)
        with suppress(RuntimeError):
            return torch.get_float32_matmul_precision()
    raise AssertionError("PyTorch has a setting that it does not know")


def _set(backends: list[Any], settings: Sequence[str]) -> None:
    for backend, setting in zip(backends, settings, strict=True):
        backend.fp32_precision = setting
