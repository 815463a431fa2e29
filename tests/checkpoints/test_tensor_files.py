"""Safetensors files under names of every kind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from cips3d.checkpoints.tensor_files import FileKind, open_tensors, tensors_in, write_tensors


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8")
def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """As Linux may have; safetensors opens none of them."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors"))
    write_tensors(path, {"a": torch.ones(2)}, {"b": "c"})
    with open_tensors(path, FileKind("file", "another one", "write it again", 1)) as file:
        assert file.metadata() == {"b": "c"} and torch.equal(tensors_in(file)["a"], torch.ones(2))
