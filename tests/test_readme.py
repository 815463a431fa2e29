"""The README's examples of use from Python, one after the other as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.small_runs import write_run

from cips3d.training.config import TrainConfig

README = Path(__file__).resolve().parents[1] / "README.md"


def test_examples(
    small_config: TrainConfig, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    write_run(tmp_path / "runs" / "00000-tiny", small_config)
    (tmp_path / "photos").symlink_to(photo_folder)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(README), "exec"), found)
    for name in ("image", "aux_image"):
        assert getattr(found["picture"], name).shape == (4, 3, 64, 64)
    assert found["picture"].depth.shape == (4, 1, 64, 64)
    assert not torch.equal(found["picture"].image, found["typical"].image)
    assert torch.isfinite(found["loss_d"] + found["loss_g"])
    assert found["seen"].colors.shape == (4, 256, 3)
    assert found["seen"].weights.shape == (4, 256, 24)
