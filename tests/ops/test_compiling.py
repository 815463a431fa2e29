"""What torch.compile is told of functions."""

from __future__ import annotations

import torch

from cips3d.ops.compiling import constant_while_compiling


def test_the_mark_is_pytorchs() -> None:
    def marked() -> int:
        return 1

    def decorated() -> int:
        return 1

    assert constant_while_compiling(marked) is marked
    torch.compiler.assume_constant_result(decorated)
    assert vars(marked) == vars(decorated) != {}
