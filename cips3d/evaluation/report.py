"""What was measured and what came out, as a table to read and as a file for other programs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cips3d.evaluation.catalogue import VALUES
from cips3d.evaluation.evaluate import Evaluation, EvaluationSettings
from cips3d.files import atomic_file
from cips3d.pictures import reported
from cips3d.plain import finite, to_plain
from cips3d.process.versions import versions

LIBRARIES = ("torch-fidelity", "torchvision", "lpips")  # whose versions figures depend on


@dataclass(frozen=True)
class Report:
    """The results of a measurement, and what was measured."""

    subject: str
    """in words"""
    facts: dict[str, Any]
    """plain values that tell the subject, first in the file"""
    settings: EvaluationSettings
    device: str
    evaluation: Evaluation

    def table(self) -> str:
        """A line a value, and two a curve."""
        found = self.evaluation
        widths = max(map(len, [*found.values, *found.curves]))
        lines = [
            f"{name:<{widths}}  {_rounded(value):>9}  {_direction(name):<17}  {VALUES[name].meaning}"
            for name, value in found.values.items()
        ]
        for name, curve in found.curves.items():
            lines.append(f"{name:<{widths}}  at angle   {' '.join(f'{x:5.2f}' for x in curve.x)}")
            lines.append(f"{'':<{widths}}  there is   {' '.join(f'{y:5.2f}' for y in curve.y)}")
        return "\n".join(lines)

    def content(self) -> dict[str, Any]:
        """The content of the JSON file; what is no number or infinite is None."""
        found = self.evaluation
        settings = to_plain(self.settings)
        for unimportant in ("progress", "cache"):
            settings.pop(unimportant)
        return {
            **self.facts,
            "values": {name: finite(value) for name, value in found.values.items()},
            "better": {name: VALUES[name].better for name in found.values},
            "curves": {name: {"x": curve.x, "y": [finite(y) for y in curve.y]} for name, curve in found.curves.items()},
            "seconds": found.seconds,
            "settings": settings,
            "seed": self.settings.seed,
            "device": self.device,
            "versions": versions_of_metrics(),
        }

    def write(self, path: Path) -> None:
        """Write the JSON file.

        Raises:
            UserError: it cannot be written.
        """
        text = json.dumps(self.content(), indent=2, allow_nan=False) + "\n"
        with reported(path), atomic_file(path) as file:
            file.write(text.encode())


def versions_of_metrics() -> dict[str, str]:
    """Versions of what computes, the metrics' libraries included where they are installed."""
    found = versions()
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _rounded(value: float) -> str:
    """Four figures; a dash for what is no number."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def _direction(name: str) -> str:
    better = VALUES[name].better
    return "" if better == "neither" else f"{better} is better"
