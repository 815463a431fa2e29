"""Precision of single networks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from cips3d.ops.precision import Precision, is_fast


def checked_precision(precision: Precision | None) -> Precision | None:
    """The precision, once it is known to be one.

    Raises:
        ValueError: there is no such precision.
    """
    is_fast(precision)
    return precision


def checked_fast_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that "fast" rounds to, once it is known to be one.

    Raises:
        ValueError: it is another one.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"fast_dtype must be torch.float16 or torch.bfloat16, got {dtype}")
    return dtype


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Inside, matrix products are of `dtype` (bfloat16 or float16); None keeps the setting that is in force."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
