"""Every metric: how it is computed, which way is better, how its uncertainty is had, and in which words it is told.

`evaluate`, the terminal, the report, its page and the model card all read this table, in its order. `register_metric`
adds one for as long as a program runs; an installed package brings some by entry points:

    [project.entry-points."varlora.metrics"]
    spherical_score = "my_package.spherical:METRIC"
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from varlora.io.nearest import nearest
from varlora.metrics.calibration import (
    classwise_calibration_error,
    equal_mass_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
)
from varlora.metrics.counted import (
    counted_accuracy_at,
    counted_aurc,
    counted_auroc,
    counted_calibration_error,
    counted_classwise_error,
    counted_equal_mass_error,
    counted_fpr95,
    counted_maximum_error,
)
from varlora.metrics.metric import Kind, Metric, Shown
from varlora.metrics.ranking import accuracy_at_coverage, aurc, auroc, fpr95
from varlora.metrics.rows import Rows
from varlora.metrics.scoring import brier_scores, log_losses
from varlora.metrics.uncertainty import entropy, expected_entropy, mutual_information
from varlora.metrics.voting import AnswerRows
from varlora.registry.registry import Registry

HEADLINE = ("accuracy", "nll", "ece_15")
"""The metrics of a narrow table, and of the sentence that opens the report."""


def _of(rows: Rows, value: str, measure: Callable[..., Tensor], **options: Any) -> Tensor | None:
    """A measure of values that rows may not have."""
    given = getattr(rows, value)
    return None if given is None else measure(given, **options)


def _nll_per_token(log_likelihood: Tensor, num_tokens: Tensor) -> Tensor:
    return -log_likelihood.sum(-1) / num_tokens.sum(-1)


def _counted_nll_per_token(counts: Tensor, log_likelihood: Tensor, num_tokens: Tensor) -> Tensor:
    return -(counts @ log_likelihood) / (counts @ num_tokens.double())


def _perplexity(log_likelihood: Tensor, num_tokens: Tensor) -> Tensor:
    return _exp(_nll_per_token(log_likelihood, num_tokens))


def _counted_perplexity(counts: Tensor, log_likelihood: Tensor, num_tokens: Tensor) -> Tensor:
    return _exp(_counted_nll_per_token(counts, log_likelihood, num_tokens))


def _exp(each: Tensor) -> Tensor:
    """Infinite beyond the largest float."""
    values = [math.exp(nll) if nll < 700 else math.inf for nll in each.flatten().tolist()]
    return torch.tensor(values, dtype=torch.float64).reshape(each.shape)


def _both(
    measure: Callable[..., Tensor], counted: Callable[..., Tensor], *values: str | Callable[[Any], Any], **options: Any
) -> dict[str, Any]:
    """A metric's `function` and `of_counts`, by a measure of some of the rows' values and its twin for counts.

    Args:
        measure: takes the values and the options.
        counted: takes the counts before them.
        *values: names of the rows' values, or what gives one of the rows; where one is None, so is the metric.
        **options: of both.
    """

    def values_of(rows: Rows) -> list[Any] | None:
        given = [getattr(rows, value) if isinstance(value, str) else value(rows) for value in values]
        return None if any(value is None for value in given) else given

    def function(rows: Rows) -> Tensor | None:
        return None if (given := values_of(rows)) is None else measure(*given, **options)

    def of_counts(rows: Rows, counts: Tensor) -> Tensor | None:
        return None if (given := values_of(rows)) is None else counted(counts, *given, **options)

    return {"function": function, "of_counts": of_counts}


_SURE = ("confidence", "correct")


def _mean_over_draws(values: Tensor) -> Tensor:
    return values.double().mean(-1)


def _several(rows: AnswerRows) -> Tensor | None:
    return None if rows.share is None else rows.correct_per_draw


_OF_CLASSES = (
    Metric(
        name="accuracy",
        function=lambda rows: rows.correct,
        per_row=True,
        share_of=1.0,
        title="Accuracy",
        label="accuracy",
        better="higher",
        percent=True,
        meaning="the share of questions answered right",
    ),
    Metric(
        name="nll",
        function=lambda rows: log_losses(rows.log_probs, rows.labels),
        per_row=True,
        title="NLL",
        better="lower",
        meaning="negative log-likelihood, the average of −log p, p being the probability given to the right answer. "
        "Being sure and wrong costs most. It judges accuracy and calibration together",
    ),
    Metric(
        name="ece_15",
        **_both(expected_calibration_error, counted_calibration_error, *_SURE, bins=15),
        inflated=True,
        title="ECE",
        better="lower",
        percent=True,
        meaning="expected calibration error. Group the answers by stated confidence; on average over the groups, how "
        "far is the share of right answers from the confidence? 0 % is perfect",
    ),
    Metric(
        name="brier",
        function=lambda rows: brier_scores(rows.probs, rows.labels),
        per_row=True,
        title="Brier",
        label="Brier score",
        better="lower",
        meaning="the squared distance between the stated probabilities and the truth, summed over the answers "
        "(0 to 2). Like the NLL, but a single confident mistake cannot dominate it",
    ),
)

CONFIDENT = 0.9
"""Above it an answer is a confident one."""
_UNSHOWN: Any = {"shown": "nowhere"}
_ERROR: Any = {**_UNSHOWN, "better": "lower", "percent": True, "inflated": True}
_FURTHER = (
    Metric(name="predictive_entropy", function=lambda rows: entropy(rows.log_probs), per_row=True, **_UNSHOWN),
    Metric(name="expected_entropy", function=lambda r: _of(r, "draws", expected_entropy), per_row=True, **_UNSHOWN),
    Metric(name="mutual_information", function=lambda r: _of(r, "draws", mutual_information), per_row=True, **_UNSHOWN),
    *(
        Metric(
            name=f"ece_{bins}",
            **_both(expected_calibration_error, counted_calibration_error, *_SURE, bins=bins),
            **_ERROR,
        )
        for bins in (10, 20)
    ),
    Metric(
        name="ece_15_equal_mass",
        **_both(equal_mass_calibration_error, counted_equal_mass_error, *_SURE, bins=15),
        **_ERROR,
    ),
    Metric(
        name="mce_15",
        **_both(maximum_calibration_error, counted_maximum_error, *_SURE, bins=15),
        title="MCE",
        meaning="maximum calibration error, the gap of the worst group, however few answers it holds",
        **_ERROR,
    ),
    Metric(
        name="classwise_ece_15",
        **_both(classwise_calibration_error, counted_classwise_error, "probs", "labels", bins=15),
        **_ERROR,
    ),
    Metric(name="aurc", **_both(aurc, counted_aurc, *_SURE), title="AURC", better="lower", **_UNSHOWN),
    Metric(
        name="confident_errors",
        function=lambda rows: ~rows.correct & (rows.confidence > CONFIDENT),
        per_row=True,
        share_of=1.0,
        title="Confident errors",
        better="lower",
        percent=True,
        meaning=f"the share of questions answered wrong with a confidence above {CONFIDENT:g}",
        **_UNSHOWN,
    ),
    *(
        Metric(
            name=f"accuracy_at_{percent}",
            **_both(accuracy_at_coverage, counted_accuracy_at, *_SURE, coverage=percent / 100),
            share_of=percent / 100,
            better="higher",
            percent=True,
            **_UNSHOWN,
        )
        for percent in (80, 90, 95)
    ),
    Metric(
        name="auroc_errors",
        **_both(auroc, counted_auroc, lambda rows: -rows.confidence, lambda rows: ~rows.correct),
        title="AUROC of errors",
        better="higher",
        **_UNSHOWN,
    ),
)

_COMPLETIONS: Any = {"kind": "completions", "better": "lower"}
_OF_COMPLETIONS = (
    Metric(
        name="nll_per_token",
        **_both(_nll_per_token, _counted_nll_per_token, "log_likelihood", "num_tokens"),
        title="NLL per token",
        meaning="negative log-likelihood of the given completions, per token",
        **_COMPLETIONS,
    ),
    Metric(
        name="nll_per_row",
        function=lambda rows: -rows.log_likelihood,
        per_row=True,
        title="NLL per row",
        shown="terminal",
        **_COMPLETIONS,
    ),
    Metric(
        name="perplexity",
        **_both(_perplexity, _counted_perplexity, "log_likelihood", "num_tokens"),
        title="Perplexity",
        digits=2,
        shown="terminal",
        **_COMPLETIONS,
    ),
)

_ANSWERS: Any = {"kind": "final_answers"}
_SHARES: Any = {**_ANSWERS, "per_row": True, "share_of": 1.0, "percent": True}
_OF_ANSWERS = (
    Metric(
        name="exact_match",
        function=lambda rows: rows.correct,
        title="Exact match",
        better="higher",
        meaning="the share of prompts whose final answer is right; of several draws the answer that most of them give",
        **_SHARES,
    ),
    Metric(name="answered", function=lambda rows: rows.answered, better="higher", **_SHARES, **_UNSHOWN),
    Metric(
        name="exact_match_per_draw",
        function=_several,
        title="… per draw",
        better="higher",
        meaning="the share of right answers of a single draw, on average over the draws",
        **_SHARES,
    ),
    Metric(name="agreement", function=lambda rows: rows.share, title="Agreement", shown="terminal", **_SHARES),
    Metric(
        name="agreement_ece_10",
        **_both(expected_calibration_error, counted_calibration_error, "share", "correct", bins=10),
        title="ECE of agreement",
        better="lower",
        percent=True,
        meaning="expected calibration error of the agreement, the share of the draws that give the answer, taken as "
        "the probability that it is right. 0 % is perfect",
        **_ANSWERS,
    ),
    *(
        Metric(
            name=f"{words}_auroc",
            **_both(auroc, counted_auroc, value, "correct"),
            title=f"AUROC, {words}",
            better="higher",
            shown="terminal",
            **_ANSWERS,
        )
        for words, value in (("agreement", "share"), ("likelihood", "log_likelihood"))
    ),
    Metric(
        name="finished",
        function=lambda r: _of(r, "finished", _mean_over_draws),
        per_row=True,
        title="Finished",
        better="higher",
        percent=True,
        shown="terminal",
        **_ANSWERS,
    ),
    Metric(
        name="tokens_per_text",
        function=lambda r: _of(r, "num_tokens", _mean_over_draws),
        per_row=True,
        **_ANSWERS,
        **_UNSHOWN,
    ),
)

_OUT_OF_SCOPE = tuple(
    Metric(
        name=f"{name}_{score}",
        kind="out_of_scope",
        **_both(measure, counted, score, "outside"),
        title=f"{name.upper()}, {words}",
        better="higher" if name == "auroc" else "lower",
        percent=name == "fpr95",
        meaning=f"are rows of no known class told from the test rows by {words}? {scale}",
    )
    for score, words in (("entropy", "entropy"), ("mutual_information", "mutual information"))
    for name, measure, counted, scale in (
        ("auroc", auroc, counted_auroc, "1 is always, 0.5 is chance"),
        ("fpr95", fpr95, counted_fpr95, "The share of false alarms when 95 % of the foreign rows are found"),
    )
)


def _check(name: str, metric: Any) -> None:
    if not isinstance(metric, Metric) or metric.name != name:
        raise ValueError(f"{name!r} is {metric!r}; it must be a varlora.metrics.Metric of that name.")


METRICS: Registry[Metric] = Registry(
    "varlora.metrics",
    {metric.name: metric for metric in (*_OF_CLASSES, *_FURTHER, *_OF_COMPLETIONS, *_OF_ANSWERS, *_OUT_OF_SCOPE)},
    _check,
)


def register_metric(metric: Metric) -> Metric:
    """Adds a metric, which every table of its kind then shows; the same name may be given again, as in a notebook.

    Args:
        metric: With `shown="everywhere"` it is a column in terminal, report, page and model card.

    Returns:
        The metric.

    Raises:
        ValueError: varlora has one of that name, or it is no `Metric`.

    Example:
        def spherical(rows: ClassRows) -> Tensor:
            return rows.probs.gather(-1, rows.labels[..., None])[..., 0] / rows.probs.norm(dim=-1)

        register_metric(Metric(
            name="spherical", function=spherical, per_row=True, title="Spherical", better="higher",
            meaning="the probability of the right answer over the length of the vector of all",
        ))
    """
    METRICS.register(getattr(metric, "name", ""), metric)
    return metric


def metric_named(name: str) -> Metric:
    """The metric of a name.

    Raises:
        ValueError: there is none.

    Example:
        >>> metric_named("ece_15").title
        'ECE'
    """
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; {nearest(name, METRICS)}")
    return METRICS[name]


def shown_metrics(*kinds: Kind, where: Shown = "everywhere") -> tuple[str, ...]:
    """The names of the metrics that tables show, in the order of their columns.

    Args:
        *kinds: of rows; "classes" if none is given.
        where: "everywhere" for those of the report, "terminal" for those of the terminal, too.

    Example:
        >>> shown_metrics()
        ('accuracy', 'nll', 'ece_15', 'brier')
    """
    levels = ("everywhere",) if where == "everywhere" else ("everywhere", "terminal")
    return tuple(m.name for m in METRICS.values() if m.kind in (kinds or ("classes",)) and m.shown in levels)
