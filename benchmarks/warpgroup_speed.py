"""Volumes, the INR and float32 products with the kernels for compute capability 9.0, and without them; the INR with
blocks that share weights, and without.

    python benchmarks/warpgroup_speed.py

`suite.py` runs it in a process of its own, before all else that uses these kernels: where a copy goes astray, threads
would wait for it for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from apart import Part, measure_for_another
from figures import MOST_DIFFERENT, Lines, Results, relative_l2, result_of
from nerf_speed import PRODUCTS, CIPS3DVolumes, PiGANVolumes, Volumes
from op_cases import Case, inr_cases, network_cases
from ops_speed import directions, tensors_of
from picture_speed import pictures_256, work_of
from timing import Ceilings, Stopwatch, Work
from torch import Tensor

from cips3d.models.cips3d import CIPS3DConfig
from cips3d.models.pigan import PiGANConfig
from cips3d.models.volume import VolumeSettings
from cips3d.ops import kernels
from cips3d.process.ending import exit_on_user_error

VARIABLE = "CIPS3D_WGMMA"
WITHOUT, WITH = "without_warpgroups", "warpgroups"
"""in the names of lines"""
CLUSTERS = "clusters"
OPS = ("modulated_inr", CLUSTERS, "render_rays", "render_rays_backward", "split_matmul", "streamed_field")
"""that have such kernels, as the variable names them; and clusters of blocks, for those that it names beside them"""


def part_of(op: str) -> str:
    """The name of the part that compares an op's kernels."""
    return f"warpgroups of {op}"


def has_warpgroups(device: torch.device) -> bool:
    """Whether the kernels could run on a device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def are_compared(device: torch.device) -> bool:
    """Whether there are kernels with and without; on a CPU plain PyTorch stands for both, to see that it runs."""
    return bool(allowed()) and (device.type != "cuda" or has_warpgroups(device))


def allowed() -> list[str]:
    """The ops that have been compiled with such kernels, and whose kernels the environment does not refuse."""
    value, module = os.environ.get(VARIABLE, "1"), kernels.compiled()
    missing = () if module is None or module.render_rays_backward_has_warpgroups() else ("render_rays_backward",)
    wanted = [op for op in OPS if value not in ("", "0") and (value == "1" or op in value.split(","))]
    return [op for op in wanted if op not in missing]


@contextmanager
def asked_for(value: str) -> Iterator[None]:
    """Inside, the environment says which kernels are wanted."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


class Comparison:
    """An op without its kernel of warpgroups, then with it and no other one."""

    def __init__(self, op: str, device: torch.device) -> None:
        self.op = op
        self.device = device
        self._expected: list[Tensor] | None = None

    def kinds(self) -> Iterator[str]:
        """What the lines are called while the environment asks for the kind.

        Raises:
            RuntimeError: other kernels are chosen than those whose names the lines will have.
        """
        kinds = {WITHOUT: "0", WITH: self.op}
        if self.op == CLUSTERS:
            kinds = {f"without_{CLUSTERS}": "modulated_inr", CLUSTERS: f"modulated_inr,{CLUSTERS}"}
        for chosen, (name, value) in enumerate(kinds.items()):
            with asked_for(value):
                if self.device.type == "cuda" and self._chosen() is not bool(chosen):
                    raise RuntimeError(f"{VARIABLE}={value} does not decide on the kernel of {self.op}")
                yield name

    def difference(self, found: list[Tensor]) -> float | None:
        """From what the first kind has computed; None for the first.

        Raises:
            RuntimeError: they have nothing to do with each other.
        """
        if self._expected is None:
            self._expected = found
            return None
        difference = relative_l2(found, self._expected)
        if not difference < MOST_DIFFERENT:
            raise RuntimeError(f"with warpgroups, {self.op} gives something else: {difference:.2g} away")
        return difference

    def _chosen(self) -> bool:
        module, index, volume = kernels.module_for(self.device), self.device.index or 0, VolumeSettings()
        if self.op in ("modulated_inr", CLUSTERS):
            sizes_of_image = (1, 256**2, CIPS3DConfig().inr_width)
            if self.op == CLUSTERS:
                return all(module.modulated_inr_cluster(index, *sizes_of_image, of) > 1 for of in (False, True))
            return all(module.modulated_inr_warpgroups(index, *sizes_of_image, of) for of in (False, True))
        if self.op == "render_rays":
            return bool(module.render_rays_warpgroups(index, volume.samples, volume.fine, False))
        if self.op == "split_matmul":
            width = CIPS3DConfig().inr_width
            over_rows = module.split_matmul_over_rows_warpgroups(index, width, width)
            return bool(module.split_matmul_warpgroups(index, width) and over_rows)
        if self.op == "streamed_field":
            pigan = PiGANConfig()
            sizes = (pigan.layers, pigan.width, pigan.width)
            march = module.render_deep_rays_warpgroups(index, volume.samples, volume.fine, *sizes, False)
            of_samples = (module.field_samples_warpgroups, module.field_samples_backward_warpgroups)
            chosen = {bool(march), *(bool(has(index, *sizes, True, False)) for has in of_samples)}
            return chosen == {True}
        return bool(module.render_rays_backward_warpgroups(index, False, False))


def case_of(name: str, build: Callable[..., list[Case]], device: torch.device) -> Case:
    """The case of that name, in full size on a GPU."""
    (case,) = (case for case in build(device, small=device.type != "cuda") if case.name == name)
    return case


@torch.no_grad()
def inr_lines(stopwatch: Stopwatch, ceilings: Ceilings, op: str) -> Lines:
    comparison = Comparison(op, stopwatch.device)
    cases = [case_of(name, inr_cases, stopwatch.device) for name in ("modulated_inr", "modulated_inr_fast")]
    for kind in comparison.kinds():
        runs = [partial(case.ours, *case.inputs) for case in cases]
        difference = comparison.difference([run() for run in runs])
        for case, run in zip(cases, runs, strict=True):
            line = result_of(stopwatch(run), work=case.forward, ceilings=ceilings, difference=difference)
            yield f"{case.name}_{kind}_forward", line


def product_lines(stopwatch: Stopwatch, ceilings: Ceilings) -> Lines:
    """Both of what `split_matmul` has kernels for: x W, and in its gradients a sum over rows."""
    comparison = Comparison("split_matmul", stopwatch.device)
    case = case_of("split_matmul", network_cases, stopwatch.device)
    for name in comparison.kinds():
        (_, forward, of_forward), (_, backward, of_backward) = directions(case)
        run, gradients = forward(case.ours, case), backward(case.ours, case)
        difference = comparison.difference([*tensors_of(run()), *tensors_of(gradients())])
        of = partial(result_of, ceilings=ceilings, difference=difference)
        yield f"split_matmul_{name}_forward", of(stopwatch(run), work=of_forward)
        yield f"split_matmul_{name}_backward", of(stopwatch(gradients), work=of_backward)


def volume_lines(
    stopwatch: Stopwatch, ceilings: Ceilings, op: str, volumes_of: Callable[[torch.device], Volumes], *names: str
) -> Lines:
    """Names are those of `nerf_speed`: whose, the direction, the resolution."""
    comparison, volumes = Comparison(op, stopwatch.device), volumes_of(stopwatch.device)
    volumes.set_precision("fast")
    directions = [name.split("_")[1] for name in names]
    for kind in comparison.kinds():
        image, *gradients = volumes.seen()
        compared = [*([image] if "forward" in directions else []), *(gradients if "backward" in directions else [])]
        difference, timings = comparison.difference(compared), volumes.timed(volumes.ours, stopwatch)
        for name, direction in zip(names, directions, strict=True):
            work = Work(flops=PRODUCTS[direction] * volumes.flops, dtype="float16")
            timing, images = getattr(timings, direction), volumes.images
            line = result_of(timing, work=work, ceilings=ceilings, images=images, difference=difference)
            yield f"{name}_{kind}", line


@torch.no_grad()
def picture_lines(stopwatch: Stopwatch, ceilings: Ceilings) -> Lines:
    """Whole pictures, with all kernels that are allowed; for when it is known that none of them hangs."""
    pictures = pictures_256(stopwatch.device)
    images, work = len(pictures.cameras), work_of(pictures, "fast")
    run = partial(pictures.ours, "fast")
    for name, value in ((WITHOUT, "0"), (WITH, ",".join(allowed()))):
        with asked_for(value):
            yield f"render_256_{name}", result_of(stopwatch(run), work=work, ceilings=ceilings, images=images)


def parts(stopwatch: Stopwatch, ceilings: Ceilings, results: Results) -> list[Part]:
    """One for each op, so that it is known which kernel hangs."""
    part = partial(Part.of_lines, results)
    volumes = partial(volume_lines, stopwatch, ceilings)
    lines: dict[str, Callable[[], Lines]] = {
        "modulated_inr": partial(inr_lines, stopwatch, ceilings, "modulated_inr"),
        CLUSTERS: partial(inr_lines, stopwatch, ceilings, CLUSTERS),
        "render_rays": partial(volumes, "render_rays", CIPS3DVolumes, "nerf_forward_256"),
        "render_rays_backward": partial(volumes, "render_rays_backward", CIPS3DVolumes, "nerf_backward_256"),
        "split_matmul": partial(product_lines, stopwatch, ceilings),
        "streamed_field": partial(volumes, "streamed_field", PiGANVolumes, "pigan_forward_64", "pigan_backward_64"),
    }
    return [part(part_of(op), 5, lines[op]) for op in allowed()]


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(lambda: measure_for_another(__doc__, parts)))
