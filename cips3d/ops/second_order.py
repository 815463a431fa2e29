"""Second derivatives of ops whose backward is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    # Outputs that depend on nothing that needs a gradient have no graph to walk.
    walked = [(y, grad) for y, grad in zip(outputs, output_gradients, strict=True) if y.requires_grad]
    wanted = [x for x, needed in zip(inputs, needs_gradient, strict=True) if needed and x is not None]
    if not walked or not wanted:
        return (None,) * len(inputs)
    of, given = zip(*walked, strict=True)
    gradients = iter(torch.autograd.grad(of, wanted, given, create_graph=True, allow_unused=True))
    has_one = [needed and x is not None for x, needed in zip(inputs, needs_gradient, strict=True)]
    return tuple(next(gradients) if has else None for has in has_one)


def differentiate_outputs(
    reference: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    needs_gradient: Sequence[bool],
    output_gradients: Sequence[Tensor | None],
    settings: tuple[Any, ...],
) -> tuple[Tensor | None, ...]:
    """`differentiate_reference` for an op of several outputs, some of which have no gradient.

    Args:
        reference: the op as a function of `inputs` and `settings`; None for an input that was left out.
        output_gradients: one for each of the first outputs, None where there is none.
    """
    given = [i for i, x in enumerate(inputs) if x is not None]
    wanted = [i for i, grad in enumerate(output_gradients) if grad is not None]

    def outputs_with_gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        arguments: list[Any] = [None] * len(inputs)
        for i, x in zip(given, tensors, strict=True):
            arguments[i] = x
        outputs = reference(*arguments, *settings)
        return tuple(outputs[i] for i in wanted)

    found = differentiate_reference(
        outputs_with_gradient,
        [x for x in inputs if x is not None],
        [needs_gradient[i] for i in given],
        [grad for grad in output_gradients if grad is not None],
    )
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(given, found, strict=True):
        gradients[i] = gradient
    return tuple(gradients)


def gradients_of_op(
    ctx: Any,
    reference: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    output_gradients: Sequence[Tensor | None],
    written: Callable[[], Sequence[Tensor | None]],
) -> tuple[Tensor | None, ...]:
    """What the backward of an op returns: by its written formula or, where that is differentiated, by the reference.

    Args:
        ctx: of the op, with the arguments behind its tensors as `settings`.
        reference, inputs, output_gradients: see `differentiate_outputs`.
        written: makes one gradient an input; those that no input needs are dropped.
    """
    needed = ctx.needs_input_grad[: len(inputs)]
    none = (None,) * len(ctx.settings)
    if all(grad is None for grad in output_gradients):
        return (None,) * len(inputs) + none
    if torch.is_grad_enabled():
        return *differentiate_outputs(reference, inputs, needed, output_gradients, ctx.settings), *none
    return *(grad if wanted else None for grad, wanted in zip(written(), needed, strict=True)), *none
