"""What the page's figures are drawn from: bins of reliability diagrams, and risk-coverage curves."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from varlora.metrics import ReliabilityBin, reliability_bins
from varlora.report.rows import Row

BINS = 15
FEW = 10
"""A bin with fewer answers than this is drawn pale: its accuracy is mostly chance."""


def pooled_bins(rows: Sequence[Row]) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram of all seeds' answers together."""
    confidence, correct = (
        torch.cat([getattr(row.examples, name) for row in rows]) for name in ("confidence", "correct")
    )
    return reliability_bins(confidence, correct, bins=BINS)


def mean_risk(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Coverage (N,) and the mean over seeds of the risk at it (N,)."""
    coverage = torch.arange(1, rows[0].examples.number + 1, dtype=torch.float64) / rows[0].examples.number
    return coverage, torch.stack([row.examples.risk for row in rows]).mean(0)


def thinned(coverage_N: torch.Tensor, *, points: int = 160, start: float = 0.05) -> list[int]:
    """Indices of at most `points` places of the curve; below `start` it is the luck of a few answers."""
    first, last = int((coverage_N < start).sum()), len(coverage_N) - 1
    return sorted({first + round((last - first) * i / (points - 1)) for i in range(points)})
