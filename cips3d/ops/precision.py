"""How exactly products are computed, in PyTorch's words for those of float32 matrices."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Precision = Literal["highest", "high", "fast"]
"""Of products of float32 numbers, a promise of at least so much accuracy.

- "highest": as accurate as float32. Kernels split every operand into two of 16 bits and add three products.
- "high": as accurate as TF32, which keeps 11 bits of every operand. Kernels have no arithmetic of its own for it and
  compute as for "highest".
- "fast": operands rounded to 16 bits, sums in float32. Kernels of sine layers round to float16, which has TF32's 11
  bits, since sines amplify what bfloat16 loses.

None, wherever a precision is asked for, is what `torch.set_float32_matmul_precision` is set to: "highest" and "high"
are those above, "medium" is "fast". Plain PyTorch computes sine layers in float32 whatever is asked for, and as that
setting says.
"""


def is_fast(precision: Precision | None) -> bool:
    """Whether products of 16-bit numbers are good enough.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision is None:
        return _pytorch_is_fast()
    if precision not in get_args(Precision):
        raise ValueError(f'precision must be "highest", "high" or "fast", got {precision!r}')
    return precision == "fast"


@torch.compiler.assume_constant_result
def _pytorch_is_fast() -> bool:
    """PyTorch's own setting; torch.compile asks when it compiles."""
    try:
        return torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:  # set through torch.backends.*.fp32_precision, which has no such level on a GPU
        return False
