"""A metric of somebody else's package: in every table of every format, and no line of varlora knows its name."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from report.made_up import made_up_rows, made_up_study  # type: ignore[import-not-found]
from varlora.cli.tables import metrics_tables
from varlora.metrics import METRICS, evaluate, evaluate_with_intervals
from varlora.report import Comparison, model_card
from varlora.report.study import Study
from varlora.report.study_data import study_data
from varlora.report.study_text import print_study, study_latex, study_markdown

MODULE = """
from varlora.metrics import Metric

def probability(rows):
    return rows.probs.gather(-1, rows.labels.unsqueeze(-1)).squeeze(-1)

RIGHT = Metric(
    name="right", function=probability, per_row=True, title="p(right)", label="probability of the right answer",
    better="higher", meaning="the probability of the right answer",
)
"""
HEADING = "p(right) ↑"


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of one module, as an installer leaves it."""
    (tmp_path / "foreign_metrics.py").write_text(MODULE, encoding="utf-8")
    facts = tmp_path / "foreign_metrics-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-metrics\nVersion: 1.0\n", encoding="utf-8")
    (facts / "entry_points.txt").write_text("[varlora.metrics]\nright = foreign_metrics:RIGHT\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(METRICS, "_added", {})
    monkeypatch.delitem(sys.modules, "foreign_metrics", raising=False)


@pytest.fixture
def found(_installed: None) -> Study:
    study: Study = made_up_study(Comparison(task="wants", rows=made_up_rows(), resamples=40))
    return study


def test_it_is_in_the_report_on_the_page_and_in_what_is_exact(found: Study) -> None:
    comparison = found.blocks[0].comparison
    assert comparison is not None
    assert comparison.metrics[-1] == "right"
    row = comparison.runs("AdamW", "test")[0]
    expected = evaluate(row.log_probs, row.labels)["right"]
    assert comparison.summary("test")["AdamW"].per_seed[0]["right"] == expected
    for text in (study_markdown(found), study_latex(found).replace(r"$\uparrow$", "↑")):
        assert HEADING in text
    console = Console(file=io.StringIO(), width=200)
    print_study(found, console)
    assert HEADING in console.file.getvalue()  # type: ignore[attr-defined]
    data = study_data(found)
    assert data["measures"]["right"]["meaning"] == "the probability of the right answer"
    assert HEADING in data["blocks"][0]["splits"]["test"]["results"]["headings"]
    assert HEADING in data["blocks"][0]["splits"]["test"]["differences"]["headings"]
    assert "right" in data["blocks"][0]["frontiers"][0]["points"][0]["metrics"]
    assert "right" in data["overview"]["test"]["metrics"]


@pytest.mark.usefixtures("_installed")
def test_it_is_on_the_terminal_and_in_the_model_card() -> None:
    row = made_up_rows()[0]
    metrics = {"test": {"mean": evaluate(row.log_probs, row.labels)}}
    intervals = {"test": {"mean": evaluate_with_intervals(row.log_probs, row.labels, resamples=40)}}
    console = Console(file=io.StringIO(), width=120)
    for table in metrics_tables(metrics, intervals):
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert HEADING in shown
    assert METRICS["right"].show(intervals["test"]["mean"]["right"].low) in shown
    card = model_card(name="run", kind="point_mass", meta={"method": "adamw"}, metrics=metrics)
    assert HEADING in card
    assert "**p(right)**: the probability of the right answer." in card


def test_what_was_measured_without_it_is_shown_without_it(found: Study) -> None:
    """Metrics of an older run, or of a package that is gone, or new: a gap, and no error."""
    block = found.blocks[0]
    points = [
        replace(p, metrics={n: v for n, v in p.metrics.items() if n != "right"}) for p in block.frontiers[0].points
    ]
    older = replace(found, blocks=(replace(block, frontiers=(replace(block.frontiers[0], points=points),)),))
    (frontier,) = study_data(older)["blocks"][0]["frontiers"]
    assert frontier["points"][0]["metrics"]["right"] == [None, None]
