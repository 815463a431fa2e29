"""What the benchmarks compare computes the same thing on both sides, in every formulation."""

from __future__ import annotations

import pytest
import torch
from op_cases import GROUPS, Case
from ops_speed import backward_run, directions
from torch import Tensor

torch.manual_seed(0)  # inputs that no module imported before this one decides on
CASES = {case.name: case for build in GROUPS.values() for case in build(torch.device("cpu"), small=True)}
FORMULATIONS = [(name, k) for name, case in CASES.items() for k in range(len(case.plain))]
DIFFERENTIABLE = [(name, k) for name, k in FORMULATIONS if CASES[name].backward is not None]


def floats(outputs: object) -> list[Tensor]:
    everything = [outputs] if isinstance(outputs, Tensor) else list(outputs)  # type: ignore[call-overload]
    return [t.double() for t in everything if t.is_floating_point()]


def assert_near(a: list[Tensor], b: list[Tensor], case: Case) -> None:
    # 16-bit formulations round after every operation, about four of them; float32 ones a few times 2⁻²⁴, amplified by
    # gains of about 30 in front of a sine.
    sixteen_bit = case.name.endswith("_fast") or any(t.dtype in (torch.float16, torch.bfloat16) for t in case.inputs)
    for x, y in zip(a, b, strict=True):
        assert (x - y).norm() <= (2e-2 if sixteen_bit else 2e-5) * y.norm()


@torch.no_grad()
@pytest.mark.parametrize(("name", "formulation"), FORMULATIONS)
def test_forward(name: str, formulation: int) -> None:
    """As it is timed: without gradients, where a formulation may work in place, but not on its inputs."""
    case = CASES[name]
    before = [t.clone() for t in case.inputs]
    ours, plain = floats(case.ours(*case.inputs)), floats(case.plain[formulation].function(*case.inputs))
    assert_near(ours, plain, case)
    assert all(torch.equal(a, b) for a, b in zip(case.inputs, before, strict=True))


@pytest.mark.parametrize(("name", "formulation"), DIFFERENTIABLE)
def test_backward(name: str, formulation: int) -> None:
    case = CASES[name]
    ours, plain = (backward_run(f, case)() for f in (case.ours, case.plain[formulation].function))
    assert_near(floats(ours), floats(plain), case)


def test_upstream_gradients_are_those_of_all_formulations() -> None:
    """Whichever of their outputs can be differentiated."""
    case = CASES["sample_stratified"]

    def depths_too(*inputs: Tensor) -> tuple[Tensor, ...]:
        nothing = 0 * sum(t.sum() for t in inputs)
        return tuple(output + nothing for output in case.ours(*inputs))

    ours, others = (backward_run(f, case)() for f in (case.ours, depths_too))
    assert_near(floats(others), floats(ours), case)


def test_least_work_of_a_pass() -> None:
    activation, film = CASES["fused_leaky_relu"], CASES["film_siren"]
    assert activation.forward.moved == 2 * 4 * activation.inputs[0].numel()  # one float32 tensor read, one written
    assert film.backward is not None and CASES["film_siren_fast"].backward is not None
    products = 2 * film.inputs[0].numel() * film.inputs[1].shape[0]
    assert (film.forward.flops, film.forward.passes) == (products, 3)
    # Gradients of inputs and of weights; what is computed anew is not asked for.
    assert (film.backward.flops, film.backward.passes) == (2 * products, 3)
    assert CASES["film_siren_fast"].backward.passes == 1


def test_ops_without_a_backward_have_the_bare_name() -> None:
    names = {name for case in CASES.values() for name, _, _ in directions(case)}
    assert {"sample_importance", "sample_stratified_forward", "sample_stratified_backward"} <= names
    assert "sample_importance_forward" not in names
