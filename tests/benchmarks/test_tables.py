"""The README's tables are what the records say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tables

from cips3d.errors import UserError


def test_readme_is_up_to_date() -> None:
    readme = (tables.ROOT / "README.md").read_text()
    assert len(tables.MARKED.findall(readme)) >= 4
    assert tables.filled(readme) == readme, "run python benchmarks/tables.py"


def test_suite_table(tmp_path: Path) -> None:
    result = {"ms": 1.5, "ratio_vs_eager": 3.25, "ratio_vs_compile": None, "fraction_of_limit": 0.875, "peak_mb": 12.4}
    record = {
        "device": "A GPU",
        "driver": "1.2",
        "versions": {"torch": "2.4"},
        "ceilings": {"bytes_per_second": 4.2e12},
        "results": {"composite_forward": result},
    }
    (tmp_path / "suite_gpu.json").write_text(json.dumps(record))
    text = tables.filled("a\n<!-- table: suite_*.json -->\nold\n<!-- end of table -->\nb\n", tmp_path)
    assert "| `composite_forward` | 1.5 | 3.25 |  | 88% | 12 |" in text
    assert "A GPU (copy 4.20 TB/s; driver 1.2; torch 2.4)" in text
    assert "old" not in text
    assert text.startswith("a\n")
    assert text.endswith("b\n")


def test_missing_record(tmp_path: Path) -> None:
    assert tables.table("suite_*.json", tmp_path) == "Not measured yet.\n"


def test_unknown_kind() -> None:
    with pytest.raises(UserError, match="of no known kind"):
        tables.table("speed.json")
