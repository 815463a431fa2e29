"""Numeric records of the original systems, which tests compare with where they are there.

They lie outside of the repository, in the folder that the environment variable CIPS3D_REFERENCE_RECORDS names: one
`.npz` for each run of an original system, with keys meta/json, state/*, in/*, mid/*, out/* and grad/*.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER_VARIABLE = "CIPS3D_REFERENCE_RECORDS"
RECIPE_TAPS = np.array([1.0, 3.0, 3.0, 1.0], dtype=np.float32) / 8  # recipes leave filter taps at these values

Record = dict[str, np.ndarray]


def _path(name: str) -> Path | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    path = Path(folder) / f"{name}.npz" if folder else None
    return path if path is not None and path.is_file() else None


def requires_record(*names: str) -> pytest.MarkDecorator:
    """Skip a test, and say how to run it, unless all these records are there."""
    missing = [name for name in names if _path(name) is None]
    reason = f"no record {', '.join(missing)}: set {FOLDER_VARIABLE} to the folder of numeric records"
    return pytest.mark.skipif(bool(missing), reason=reason)


@functools.lru_cache(maxsize=4)
def record(name: str) -> Record:
    """All arrays of a record; mark the test with `requires_record(name)`."""
    path = _path(name)
    if path is None:
        pytest.skip(f"no record {name}: set {FOLDER_VARIABLE} to the folder of numeric records")
    with np.load(path) as arrays:
        return {key: arrays[key] for key in arrays.files}


def meta(loaded: Record) -> dict[str, Any]:
    """A record's settings."""
    return json.loads(str(loaded["meta/json"]))


def tensor(loaded: Record, key: str) -> Tensor:
    """One array of a record."""
    return torch.from_numpy(loaded[key].copy())


def state(loaded: Record, prefix: str = "state/") -> dict[str, Tensor]:
    """The tensors below a prefix: "state/" the original's state dict, "grad/" its gradients."""
    return {key.removeprefix(prefix): tensor(loaded, key) for key in loaded if key.startswith(prefix)}


def recipe_state(loaded: Record) -> dict[str, Tensor]:
    """The original's state dict of a record that holds a recipe in place of weights.

    Entry k of meta.recipe is [name, shape, mean, std]: standard normal draws of RandomState(k), times std, plus mean;
    entries without std are filter taps.
    """
    weights = {}
    for k, (name, shape, mean, std) in enumerate(meta(loaded)["recipe"]):
        if std is None:
            array = np.outer(RECIPE_TAPS, RECIPE_TAPS)
            assert list(array.shape) == list(shape), name
        else:
            draws = np.random.RandomState(k).standard_normal(shape).astype(np.float32)
            array = draws * np.float32(std) + np.float32(mean)
        weights[name] = torch.from_numpy(np.asarray(array, dtype=np.float32))
    return weights


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖, in float64; 0 where both are 0."""
    assert actual.shape == expected.shape, f"{list(actual.shape)} is not {list(expected.shape)}"
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    difference, size = (actual - expected).norm().item(), expected.norm().item()
    return 0.0 if difference == 0 else difference / max(size, np.finfo(np.float64).tiny)
