"""Ops once each, in full size: something for a profiler or a sanitizer to look at.

    python benchmarks/once.py                                   # everything, names printed as they run
    python benchmarks/once.py --only nerf render_256 composite_backward
    ncu --clock-control none --set full -k "regex:render_rays" -o nerf python benchmarks/once.py --only nerf_backward

A run launches what it needs besides: packing of weights, graphs for backwards, and with the first one what PyTorch
sets up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from conditions import prepared_device
from nerf_speed import CIPS3DVolumes
from op_cases import GROUPS
from ops_speed import directions
from picture_speed import OURS, pictures_256

from cips3d.errors import UserError
from cips3d.ops import Precision
from cips3d.process.ending import exit_on_user_error

Run = Callable[[], object]


def runs(device: torch.device) -> Iterator[tuple[str, Callable[[], Run]]]:
    """By the names of the tables' lines; what is called makes the inputs first, then returns the run."""
    small = device.type != "cuda"
    for build in GROUPS.values():
        for case in build(device, small=small):
            for name, prepare, _ in directions(case):
                yield name, partial(prepare, case.ours, case)
    precisions: tuple[tuple[str, Precision], ...] = (("", "fast"), ("_accurate", "highest"))
    for end, precision in precisions:
        for direction in ("forward", "backward"):
            yield f"nerf_{direction}_256{end}", partial(nerf, device, precision, direction)
    for end, precision in OURS.items():
        yield f"render_256{end}", partial(picture, device, precision)


def nerf(device: torch.device, precision: Precision, direction: str) -> Run:
    volumes = CIPS3DVolumes(device)
    volumes.set_precision(precision)
    if direction == "forward":
        return torch.no_grad()(volumes.ours)
    seen = volumes.ours()
    return lambda: torch.autograd.grad(seen, volumes.trained(), volumes.upstream)


def picture(device: torch.device, precision: Precision) -> Run:
    pictures = pictures_256(device)
    return torch.no_grad()(partial(pictures.ours, precision))


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="those whose names begin so (default: all)")
    arguments = parser.parse_args()
    device = prepared_device(arguments.device)
    begins = tuple(arguments.only or ("",))
    ran = []
    for name, prepare in runs(device):
        if name.startswith(begins):
            print(name, flush=True)
            prepare()()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            ran.append(name)
    unknown = [begin for begin in begins if not any(name.startswith(begin) for name in ran)]
    if unknown:
        raise UserError(f"--only {unknown[0]!r} begins no name; the names are those of the lines of ops_speed.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
