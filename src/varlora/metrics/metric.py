"""What a metric is: how it is computed, which way is better, how its uncertainty is had, and how it is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

MINUS = "\N{MINUS SIGN}"
Kind = Literal["classes", "completions", "final_answers", "out_of_scope"]
"""What the rows are that a metric judges (`varlora.metrics.rows`)."""
Shown = Literal["everywhere", "terminal", "nowhere"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that rows are judged by.

    Attributes:
        name: The key in `evaluate`'s answer, metrics.json and reports: "ece_15".
        function: From rows of its kind, whose tensors are (..., N) or (..., N, *): with `per_row` one value for each
            row (..., N), whose mean is the metric; else the metric itself (...,). None: not defined for such rows.
        better: Which direction is good; None: neither.
        title: In the head of a column; the name by default.
        label: In a sentence, "the best accuracy"; the title by default.
        meaning: One sentence for a reader who has never met it, without its first capital and its full stop.
        percent: Shown as a percentage; the number itself stays a fraction.
        digits: Decimals shown; 1 of a percentage and else 3 by default.
        kind: Which rows it judges.
        per_row: Whether it is a mean over the rows: their values are worked out once, and each resample of the
            bootstrap is a mean of some. Else `of_counts`, or `function`, is called for each resample.
        of_counts: From the rows (N,) and how often resamples hold each, (..., N) float64: what `function` gives of the
            rows as they were drawn, and sooner (`varlora.metrics.counted`). None: `function` is called with them.
        share_of: The fraction of the rows that it is a share of: where resampling gives an interval no width (12 of 12
            right), it is the exact one of Clopper and Pearson. None: it is no share.
        inflated: Whether resampling can only add to it, as to a calibration error, so that its interval lies high.
        shown: "everywhere" (terminal, report, page and model card), "terminal", or "nowhere": in metrics.json alone.

    Raises:
        ValueError: there is no name, a metric that is shown everywhere has no meaning, or a number is out of its range.

    Example:
        >>> from varlora.metrics import METRICS
        >>> METRICS["accuracy"].show(0.714), METRICS["accuracy"].show_difference(-0.032)
        ('71.4', '−3.2')
        >>> METRICS["nll"].show(0.744), METRICS["ece_15"].heading
        ('0.744', 'ECE % ↓')
    """

    name: str
    function: Callable[[Any], Tensor | None]
    better: Literal["higher", "lower"] | None = None
    title: str = ""
    label: str = ""
    meaning: str = ""
    percent: bool = False
    digits: int | None = None
    kind: Kind = "classes"
    per_row: bool = False
    of_counts: Callable[[Any, Tensor], Tensor | None] | None = None
    share_of: float | None = None
    inflated: bool = False
    shown: Shown = "everywhere"

    def __post_init__(self) -> None:
        if not self.name.strip() or (self.shown == "everywhere" and not self.meaning.strip()):
            raise ValueError(f"the metric {self.name!r} needs a name, and a meaning in words where it is shown.")
        object.__setattr__(self, "title", self.title or self.name)
        object.__setattr__(self, "label", self.label or self.title)
        if self.share_of is not None and not 0 < self.share_of <= 1:
            raise ValueError(
                f"{self.name}: share_of is {self.share_of}; give a fraction of the rows in (0, 1], or None."
            )

    @property
    def decimals(self) -> int:
        """How many are shown."""
        return self.digits if self.digits is not None else 1 if self.percent else 3

    @property
    def heading(self) -> str:
        """The title with its unit and an arrow towards the better side, e.g. `Accuracy % ↑`."""
        arrow = {"higher": " ↑", "lower": " ↓", None: ""}[self.better]
        return f"{self.title}{' %' if self.percent else ''}{arrow}"

    def show(self, value: float | None) -> str:
        """`value` as a reader sees it, without a unit; None stands for a number that is not finite."""
        if value is None or math.isnan(value):
            return "–"
        if math.isinf(value):
            return "∞" if value > 0 else f"{MINUS}∞"
        text = f"{value * (100 if self.percent else 1):.{self.decimals}f}"
        if float(text) == 0:
            text = text.lstrip("-")
        return text.replace("-", MINUS)

    def show_difference(self, value: float) -> str:
        """`value` with its sign; a difference that rounds to nothing has none."""
        text = self.show(value)
        signed = math.isfinite(value) and not text.startswith(MINUS) and float(text) != 0
        return f"+{text}" if signed else text

    def shows_nothing(self, difference: float) -> bool:
        """Whether a difference is 0 to the digits that are shown.

        Example:
            >>> from varlora.metrics import METRICS
            >>> METRICS["nll"].shows_nothing(-0.0004), METRICS["nll"].shows_nothing(-0.0006)
            (True, False)
        """
        return self.show(abs(difference)) == self.show(0.0)

    def is_better(self, difference: float) -> bool:
        """Whether a change by `difference` is a gain."""
        return difference > 0 if self.better == "higher" else difference < 0
