"""Where the repository lies, and those parts of its README that scripts write.

Such a part stands between `<!-- KIND -->` or `<!-- KIND: NAME -->` and `<!-- end of KIND -->`, each on a line of its
own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cips3d.files import atomic_file

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"


def _marked(kind: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {kind}(?:: (\S+))? -->\n).*?(<!-- end of {kind} -->)", re.DOTALL)


def names(text: str, kind: str) -> list[str]:
    """Of all parts of a kind, in their order; "" for one without."""
    return [found[2] or "" for found in _marked(kind).finditer(text)]


def filled(text: str, kind: str, content: Callable[[str], str]) -> str:
    """The text with every part of a kind made anew.

    Args:
        content: from the part's name, lines with their ends.
    """
    return _marked(kind).sub(lambda found: f"{found[1]}{content(found[2] or '')}{found[3]}", text)


def write(text: str) -> None:
    """Put it in the README's place; one that says the same already is not touched."""
    if text != README.read_text():
        with atomic_file(README) as file:
            file.write(text.encode())
