"""Arrays that the cases of test_sanitized_ops.py give to launchers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2  # DType in csrc/numeric.h
STORED = {FLOAT32: np.float32, FLOAT16: np.float16, BFLOAT16: np.float16}  # as many bytes
DEVICE, STREAM = 0, 0

Floats = NDArray[np.float32]


def normal(*shape: int) -> Floats:
    """Normal numbers, the same every time."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def address(array: NDArray[np.generic]) -> int:
    """What a launcher takes for a tensor; the array has to outlive the call."""
    return array.ctypes.data
