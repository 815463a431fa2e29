"""Write the README's tables from the recorded results, so that no figure in it is typed.

    python benchmarks/tables.py           # rewrites README.md
    python benchmarks/tables.py --check   # fails where README.md does not say what the records say

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; NAME is a record in benchmarks/results/, or a
pattern, whose records follow one another under their devices' names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import readme
from figures import COLUMNS, PICTURE_COLUMNS, cells, picture_cells
from readme import RESULTS

from cips3d.errors import UserError
from cips3d.process.ending import exit_on_user_error

Record = dict[str, Any]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def render_speed(record: Record) -> str:
    if "results" in record:  # of a GPU
        return pictures(record)
    of = {(figures["resolution"], figures["published"]): figures for figures in record["figures"]}
    rows = []
    for side in sorted({side for side, _ in of}):
        ours, published = of[side, False], of[side, True]
        rows.append(
            [
                f"{side}²",
                f"{1e3 / ours['best_ms']:.3g}",
                f"{ours['best_ms'] / 1e3:.3g}",
                f"{published['best_ms'] / 1e3:.3g}",
                f"{published['best_ms'] / ours['best_ms']:.1f}",
                f"{ours['best_ms'] / ours['products_ms']:.1f}",
                f"{ours['peak_mib']:.0f}",
                f"{published['peak_mib']:.0f}",
            ]
        )
    head = ["resolution", "images/s", "s/image", "published: s/image", "times as fast", "of products", "peak MiB"]
    return on_processor(record["machine"], record["torch"]) + markdown([*head, "published: peak MiB"], rows)


def train_speed(record: Record) -> str:
    row = [
        f"`{record['preset']}`",
        f"{record['resolution']}²",
        str(record["batch_size"]),
        f"{record['steps_per_second']:.1f}",
        f"{record['images_per_second']:.0f}",
        f"{record['peak_mib']:.0f}",
    ]
    head = ["preset", "resolution", "batch", "steps/s", "images/s", "peak MiB"]
    return on_processor(record["device"], record["torch"]) + markdown(head, [row])


def learning(record: Record) -> str:
    rows = []
    for name, figures in record["references"].items():
        rows.append([name, *distances(figures), yaw(figures.get("yaw"))])
    for run in record["runs"]:
        rows.append([f"seed {run['seed']}", *distances(run), yaw(run["yaw"])])
    machine = on_processor(record["machine"]["cpu"], record["machine"]["torch"])
    return machine + markdown(["", "fr", "fp", "swd", "yaw slope (correlation)"], rows)


def distances(figures: Record) -> list[str]:
    return [f"{figures['fr']:.3f}", f"{figures['fp']:.3f}", f"{figures['swd']:.2f}"]


def yaw(response: Record | None) -> str:
    return "" if response is None else f"{response['slope']:.2f} ({response['correlation']:.2f})"


def suite(record: Record) -> str:
    rows = [[f"`{name}`", *cells(line)] for name, line in record["results"].items()]
    return conditions(record) + markdown(["", *COLUMNS], rows)


def pictures(record: Record) -> str:
    rows = [[f"`{name}`", *picture_cells(line)] for name, line in record["results"].items()]
    return conditions(record) + markdown(["", *PICTURE_COLUMNS], rows)


def conditions(record: Record) -> str:
    copy = record["ceilings"]["bytes_per_second"] / 1e12
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version is not None)
    return f"{record['device']} (copy {copy:.2f} TB/s; driver {record['driver']}; {versions}):\n\n"


def on_processor(name: str, torch: str) -> str:
    """The same of a CPU."""
    return f"{name}, torch {torch}:\n\n"


KINDS: dict[str, Callable[[Record], str]] = {
    "render_speed": render_speed,
    "train_speed": train_speed,
    "learning": learning,
    "suite": suite,
}


def table(pattern: str, folder: Path = RESULTS) -> str:
    """The tables of all records whose names fit, or a line that says that there are none."""
    kind = next((kind for kind in KINDS if pattern.startswith(kind)), None)
    if kind is None:
        raise UserError(f"table {pattern!r} is of no known kind; its name must begin with one of {', '.join(KINDS)}")
    records = sorted(folder.glob(pattern))
    if not records:
        return "Not measured yet.\n"
    return "\n".join(KINDS[kind](json.loads(path.read_text())) for path in records)


def filled(text: str, folder: Path = RESULTS) -> str:
    """The text with every marked table made anew."""
    return readme.filled(text, "table", partial(table, folder=folder))


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a table is not up to date")
    arguments = parser.parse_args()
    before = readme.README.read_text()
    after = filled(before)
    if arguments.check and before != after:
        raise UserError("README.md has a table that its record does not give; run python benchmarks/tables.py")
    readme.write(after)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(command))
