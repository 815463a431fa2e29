"""What the command `python -m cips3d.evaluate` prints and writes."""

from __future__ import annotations

from cips3d.evaluation.catalogue import VALUES
from cips3d.evaluation.evaluate import Evaluation, EvaluationSettings
from cips3d.evaluation.report import Report


def test_every_value_has_a_line_in_the_table() -> None:
    found = Evaluation(dict.fromkeys(VALUES, 1.0))
    report = Report("nothing", {}, EvaluationSettings(), "cpu", found)
    assert len(report.table().splitlines()) == len(VALUES)
