"""Products that autocast does not reach, nor their gradients in compiled code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from reference_records import relative_l2
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.ops import (
    FoldedLayer,
    RayDraws,
    SirenField,
    binomial_kernel,
    demodulation,
    film_siren,
    modulated_epilogue,
    render_rays,
    upfirdn2d,
)
from cips3d.ops.autocast import product


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ORIGINS, DIRECTIONS = 0.05 * random(2, 9, 3), F.normalize(random(2, 9, 3, seed=2), dim=-1)
DRAWS = RayDraws(torch.rand(2, 9, 6, generator=torch.Generator().manual_seed(1)))
POINTS = random(5, 3)


def rays_through_a_field(w: Tensor) -> Tensor:
    layers = [FoldedLayer(scale * w[..., : w.shape[1] if k else 3], w[:, k]) for k, scale in enumerate((3.0, 0.3, 0.3))]
    field = SirenField(*layers, w[0, 3], w[0, 4, :1])
    seen = render_rays(ORIGINS, DIRECTIONS, field, DRAWS, 0.5, 1.5, activation="softplus")
    return torch.cat([seen.colors, seen.depth[..., None]], dim=-1)


def rays_of_cameras(pitch: Tensor, yaw: Tensor) -> Tensor:
    return Cameras.from_angles(1.5 + 0.1 * pitch, yaw).rays(4).directions * torch.arange(1.0, 17.0)[:, None]


def moved_cameras(offset: Tensor, angle: Tensor) -> Tensor:
    front = torch.full((2,), 1.5)
    cameras = Cameras.from_angles(front, front).moved(offset).rolled(angle)
    return torch.cat([cameras.position, cameras.project(POINTS).place.flatten(1)], dim=1)


CASES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "product": (product, ((2, 5, 7), (7, 3))),
    "product of batches": (product, ((5, 7), (2, 7, 3))),
    "demodulation": (demodulation, ((16, 8), (2, 16))),
    "colours": (lambda x, w: modulated_epilogue(x, rgb_weight=w).rgb, ((2, 16, 8), (3, 8))),
    "upfirdn2d": (lambda x: upfirdn2d(x, binomial_kernel(), down=2, padding=1), ((2, 3, 8, 8),)),
    "render_rays": (rays_through_a_field, ((2, 16, 16),)),
    "rays of cameras": (rays_of_cameras, ((2,), (2,))),
    "moved cameras": (moved_cameras, ((2, 3), (2,))),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_compiled_code(name: str, dtype: torch.dtype) -> None:
    """torch.compile traces a backward under the autocast of the call."""
    function, shapes = CASES[name]
    arguments = [random(*shape, seed=k).requires_grad_() for k, shape in enumerate(shapes)]

    def gradients(of: Callable[..., Tensor], autocast: bool) -> list[Tensor]:
        with torch.autocast("cpu", dtype, enabled=autocast):
            found = of(*arguments)
        assert found.dtype == torch.float32
        return [found, *torch.autograd.grad(found.square().sum(), arguments)]

    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for found, expected in zip(gradients(compiled, True), gradients(function, False), strict=True):
        assert relative_l2(found, expected) < 1e-5  # bfloat16 would leave 1e-3, float16 2e-4


def test_layers_in_compiled_transforms() -> None:
    """`torch.func` has no way through registered ops; plain layers are none, compiled or not."""
    x, weight, bias, gain, shift = (random(*shape) for shape in ((2, 5, 8), (4, 8), (4,), (2, 4), (2, 4)))

    def total(x: Tensor) -> Tensor:
        return film_siren(x, weight, bias, gain, shift).square().sum()

    torch.compiler.reset()
    found = torch.compile(torch.func.grad(total), backend="aot_eager")(x)
    torch.testing.assert_close(found, torch.func.grad(total)(x))


def test_products_without_autocast_have_every_derivative() -> None:
    """Second derivatives, forward mode and vmap are PyTorch's own."""
    a, b = random(4, 5).double().requires_grad_(), random(5, 3).double().requires_grad_()
    torch.autograd.gradcheck(product, (a, b), check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(product, (a, b))
