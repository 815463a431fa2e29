"""Registration of ops with PyTorch's dispatcher: one schema, the kernel, its reference, the fake and the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cips3d.ops import kernels
from cips3d.ops.autocast import gradients_without_autocast

NAMESPACE = "cips3d"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")


@dataclass(frozen=True)
class Op:
    """A registered op; calling it goes through the dispatcher."""

    name: str
    schema: str
    overload: Callable[..., Any]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if forward_ad._current_level >= 0:
            self._refuse_tangents(*arguments, *named.values())
        return self.overload(*arguments, **named)

    def _refuse_tangents(self, *arguments: Any) -> None:
        """Raise for forward-mode differentiation: the dispatcher would drop the tangents without a word."""
        for x in arguments:
            if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
                raise NotImplementedError(
                    f"cips3d::{self.name} has no forward-mode derivative; use torch.autograd's reverse mode"
                )


OPS: dict[str, Op] = {}


def define(
    schema: str,
    *,
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Op:
    """Register `torch.ops.cips3d.<name>`.

    Args:
        schema: "name(Tensor x, ...) -> Tensor"; the first argument is a tensor.
        kernel: computes with launchers of the compiled module where `kernels.take(first argument)`.
        reference: the same in plain PyTorch, for all other tensors; its outputs are no views of its inputs.
        fake: shapes, dtypes and devices of the outputs (contiguous), without data; shares its checks with the others.
        setup_context, backward: as in `torch.library.register_autograd`. A backward made of registered ops is itself
            differentiable. It runs without autocast.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def run(first: Tensor, *arguments: Any) -> Any:
        return (kernel if kernels.take(first) else reference)(first, *arguments)

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, key)
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if backward is not None:
        gradients = gradients_without_autocast(backward)
        torch.library.register_autograd(qualified, gradients, setup_context=setup_context, lib=_LIBRARY)
    op = Op(name, schema, getattr(getattr(torch.ops, NAMESPACE), name).default)
    OPS[name] = op
    return op
