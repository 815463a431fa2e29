"""What the benchmarks compare computes the same thing on both sides."""

from __future__ import annotations

import pytest
import torch
from op_cases import GROUPS, Case
from ops_speed import tensors_of
from torch import Tensor

torch.manual_seed(0)  # inputs that no module imported before this one decides on
CASES = {case.name: case for build in GROUPS.values() for case in build(torch.device("cpu"), small=True)}


def floats(outputs: object) -> list[Tensor]:
    everything = [outputs] if isinstance(outputs, Tensor) else list(outputs)  # type: ignore[call-overload]
    return [t.double() for t in everything if t.is_floating_point()]


def assert_near(a: list[Tensor], b: list[Tensor], case: Case) -> None:
    # 16-bit baselines round after every operation, about four of them; float32 ones a few times 2⁻²⁴, amplified by
    # gains of about 30 in front of a sine.
    sixteen_bit = any(t.dtype in (torch.float16, torch.bfloat16) for t in case.inputs)
    for x, y in zip(a, b, strict=True):
        assert (x - y).norm() <= (2e-2 if sixteen_bit else 2e-5) * y.norm()


@pytest.mark.parametrize("name", CASES)
def test_forward(name: str) -> None:
    case = CASES[name]
    ours, baseline = floats(case.ours(*case.inputs)), floats(case.baseline(*case.inputs))
    assert_near(ours, baseline, case)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.backward_bytes is not None])
def test_backward(name: str) -> None:
    case = CASES[name]
    wanted = [t for t in case.inputs if t.requires_grad]
    gradients = []
    for function in (case.ours, case.baseline):
        outputs = tensors_of(function(*case.inputs))
        torch.manual_seed(0)
        gradients.append(torch.autograd.grad(outputs, wanted, [torch.randn(t.shape).to(t.dtype) for t in outputs]))
    assert_near(*(list(map(Tensor.double, g)) for g in gradients), case)


def test_least_bytes_of_a_pass() -> None:
    case = CASES["fused_leaky_relu"]
    assert case.forward_bytes == 2 * 4 * case.inputs[0].numel()  # one float32 tensor read, one written
