"""Marked parts of a text are written anew, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import readme

TEXT = """a
<!-- table: one_*.json -->
old
<!-- end of table -->
b
<!-- gallery -->
older
<!-- end of gallery -->
<!-- table: two.json -->
<!-- end of table -->
c
"""


def test_parts_by_kind_and_name() -> None:
    assert readme.names(TEXT, "table") == ["one_*.json", "two.json"]
    assert readme.names(TEXT, "gallery") == [""]
    assert readme.names(TEXT, "nothing") == []


def test_only_parts_of_the_kind_are_made_anew() -> None:
    text = readme.filled(TEXT, "table", lambda name: f"new {name}\n")
    assert text == TEXT.replace("old\n", "new one_*.json\n").replace(
        "<!-- table: two.json -->\n", "<!-- table: two.json -->\nnew two.json\n"
    )
    assert readme.filled(TEXT, "gallery", lambda name: r"\1 as it is" + "\n") == TEXT.replace("older", r"\1 as it is")


def test_a_readme_that_says_the_same_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    monkeypatch.setattr(readme, "README", path)
    before = path.stat()
    readme.write(TEXT)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    readme.write("other\n")
    assert path.read_text() == "other\n"


def test_the_readme_has_one_place_for_the_gallery() -> None:
    assert readme.names(readme.README.read_text(), "gallery") == [""]
