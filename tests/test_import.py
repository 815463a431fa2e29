"""Importing the package costs little and changes nothing."""

from __future__ import annotations

import subprocess
import sys

IMPORT_EVERYTHING = """
import logging, os, random, signal, sys
import torch

def settings():
    backends = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    products = torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.get_num_threads()
    chance = torch.get_rng_state().tolist(), random.getstate()
    process = dict(os.environ), os.getcwd(), sys.excepthook, signal.getsignal(signal.SIGINT)
    return backends, products, chance, process, (logging.root.level, list(logging.root.handlers))

import cips3d
before, modules = settings(), set(sys.modules)
import importlib, pkgutil
for module in pkgutil.walk_packages(cips3d.__path__, "cips3d."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert settings() == before
assert not torch.cuda.is_initialized()
new = set(sys.modules) - modules
assert "cips3d.training.loop" in new
slow = {"torch._dynamo", "sympy", "trimesh", "viser", "scipy", "skimage", "torchvision", "torch_fidelity"}
assert not slow & new, slow & new
"""


def test_import() -> None:
    """Neither settings of the process nor random numbers change, no GPU is touched, no large library comes along."""
    command = [sys.executable, "-c", IMPORT_EVERYTHING]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NAMES = """
import cips3d
assert {"ops", "models", "training"} <= set(dir(cips3d))
assert cips3d.ops.film_siren.__module__ == "cips3d.ops.film_siren"
assert all(getattr(cips3d, name).__doc__ for name in cips3d.__all__)
assert not hasattr(cips3d, "operations")
"""


def test_folders_are_loaded_by_their_names() -> None:
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
