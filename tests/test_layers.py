"""The package's folders and modules build on each other in layers: none imports itself by way of others."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import cips3d

ROOT = Path(cips3d.__file__).parent

Graph = dict[str, dict[str, list[str]]]


def imported_by(file: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it: at its head, in functions, for type checkers."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports by a relative name in line {node.lineno}; give the full one"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def graph_of(root: Path) -> Graph:
    """For every folder and module right under `root`: those of them that it imports, with the files that do so."""
    names = {path.stem for path in root.iterdir() if path.suffix == ".py" or path.is_dir()}
    graph: Graph = {}
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        imports = graph.setdefault(Path(inside.parts[0]).stem, {})
        for name in imported_by(file):
            package, *parts = name.split(".")
            if package == "cips3d" and parts and parts[0] in names - {Path(inside.parts[0]).stem}:
                files = imports.setdefault(parts[0], [])
                files += [] if str(inside) in files else [str(inside)]
    return graph


def circle_in(graph: Graph) -> str | None:
    """Who imports whom in a circle, step by step; None: there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1][::-1]  # a name, one that it imports, and so on, back to the first
        steps = zip(circle, circle[1:], strict=False)
        return "; ".join(f"{one} imports {other} ({', '.join(graph[one][other])})" for one, other in steps)
    return None


def test_nothing_imports_itself_by_way_of_others() -> None:
    graph = graph_of(ROOT)
    circle = circle_in(graph)
    assert circle is None, f"{circle}: a circle; move what they share below them all"
    for upper, lower in (("evaluation", "rendering"), ("rendering", "checkpoints"), ("checkpoints", "models")):
        assert lower in graph[upper]


def test_generators_do_not_build_on_each_other() -> None:
    generators = {"cips3d", "pigan", "cips", "stylegan2"}
    for name in generators:
        imported = {full for full in imported_by(ROOT / "models" / f"{name}.py") if full.startswith("cips3d.models.")}
        assert imported and not {full.split(".")[2] for full in imported} & (generators - {name}), name


def test_a_circle_is_named(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "x.py").write_text("import cips3d.a.y\nfrom cips3d.b.z import something\n")
    (tmp_path / "b" / "z.py").write_text("def later() -> None:\n    from cips3d import c\n")
    (tmp_path / "c.py").write_text("from cips3d import __version__\n")
    assert circle_in(graph_of(tmp_path)) is None
    (tmp_path / "c.py").write_text("import torch\nimport cips3d.a.x\n")
    circle = circle_in(graph_of(tmp_path))
    assert circle is not None
    for step in ("a imports b (a/x.py)", "b imports c (b/z.py)", "c imports a (c.py)"):
        assert step in circle
