"""Compositing as an op: layouts, schedules, registration, compilation, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.backends import Backend
from ops.compositing import DTYPES, formula, on, sample_inputs, upstream
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import composite, composite_weights
from cips3d.ops.library import OPS


@pytest.mark.parametrize("shape", [(2, 0, 4, 3), (0, 3, 4, 3), (2, 3, 4, 0)])
def test_empty(backend: Backend, shape: Any) -> None:
    inputs = on(backend, *sample_inputs(*shape, dtype=torch.float32))
    out = composite(*inputs)
    assert out.features.shape == (*shape[:2], shape[3])
    gradients = torch.autograd.grad(out.features.sum() + out.depth.sum(), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout(backend: Backend, dtype: torch.dtype) -> None:
    """Transposed and misaligned inputs give what contiguous ones give."""
    density, features, depths = (x.to(backend.device) for x in sample_inputs(2, 3, 6, 8, torch.float32))
    features = features.to(dtype)
    expected = composite(density, features, depths)
    shifted = torch.empty(features.numel() + 1, dtype=dtype, device=features.device)[1:].view(features.shape)
    shifted.copy_(features)
    for same in (shifted, features.transpose(1, 3).contiguous().transpose(1, 3)):
        found = composite(density.transpose(0, 1).contiguous().transpose(0, 1), same, depths)
        for a, b in zip(found, expected, strict=True):
            assert relative_l2(a, b) <= torch.finfo(a.dtype).eps  # another order of the sum, then one rounding


@pytest.mark.parametrize("shape", [(2, 9, 12, 32), (1, 3, 40, 3)])
def test_every_schedule_gives_the_same(kernel_backend: Backend, shape: Any) -> None:
    inputs = on(kernel_backend, *sample_inputs(*shape, dtype=torch.float32))
    found = []
    for _ in kernel_backend.schedules():
        out = composite(*inputs, last_back=True)
        found.append((*out, *torch.autograd.grad(out, inputs, upstream(out))))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def test_registration(backend: Backend) -> None:
    inputs = on(backend, *sample_inputs(dtype=torch.float32))
    none = (None,) * 4
    torch.library.opcheck(OPS["composite"].overload, (*inputs, *none, "softplus", True, True))
    grads = upstream(composite(*inputs))
    torch.library.opcheck(
        OPS["composite_backward"].overload,
        (*(x.detach() for x in inputs), *none, *grads[:2], None, *grads[3:], "relu", False, True, True, True, False),
    )


@pytest.mark.parametrize("settings", [("relu", False, True), ("softplus", True, False)])
def test_registered_op_is_differentiable_in_float64(settings: tuple[str, bool, bool]) -> None:
    """Where the public function takes the shorter way through plain PyTorch."""
    inputs = sample_inputs(1, 2, 4, 2)
    inputs[0][..., -1] = 5.0
    grads = upstream(composite(*inputs))
    gradients = []
    for function in (OPS["composite"], lambda *arguments: formula(*arguments[:3], None, *settings)):
        exact = [x.clone().requires_grad_() for x in inputs]
        outputs = function(*exact, *(None,) * 4, *settings)
        gradients.append(torch.autograd.grad(outputs, exact, grads))
    for found, expected in zip(*gradients, strict=True):
        assert relative_l2(found, expected) < 1e-12


def test_density_of_zero_has_no_slope(backend: Backend) -> None:
    _, features, depths = (x.to(backend.device) for x in sample_inputs(dtype=torch.float32))
    inputs = (torch.zeros_like(depths), features, depths, *(None,) * 4)
    grads = (torch.ones_like(features[:, :, 0]), *(None,) * 4)
    of_density, *_ = OPS["composite_backward"](*inputs, *grads, "relu", False, False, True, False, False)
    assert torch.equal(of_density, torch.zeros_like(depths))


def test_compiles(backend: Backend) -> None:
    def loss(density: Tensor, features: Tensor, depths: Tensor) -> Tensor:
        out = composite(density * 2, features, depths, last_back=True)
        return out.features.square().mean() + out.depth.mean()

    inputs = on(backend, *sample_inputs(dtype=torch.float32))
    eager = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_wrong_arguments_are_named() -> None:
    density, features, depths = sample_inputs()
    with pytest.raises(ValueError, match="depths must have shape"):
        composite(density, features, depths[:1])
    with pytest.raises(ValueError, match="noise must have shape"):
        composite(density, features, depths, noise=depths[:1])
    with pytest.raises(ValueError, match=r"features must have shape \[2, 3, 5, any\]"):
        composite(density, features[..., :2, :], depths)
    with pytest.raises(ValueError, match="features must be on cpu like density"):
        composite(density, features.to("meta"), depths)
    with pytest.raises(ValueError, match="depths must be on cpu like density"):
        composite_weights(density, depths.to("meta"))
    with pytest.raises(ValueError, match="activation must be one of"):
        composite(density, features, depths, activation="elu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one sample"):
        composite_weights(density[..., :0], depths[..., :0])
    with pytest.raises(TypeError, match=r"depths must be torch\.float32 or torch\.float64"):
        composite(density.half(), features, depths.half())


def test_registered_op_refuses_what_a_kernel_cannot_read(kernel_backend: Backend) -> None:
    density, features, depths = (x.to(kernel_backend.device) for x in sample_inputs(dtype=torch.float32))
    with pytest.raises(TypeError, match=r"density must be torch\.float32"):
        OPS["composite"](density.half(), features, depths, *(None,) * 4, "relu", False, False)
