"""Second derivatives of ops whose backward is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiate_reference(
    reference: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    needs_gradient: Sequence[bool],
    output_gradients: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """Gradients of an op by autograd on its plain reference, themselves differentiable.

    A backward written by hand calls this when its own result has to be differentiated (`create_graph=True`): slower
    than the written formula, and right to any order.

    Args:
        reference: the op as a function of `inputs`, in differentiable PyTorch.
        inputs: the op's tensor arguments, as saved; None where one was left out.
        needs_gradient: which inputs need one (`ctx.needs_input_grad`).
        output_gradients: one for each output of `reference`.

    Returns:
        One gradient an input, None where not needed or where the outputs do not depend on it.
    """
    # Aliases, since an input may itself depend on another one (an upstream gradient made of the output): only the way
    # through the op counts, the other is autograd's.
    inputs = [None if x is None else x.view_as(x) for x in inputs]
    outputs = reference(*inputs)
    wanted = [x for x, needed in zip(inputs, needs_gradient, strict=True) if needed and x is not None]
    gradients = iter(torch.autograd.grad(outputs, wanted, list(output_gradients), create_graph=True, allow_unused=True))
    return tuple(next(gradients) if needed else None for needed in needs_gradient)
