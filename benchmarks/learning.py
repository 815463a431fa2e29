"""How well a preset learns: distances to held-out heads and the answer to the camera, over several seeds.

    python benchmarks/learning.py                      # preset tiny, seeds 0 1 2
    python benchmarks/learning.py --seeds 0 --steps 300

Distances (smaller is better) compare images of the averaged generator with held-out synthetic heads:
``fr`` Fréchet on fixed random convolutions, ``fp`` Fréchet on a pose regressor's features, ``swd`` patch sliced
Wasserstein. The yaw slope is seen over requested yaw for fixed faces: 1 for a head that turns as it should.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cips3d.data.heads import SyntheticHeads, load_heads
from cips3d.data.images import ImageSource
from cips3d.evaluation.frechet import features_of, frechet_distance
from cips3d.evaluation.image_network import all_pixels
from cips3d.evaluation.image_sets import generated_series
from cips3d.evaluation.judges import TEACHING_SEED, WIDE, Teaching
from cips3d.evaluation.pose import PoseRegressor, poses_from_front, response_of, train_pose_regressor, yaw_response
from cips3d.evaluation.sliced_wasserstein import patch_sliced_wasserstein
from cips3d.pictures import from_uint8
from cips3d.process.versions import processor
from cips3d.rendering import load_generator
from cips3d.training.config import TrainConfig
from cips3d.training.loop import train
from cips3d.training.presets import preset
from cips3d.training.resolving import resolved

HELD_OUT_SEED = 1000  # of heads that neither training (seed 0) nor a judge ever sees
IMAGES_SEED = 20_211  # of the generated images that are compared
TURNED_FACES = 256  # slopes differ from face to face by 0.15 to 0.35


@dataclass(frozen=True)
class Distances:
    fr: float
    fp: float
    swd: float


class HeldOut:
    """Held-out heads at one resolution, seen as a training sees its own, and a pose regressor taught on others.

    It is taught as `pose_judge`'s are.
    """

    def __init__(self, resolution: int, images: int, config: TrainConfig) -> None:
        self.real = pixels(heads_of(config, resolution, images, HELD_OUT_SEED))
        lessons = load_heads(resolution, Teaching().heads, TEACHING_SEED, poses=WIDE, fov_degrees=config.fov_degrees)
        self.regressor: PoseRegressor = train_pose_regressor(lessons, steps=Teaching().steps)
        self.real_features = features_of([self.real]), features_of([self.real], self.regressor.features)

    def __call__(self, images: Tensor) -> Distances:
        fr = frechet_distance(features_of([images]), self.real_features[0])
        fp = frechet_distance(features_of([images], self.regressor.features), self.real_features[1])
        return Distances(fr, fp, patch_sliced_wasserstein(images, self.real))


def pixels(source: ImageSource) -> Tensor:
    """All images [N, 3, R, R] in [-1, 1]."""
    return from_uint8(all_pixels(source))


def heads_of(config: TrainConfig, resolution: int, count: int, seed: int = 0) -> SyntheticHeads:
    """Heads seen by the cameras of a training."""
    return load_heads(resolution, count, seed, poses=config.poses, fov_degrees=config.fov_degrees)


def row(name: str, seconds: float | None, distances: Distances, rest: str = "") -> str:
    minutes = "" if seconds is None else f"{seconds / 60:.1f}"
    return f"| {name} | {minutes} | {distances.fr:.3f} | {distances.fp:.3f} | {distances.swd:.2f} | {rest} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--images", type=int, default=768, help="images a distance is measured with")
    parser.add_argument("--runs", type=Path, help="folder of the runs; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()

    base = replace(preset(arguments.preset), steps=arguments.steps)
    resolution = resolved(base).stages[-1].resolution
    heads_of(base, resolution, base.heads)  # made outside of the time that is measured
    held_out = HeldOut(resolution, arguments.images, base)
    other = heads_of(base, resolution, arguments.images, HELD_OUT_SEED + 1)
    with torch.no_grad():
        truth = poses_from_front(other)[:, 0]
        seen = held_out.regressor(pixels(other))[:, 0]
    real_response = response_of(truth, seen[None])
    print("\n| | minutes | fr | fp | swd | yaw slope (correlation) |\n|---|---|---|---|---|---|", flush=True)
    real = f"{real_response.slope:.2f} ({real_response.correlation:.2f})"
    real_distances = held_out(pixels(other))
    print(row("real heads, other seed", None, real_distances, real), flush=True)
    noise = torch.rand(arguments.images, 3, resolution, resolution, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise_distances = held_out(noise)
    print(row("noise", None, noise_distances), flush=True)
    references = {
        "real heads, other seed": {**asdict(real_distances), "yaw": asdict(real_response)},
        "noise": asdict(noise_distances),
    }

    results = []
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        for seed in arguments.seeds:
            started = time.perf_counter()
            folder, exit_code = train(replace(base, seed=seed, out=runs / f"{arguments.preset}-seed{seed}"))
            if exit_code != 0:
                raise SystemExit(exit_code)
            seconds = time.perf_counter() - started
            loaded = load_generator(folder, "cpu")
            images = torch.cat(list(generated_series(loaded, arguments.images, seed=IMAGES_SEED)))
            distances = held_out(images)
            response = yaw_response(
                loaded.generator,
                held_out.regressor,
                base.volume,
                resolution=resolution,
                fov_degrees=base.fov_degrees,
                faces=TURNED_FACES,
            )
            turned = f"{response.slope:.2f} ({response.correlation:.2f})"
            print(row(f"seed {seed}", seconds, distances, turned), flush=True)
            results.append({"seed": seed, "seconds": seconds, **asdict(distances), "yaw": asdict(response)})
    print(f"\nSeen yaw (mean over {TURNED_FACES} fixed faces) by requested yaw, radians from the front:")
    for result in results:
        curve = result["yaw"]
        assert isinstance(curve, dict)
        pairs = zip(curve["requested"], curve["seen"], strict=True)
        print(f"seed {result['seed']}: " + ", ".join(f"{x:+.2f} → {y:+.2f}" for x, y in pairs))
    if arguments.json:
        machine = {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "cpu": processor()}
        content = {
            "preset": arguments.preset,
            "steps": resolved(base).total_steps,
            "machine": machine,
            "references": references,
            "runs": results,
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
