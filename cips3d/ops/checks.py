"""Argument checks that every op and every backend of it shares."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def check_shape(name: str, tensor: Tensor, expected: Sequence[int | None]) -> tuple[int, ...]:
    """Return the tensor's shape, or raise ValueError naming the argument; None in `expected` matches any size."""
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(e is not None and e != s for e, s in zip(expected, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(shape)}")
    return shape
