"""How each metric is named, shown and explained: the one place where the report's words live."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MINUS = "\N{MINUS SIGN}"
Verdict = Literal["better", "worse", "equal", "unclear", "one seed"]
"""What a difference shows (`varlora.report.seeds`)."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The display of one metric of `varlora.metrics.evaluate`.

    Args:
        name: In a sentence: "the best accuracy".
        title: In the head of a column.
        better: Which direction is good.
        percent: Shown as a percentage; the number itself stays a fraction.
        digits: Decimals shown.
        meaning: One sentence for a reader who has never met it.

    Example:
        >>> METRICS["accuracy"].show(0.714), METRICS["accuracy"].show_difference(-0.032)
        ('71.4', '−3.2')
        >>> METRICS["nll"].show(0.744)
        '0.744'
    """

    name: str
    title: str
    better: Literal["higher", "lower"]
    percent: bool
    digits: int
    meaning: str

    @property
    def heading(self) -> str:
        """The title with its unit and an arrow towards the better side, e.g. `Accuracy % ↑`."""
        unit = " %" if self.percent else ""
        return f"{self.title}{unit} {'↑' if self.better == 'higher' else '↓'}"

    def show(self, value: float) -> str:
        """`value` as a reader sees it, without a unit."""
        if not math.isfinite(value):
            return "–" if math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
        text = f"{value * (100 if self.percent else 1):.{self.digits}f}"
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
            >>> METRICS["nll"].shows_nothing(-0.0004), METRICS["nll"].shows_nothing(-0.0006)
            (True, False)
        """
        return self.show(abs(difference)) == self.show(0.0)

    def is_better(self, difference: float) -> bool:
        """Whether a change by `difference` is a gain."""
        return difference > 0 if self.better == "higher" else difference < 0


_ECE = (
    "expected calibration error. Group the answers by stated confidence; on average over the groups, how far "
    "is the share of right answers from the confidence? 0 % is perfect"
)

METRICS: dict[str, Measure] = {
    "accuracy": Measure(
        name="accuracy",
        title="Accuracy",
        better="higher",
        percent=True,
        digits=1,
        meaning="the share of questions answered right",
    ),
    "nll": Measure(
        name="NLL",
        title="NLL",
        better="lower",
        percent=False,
        digits=3,
        meaning=(
            "negative log-likelihood, the average of −log p, p being the probability given to the right answer. "
            "Being sure and wrong costs most. It judges accuracy and calibration together"
        ),
    ),
    "ece_10": Measure(name="ECE", title="ECE-10", better="lower", percent=True, digits=1, meaning=_ECE),
    "ece_15": Measure(name="ECE", title="ECE", better="lower", percent=True, digits=1, meaning=_ECE),
    "ece_20": Measure(name="ECE", title="ECE-20", better="lower", percent=True, digits=1, meaning=_ECE),
    "brier": Measure(
        name="Brier score",
        title="Brier",
        better="lower",
        percent=False,
        digits=3,
        meaning=(
            "the squared distance between the stated probabilities and the truth, summed over the answers "
            "(0 to 2). Like the NLL, but a single confident mistake cannot dominate it"
        ),
    ),
    "mce_15": Measure(
        name="MCE",
        title="MCE",
        better="lower",
        percent=True,
        digits=1,
        meaning="maximum calibration error, the gap of the worst group, however few answers it holds",
    ),
}

_FOREIGN = "are rows of no known class told from the test rows by"


def _detection(name: str, score: str) -> dict[str, Measure]:
    return {
        f"auroc_{name}": Measure(
            name=f"AUROC by {score}",
            title=f"AUROC, {score}",
            better="higher",
            percent=False,
            digits=3,
            meaning=f"{_FOREIGN} {score}? 1 is always, 0.5 is chance",
        ),
        f"fpr95_{name}": Measure(
            name=f"FPR95 by {score}",
            title=f"FPR95, {score}",
            better="lower",
            percent=True,
            digits=1,
            meaning=f"{_FOREIGN} {score}? The share of false alarms when 95 % of the foreign rows are found",
        ),
    }


DETECTION: dict[str, Measure] = {
    **_detection("entropy", "entropy"),
    **_detection("mutual_information", "mutual information"),
}
"""Of splits whose rows belong to no class, as `varlora.runs.measure` names them."""

MARKS: dict[Verdict, str] = {"better": "▲", "worse": "▼", "equal": "=", "unclear": "○", "one seed": "◇"}
"""A sign for each verdict, so that none depends on its colour."""

COMPLETIONS: dict[str, Measure] = {
    "nll_per_token": Measure(
        name="NLL per token",
        title="NLL per token",
        better="lower",
        percent=False,
        digits=3,
        meaning="negative log-likelihood of the given completions, per token",
    ),
    "exact_match": Measure(
        name="exact match",
        title="Exact match",
        better="higher",
        percent=True,
        digits=1,
        meaning="the share of prompts whose final answer is right; of several draws the answer that most of them give",
    ),
    "exact_match_per_draw": Measure(
        name="exact match per draw",
        title="… per draw",
        better="higher",
        percent=True,
        digits=1,
        meaning="the share of right answers of a single draw, on average over the draws",
    ),
    "agreement_ece_10": Measure(
        name="ECE of the agreement",
        title="ECE of agreement",
        better="lower",
        percent=True,
        digits=1,
        meaning=(
            "expected calibration error of the agreement, the share of the draws that give the answer, taken as the "
            "probability that it is right. 0 % is perfect"
        ),
    ),
}
"""Of completions, and of the final answers of texts that were written."""

HEADLINE = ("accuracy", "nll", "ece_15")
"""The metrics of a narrow table, and of the sentence that opens the report."""

FULL = ("accuracy", "nll", "ece_15", "brier")


def measure(metric: str) -> Measure:
    """The display of `metric`.

    Raises:
        ValueError: The report has no words for this metric.
    """
    if metric not in METRICS:
        raise ValueError(f"the report cannot show {metric!r}; it knows {', '.join(METRICS)}")
    return METRICS[metric]


def listing(items: list[str] | tuple[str, ...]) -> str:
    """`items` as English: "a", "a and b", "a, b and c".

    Example:
        >>> listing(["accuracy", "NLL", "ECE"])
        'accuracy, NLL and ECE'
    """
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


def show(value: object) -> str:
    """A setting as a reader wants it.

    Example:
        >>> show(1e7), show(3e-4), show(True), show(["q_proj", "v_proj"]), show(None)
        ('10,000,000', '0.0003', 'yes', 'q_proj, v_proj', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value))
    return str(value)


def coldness(ess: float, num_examples: int, hessian_moved: float | None) -> str:
    """What λ against N makes of the posterior: nothing where h was not learned, for then the variance is a choice.

    Args:
        ess: λ.
        num_examples: N.
        hessian_moved: median of |h/h0 - 1|; None where it is not known, which counts as not learned.

    Example:
        >>> coldness(1e6, 300, hessian_moved=0.8)
        "N is 300, so λ/N = 3,330: a cold posterior, narrower than Bayes' rule at N"
        >>> coldness(30_000, 300, hessian_moved=0.0)
        "N is 300, so λ/N = 100: no distance from Bayes' rule, since h was not learned"
    """
    ratio = ess / num_examples
    if hessian_moved is None or hessian_moved < LEARNED:
        kind = "no distance from Bayes' rule, since h was not learned"
    elif ratio > 1.05:
        kind = "a cold posterior, narrower than Bayes' rule at N"
    elif ratio < 0.95:
        kind = "a warm posterior, wider than Bayes' rule at N"
    else:
        kind = "plain Bayes"
    return f"N is {num_examples:,}, so λ/N = {show(float(f'{ratio:.3g}'))}: {kind}"


LEARNED = 0.5
"""Median of |h/h0 - 1| from which on the variance is called learned."""


def learning(hessian_moved: float) -> str:
    """What the median of |h/h0 - 1| says of the variance."""
    if hessian_moved < LEARNED:
        return "the variance is mostly the one it was started with, not learned"
    return "the variance was learned from the data"
