"""Argument checks that every op and every backend of it shares."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cips3d.ops.autocast import is_autocasting

LARGEST = sys.float_info.max


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise, naming the argument, unless it is a tensor of floating-point numbers.

    Raises:
        TypeError: it is no tensor.
        ValueError: its dtype does not fit.
    """
    _check_is_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be of a floating-point dtype, got {tensor.dtype}")


def _check_is_tensor(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")


def check_shape(name: str, tensor: Tensor, expected: Sequence[int | None], *, floating: bool = True) -> tuple[int, ...]:
    """Return the shape of a tensor of floating-point numbers, unless told that it is of integers.

    None in `expected` matches any size.

    Raises:
        TypeError: it is no tensor.
        ValueError: its shape or dtype does not fit; the message names the argument.
    """
    (check_tensor if floating else _check_is_tensor)(name, tensor)
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(e is not None and e != s for e, s in zip(expected, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(shape)}")
    return shape


def check_number(name: str, value: float) -> None:
    """Raise, naming the argument, unless it is a finite number.

    Raises:
        TypeError: it is something else; tensors, which would lose their gradients, included.
        ValueError: it is infinite or NaN, or too large for a float.
    """
    if not isinstance(value, (int, float, np.integer, np.floating, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name} must be a number, got {'a tensor' if isinstance(value, Tensor) else repr(value)}")
    is_large = isinstance(value, int) and abs(value) > LARGEST  # not infinite, but no float
    if is_large or not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def check_integer(name: str, value: int, least: int) -> None:
    """Raise, naming the argument, unless it is an integer from `least` on.

    Raises:
        TypeError: it is no integer.
        ValueError: it is less.
    """
    if not isinstance(value, (int, np.integer, torch.SymInt)):
        raise TypeError(f"{name} must be an integer, got {'a tensor' if isinstance(value, Tensor) else repr(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_device(name: str, tensor: Tensor, **others: Tensor | None) -> None:
    """Raise, naming the argument, unless the others are on the device of the first one; None is passed over.

    Raises:
        TypeError: one is no tensor.
        ValueError: its device does not fit.
    """
    for other_name, other in others.items():
        if other is None:
            continue
        _check_is_tensor(other_name, other)
        if other.device != tensor.device:
            raise ValueError(f"{other_name} must be on {tensor.device} like {name}, got {other.device}")


def check_alike(name: str, tensor: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Raise, naming the argument, unless the others have the dtype and the device of the first one.

    None is passed over; errors are those of `check_device`.
    """
    for other_name, other in others.items():
        if other is None:
            continue
        _check_is_tensor(other_name, other)
        if other.dtype != tensor.dtype or other.device != tensor.device:
            wanted, got = (f"{x.dtype} on {x.device}" for x in (tensor, other))
            raise ValueError(f"{other_name} must be {wanted} like {name}, got {got}")


def check_input(name: str, x: Tensor, weight: object) -> None:
    """Raise, naming the argument, unless a layer of these weights takes it; under autocast its dtype is free.

    Args:
        name: of the argument.
        x: the argument.
        weight: one of the layer's; where it is no tensor, as of quantised ones, everything may be taken.

    Raises:
        TypeError: it is no tensor.
        ValueError: its dtype or device does not fit.
    """
    check_tensor(name, x)
    if not isinstance(weight, Tensor):
        return
    if is_autocasting(weight.device):
        check_device("the weights", weight, **{name: x})
    else:
        check_alike("the weights", weight, {name: x})
