"""The README's tables are what the records say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import readme
import tables

from cips3d.errors import UserError


def test_readme_is_up_to_date() -> None:
    text = readme.README.read_text()
    assert len(readme.names(text, "table")) >= 4
    assert tables.filled(text) == text, "run python benchmarks/tables.py"


RECORD = {
    "device": "A GPU",
    "driver": "1.2",
    "versions": {"torch": "2.4", "triton": None},
    "ceilings": {"bytes_per_second": 4.2e12},
}


def test_suite_table(tmp_path: Path) -> None:
    """Achieved rates beside the ratios; records without them leave their cells empty."""
    old = {"ms": 1.5, "ratio_vs_eager": 3.25, "ratio_vs_compile": None, "fraction_of_limit": 0.875, "peak_mb": 12.4}
    new = old | {"bytes_per_second": 3.6512e12, "flops_per_second": 4.567e14, "host_ms": 0.1}
    results = {"composite_forward": old, "film_siren_forward": new}
    (tmp_path / "suite_gpu.json").write_text(json.dumps(RECORD | {"results": results}))
    text = tables.filled("a\n<!-- table: suite_*.json -->\nold\n<!-- end of table -->\nb\n", tmp_path)
    assert "|  | ms | × eager | × compile | of limit | GB/s | TFLOP/s | peak MB |" in text
    assert "| `composite_forward` | 1.5 | 3.25 |  | 88% |  |  | 12 |" in text
    assert "| `film_siren_forward` | 1.5 | 3.25 |  | 88% | 3651 | 457 | 12 |" in text
    assert "A GPU (copy 4.20 TB/s; driver 1.2; torch 2.4)" in text
    assert "old" not in text
    assert text.startswith("a\n")
    assert text.endswith("b\n")


def test_pictures_on_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "render_speed_gpu.json").write_text(json.dumps(RECORD | {"results": {"render_64": {"ms": 0.5}}}))
    text = tables.table("render_speed_*.json", tmp_path)
    assert "|  | images/s | ms |" in text
    assert "| `render_64` | 2e+03 | 0.5 |" in text


def test_missing_record(tmp_path: Path) -> None:
    assert tables.table("suite_*.json", tmp_path) == "Not measured yet.\n"


def test_unknown_kind() -> None:
    with pytest.raises(UserError, match="of no known kind"):
        tables.table("speed.json")
