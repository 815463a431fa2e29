"""Arguments and flags that several commands have, each with the help that all of them show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from cips3d.ops.precision import Precision

MODELS_OWN = "(default: the model's)"

RunArgument = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="RUN_OR_CHECKPOINT",
        help="folder of a training run (its newest checkpoint is taken) or a checkpoint file",
    ),
]

DeviceFlag = Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or cuda:N")]

PrecisionFlag = Annotated[
    Precision | None,
    tyro.conf.arg(
        help="how exactly products are computed: as float32, as TF32 or better, or of 16-bit numbers with float32 sums",
        help_behavior_hint="(default: as PyTorch is set)",
    ),
]

# Of the commands that show faces:

LatentsFlag = Annotated[
    tuple[Path, ...] | None,
    tyro.conf.arg(
        metavar="FILE [FILE ...]",
        help="faces that python -m cips3d.invert found, in the place of those of seeds",
        help_behavior_hint="(default: none)",
    ),
]

TruncationFlag = Annotated[float, tyro.conf.arg(help="1: faces of seeds as they come; nearer to 0: more typical ones")]

ResolutionFlag = Annotated[
    int | None, tyro.conf.arg(metavar="PIXELS", help="side of a picture", help_behavior_hint=MODELS_OWN)
]

FovFlag = Annotated[
    float | None, tyro.conf.arg(metavar="DEGREES", help="the camera's angle of view", help_behavior_hint=MODELS_OWN)
]

FpsFlag = Annotated[float, tyro.conf.arg(help="frames a second of an animation")]

BatchSizeFlag = Annotated[int, tyro.conf.arg(help="pictures rendered at a time; smaller needs less memory")]
