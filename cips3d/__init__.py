"""cips3d: 3-D-aware GANs learned from unposed single photographs.

Where the method is found:

- ``cips3d.cameras``       pose distributions, cameras, rays
- ``cips3d.ops``           the operations that kernels accelerate, each with its plain PyTorch reference
- ``cips3d.models``        mapping networks, NeRF, INR, generator, discriminators
- ``cips3d.data``          image folders and archives, synthetic heads
- ``cips3d.augmentation``  random changes of what discriminators see
- ``cips3d.checkpoints``   files of trained and converted models
- ``cips3d.rendering``     trained models: views, style paths, sequences of frames
- ``cips3d.training``      losses, schedule, the training step and loop
- ``cips3d.convert``       published checkpoints

``evaluation``, ``meshing``, ``inversion``, ``stylisation``, ``editing`` and ``viewing`` make use of trained models.
After ``import cips3d`` each of them is there, and is loaded when its name is first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# Threads of GNU OpenMP, which torch's CPU builds use, wait for each other by spinning. Where other processes want the
# same cores, a thread that spins keeps the one it waits for from running, and a step of training that takes 0.1 s takes
# 10 s. So spin briefly, then sleep: no slower on a quiet machine. It must be set before torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"

__all__ = [
    "augmentation",
    "cameras",
    "checkpoints",
    "convert",
    "data",
    "editing",
    "evaluation",
    "inversion",
    "meshing",
    "models",
    "ops",
    "rendering",
    "stylisation",
    "training",
    "viewing",
]

if TYPE_CHECKING:
    from cips3d import (
        augmentation,
        cameras,
        checkpoints,
        convert,
        data,
        editing,
        evaluation,
        inversion,
        meshing,
        models,
        ops,
        rendering,
        stylisation,
        training,
        viewing,
    )
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
