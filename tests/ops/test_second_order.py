"""Second derivatives by autograd on a reference."""

from __future__ import annotations

import torch

from cips3d.ops.second_order import differentiate_reference


def test_inputs_that_depend_on_each_other() -> None:
    """∂(x y)/∂x is y, also where y was made of x: the way through y is not the op's."""
    x = torch.tensor(3.0, requires_grad=True)
    y = x.square()
    of_x, of_y = differentiate_reference(lambda a, b: a * b, (x, y), (True, True), (torch.tensor(1.0),))
    assert of_x is not None and of_y is not None
    assert (of_x.item(), of_y.item()) == (9.0, 3.0)
    (second,) = torch.autograd.grad(of_x + 2 * of_y, x)  # of x² + 2 x
    assert second.item() == 2 * 3 + 2


def test_inputs_left_out() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    found = differentiate_reference(lambda a, b: a.square(), (x, None), (True, False), (torch.tensor(1.0),))
    assert found[0] is not None and found[0].item() == 4
    assert found[1] is None
