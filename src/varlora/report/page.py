"""One self-contained HTML page of a comparison: no network, no script, readable on paper and on a telephone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from varlora.folders import atomic_file
from varlora.metrics import metric_named
from varlora.report.figures import BINS, FEW, reliability_diagrams, risk_coverage_curves
from varlora.report.health import Health
from varlora.report.health_text import remarks, scale_table, sentence, statements
from varlora.report.pages import page_templates
from varlora.report.reading import reading
from varlora.report.results import Comparison
from varlora.report.tables import Table, differences_table, results_table, times_table
from varlora.report.vocabulary import coldness, learning, show


@dataclass(frozen=True, kw_only=True)
class RunNotes:
    """How the numbers came about. Everything is shown as it is given; what is empty is left out.

    Args:
        task: What is asked, in a sentence or two.
        data: One sentence for each thing done with the data: sizes, where the validation rows come from, licence.
        hyperparameters: Setting and value, by group: {"all methods": {"LoRA rank": 8}, "IVON": {"ess": 1e7}}.
        chosen_on_validation: What was tuned there, and the outcome: {"temperature": "1.8, 2.1, 1.9"}.
        versions: Of the libraries.
        command: Runs it all again.
    """

    task: str = ""
    data: Sequence[str] = ()
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    chosen_on_validation: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class PosteriorFacts:
    """What kind of posterior was found. None and empty: not known, left out.

    Args:
        num_weights: Trained entries.
        hessian_moved: Median of |h/h0 - 1|, `meta.diagnostics["hessian_moved"]["overall"]`.
        ess: λ.
        num_examples: N.
        pruned_fraction: Share of the entries set to zero in the pruned variant.
        skipped_steps: Steps left out because a number was not finite.
        note: Which of several posteriors it is.
    """

    num_weights: int | None = None
    hessian_moved: float | None = None
    ess: float | None = None
    num_examples: int | None = None
    pruned_fraction: float | None = None
    skipped_steps: int | None = None
    note: str = ""

    def statements(self) -> list[tuple[str, str, str]]:
        """Name, value and meaning of everything that is known."""
        statements = []
        if self.num_weights is not None:
            statements.append(("Weights", f"{self.num_weights:,}", "adapter entries"))
        if self.ess is not None:
            meaning = "weight of the data against the prior"
            if self.num_examples is not None:
                meaning = coldness(self.ess, self.num_examples, self.hessian_moved)
            statements.append(("Effective sample size λ", show(self.ess), meaning))
        if self.hessian_moved is not None:
            meaning = f"median change of the Hessian estimate from its start: {learning(self.hessian_moved)}"
            statements.append(("Movement of h", f"{100 * self.hessian_moved:.3g} %", meaning))
        if self.pruned_fraction is not None:
            share = f"{100 * self.pruned_fraction:.4g} %"
            statements.append(("Pruned", share, "of the entries, mean and variance set to zero, in the pruned variant"))
        if self.skipped_steps is not None:
            statements.append(("Skipped steps", str(self.skipped_steps), "for a gradient that was not finite"))
        return statements


def render_page(
    comparison: Comparison,
    *,
    title: str,
    notes: RunNotes | None = None,
    posterior: PosteriorFacts | None = None,
    health: Health | None = None,
    version: str = "",
) -> str:
    """The page as HTML; the same bytes for the same input.

    Args:
        comparison: What to report; its first split leads.
        title: Heading of the page.
        notes: How it was run.
        posterior: What kind of posterior it is.
        health: How that posterior does.
        version: Of varlora, for the foot of the page.
    """
    environment = page_templates()
    environment.filters["show"] = show
    measures = {metric_named(metric).title: metric_named(metric).meaning for metric in comparison.metrics}
    return environment.get_template("page.html").render(
        title=title,
        comparison=comparison,
        splits=[_split(comparison, index) for index in range(len(comparison.splits))],
        measures=measures,
        notes=notes or RunNotes(),
        posterior=posterior,
        health=health and _health(health),
        times=_times(comparison),
        bins=BINS,
        few=FEW,
        version=version,
    )


def write_page(
    comparison: Comparison,
    path: Path,
    *,
    title: str,
    notes: RunNotes | None = None,
    posterior: PosteriorFacts | None = None,
    health: Health | None = None,
    version: str = "",
) -> Path:
    """`render_page` into a file, which holds the old page or the new one and never half of it."""
    page = render_page(comparison, title=title, notes=notes, posterior=posterior, health=health, version=version)
    with atomic_file(path, overwrite=True) as file:
        file.write_text(page, encoding="utf-8")
    return path


def _split(comparison: Comparison, index: int) -> dict[str, Any]:
    split = comparison.splits[index]
    runs = {method: comparison.runs(method, split) for method in comparison.methods}
    others = len(runs) > 1 and comparison.reference is not None
    return {
        "name": split,
        "reading": reading(comparison, split=split),
        "results": results_table(comparison, split=split, metrics=comparison.metrics),
        "differences": differences_table(comparison, split=split, metrics=comparison.metrics) if others else None,
        "diagrams": {
            name: Markup(svg) for name, svg in reliability_diagrams(runs, prefix=f"reliability-{index}").items()
        },
        "curves": Markup(risk_coverage_curves(runs, prefix=f"risk-coverage-{index}")),
    }


def _health(health: Health) -> dict[str, Any]:
    return {
        "sentence": sentence(health),
        "remarks": remarks(health),
        "statements": statements(health),
        "scales": scale_table(health),
    }


def _times(comparison: Comparison) -> Table | None:
    table = times_table(comparison, split=comparison.splits[0])
    return table if any(cell.lines for _, cells in table.rows for cell in cells) else None
