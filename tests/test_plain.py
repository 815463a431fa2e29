"""Typed configurations to plain values and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from cips3d.plain import from_plain, to_plain


@dataclass(frozen=True)
class Inner:
    size: int = 1
    name: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    several: tuple[Inner, ...] = ()
    pair: tuple[float, int] = (0.5, 2)
    path: Path | None = None
    table: dict[int, float] | None = None
    flag: bool = False


def test_round_trip_through_json() -> None:
    value = Outer(Inner(3, "b"), (Inner(), Inner(2)), (1.0, 7), Path("x/y"), {4: 0.5, 8: 2.0}, True)
    assert from_plain(Outer, json.loads(json.dumps(to_plain(value)))) == value


def test_missing_fields_take_defaults() -> None:
    assert from_plain(Outer, {"flag": True}) == Outer(flag=True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"colour": 1}, "colour"),
        ({"inner": {"name": "c"}}, "'c'"),
        ({"inner": 3}, "3"),
        ({"flag": "yes"}, "bool"),
        ({"several": [{"size": "large"}]}, "large"),
    ],
)
def test_wrong_values_are_refused(value: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_plain(Outer, value)
