"""What torch.compile is told of the functions of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def constant_while_compiling(function: FunctionT) -> FunctionT:
    """`torch.compiler.assume_constant_result`: compiled code holds what the function returned to the compiler.

    Only the mark that PyTorch's decorator leaves. The decorator imports the compiler first, which takes longer than all
    else that a command needs before it begins, whether or not anything is ever compiled.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
