"""The command that measures a trained model or a folder of pictures: `python -m cips3d.evaluate`."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cips3d.data.decoding import UNREADABLE_ERRORS, check_resolution, describe, read_rgb
from cips3d.data.images import find_images, open_images
from cips3d.data.source import HEADS, HEADS_COUNT, open_training_source
from cips3d.errors import UserError
from cips3d.evaluation.catalogue import METRICS, check_counts, chosen_metrics
from cips3d.evaluation.evaluate import (
    EvaluationSettings,
    RealImages,
    evaluate_generator,
    evaluate_images,
    of_images,
)
from cips3d.evaluation.fidelity import BATCH_SIZE, FeatureNetworks, check_networks
from cips3d.evaluation.ground_truth import ground_truth_heads
from cips3d.evaluation.image_sets import SourceImages
from cips3d.evaluation.report import Report
from cips3d.files import printable
from cips3d.pictures import check_path
from cips3d.process.devices import choose_device, memory_explained
from cips3d.process.ending import exit_on_user_error
from cips3d.rendering import LoadedGenerator, check_resolution_of, load_generator
from cips3d.rendering.flags import DeviceFlag, PrecisionFlag
from cips3d.rendering.seeds import check_seed, check_truncation

PROGRAM = "python -m cips3d.evaluate"
HEADS_RESOLUTION = 64
WITHOUT_DATA = ("consistency", "smoothness", "symmetry")  # measured where nothing is asked for ...
WITH_DATA = ("fid", "kid")  # ... and these, first, where there are data
WIDTH = 100


def metrics_explained() -> str:
    """A paragraph a metric, for the help."""
    indent = " " * 15
    return "\n".join(
        textwrap.fill(metric.meaning, WIDTH, initial_indent=f"  {name:<13}", subsequent_indent=indent)
        for name, metric in METRICS.items()
    )


DESCRIPTION = f"""Measure how good a model's pictures are, and how 3-D.

Examples:
  {PROGRAM} runs/heads
  {PROGRAM} runs/heads --metrics consistency,pose,chirality --out metrics.json
  {PROGRAM} runs/ffhq --metrics fid,kid,pr --data ffhq256.zip --images 50000 --out metrics.json
  {PROGRAM} --generated pictures/ --metrics fid --data photos/
  {PROGRAM} heads --resolution 32 --metrics symmetry,pose    (what perfect heads give)

Metrics:
{metrics_explained()}
"""


@dataclass(frozen=True)
class Options:
    """The command's options."""

    run: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN_OR_CHECKPOINT", help_behavior_hint="(or --generated)"),
    ] = None
    """folder of a training run (its newest checkpoint is taken), a checkpoint file, or the word heads for perfect
    synthetic heads (./heads is a folder of that name)"""
    generated: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(instead of a model)")] = None
    """folder or zip of pictures to measure; metrics of images only"""
    metrics: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="LIST",
            help_behavior_hint=f"(default: {','.join(WITHOUT_DATA)}; with --data {','.join(WITH_DATA)} too)",
        ),
    ] = None
    """names from the list above, with commas"""
    data: Annotated[
        str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(needed by fid, kid, pr, frechet)")
    ] = None
    """real pictures: a folder, a zip, or the word heads for synthetic ones (./heads is a folder of that name)"""
    heads: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=f"(default: {HEADS_COUNT})")] = None
    """synthetic heads in --data heads"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """.json file to write the figures to; what is no number or infinite becomes null"""
    images: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=f"(default: {EvaluationSettings.images})")
    ] = None
    """pictures generated for fid, kid, is, pr and frechet; papers take 50000, a CPU is done sooner with 2000"""
    faces: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=f"(default: {EvaluationSettings.faces})")
    ] = None
    """faces that 3-D metrics look at"""
    seed: int = 0
    """chooses faces, poses and all else that is random"""
    truncation: float = 1.0
    """1: faces as they come; nearer to 0: more typical ones"""
    resolution: Annotated[
        int | None,
        tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: the model's, or that of the first picture)"),
    ] = None
    """side of all pictures"""
    inception: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: downloaded)")] = None
    """file of Inception's weights, for fid, kid and is"""
    vgg: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: downloaded)")] = None
    """file of VGG16's weights, for pr"""
    device: DeviceFlag = "auto"
    precision: PrecisionFlag = None
    batch_size: int = BATCH_SIZE
    """pictures that Inception and VGG16 look at together; smaller needs less memory"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: the process's) and return its exit code."""
    return exit_on_user_error(lambda: evaluate(tyro.cli(Options, args=argv, prog=PROGRAM, description=DESCRIPTION)))


def evaluate(options: Options) -> int:
    """Measure, print a table, write the file."""
    check_options(options)
    device = choose_device(options.device)
    settings = EvaluationSettings(
        images=EvaluationSettings.images if options.images is None else options.images,
        faces=EvaluationSettings.faces if options.faces is None else options.faces,
        seed=options.seed,
        truncation=options.truncation,
        resolution=options.resolution,
        batch_size=options.batch_size,
        networks=FeatureNetworks(options.inception, options.vgg),
        progress=True,
    )
    started = time.perf_counter()
    measure = of_model if options.generated is None else of_folder
    with memory_explained(
        f"{device} has too little memory; lower --resolution, or for fid, kid, is and pr "
        f"--batch-size {options.batch_size}"
    ):
        report = measure(options, settings, str(device))
    print(report.table())
    print(f"{report.subject}, in {time.perf_counter() - started:.0f} s")
    if options.out is not None:
        report.write(options.out)
        print(f"figures in {options.out}")
    return 0


def of_model(options: Options, settings: EvaluationSettings, device: str) -> Report:
    """Measure a model."""
    assert options.run is not None
    if options.run == HEADS:
        loaded = ground_truth_heads(HEADS_RESOLUTION)
    else:
        loaded = load_generator(options.run, device, precision=options.precision)
    names = metrics_of(options, loaded.generator.is_3d)
    check_resolution_of(loaded, options.resolution)
    check_data(options, names)
    check_counts(of_images(names), settings.images)
    check_networks(names, settings.networks)
    resolution = options.resolution or loaded.resolution
    real = real_images(options, names, resolution, loaded)
    evaluation = evaluate_generator(loaded, names, settings, real=real, device=device)
    looked_at = [f"{settings.images:,} pictures"] if any(not METRICS[name].needs_3d for name in names) else []
    looked_at += [f"{settings.faces} faces"] if any(METRICS[name].needs_3d for name in names) else []
    subject = f"{' and '.join(looked_at)} of {resolution} x {resolution} from {options.run}{loaded.at_step}"
    facts = {
        "model": options.run,
        "generator": type(loaded.generator).__name__,
        "step": loaded.step,
        "resolution": resolution,
        "data": real_facts(options, real),
    }
    return Report(subject, facts, settings, device, evaluation)


def of_folder(options: Options, settings: EvaluationSettings, device: str) -> Report:
    """Measure the pictures of a folder or zip."""
    assert options.generated is not None
    resolution = options.resolution or side_of_first(options.generated)
    source = open_images(options.generated, resolution, argument="--generated")
    names = metrics_of(options, is_3d=False)
    check_data(options, names)
    check_counts(names, len(source))
    check_networks(names, settings.networks)
    real = real_images(options, names, resolution, None)
    evaluation = evaluate_images(SourceImages(source), names, settings, real=real, device=device)
    facts = {
        "generated": str(options.generated),
        "count": len(source),
        "resolution": resolution,
        "data": real_facts(options, real),
    }
    return Report(f"{source.report()}, {resolution} x {resolution}", facts, settings, device, evaluation)


def metrics_of(options: Options, is_3d: bool) -> list[str]:
    """The metrics that are asked for, or by default those that the given model and data allow."""
    if options.metrics is not None:
        return chosen_metrics([name.strip() for name in options.metrics.split(",") if name.strip()])
    names = [*(() if options.data is None else WITH_DATA), *(WITHOUT_DATA if is_3d else ())]
    if not names:
        raise UserError("without a 3-D model there is nothing to measure but pictures; give --data, or --metrics is")
    return names


def check_data(options: Options, names: Sequence[str]) -> None:
    """Raise `UserError` where a metric needs real pictures and none are named."""
    needing = [name for name in names if METRICS[name].needs_data]
    if needing and options.data is None:
        raise UserError(
            f"{', '.join(needing)} compare{'s' if len(needing) == 1 else ''} with real pictures; "
            "give --data FOLDER, a zip, or the word heads"
        )


def real_images(
    options: Options, names: Sequence[str], resolution: int, loaded: LoadedGenerator | None
) -> RealImages | None:
    """The pictures to compare with, where a metric needs them."""
    if not any(METRICS[name].needs_data for name in names):
        return None
    if options.data == HEADS:
        count = HEADS_COUNT if options.heads is None else options.heads
        if loaded is None:
            return open_training_source(None, resolution, heads=count)
        return open_training_source(None, resolution, heads=count, poses=loaded.poses, fov_degrees=loaded.fov_degrees)
    return open_training_source(options.data, resolution)


def real_facts(options: Options, real: RealImages | None) -> dict[str, Any] | None:
    return None if real is None else {"name": options.data, "count": len(real)}


def side_of_first(path: Path) -> int:
    """The shorter side of the first picture of a folder or zip."""
    files, names = find_images(path, "--generated")
    try:
        return min(read_rgb(files.read(names[0])).size)
    except UNREADABLE_ERRORS as error:
        raise UserError(
            f"--generated {path}: {printable(names[0])} cannot be read ({describe(error)}); "
            "remove it, or give --resolution"
        ) from error


def check_options(options: Options) -> None:
    """Raise `UserError` for what can be known to be wrong before anything is loaded."""
    if (options.run is None) == (options.generated is None):
        raise UserError("there must be one thing to measure: give a run, a checkpoint, or --generated FOLDER")
    if options.precision is not None and options.run in (None, HEADS):
        raise UserError(f"--precision {options.precision} is for a model's products; leave it out where there is none")
    if options.truncation != 1 and options.run in (None, HEADS):
        raise UserError(f"--truncation {options.truncation:g} is for a model's faces; leave it out where there is none")
    for flag, value, least in (
        ("--images", options.images, 1),
        ("--faces", options.faces, 2),
        ("--heads", options.heads, 1),
        ("--batch-size", options.batch_size, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag} {value} is too few; give {least} or more")
    for flag, value in (("--images", options.images), ("--faces", options.faces)):
        if value is not None and options.generated is not None:
            raise UserError(f"{flag} {value} is for what a model generates; leave it out with --generated")
    if options.heads is not None and options.data != HEADS:
        raise UserError(f"--heads {options.heads} is for --data heads; leave it out")
    if options.resolution is not None and options.resolution < 2:
        raise UserError(f"--resolution {options.resolution} is no picture; give 2 or more")
    if options.resolution is not None:
        check_resolution(options.resolution)
    check_truncation(options.truncation)
    check_seed(options.seed)
    if options.out is not None:
        check_path(options.out, (".json",), "the figures")


if __name__ == "__main__":
    raise SystemExit(main())
