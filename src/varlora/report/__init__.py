"""What a comparison of methods shows: tables, figures, one self-contained HTML page, and the model card of a run."""

from varlora.report.model_card import model_card
from varlora.report.page import PosteriorFacts, RunNotes, Scale, render_page, write_page
from varlora.report.reading import reading
from varlora.report.results import Comparison, Difference, Estimate, Summary
from varlora.report.rows import Row
from varlora.report.tables import Table, differences_table, results_table, times_table

__all__ = [
    "Comparison",
    "Difference",
    "Estimate",
    "PosteriorFacts",
    "Row",
    "RunNotes",
    "Scale",
    "Summary",
    "Table",
    "differences_table",
    "model_card",
    "reading",
    "render_page",
    "results_table",
    "times_table",
    "write_page",
]
