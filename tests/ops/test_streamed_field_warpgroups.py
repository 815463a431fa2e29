"""Fields whose weights stream, by the kernels that only compute capability 9.0 has: rays, and samples' gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from ops import shallow_rays as shallow
from ops import test_render_deep_rays as deep
from ops.backends import Backend, multiprocessors, require_warpgroups
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import RenderedRays, kernels
from cips3d.ops.precision import Precision


@dataclass(frozen=True)
class Case:
    """A deep field, or a shallow one that is too wide for shared memory."""

    setting: deep.Setting | shallow.Setting
    images: int = 2

    @property
    def launcher(self) -> str:
        return "render_deep_rays" if isinstance(self.setting, deep.Setting) else "render_wide_rays"

    @property
    def tolerance(self) -> float:
        return (deep if isinstance(self.setting, deep.Setting) else shallow).TOLERANCE["fast"]

    @property
    def gradient_tolerance(self) -> float:
        return (deep if isinstance(self.setting, deep.Setting) else shallow).GRADIENT_TOLERANCE["fast"]

    def inputs(self) -> deep.Inputs | shallow.Inputs:
        if isinstance(self.setting, deep.Setting):
            return deep.sample_inputs(self.setting)
        return shallow.sample_inputs(self.setting, self.images)

    def run(self, inputs: deep.Inputs | shallow.Inputs, precision: Precision) -> RenderedRays:
        if isinstance(self.setting, deep.Setting):
            assert isinstance(inputs, deep.Inputs)
            return deep.run(inputs, self.setting, precision)
        assert isinstance(inputs, shallow.Inputs)
        return shallow.run(inputs, self.setting, precision)

    def loss(self, seen: RenderedRays) -> Tensor:
        if isinstance(self.setting, deep.Setting):
            return deep.loss(seen)
        return shallow.loss(seen, with_weights=False)


CASES = {
    "pi-GAN": Case(deep.Setting(8, 256, 256, rays=4, coarse=12, fine=12, images=1, last_back=True)),
    "deep, odd widths": Case(deep.Setting(2, 200, 140, rays=20, coarse=9, fine=8, images=3, noise=True)),
    "deep, coarse only": Case(deep.Setting(3, 256, 60, rays=22, coarse=12, fine=0)),
    "one strip of colours": Case(shallow.Setting(250, 40, rays=19, last_back=True, ball=0.08), images=3),
    "odd colours": Case(shallow.Setting(256, 70, rays=11, fine=0, noise=False)),
    "widest colours": Case(shallow.Setting(193, 255, rays=30, coarse=7, fine=0, activation="softplus")),
}


def chosen(backend: Backend, case: Case, *, accurate: bool = False) -> bool:
    """Whether warpgroups march along the rays."""
    device, s = backend.device, case.setting
    module = kernels.module_for(device)
    depth = (s.layers,) if isinstance(s, deep.Setting) else ()
    query = getattr(module, case.launcher + "_warpgroups")
    found: bool = query(device.index or 0, s.coarse, s.fine, *depth, s.width, s.color, accurate)
    return found


def differentiated(backend: Backend, case: Case, *, accurate: bool = False) -> bool:
    """Whether they compute samples' gradients."""
    device, s = backend.device, case.setting
    is_deep = isinstance(s, deep.Setting)
    sizes = (s.layers if isinstance(s, deep.Setting) else 2, s.width, s.color, is_deep, accurate)
    module, index = kernels.module_for(device), device.index or 0
    found: bool = module.field_samples_warpgroups(index, *sizes)
    assert module.field_samples_backward_warpgroups(index, *sizes) == found
    return found


@pytest.fixture
def warpgroup_backend(monkeypatch: pytest.MonkeyPatch, kernel_backend: Backend) -> Backend:
    monkeypatch.setenv("CIPS3D_WGMMA", "streamed_field")  # no other one, which may be wrong
    require_warpgroups(kernel_backend, chosen(kernel_backend, CASES["pi-GAN"]))
    return kernel_backend


def gradients(case: Case, backend: Backend) -> Sequence[Tensor]:
    ours = case.inputs().to(backend.device, torch.float32)
    return torch.autograd.grad(case.loss(case.run(ours, "fast")), ours.leaves())


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(warpgroup_backend: Backend, name: str) -> None:
    """Against float64; two multiprocessors, so that blocks change their image midway."""
    case = CASES[name]
    assert chosen(warpgroup_backend, case) and differentiated(warpgroup_backend, case)
    inputs = case.inputs()
    ours, exact = inputs.to(warpgroup_backend.device, torch.float32), inputs.to(torch.device("cpu"), torch.float64)
    found, expected = case.run(ours, "fast"), case.run(exact, "highest")
    for field, factor in (("colors", 1), ("opacity", 1), ("depth", 1), ("weights", 10), ("depths", 1)):
        error = relative_l2(getattr(found, field), getattr(expected, field))
        assert error < factor * case.tolerance, f"{field}: {error:.1e}"
    references = torch.autograd.grad(case.loss(expected), exact.leaves())
    for k, (gradient, reference) in enumerate(
        zip(torch.autograd.grad(case.loss(found), ours.leaves()), references, strict=True)
    ):
        if gradient.numel() > 1:  # the density's bias is a sum that cancels for the most part
            error = relative_l2(gradient, reference)
            assert error < case.gradient_tolerance, f"gradient {k}: {error:.1e}"


@pytest.mark.parametrize("name", ["deep, odd widths", "odd colours"])
def test_every_schedule_gives_the_same(warpgroup_backend: Backend, name: str) -> None:
    case = CASES[name]
    ours = case.inputs().to(warpgroup_backend.device, torch.float32)
    found = []
    for _ in warpgroup_backend.schedules():
        seen = case.run(ours, "fast")
        found.append([*seen, *torch.autograd.grad(case.loss(seen), ours.leaves())])
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("name", ["deep, odd widths", "one strip of colours"])
def test_same_as_of_every_architecture(warpgroup_backend: Backend, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The products' operands are the same numbers: what differs is the order of sums."""
    case = CASES[name]
    ours = case.inputs().to(warpgroup_backend.device, torch.float32)
    found, of_found = case.run(ours, "fast"), gradients(case, warpgroup_backend)
    monkeypatch.setenv("CIPS3D_WGMMA", "render_rays,modulated_inr")
    assert not chosen(warpgroup_backend, case) and not differentiated(warpgroup_backend, case)
    other, of_other = case.run(ours, "fast"), gradients(case, warpgroup_backend)
    for field in ("colors", "opacity", "depth"):
        assert relative_l2(getattr(found, field), getattr(other, field)) < case.tolerance / 4, field
    for a, b in zip(of_found, of_other, strict=True):
        assert a.numel() == 1 or relative_l2(a, b) < case.gradient_tolerance / 4


@pytest.mark.parametrize("name", ["deep, odd widths", "one strip of colours"])
def test_blocks_with_one_tile(warpgroup_backend: Backend, name: str) -> None:
    """With many multiprocessors no block has a second tile: the gradients of phases are the same, sums nearly."""
    few = gradients(CASES[name], warpgroup_backend)
    with multiprocessors(kernels.module_for(warpgroup_backend.device), 132):
        many = gradients(CASES[name], warpgroup_backend)
    for one, other in zip(few, many, strict=True):
        assert relative_l2(one, other) < 1e-5


def test_what_has_no_kernel_of_warpgroups(warpgroup_backend: Backend) -> None:
    """Accurate products; trunks that would not fill a product's columns; colours without room."""
    for case in CASES.values():
        assert not chosen(warpgroup_backend, case, accurate=True)
        assert not differentiated(warpgroup_backend, case, accurate=True)
    for setting in (deep.Setting(3, 192, 256), shallow.Setting(192, 64)):
        assert not chosen(warpgroup_backend, Case(setting)) and not differentiated(warpgroup_backend, Case(setting))
    many = Case(shallow.Setting(256, 256, coarse=48, fine=48))
    assert not chosen(warpgroup_backend, many) and differentiated(warpgroup_backend, many)
