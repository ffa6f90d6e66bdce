"""What a comparison of methods shows: tables, figures, one self-contained HTML page, and the model card of a run."""

from varlora.report.estimates import Difference, Estimate, Summary
from varlora.report.health import Health, health_of
from varlora.report.model_card import model_card
from varlora.report.reading import reading
from varlora.report.results import Comparison
from varlora.report.rows import Row
from varlora.report.sampling import ValidationLogProbs
from varlora.report.tables import Table, differences_table, results_table

__all__ = [
    "Comparison",
    "Difference",
    "Estimate",
    "Health",
    "Row",
    "Summary",
    "Table",
    "ValidationLogProbs",
    "differences_table",
    "health_of",
    "model_card",
    "reading",
    "results_table",
]
