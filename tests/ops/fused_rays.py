"""What the tests of `render_rays` ask about its kernels: whether there is room for them, and who sees a NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from ops.backends import Backend, has_room, require_room
from reference_records import relative_l2

from cips3d.ops import DeepSirenField, Precision, RayDraws, RenderedRays, SirenField
from cips3d.ops.render_rays import why_not_fused


class Rays(Protocol):
    """What `render_rays` is given, as far as it says which kernel computes."""

    @property
    def field(self) -> SirenField | DeepSirenField: ...

    @property
    def draws(self) -> RayDraws: ...


def require_kernel(
    backend: Backend, rays: Rays, precision: Precision = "highest", call: Callable[[], object] | None = None
) -> None:
    """`require_room` for the kernel that renders rays."""
    require_room(backend, lambda: why_not_fused(rays.field, rays.draws, precision=precision), call)


def check_not_a_number_stays(
    backend: Backend, rays: Rays, found: RenderedRays, expected: RenderedRays, precision: Precision = "highest"
) -> None:
    """In its ray, one of those whose draws are NaN: the others are as `expected`.

    To the last bit from a kernel. Op by op, what stands beside sums that are not finite is computed anew with them, and
    rounded otherwise.
    """
    hit = rays.draws.stratified.isnan().any(-1).cpu()
    assert hit.any() and torch.isnan(found.depth.cpu()[hit]).all()
    others, clean = found.colors.cpu()[~hit], expected.colors.cpu()[~hit]
    fused = has_room(backend, lambda: why_not_fused(rays.field, rays.draws, precision=precision))
    assert torch.equal(others, clean) if fused else relative_l2(others, clean) < 1e-5
